"""An unattended agent's hour in a minute: calls of every kind, and what the engine holds is what it held before.

HANDOFF_SOAK_SECONDS makes it longer; what a call costs is not measured here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import McpProxy, StdioServer, handoff_mcp
from tests.mcp_proxy.harness import HANDOFF, TOKEN, Rig, children_of, wait_until
from tests.mcp_proxy.load import HELLO, HttpLine, StdioLine, descriptors, document, rss_mib
from tests.requirements import requirement

LOADED = str(Path(__file__).with_name("servers") / "loaded.py")
SECONDS = float(os.environ.get("HANDOFF_SOAK_SECONDS", "30"))
WARM_UP = 0.25
"""The share of the time after which the engine has met everything once, and is measured."""
GROWTH_MIB = 4.0
KILL_EVERY = 3.0
"""Seconds after which a server is killed, under calls."""
SETTLED = 20
KINDS = {
    "keep-alive",
    "one connection a call",
    "session",
    "stdio",
    "disconnect",
    "cancelled",
    "refused",
    "large",
    "handoff-mcp",
}
CALLS_PER_SECOND = 300
"""20 000 calls an hour are 6 a second. Fewer than this, and the minute would not be an hour's worth."""


class Agents:
    """Clients of every kind, each in a thread of its own, until they are told to stop."""

    def __init__(self, proxy: McpProxy) -> None:
        self.proxy = proxy
        self.over = threading.Event()
        self.done: Counter[str] = Counter()
        self.odd: list[object] = []
        self._rounds = (
            self.keep_alive,
            self.one_connection_a_call,
            self.sessions,
            self.stdio,
            self.disconnects,
            self.cancels,
            self.refused,
            self.large,
            self.handoff_mcp,
        )
        self._threads = [threading.Thread(target=self._run, args=(one,), name=one.__name__) for one in self._rounds]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, one: Callable[[], None]) -> None:
        while not self.over.is_set():
            try:
                one()
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the test says it
                self.odd.append((one.__name__, error))
                return

    def expect(self, kind: str, answer: Any) -> None:
        """Count a call that was answered; a server that was killed meanwhile is no surprise."""
        said = answer.get("result", {}).get("content") or answer.get("error", {}).get("message")
        if "error" in answer and "failed: " not in answer["error"]["message"] and kind != "refused":
            self.odd.append((kind, answer))
        if not said:
            self.odd.append((kind, answer))
        self.done[kind] += 1

    # What agents do

    def keep_alive(self) -> None:
        with HttpLine(self.proxy) as line:
            for _ in range(200):
                self.expect("keep-alive", line.call("echo", {"text": "x" * 500}, stateless=True)[1])

    def one_connection_a_call(self) -> None:
        with HttpLine(self.proxy) as line:
            self.expect("one connection a call", line.call("echo", {"text": "x"}, stateless=True)[1])

    def sessions(self) -> None:
        with HttpLine(self.proxy) as line:
            line.initialize()
            for number in range(10):
                self.expect("session", line.call("echo", {"text": "x"}, number)[1])
            assert line.ask("tools/list", {}, 99)[0] == 200
            if self.done["session"] % 20:
                # Others are left behind, and make room in the end.
                line.end_session()

    def stdio(self) -> None:
        with StdioLine(self.proxy) as line:
            line.initialize()
            for _ in range(5):
                for answer in line.calls("echo", [{"text": "y" * 200}] * 64):
                    self.expect("stdio", answer)
            for answer in line.calls("echo", [{"text": "y"}] * 8, stateless=True):
                self.expect("stdio", answer)

    def disconnects(self) -> None:
        with HttpLine(self.proxy) as line, HttpLine(self.proxy) as other, StdioLine(self.proxy) as third:
            line.send("tools/call", {"name": "wait", "arguments": {}}, stateless=True)
            other.send("tools/call", {"name": "large", "arguments": {"size": 2**20}}, stateless=True)
            third.initialize()
            third.begin("wait")
            third.begin("large", {"size": 2**18}, 2)
            self.expect("disconnect", third.answer())

    def cancels(self) -> None:
        with StdioLine(self.proxy) as line, HttpLine(self.proxy) as session, HttpLine(self.proxy) as other:
            line.initialize()
            session.initialize()
            other.session = session.session
            for number in range(1, 20):
                line.begin("wait", {}, number)
                line.cancel(number)
                session.send("tools/call", {"name": "wait", "arguments": {}}, number)
                # Until the call has come: nothing keeps the order of two connections.
                while not session.answered():
                    assert other.notify("notifications/cancelled", {"requestId": number}) == 202
                self.expect("refused", session.receive()[1])
            self.expect("cancelled", line.call("echo", {"text": "after"}, 99))
            session.end_session()

    def refused(self) -> None:
        with HttpLine(self.proxy) as line:
            line.initialize()
            for _ in range(20):
                self.expect("refused", line.call("no_such_tool")[1])
                self.expect("refused", line.ask("no/method", {})[1])
            line.end_session()
        with socket.create_connection(line.address) as stranger:
            stranger.sendall(b"POST /mcp HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 5\r\n\r\n{")

    def large(self) -> None:
        with HttpLine(self.proxy) as line:
            for _ in range(4):
                self.expect("large", line.call("large", {"size": 2**20}, stateless=True)[1])
        self.over.wait(0.2)

    def handoff_mcp(self) -> None:
        # As an agent's client starts it: its pipes go over to the engine, and are gone with it.
        given = {"HANDOFF_MCP_SOCKET": str(self.proxy.socket_path), "HANDOFF_MCP_TOKEN": TOKEN.get_secret_value()}
        command = [sys.executable, "-I", "-S", str(handoff_mcp.__file__)]
        with subprocess.Popen(command, env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(document("initialize", HELLO, 0) + b"\n")
            for number in range(1, 20):
                process.stdin.write(
                    document("tools/call", {"name": "echo", "arguments": {"text": "z"}}, number) + b"\n"
                )
            process.stdin.flush()
            for _ in range(20):
                answer = json.loads(process.stdout.readline())
                if answer.get("id"):
                    self.expect("handoff-mcp", answer)
        self.over.wait(1)


def kill_a_server(proxy: McpProxy) -> None:
    """End one server as the kernel would when memory is short."""
    for supervisor in children_of([proxy.pid or 0], b"child_main.py"):
        for server in children_of([supervisor], b"loaded.py")[:1]:
            os.kill(server, signal.SIGKILL)
            return


def at_rest(proxy: McpProxy) -> tuple[float, list[str]]:
    """What the engine holds when nobody asks: its memory in MiB, and its descriptors, which take a moment to settle."""
    held: list[list[str]] = []

    def settled() -> bool:
        held.append(descriptors(proxy))
        return len(held) > SETTLED and len(set(map(tuple, held[-SETTLED:]))) == 1

    wait_until(settled, "the descriptors settle")
    return rss_mib(proxy), held[-1]


@requirement("mcp.soak")
@pytest.mark.timeout(SECONDS + 120)
def test_after_an_hours_worth_of_calls_the_engine_holds_what_it_held(rig: Rig) -> None:
    servers = [StdioServer("loaded", (sys.executable, LOADED)), StdioServer("spare", (sys.executable, LOADED))]
    proxy = rig.start(
        [{"name": name, "server": "loaded", "tool": name} for name in ("echo", "large", "wait")]
        + [{"name": "pid", "server": "spare", "tool": "pid"}],
        servers=servers,
    )
    done: Counter[str] = Counter()
    held = []
    for share in (WARM_UP, 1 - WARM_UP):
        agents = Agents(proxy)
        agents.start()
        until = time.monotonic() + SECONDS * share
        while time.monotonic() < until and not agents.odd:
            agents.over.wait(KILL_EVERY)
            kill_a_server(proxy)
        agents.stop()
        assert agents.odd == []
        done += agents.done
        with HttpLine(proxy) as line:
            for tool in ("echo", "pid"):
                wait_until(lambda tool=tool: "result" in line.call(tool, stateless=True)[1], "every server is up")
        held.append(at_rest(proxy))
    (memory, open_before), (memory_after, open_after) = held
    print(f"{memory:.1f} MiB, then {memory_after:.1f} MiB after {dict(done)}; {len(open_after)} descriptors")
    assert set(done) == KINDS
    assert sum(done.values()) > CALLS_PER_SECOND * SECONDS, done
    assert memory_after - memory < GROWTH_MIB, (memory, memory_after, done)
    assert Counter(open_after) == Counter(open_before)
    assert rig.audit.verify(HANDOFF).ok
