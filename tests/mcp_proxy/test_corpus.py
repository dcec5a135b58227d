"""The hostile corpus through the real proxy: every way round, in both eras, over both fronts, before every server.

What each file says a client must see is what it sees, and the server, which counts, is asked for nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy import HttpServer, McpProxy, StdioServer
from agent_token_injector.mcp_proxy.wire import INVALID_REQUEST
from tests.mcp_proxy import corpus
from tests.mcp_proxy.corpus.fronts import StdioClient, canonical, request, stdio_client
from tests.mcp_proxy.corpus.hostile import HttpHostile
from tests.mcp_proxy.harness import TOKEN, RawClient, Rig, wait_until
from tests.mcp_proxy.reference import LINES, TRANSPORTS, sdk_server
from tests.requirements import requirement

F = TypeVar("F", bound=Callable[..., Any])
CASES = corpus.load()
MESSAGES = [case for case in CASES if case["kind"] == "message"]
SERVERS = [case for case in CASES if case["kind"] == "server"]
SDKS = [f"{line} {transport}" for line in LINES for transport in TRANSPORTS]
META_SENT = {
    "progressToken",
    "traceparent",
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
}
_numbers = itertools.count(1)


@dataclass
class Log:
    """A file that a server writes, read on from where it was read before."""

    path: Path
    _read: int = 0

    def more(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        self._read += len(found)
        return found.splitlines(keepends=True)


@dataclass
class Bench:
    """A proxy before one server, with a client on each front and in each era."""

    rig: Rig
    log: Log
    scripted: bool
    session: RawClient
    stateless: RawClient
    stdio: StdioClient
    last_id: int = 0

    def called(self) -> list[tuple[str, Any]]:
        """What the server was asked for since this was last asked, by tool and arguments."""
        lines = self.log.more()
        if not self.scripted:
            return [(one["name"], one["arguments"]) for one in map(json.loads, lines)]
        found = []
        for line in lines:
            message = canonical(line)
            if message["method"] != "tools/call":
                continue
            assert type(message["id"]) is int
            assert message["id"] > self.last_id
            self.last_id = message["id"]
            assert message.keys() == {"jsonrpc", "id", "method", "params"}
            assert message["params"].keys() <= {"name", "arguments", "_meta"}
            assert message["params"].get("_meta", {}).keys() <= META_SENT
            found.append((message["params"]["name"], message["params"]["arguments"]))
        return found

    def over_http(self, case: dict[str, Any], era: str) -> list[Any]:
        client = self.session if era == "handshake" else self.stateless
        usual, more = corpus.headers(case, era)
        given: Any = [*usual.items(), *more] if more else usual
        verb, path = case.get("verb", "POST"), case.get("path")
        answer = client.send(corpus.body(case, era), given, method=verb, path=path)
        if answer.headers.get("content-type") != "application/json":
            return [answer.status, None]
        found = outcome(canonical(answer.body + b"\n"))
        # What the front refuses before the message is looked at is refused whatever the form of its answer.
        unheard = case["expect"]["http"][era][1] is None and found == INVALID_REQUEST
        return [answer.status, None if unheard else found]

    def over_stdio(self, case: dict[str, Any], era: str) -> list[Any]:
        self.stdio.say(corpus.body(case, era) + b"\n")
        return [outcome(canonical(self.stdio.line())) for _ in case["expect"]["stdio"]]

    def attempt(self, case: dict[str, Any]) -> list[str]:
        """Try one case wherever it applies, and return the names of the tools that its file lets be called."""
        reaches: list[str] = []
        for era in case["eras"]:
            if "http" in case["fronts"]:
                assert (era, self.over_http(case, era)) == (era, case["expect"]["http"][era])
                reaches += case["reaches"]["http"]
            if "stdio" in case["fronts"]:
                assert (era, self.over_stdio(case, era)) == (era, case["expect"]["stdio"])
                reaches += case["reaches"]["stdio"]
        return reaches

    def settle(self, reaches: list[str]) -> None:
        """Show by an allowed call on each front that the server was asked for these tools, and for nothing else."""
        probe = f"probe-{next(_numbers)}"
        assert self.session.call("echo", {"text": probe}).status == 200
        # Whatever a client was sent beyond what its file says would stand before this answer.
        assert "result" in self.stdio.call("echo", {"text": probe}, message_id=probe)
        *found, first, second = self.called()
        assert first == second == ("echo", {"text": probe})
        assert [name for name, _ in found] == reaches


def outcome(message: dict[str, Any]) -> Any:
    return "result" if "result" in message else message.get("method") or message["error"]["code"]


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The server that the parameter names, and the proxy before it, for all the cases."""
    path = tmp_path_factory.mktemp("corpus")
    with ExitStack() as stack:
        rig = Rig(path)
        stack.callback(rig.close)
        if request.param == "scripted":
            server: Any = rig.scripted("counting")
            log = rig.log
        else:
            line, transport = request.param.split()
            log = path / "calls"
            made = stack.enter_context(sdk_server(line, transport, log))
            server = HttpServer("counting", made.url)
            if transport == "stdio":
                server = StdioServer("counting", made.argv, env=made.env)
        proxy = rig.start(["echo"], servers=[server])
        session = RawClient(proxy.url)
        session.initialize()
        stdio = stack.enter_context(stdio_client(proxy.socket_path))
        stdio.initialize()
        yield Bench(rig, Log(log), request.param == "scripted", session, RawClient(proxy.url), stdio)


