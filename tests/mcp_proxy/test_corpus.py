"""The hostile corpus through the real proxy: every way round, in both eras, over both fronts, before every server.

What each file says a client must see is what it sees, and the server, which counts, is asked for nothing else.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import HttpServer, McpProxy, StdioServer
from agent_token_injector.mcp_proxy.wire import INVALID_REQUEST
from tests.mcp_proxy import corpus
from tests.mcp_proxy.corpus.fronts import StdioClient, canonical, request, stdio_client
from tests.mcp_proxy.corpus.hostile import HttpHostile
from tests.mcp_proxy.harness import RawClient, Rig, wait_until
from tests.mcp_proxy.reference import LINES, TRANSPORTS, sdk_server
from tests.requirements import requirement

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
    fronts: dict[str, Any] = field(default_factory=dict)

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
    return pytest.param(case, id=f"{case['item']:02}-{case['name']}", marks=pytest.mark.requirement(case["requirement"]))


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
    received: Any
    url: str = ""

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
            yield Before(rig, transport, server.received, server.url)
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
