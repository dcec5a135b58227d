"""The hostile corpus through the real proxy: every way round, in both eras, over both fronts, before every server.

What each file says a client must see is what it sees, and the server, which counts, is asked for nothing else.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import HttpServer, StdioServer
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
        return [answer.status, outcome(canonical(answer.body + b"\n"))]

    def over_stdio(self, case: dict[str, Any], era: str) -> list[Any]:
        self.stdio.say(corpus.body(case, era) + b"\n")
        probe = f"probe-{next(_numbers)}"
        params = {"name": "echo", "arguments": {"text": probe}}
        self.stdio.say(request("tools/call", params, message_id=probe, era=era) + b"\n")
        *found, last = self.stdio.until(probe)
        assert "result" in last
        assert self.take_probe(probe) == case["reaches"]
        return [outcome(one) for one in found]

    def take_probe(self, probe: str) -> list[str]:
        """The tools that were called before the call that shows it."""
        found = self.called()
        assert found[-1:] == [("echo", {"text": probe})]
        return [name for name, _ in found[:-1]]

    def attempt(self, case: dict[str, Any]) -> None:
        for era in case["eras"]:
            if "http" in case["fronts"]:
                found = self.over_http(case, era)
                probe = f"probe-{next(_numbers)}"
                assert self.session.call("echo", {"text": probe}).status == 200
                assert (era, found, self.take_probe(probe)) == (era, case["expect"]["http"][era], case["reaches"])
            if "stdio" in case["fronts"]:
                assert (era, self.over_stdio(case, era)) == (era, case["expect"]["stdio"])


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
    bench.attempt(case)


@requirement("corpus.sdk-lines", "D8.nothing-else-reaches")
@pytest.mark.parametrize("bench", SDKS, indirect=True)
@pytest.mark.parametrize("item", sorted({case["item"] for case in MESSAGES}))
def test_every_way_round_ends_the_same_before_servers_on_every_line_of_the_sdks(bench: Bench, item: int) -> None:
    for case in MESSAGES:
        if case["item"] == item and not case.get("heavy"):
            try:
                bench.attempt(case)
            except AssertionError as error:
                error.add_note(f"{item:02}-{case['name']}")
                raise