def _tagged(case: dict[str, Any]) -> Any:
    return pytest.param(
        case, id=f"{case['item']:02}-{case['name']}", marks=pytest.mark.requirement(case["requirement"])
    )


@requirement("corpus.refused", "D8.nothing-else-reaches")
@pytest.mark.parametrize("bench", ["scripted"], indirect=True)
@pytest.mark.parametrize("case", [_tagged(case) for case in MESSAGES])
def test_a_way_round_ends_as_its_file_says_and_nothing_else_reaches_the_server(
    bench: Bench, case: dict[str, Any]
) -> None:
    bench.settle(bench.attempt(case))


@requirement("corpus.sdk-lines", "D8.nothing-else-reaches")
@pytest.mark.parametrize("bench", SDKS, indirect=True)
@pytest.mark.parametrize("item", sorted({case["item"] for case in MESSAGES}))
def test_every_way_round_ends_the_same_before_servers_on_every_line_of_the_sdks(bench: Bench, item: int) -> None:
    reaches = []
    for case in MESSAGES:
        if case["item"] == item and not case.get("heavy"):
            try:
                reaches += bench.attempt(case)
            except AssertionError as error:
                error.add_note(f"{item:02}-{case['name']}")
                raise
    bench.settle(reaches)


@dataclass
class Before:
    """A proxy before the hostile server, which speaks `transport`."""

    rig: Rig
    transport: str
    received: Callable[[], list[dict[str, Any]]]
    url: str = ""
    requests: Sequence[tuple[str, dict[str, str], Any]] = ()
    """Over HTTP: verb, headers and message of each request."""

    def start(self, tools: Sequence[Any] = ("echo", "play", "wait"), **more: Any) -> McpProxy:
        server: Any = HttpServer("hostile", self.url, protocol="2025-11-25")
        if self.transport == "stdio":
            env = {"HOSTILE_LOG": str(self.rig.path / "hostile.log")}
            server = StdioServer("hostile", (sys.executable, str(corpus.HOSTILE)), env=env)
        return self.rig.start(list(tools), servers=[server], **more)

    def asked(self) -> list[Any]:
        """What its own questions were answered with, so far."""
        return [outcome(one) for one in self.received() if "method" not in one]


@contextmanager
def hostile_server(path: Path, transport: str) -> Iterator[Before]:
    with ExitStack() as stack:
        rig = Rig(path)
        stack.callback(rig.close)
        if transport == "http":
            server = HttpHostile()
            stack.callback(server.close)
            yield Before(rig, transport, server.received, server.url, server.requests)
            return
        log = path / "hostile.log"
        yield Before(rig, transport, lambda: [json.loads(line) for line in log.read_text().splitlines()])


@pytest.fixture(params=TRANSPORTS)
def before(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Before]:
    """The hostile server over each transport, for one test."""
    with hostile_server(tmp_path, request.param) as made:
        yield made


