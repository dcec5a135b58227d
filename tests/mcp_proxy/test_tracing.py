"""OpenTelemetry spans, as a collector on the loopback receives them."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent_token_injector.mcp_proxy import McpProxy, StdioServer
from agent_token_injector.mcp_proxy.tracing import target_from
from tests.mcp_proxy.harness import GRANTED, HANDOFF, META, TOKEN, RawClient, Rig, wait_until
from tests.mcp_proxy.load import StdioLine, rss_mib
from tests.requirements import requirement

LOADED = str(Path(__file__).with_name("servers") / "loaded.py")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@dataclass
class Collector:
    """An OTLP/HTTP receiver. `status` is what it answers; while `held` is set it answers nobody."""

    status: int = 200
    location: str | None = None
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                collector.bodies.append(body)
                if collector.held.is_set():
                    collector.released.wait(60)
                self.send_response(collector.status)
                if collector.location is not None:
                    self.send_header("Location", collector.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def environ(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}"}

    def batches(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> list[Span]:
        return [
            span
            for batch in self.batches()
            for of_resource in batch.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def wait_for(self, number: int) -> list[Span]:
        wait_until(lambda: len(self.spans()) >= number, f"{number} spans arrive")
        return self.spans()


def attributes(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


def traced(rig: Rig, collector: Collector, *wanted: str, **more: Any) -> McpProxy:
    return rig.start(wanted, environ=collector.environ, **more)


@requirement("mcp.traced")
def test_a_call_is_one_span_as_the_conventions_for_mcp_have_it(rig: Rig, collector: Collector) -> None:
    client = RawClient(traced(rig, collector, "echo").url)
    client.initialize()
    client.ask("tools/list", message_id=1)
    assert client.call("echo", {"text": "what is said"}, message_id="my-7").status == 200
    (span,) = collector.wait_for(1)
    assert span.name == "tools/call echo"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert not span.parent_span_id
    assert attributes(span) == {
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": "2025-11-25",
        "mcp.session.id": hashlib.sha256(str(client.session).encode()).hexdigest()[:32],
        "jsonrpc.request.id": "my-7",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "echo",
        "network.transport": "tcp",
        "handoff.id": str(HANDOFF),
        "handoff.task_slug": "founders-checkout",
        "handoff.decision": "allowed",
        "handoff.server": "scripted",
        "handoff.masked": 0,
    }
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 10 * 10**9
    (batch,) = collector.batches()
    assert attributes(batch.resource_spans[0].resource)["service.name"] == "handoff-mcp-proxy"


@requirement("mcp.traced-no-secret")
def test_no_credential_no_argument_and_no_result_leaves_with_a_span(rig: Rig, collector: Collector) -> None:
    client = RawClient(traced(rig, collector, "echo", "reveal", "fail").url)
    client.initialize()
    secret = GRANTED.get_secret_value()
    client.call("echo", {"text": "an argument of the agent"})
    assert secret not in client.call("reveal", message_id=secret).text
    client.call("fail")
    client.call(f"no {secret}")
    client.ask(f"{secret}/x")
    spans = collector.wait_for(5)
    everything = b"".join(collector.bodies)
    for never in (secret, TOKEN.get_secret_value(), str(client.session), "an argument of the agent"):
        assert never.encode() not in everything
    revealed, failed = spans[1:3]
    assert attributes(revealed)["handoff.masked"] == 1
    assert attributes(revealed)["jsonrpc.request.id"] == "********"
    assert (failed.status.code, failed.status.message) == (Status.STATUS_CODE_ERROR, "no: ********")


@requirement("mcp.traced")
def test_the_clients_span_is_the_parent_and_ours_is_the_servers_whatever_the_client_says_of_sampling(
    rig: Rig, collector: Collector
) -> None:
    client = RawClient(traced(rig, collector, "echo").url)
    client.initialize()
    for number, flags in enumerate(("01", "00")):
        meta = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}", "tracestate": "rojo=1", "baggage": "a=b"}
        client.ask("tools/call", {"name": "echo", "arguments": {"text": "x"}, "_meta": meta})
        span = collector.wait_for(number + 1)[number]
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert rig.received()[-1]["params"]["_meta"] == {
            "traceparent": f"00-{TRACE}-{span.span_id.hex()}-01",
            "tracestate": "rojo=1",
            "baggage": "a=b",
        }


@requirement("mcp.traced")
@pytest.mark.parametrize("traceparent", ["", "00-x-y-01", f"00-{'0' * 32}-{PARENT}-01", "9" * 2000, 7, None])
def test_a_traceparent_that_is_none_begins_a_trace_of_ours(rig: Rig, collector: Collector, traceparent: object) -> None:
    client = RawClient(traced(rig, collector, "echo").url)
    params = {"name": "echo", "arguments": {"text": "x"}, "_meta": {**META, "traceparent": traceparent}}
    assert client.ask_stateless("tools/call", params).status == 200
    (span,) = collector.wait_for(1)
    assert not span.parent_span_id
    told = rig.received()[-1]["params"]
    assert told["_meta"]["traceparent"].startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-")


@requirement("mcp.traced")
def test_stdio_is_a_pipe_and_a_stateless_request_has_no_session(rig: Rig, collector: Collector) -> None:
    proxy = traced(rig, collector, "echo")
    with StdioLine(proxy) as line:
        line.initialize()
        assert line.call("echo", {"text": "x"}, message_id=3)["id"] == 3
    RawClient(proxy.url).call_stateless("echo", {"text": "x"})
    over_stdio, stateless = map(attributes, collector.wait_for(2))
    assert over_stdio["network.transport"] == "pipe"
    assert over_stdio["mcp.protocol.version"] == "2025-11-25"
    assert stateless["network.transport"] == "tcp"
    assert stateless["mcp.protocol.version"] == "2026-07-28"
    assert "mcp.session.id" not in stateless


@requirement("mcp.traced-refusals")
def test_a_refused_request_is_a_span_with_an_error_whose_name_the_agent_did_not_choose(
    rig: Rig, collector: Collector
) -> None:
    client = RawClient(traced(rig, collector, "echo").url)
    client.initialize()
    client.call("forbidden")
    client.ask("made/up\n" + "x" * 80)
    unlisted, unknown = collector.wait_for(2)
    assert unlisted.name == "tools/call"
    shown = attributes(unlisted)
    assert shown["gen_ai.tool.name"] == "forbidden"
    assert shown["handoff.decision"] == "refused"
    assert shown["handoff.reason"] == rig.events("tool.denied")[0].reason
    assert shown["error.type"] == shown["rpc.response.status_code"] == "-32602"
    assert (unlisted.status.code, unlisted.status.message) == (Status.STATUS_CODE_ERROR, "Unknown tool: forbidden")
    assert unknown.name == "mcp request"
    assert attributes(unknown)["mcp.method.name"] == "made/up\\n" + "x" * 80


@requirement("mcp.traced-refusals")
def test_a_tools_failure_a_cut_call_and_what_cannot_be_put_on_record_are_errors(
    impatient: Rig, collector: Collector
) -> None:
    rig = impatient
    proxy = traced(
        rig, collector, "tool_error", "wait", "echo", servers=[StdioServer("loaded", (sys.executable, LOADED))]
    )
    client = RawClient(proxy.url)
    client.initialize()
    client.call("tool_error")
    with rig.audit_held():
        assert "Audit unavailable" in client.call("echo").error["message"]
    with StdioLine(proxy) as line:
        line.initialize()
        line.begin("wait", message_id=5)
        wait_until(lambda: any(event.target == "loaded/wait" for event in rig.events()), "the call is on record")
        rig.stands("revoked")
        assert "revoked" in line.answer()["error"]["message"]
    failed, unrecorded, cut = (attributes(span) for span in collector.wait_for(3))
    assert failed["error.type"] == "tool_error"
    assert (unrecorded["handoff.decision"], unrecorded["handoff.reason"]) == ("refused", "audit-unavailable")
    assert (cut["handoff.decision"], cut["handoff.reason"], cut["error.type"]) == ("allowed", "revoked", "-32001")
    assert all(span.status.code == Status.STATUS_CODE_ERROR for span in collector.spans())


@requirement("mcp.traced-never-holds-up")
def test_a_collector_that_hangs_costs_spans_and_no_call(rig: Rig, collector: Collector) -> None:
    collector.held.set()
    proxy = traced(rig, collector, "echo", servers=[StdioServer("loaded", (sys.executable, LOADED))])
    with StdioLine(proxy) as line:
        line.initialize()
        line.call("echo", {"text": "x"})
        wait_until(lambda: collector.bodies, "the collector is sent a span")
        before = rss_mib(proxy)
        for _ in range(6):
            line.calls("echo", [{"text": "y" * 100}] * 1000)
        assert rss_mib(proxy) - before < 40
        assert len(collector.bodies) == 1
    began = time.monotonic()
    proxy.close()
    assert time.monotonic() - began < 4


@requirement("mcp.traced-never-holds-up")
@pytest.mark.parametrize("status", [307, 400, 503])
def test_a_collector_that_refuses_costs_spans_and_no_call_and_leads_nobody_elsewhere(
    rig: Rig, collector: Collector, status: int
) -> None:
    with Collector() as elsewhere:
        collector.status, collector.location = status, elsewhere.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
        environ = {**collector.environ, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=of%20the%20collector"}
        client = RawClient(rig.start(["echo"], environ=environ).url)
        client.initialize()
        client.call("echo", {"text": "x"})
        wait_until(lambda: collector.bodies, "the collector is sent a span")
        assert client.call("echo", {"text": "x"}).status == 200
        rig.close()
        assert collector.requests[0][0] == "/v1/traces"
        assert collector.requests[0][1]["x-key"] == "of the collector"
        assert elsewhere.requests == []


@requirement("mcp.traced-never-holds-up")
def test_a_collector_that_is_not_there_costs_no_call_and_closing_is_not_held_up(rig: Rig) -> None:
    with Collector() as gone:
        environ = gone.environ
    proxy = rig.start(["echo"], environ=environ)
    client = RawClient(proxy.url)
    client.initialize()
    assert client.call("echo", {"text": "x"}).status == 200
    began = time.monotonic()
    proxy.close()
    assert time.monotonic() - began < 4


@requirement("mcp.traced")
def test_the_last_spans_are_sent_when_the_proxy_is_closed(rig: Rig, collector: Collector) -> None:
    proxy = traced(rig, collector, "echo")
    client = RawClient(proxy.url)
    client.initialize()
    client.call("echo", {"text": "x"})
    proxy.close()
    assert [span.name for span in collector.spans()] == ["tools/call echo"]


@requirement("mcp.traced-when-configured")
def test_without_a_collector_nothing_of_opentelemetry_is_imported(rig: Rig) -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            "import agent_token_injector.mcp_proxy.engine, sys, json;print(json.dumps([*sys.modules]))",
        ],
        capture_output=True,
        check=True,
    )
    assert not [
        name for name in json.loads(told.stdout) if name.split(".")[0] in {"opentelemetry", "google", "requests"}
    ]
    client = RawClient(rig.start(["echo"], environ={}).url)
    client.initialize()
    client.call("echo", {"text": "x"})
    assert "_meta" not in rig.received()[-1]["params"]


BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318/"}


@requirement("mcp.traced-when-configured")
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "unix:/run/collector"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"},
        {**BASE, "OTEL_SDK_DISABLED": "true"},
        {**BASE, "OTEL_TRACES_EXPORTER": "none"},
        {**BASE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {**BASE, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_spans_go_nowhere_unless_the_operator_has_set_where(environ: dict[str, str]) -> None:
    assert target_from(environ) is None


@requirement("mcp.traced-when-configured")
def test_the_operators_settings_are_those_of_the_specification() -> None:
    plain = target_from(BASE)
    assert plain == {
        "endpoint": "http://127.0.0.1:4318/v1/traces",
        "headers": {},
        "certificate": None,
        "resource": {"service.name": "handoff-mcp-proxy"},
    }
    assert target_from(
        {
            **BASE,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector.example/spans",
            "OTEL_EXPORTER_OTLP_HEADERS": "never=used",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-key=a%3Db, broken, x-bad=%0Aline,b ad=1,=2",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/etc/ca.pem",
            "OTEL_SERVICE_NAME": "ours",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,deployment.environment.name=ci",
        }
    ) == {
        "endpoint": "https://collector.example/spans",
        "headers": {"x-key": "a=b"},
        "certificate": "/etc/ca.pem",
        "resource": {"service.name": "ours", "deployment.environment.name": "ci"},
    }
