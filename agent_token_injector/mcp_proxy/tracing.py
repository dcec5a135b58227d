"""OpenTelemetry spans of what clients ask, one for each request that is forwarded or refused.

Names and attributes are those of the semantic conventions for MCP (open-telemetry/semantic-conventions-genai,
docs/gen-ai/mcp.md, server spans), with what only this proxy knows under `handoff.`. No attribute holds a credential: each
that a client or a server chose goes through the redactor first, and a session's id, which is a capability over HTTP, is
shown as a digest. Arguments and results are not recorded.

The SDK is imported when a tracer is configured and not before. Spans leave in a thread of the SDK's, from a queue that is
bounded: a collector that is slow or gone costs spans, and never a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote, urlsplit

from agent_token_injector.audit.event import Decision
from agent_token_injector.mcp_proxy import methods, wire
from agent_token_injector.mcp_proxy.eras import STATELESS_VERSIONS, Era
from agent_token_injector.mcp_proxy.ledger import printable, unaudited
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from agent_token_injector.masking import Redactor
    from agent_token_injector.mcp_proxy.calls import Call, Client
    from agent_token_injector.mcp_proxy.eras import Refused
    from agent_token_injector.names import HandoffId

MAX_QUEUE: Final = 2048
"""Spans that may wait for the collector. Beyond it the oldest are dropped."""
EXPORT_SECONDS: Final = 5.0
DELAY_SECONDS: Final = 0.5
"""How long an ended span may wait for others to leave with."""
FLUSH_SECONDS: Final = 1.0
"""What the collector is given to take the last spans when the proxy ends."""
SWITCH_SECONDS: Final = 0.0005
"""How soon the exporting thread lets the event loop's go on; ten times sooner than Python's default."""
MAX_MESSAGE: Final = 256
SERVICE: Final = "handoff-mcp-proxy"
UNKNOWN_METHOD: Final = "mcp request"
"""The name of a span whose method is none of the protocol's: a name is never the agent's to choose."""

_METHODS: Final = frozenset({"initialize"}.union(*methods.CLIENT_REQUESTS.values(), *methods.TASK_METHODS.values()))
_TRACE_KEYS: Final = ("traceparent", "tracestate")
_MAX_TRACE: Final = 512
_UNRECORDED: Final = (Reason.AUDIT.value, (unaudited().code, unaudited().message))
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def target_from(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Where spans go by the operator's environment, as the engine's configuration has it; None for nowhere.

    Reads the variables of the OpenTelemetry specification: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or
    `OTEL_EXPORTER_OTLP_ENDPOINT` and `/v1/traces`; `..._HEADERS` and `..._CERTIFICATE` likewise; `OTEL_SERVICE_NAME` and
    `OTEL_RESOURCE_ATTRIBUTES`. OTLP over HTTP alone is spoken, and only with the extra `otel` installed: with
    `OTEL_EXPORTER_OTLP_PROTOCOL=grpc`, another `OTEL_TRACES_EXPORTER` or `OTEL_SDK_DISABLED=true` there are no spans.
    A setting that cannot be read is ignored, as the specification wants it. The headers may be credentials.
    """

    def setting(name: str) -> str:
        return environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""

    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    if not endpoint and (base := environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")):
        endpoint = f"{base.rstrip('/')}/v1/traces"
    wanted = (
        _is_url(endpoint)
        and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environ.get("OTEL_TRACES_EXPORTER", "") in ("", "otlp")
        and setting("PROTOCOL") != "grpc"
    )
    if not wanted or not _installed():
        return None
    headers = {name: value for name, value in _pairs(setting("HEADERS")).items() if _HEADER_NAME.fullmatch(name)}
    return {
        "endpoint": endpoint,
        "headers": {name: value for name, value in headers.items() if value.isprintable() and value.isascii()},
        "certificate": setting("CERTIFICATE") or None,
        "resource": {
            "service.name": SERVICE,
            **_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")),
            **({"service.name": name} if (name := environ.get("OTEL_SERVICE_NAME")) else {}),
        },
    }


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:
        # A package above it is missing.
        return False


def _pairs(text: str) -> dict[str, str]:
    """`a=b,c=d`, percent-encoded (W3C Baggage)."""
    split = (pair.partition("=") for pair in text.split(","))
    return {name.strip(): unquote(value.strip()) for name, equals, value in split if equals and name.strip()}


class Tracing:
    """Makes the spans of one handoff. Lives on the engine's event loop; nothing in it waits, but for `close`.

    Args:
        provider: the SDK's, for us alone; `close` ends it.
        handoff: whose spans they are.
        redactor: the one of the moment.
    """

    def __init__(self, provider: TracerProvider, *, handoff: HandoffId, redactor: Callable[[], Redactor]) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("agent_token_injector.mcp_proxy")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._redactor = redactor
        self._common = {"handoff.id": str(handoff), "handoff.task_slug": str(handoff.slug)}

    @classmethod
    def to(cls, target: Mapping[str, Any], *, handoff: HandoffId, redactor: Callable[[], Redactor]) -> Self | None:
        """Spans that go to `target` (`target_from`); None where the SDK cannot be imported."""
        try:
            import requests
            from opentelemetry.exporter.otlp.proto.http import Compression
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError:
            return None
        # It would write to stderr from the event loop.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        sys.setswitchinterval(SWITCH_SECONDS)
        session = requests.Session()
        # Neither a .netrc nor a redirect decides where our headers go.
        session.trust_env = False
        session.max_redirects = 0
        exporter = OTLPSpanExporter(
            endpoint=target["endpoint"],
            headers=dict(target["headers"]),
            certificate_file=target["certificate"],
            timeout=EXPORT_SECONDS,
            compression=Compression.Gzip,
            session=session,
        )
        # Always on: by default the client's `traceparent` would decide whether its calls are seen.
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(dict(target["resource"])), shutdown_on_exit=False
        )
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_QUEUE,
                schedule_delay_millis=DELAY_SECONDS * 1000,
                max_export_batch_size=MAX_QUEUE // 8,
            )
        )
        return cls(provider, handoff=handoff, redactor=redactor)

    def began(self, call: Call, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the span of a call that goes on; returns its `_meta`, in which the span is the server's parent."""
        attributes = self._attributes(call.method, call.id, call.era, call.client)
        attributes["handoff.decision"] = Decision.ALLOWED.value
        name = call.method
        if call.allowed is not None:
            name = f"{call.method} {call.name}"
            attributes["handoff.server"] = call.allowed.server
            attributes |= _tool(self._shown(call.name))
        elif call.method == "prompts/get":
            prompt = attributes["gen_ai.prompt.name"] = self._shown(call.subject)
            name = f"{call.method} {prompt}"
        elif call.method.startswith("resources/") and call.subject:
            attributes["mcp.resource.uri"] = self._shown(call.subject)
        call.span = self._start(name, meta, attributes)
        carried = {key: value for key, value in meta.items() if key not in _TRACE_KEYS}
        self._propagator.inject(carried, self._trace.set_span_in_context(call.span))
        return carried

    def ended(
        self, call: Call, *, reason: str, masked: int, is_error: bool, problem: tuple[int, str] | None
    ) -> Callable[[bool], None]:
        """What ends a call's span, once it is known whether its outcome is `recorded`.

        Args:
            call: what ended.
            reason: why, when not by its server's answer.
            masked: how many secrets were masked in it.
            is_error: whether the client is told of a failure.
            problem: the JSON-RPC error that it is told: its code, and its message, masked.
        """
        span = call.span

        def end(recorded: bool) -> None:
            if recorded:
                self._end(span, reason, problem, masked=masked, is_error=is_error)
            else:
                self._end(span, *_UNRECORDED)

        return end

    def unrecorded(self, call: Call) -> None:
        """End the span of a call that was not carried out, because that could not be put on record."""
        if call.span is not None:
            call.span.set_attribute("handoff.decision", Decision.REFUSED.value)
        self._end(call.span, *_UNRECORDED)

    def refused(self, request: wire.Request, refused: Refused, era: Era | None, client: Client | None) -> None:
        """The span of a request that went nowhere."""
        known = request.method in _METHODS
        method = request.method if known else self._shown(request.method)
        attributes = self._attributes(method, request.id, era, client)
        attributes["handoff.decision"] = Decision.REFUSED.value
        if request.method == "tools/call":
            attributes |= _tool(self._shown(request.params.get("name")))
        meta = request.params.get("_meta")
        span = self._start(method if known else UNKNOWN_METHOD, meta if isinstance(meta, dict) else {}, attributes)
        message = printable(refused.message, self._redactor(), MAX_MESSAGE)
        self._end(span, str(refused.reason), (refused.code, message))

    async def close(self) -> None:
        """Send what is queued, for FLUSH_SECONDS at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            # The loop may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        # A daemon, and no executor's thread: the process does not wait for it.
        threading.Thread(target=shut_down, name="mcp-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()

    def _shown(self, text: object) -> str:
        return printable(text, self._redactor())

    def _attributes(
        self, method: str, request_id: wire.MessageId, era: Era | None, client: Client | None
    ) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            **self._common,
            "mcp.method.name": method,
            "jsonrpc.request.id": self._shown(str(request_id)),
            "network.transport": "pipe" if client is not None and client.stdio else "tcp",
        }
        version = STATELESS_VERSIONS[-1] if era is Era.STATELESS else "" if client is None else client.version
        if version:
            attributes["mcp.protocol.version"] = version
        if client is not None and client.key:
            attributes["mcp.session.id"] = hashlib.sha256(client.key.encode()).hexdigest()[:32]
        return attributes

    def _start(self, name: str, meta: Mapping[str, Any], attributes: Mapping[str, str | int]) -> Span:
        return self._tracer.start_span(
            name, self._parent(meta), kind=self._trace.SpanKind.SERVER, attributes=dict(attributes)
        )

    def _parent(self, meta: Mapping[str, Any]) -> Context:
        """The client's span, where it told of one as W3C Trace Context has it."""
        found = {
            key: meta[key] for key in _TRACE_KEYS if isinstance(meta.get(key), str) and len(meta[key]) <= _MAX_TRACE
        }
        # An empty context, and not the current one: there is none that a request could be part of.
        return self._propagator.extract(found, self._trace.set_span_in_context(self._trace.INVALID_SPAN))

    def _end(
        self,
        span: Span | None,
        reason: str,
        problem: tuple[int, str] | None,
        *,
        masked: int = 0,
        is_error: bool = False,
    ) -> None:
        if span is None:
            return
        if reason:
            span.set_attribute("handoff.reason", reason)
        span.set_attribute("handoff.masked", masked)
        if problem is not None:
            code, message = problem
            span.set_attribute("rpc.response.status_code", str(code))
            span.set_attribute("error.type", str(code))
            span.set_status(self._trace.StatusCode.ERROR, message[:MAX_MESSAGE])
        elif is_error:
            # A tool's own failure is a result to JSON-RPC (CallToolResult.isError).
            span.set_attribute("error.type", "tool_error")
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()


def _tool(name: str) -> dict[str, str]:
    return {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