@dataclass
class Stage:
    """A proxy before the hostile server for many cases, with a client on each front."""

    before: Before
    session: RawClient
    stdio: StdioClient
    answered: int = 0

    def answers(self, count: int) -> list[Any]:
        """What the server's own questions were answered with since this was last asked."""
        wait_until(lambda: len(self.before.asked()) >= self.answered + count, "the server's questions are answered")
        found = self.before.asked()[self.answered :]
        self.answered += len(found)
        return found


@pytest.fixture(scope="module", params=TRANSPORTS)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ExitStack() as stack:
        before = stack.enter_context(hostile_server(tmp_path_factory.mktemp("hostile"), request.param))
        proxy = before.start()
        session = RawClient(proxy.url)
        session.initialize()
        stdio = stack.enter_context(stdio_client(proxy.socket_path))
        stdio.initialize()
        yield Stage(before, session, stdio)


def ended(message: dict[str, Any]) -> Any:
    """How a call of `play` ended: the server's last word, or an error code."""
    return message["result"]["content"][0]["text"] if "result" in message else message["error"]["code"]


@requirement("corpus.servers", "mcp.upstream-cannot-initiate")
@pytest.mark.parametrize("case", [_tagged(case) for case in SERVERS])
def test_what_a_hostile_server_says_ends_as_its_file_says(stage: Stage, case: dict[str, Any]) -> None:
    ends = case["expect"]["ends"]
    ends = ends[stage.before.transport] if isinstance(ends, dict) else ends
    named = {"case": f"{case['item']:02}-{case['name']}"}

    answer = stage.session.call("play", named)
    assert answer.headers["content-type"] == "application/json"
    assert ended(canonical(answer.body + b"\n")) == ends
    assert stage.answers(len(case["expect"]["answers"])) == case["expect"]["answers"]

    wait = request("tools/call", {"name": "wait", "arguments": {}}, message_id="w")
    stage.stdio.say(wait + b"\n")
    stage.stdio.say(request("tools/call", {"name": "play", "arguments": named}) + b"\n")
    *seen, last = stage.stdio.until(1)
    assert ended(last) == ends
    probe = f"probe-{next(_numbers)}"
    stage.stdio.say(request("tools/call", {"name": "echo", "arguments": {}}, message_id=probe) + b"\n")
    *more, _ = stage.stdio.until(probe)
    assert [outcome(one) for one in [*seen, *more]] == case["expect"]["seen"]
    assert stage.answers(len(case["expect"]["answers"])) == case["expect"]["answers"]
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w"}}
    stage.stdio.say(json.dumps(cancel).encode() + b"\n")


# Ways round that are no single message


def covers(*items: int) -> Callable[[F], F]:
    """Mark a test as one of those items of the checklist of 30."""
    _IN_CODE.update(items)
    return lambda test: test


_IN_CODE: set[int] = set()


@requirement("corpus.complete")
def test_every_item_of_the_checklist_has_a_file_or_a_test() -> None:
    assert {case["item"] for case in CASES} | _IN_CODE == set(range(1, 31))


@covers(24)
@requirement("mcp.refused-like-absent")
@pytest.mark.parametrize("front", corpus.FRONTS)
@pytest.mark.parametrize("era", corpus.ERAS)
def test_a_refused_tool_and_an_absent_one_are_answered_byte_for_byte_alike(rig: Rig, front: str, era: str) -> None:
    proxy = rig.start(["echo"], excluded=["exit"])
    names = {"forbidden": "not-listed", "exit": "excluded", "nowhere": "unknown", "scripted_forbidden": "not-listed"}
    answers = set()
    with stdio_client(proxy.socket_path) as stdio:
        client = RawClient(proxy.url)
        if era == "handshake":
            client.initialize()
        for name in names:
            if front == "http":
                call = client.call if era == "handshake" else client.call_stateless
                answer = call(name)
                status, body = answer.status, answer.body
                headers = {key: value for key, value in answer.headers.items() if key != "content-length"}
            else:
                stdio.say(request("tools/call", {"name": name, "arguments": {}}, era=era) + b"\n")
                status, headers, body = 0, {}, stdio.line()
            answers.add((status, str(headers), body.replace(name.encode(), b"NAME")))
            # The tool is in no list either.
            assert name.encode() not in client.ask_stateless("tools/list").body
    assert len(answers) == 1
    assert [event.reason for event in rig.events("tool.denied")] == list(names.values())
    assert rig.calls_received() == []


@covers(16)
@requirement("mcp.sessions")
def test_a_session_of_another_handoff_or_client_is_no_way_in(rig: Rig, tmp_path: Path) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    (tmp_path / "other").mkdir()
    other = Rig(tmp_path / "other")
    try:
        stranger = RawClient(other.start(["echo"], token=SecretStr("another-handoffs-token-9c1e")).url)
        stranger.session = client.session
        assert stranger.call("echo", {"text": "x"}).status == 401
        stranger.token = SecretStr("another-handoffs-token-9c1e")
        assert stranger.call("echo", {"text": "x"}).status == 404
        assert other.calls_received() == []
    finally:
        other.close()


@covers(16)
@requirement("mcp.sessions", "corpus.event-ids")
def test_a_stream_is_gone_on_with_by_the_session_that_it_was_of_and_by_no_other(tmp_path: Path) -> None:
    with hostile_server(tmp_path, "http") as before:
        proxy = before.start()
        owner, other = RawClient(proxy.url), RawClient(proxy.url)
        for one in (owner, other):
            one.initialize()
            assert one.call("echo").status == 200
        said = owner.call("play", {"event_id": "e1"})
        assert b"id: hostile:e1\n" in said.body

        def go_on(client: RawClient, last: str) -> list[str]:
            """The event ids that the server is asked to go on from."""
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last, "Content-Length": None}
            assert client.send(b"", headers, method="GET").status == 200
            return [headers["last-event-id"] for _, headers, _ in before.requests if "last-event-id" in headers]

        for client, last in (
            (other, "hostile:e1"),
            (owner, "hostile:e2"),
            (owner, "e1"),
            (owner, ":e1"),
            (owner, "x:e1"),
        ):
            assert go_on(client, last) == []
        assert go_on(owner, "hostile:e1") == ["e1"]


@covers(17, 21)
@requirement("D8.minted-ids")
def test_a_servers_question_is_answered_by_the_client_that_was_asked_and_by_no_other(before: Before) -> None:
    proxy = before.start(allow={"hostile": {"sampling": True}})
    with stdio_client(proxy.socket_path) as asked, stdio_client(proxy.socket_path) as other:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {"sampling": {}}, "clientInfo": {"name": "x"}}
        for one in (asked, other):
            assert "result" in one.ask("initialize", hello, message_id="hello")
        case = {"case": "21-asks-sampling-createmessage"}
        asked.say(request("tools/call", {"name": "play", "arguments": case}) + b"\n")
        question = next(one for one in asked.until(1) if "method" in one)
        assert question["method"] == "sampling/createMessage"
        assert question["id"] != "theirs"
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"role": "assistant", "model": "m"}}
        for wrong in ({**answer, "id": "theirs"}, {**answer, "id": str(question["id"])}, {**answer, "id": 99}):
            asked.say(json.dumps(wrong).encode() + b"\n")
            assert canonical(asked.line())["error"]["code"] == INVALID_REQUEST
        other.say(json.dumps(answer).encode() + b"\n")
        assert canonical(other.line())["error"]["code"] == INVALID_REQUEST
        assert before.asked() == []
        asked.say(json.dumps(answer).encode() + b"\n")
        wait_until(before.asked, "the server gets its answer")
        asked.say(json.dumps(answer).encode() + b"\n")
        assert canonical(asked.line())["error"]["code"] == INVALID_REQUEST
    (got,) = [one for one in before.received() if "method" not in one]
    assert got == {"jsonrpc": "2.0", "id": "theirs", "result": answer["result"]}


@covers(21)
@requirement("corpus.capabilities")
def test_a_server_is_told_of_no_capability_that_was_not_granted(before: Before) -> None:
    proxy = before.start()
    client = RawClient(proxy.url)
    declared: dict[str, Any] = {
        "sampling": {"tools": {}},
        "elicitation": {"url": {}},
        "roots": {},
        "experimental": {"x": {}},
        "tasks": {},
    }
    hello = {"protocolVersion": "2025-11-25", "capabilities": declared, "clientInfo": {"name": "admin", "version": "9"}}
    client.session = client.ask("initialize", hello).headers["mcp-session-id"]
    assert client.call("echo", {"text": "x"}).status == 200
    told = [one["params"] for one in before.received() if one["method"] == "initialize"]
    assert [one["capabilities"] for one in told] == [{}] * len(told)
    assert "admin" not in json.dumps(before.received())


@covers(25)
@requirement("corpus.collisions", "mcp.several-servers")
def test_tools_of_one_name_on_two_servers_are_told_apart_or_not_granted_at_all(rig: Rig) -> None:
    logs = {name: rig.path / f"{name}.log" for name in ("a", "a_b")}
    servers = [rig.scripted(name, SCRIPTED_LOG=str(log)) for name, log in logs.items()]
    with pytest.raises(SpawnRefused, match="'echo' is ambiguous"):
        rig.start(["echo"], servers=servers)
    client = RawClient(rig.start(["a_echo", {"name": "mine", "server": "a_b", "tool": "echo"}], servers=servers).url)
    client.initialize()
    for name, text in (("a_echo", "first"), ("mine", "second")):
        assert client.call(name, {"text": text}).status == 200
    for name in ("echo", "a_b_echo", "b_echo", "a__echo", "a_mine"):
        assert client.call(name, {"text": "x"}).error["message"] == f"Unknown tool: {name}"
    found = {
        name: [
            one["params"]["arguments"]["text"]
            for one in map(json.loads, log.read_text().splitlines())
            if one["method"] == "tools/call"
        ]
        for name, log in logs.items()
    }
    assert found == {"a": ["first"], "a_b": ["second"]}


@covers(26)
@requirement("mcp.pin-withdrawn")
@pytest.mark.parametrize("front", corpus.FRONTS)
def test_a_tool_whose_definition_changed_is_gone_and_the_change_is_on_record(before: Before, front: str) -> None:
    proxy = before.start(["echo", "turn"])
    client = RawClient(proxy.url)
    client.initialize()
    assert client.call("echo", {"text": "x"}).status == 200
    assert client.call("turn").text == "end"
    wait_until(lambda: before.rig.events("tool.withdrawn"), "the tool is withdrawn")
    with stdio_client(proxy.socket_path) as stdio:
        refused = client.call("echo", {}).json if front == "http" else stdio.call("echo", {})
        assert refused["error"] == {"code": -32602, "message": "Unknown tool: echo"}
        listed = (client.ask("tools/list").json if front == "http" else stdio.ask("tools/list"))["result"]["tools"]
    assert [tool["name"] for tool in listed] == ["turn"]
    (event,) = before.rig.events("tool.withdrawn")
    assert "and sends it on" in json.dumps(dict(event.detail))
    assert before.rig.events("tool.denied")[-1].reason == "withdrawn"
    calls = [one["params"]["name"] for one in before.received() if one.get("method") == "tools/call"]
    assert calls == ["echo", "turn"]


@covers(27)
@requirement("D8.canonical-bytes", "corpus.arguments")
def test_what_reaches_a_server_is_what_was_judged_and_put_on_record(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    text = '"\\u0041\\/\u2028\\ud83d\\ude00"'
    raw = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"n": 1.50e1,"text" :%s},"name":"echo"}}'
    assert client.send((raw % text).encode()).status == 200
    line = rig.log.read_bytes().splitlines()[-1]
    sent = line.partition(b'"arguments":')[2][:-2]
    assert json.loads(sent) == {"n": 15.0, "text": "A/\u2028\U0001f600"}
    assert rig.events("tool.call")[0].detail["arguments_sha256"] == hashlib.sha256(sent).hexdigest()


@covers(28)
@requirement("corpus.own-headers")
@pytest.mark.parametrize("era", corpus.ERAS)
def test_a_server_over_http_sees_no_header_of_the_agent_and_the_agent_no_address_of_the_server(
    tmp_path: Path, era: str
) -> None:
    with hostile_server(tmp_path, "http") as before:
        proxy = before.start()
        client = RawClient(proxy.url)
        told = client.initialize().body
        more = {"Cookie": "a=b", "X-Api-Key": "k", "Proxy-Authorization": "Basic eDp4", "User-Agent": "agent/1"}
        call = client.call if era == "handshake" else client.call_stateless
        for name in ("echo", "forbidden"):
            told += call(name, {"text": "x"}, headers=more).body
        told += client.ask_stateless("server/discover").body + client.ask("tools/list").body
        assert before.url.rpartition(":")[2].encode() not in told
        for _, headers, _ in before.requests:
            assert headers.keys().isdisjoint({"cookie", "x-api-key", "proxy-authorization", "authorization"})
            assert TOKEN.get_secret_value() not in str(headers)
            assert "agent/1" not in str(headers)


@covers(29)
@requirement("D8.recheck-standing")
def test_a_call_that_was_judged_in_time_and_recorded_too_late_does_not_leave(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    assert client.call("echo", {"text": "before"}).status == 200
    rig.advance(timedelta(hours=1) - timedelta(seconds=0.6))
    with ThreadPoolExecutor(1) as pool:
        with rig.audit_held():
            late = pool.submit(client.call, "echo", {"text": "late"})
            over = time.monotonic() + 1.0
            wait_until(lambda: time.monotonic() > over, "the handoff's time is over")
        assert late.result().error["code"] == -32001
    assert [one["params"]["arguments"] for one in rig.received() if one.get("method") == "tools/call"] == [
        {"text": "before"}
    ]


@covers(29)
@requirement("D8.cut-off")
@pytest.mark.parametrize("front", corpus.FRONTS)
@pytest.mark.parametrize("era", corpus.ERAS)
def test_a_call_in_flight_at_the_cut_off_ends_and_its_late_answer_goes_nowhere(rig: Rig, front: str, era: str) -> None:
    proxy = rig.start(["echo", "wait"])
    client = RawClient(proxy.url)
    client.initialize()
    with stdio_client(proxy.socket_path) as stdio, ThreadPoolExecutor(1) as pool:
        over_http = client.call if era == "handshake" else client.call_stateless
        if front == "http":
            call = pool.submit(lambda: over_http("wait").json)
        else:
            call = pool.submit(lambda: stdio.call("wait", era=era))
        wait_until(lambda: rig.calls_received() == ["wait"], "the call arrives")
        proxy.cut_off("revoked")
        assert call.result()["error"]["code"] == -32001
        assert stdio.call("echo", {"text": "x"}, era=era)["error"]["code"] == -32001
        assert over_http("echo", {"text": "x"}).error["code"] == -32001
    assert rig.calls_received() == ["wait"]
    outcomes = [(one.decision, one.reason) for one in rig.events("tool.result")]
    assert outcomes == [("failed", "revoked")]


@covers(30)
@requirement("D8.audit-before-forward")
@pytest.mark.parametrize("front", corpus.FRONTS)
@pytest.mark.parametrize("era", corpus.ERAS)
def test_what_cannot_be_put_on_record_reaches_no_server_over_either_front(impatient: Rig, front: str, era: str) -> None:
    rig = impatient
    proxy = rig.start(["echo"])
    client = RawClient(proxy.url)
    client.initialize()
    client.ask("tools/list")
    over_http = client.call if era == "handshake" else client.call_stateless
    with stdio_client(proxy.socket_path) as stdio:
        with rig.audit_held():
            refused = (
                over_http("echo", {"text": "x"}).json if front == "http" else stdio.call("echo", {"text": "x"}, era=era)
            )
        assert refused["error"]["message"] == "Audit unavailable: nothing was done"
        assert rig.calls_received() == []
        again = over_http("echo", {"text": "x"}).json if front == "http" else stdio.call("echo", {"text": "x"}, era=era)
        assert "result" in again


@covers(30)
@requirement("corpus.log-lines", "H5.one-event-per-access")
def test_no_name_and_no_argument_ends_a_line_of_the_audit_or_stands_in_it(rig: Rig) -> None:
    client = RawClient(rig.start(["echo"]).url)
    client.initialize()
    odd = 'x\n{"action":"tool.call","decision":"allowed"}\r\u2028\u0085\x1b[2K'
    client.call(odd)
    client.ask(odd)
    client.call("echo", {"text": f"private words {odd}"})
    written = rig.written()
    assert written.isascii()
    assert [line for line in written.splitlines() if line] == [line for line in written.split("\n") if line]
    assert [event.action for event in rig.events()] == ["tool.denied", "tool.denied", "tool.call", "tool.result"]
    assert "private words" not in written
    assert "\x1b" not in written
