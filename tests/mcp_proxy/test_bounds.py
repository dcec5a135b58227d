"""Floods, huge results and clients that do not read: bounded memory, back-pressure, and everybody else still served."""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import McpProxy, StdioServer, wire
from agent_token_injector.mcp_proxy.desk import MAX_CALLS
from tests.mcp_proxy.harness import HANDOFF, TOKEN, Rig, wait_until
from tests.mcp_proxy.load import HttpLine, StdioLine, document, peak_mib, rss_mib
from tests.requirements import requirement

LOADED = str(Path(__file__).with_name("servers") / "loaded.py")
BOUND_MIB = 192
"""What the engine may ever take: the backlog's 32 MiB, and the message of 10 MiB in hand with what is made of it."""
LARGE = 9 * 2**20


def start(rig: Rig, *wanted: str, **more: Any) -> McpProxy:
    """A proxy before a server that misbehaves on request, and before another one that never does."""
    servers = [StdioServer(name, (sys.executable, LOADED)) for name in ("quiet", "loaded")]
    own = [{"name": one, "server": "loaded", "tool": one} for one in wanted]
    return rig.start([{"name": "pid", "server": "quiet", "tool": "pid"}, *own], servers=servers, **more)


def still_serves(proxy: McpProxy, seconds: float = 5.0) -> None:
    """The other server's tool answers a new client, soon."""
    began = time.monotonic()
    with HttpLine(proxy) as line:
        status, answer = line.call("pid", stateless=True)
    assert status == 200
    assert answer["result"]["content"][0]["text"].isdigit()
    assert time.monotonic() - began < seconds


@contextmanager
def bounded(proxy: McpProxy, mib: float = BOUND_MIB) -> Iterator[None]:
    """Whatever happens within, the engine's memory stays below, and the other server's tool can be called."""
    yield
    assert peak_mib(proxy) < mib
    still_serves(proxy)


# Huge results


@requirement("mcp.bounded-results")
def test_results_of_almost_10_mib_arrive_whole_on_both_fronts(rig: Rig) -> None:
    proxy = start(rig, "large")
    with bounded(proxy), HttpLine(proxy) as over_http, StdioLine(proxy) as over_stdio:
        over_http.initialize()
        over_stdio.initialize()
        for size in (2**20, LARGE, LARGE + 1):
            _, answer = over_http.call("large", {"size": size})
            assert len(answer["result"]["content"][0]["text"]) == size
            answer = over_stdio.call("large", {"size": size})
            assert len(answer["result"]["content"][0]["text"]) == size


@requirement("mcp.bounded-results")
def test_a_result_over_10_mib_fails_its_call_with_the_reason_and_the_server_serves_again(rig: Rig) -> None:
    proxy = start(rig, "large", "echo")
    with bounded(proxy), HttpLine(proxy) as line:
        line.initialize()
        for size in (wire.MAX_BYTES, 3 * wire.MAX_BYTES):
            _, answer = line.call("large", {"size": size})
            assert answer["error"]["message"] == "MCP server 'loaded' failed: it sent a message of more than 10 MiB"
            still_serves(proxy)
            wait_until(lambda: "result" in line.call("echo", {"text": "x"})[1], "the server was started again")


# Clients that do not read


@requirement("mcp.bounded-clients")
def test_clients_that_leave_large_results_unread_hold_up_nobody_below_the_limit(rig: Rig) -> None:
    proxy = start(rig, "large")
    with bounded(proxy), ExitStack() as slow:
        for _ in range(3):
            line = slow.enter_context(HttpLine(proxy, receive_bytes=4096))
            line.send("tools/call", {"name": "large", "arguments": {"size": LARGE}}, stateless=True)
        wait_until(lambda: len(rig.events("tool.result")) >= 3, "the results are there", 20)
        for _ in range(20):
            still_serves(proxy)


@requirement("mcp.bounded-clients")
def test_beyond_the_limit_nothing_more_is_taken_until_what_waits_is_gone(rig: Rig) -> None:
    proxy = start(rig, "large")
    with bounded(proxy):
        with ExitStack() as slow:
            for _ in range(40):
                line = slow.enter_context(HttpLine(proxy, receive_bytes=4096))
                line.send("tools/call", {"name": "large", "arguments": {"size": LARGE}}, stateless=True)
            wait_until(lambda: len(rig.events("tool.result")) >= 3, "the first results are there", 20)
            with HttpLine(proxy, seconds=1.0) as other, pytest.raises(TimeoutError):
                other.call("pid", stateless=True)
            assert len(rig.events("tool.result")) < 10
        still_serves(proxy, 20)
    # The slow ones are gone, and so is what waited for them.
    wait_until(lambda: rss_mib(proxy) < BOUND_MIB / 2, "the memory is given back")


@requirement("mcp.bounded-clients")
def test_a_stdio_client_that_asks_and_never_reads_is_read_no_further(rig: Rig) -> None:
    proxy = start(rig, "echo")
    with bounded(proxy), StdioLine(proxy, seconds=2.0) as line:
        line.initialize()
        call = {"name": "echo", "arguments": {"text": "y" * 50_000}}
        asked = b"\n".join(document("tools/call", call, number) for number in range(400))
        with pytest.raises(TimeoutError):
            line.socket.sendall(asked)
        assert len(rig.events("tool.result")) < 100
        still_serves(proxy)


@requirement("mcp.bounded-clients")
def test_bodies_that_never_end_take_no_more_than_their_share(rig: Rig) -> None:
    proxy = start(rig)
    with bounded(proxy), ExitStack() as many:
        for _ in range(40):
            line = many.enter_context(HttpLine(proxy, seconds=2.0))
            head = f"POST /mcp HTTP/1.1\r\nHost: {line.address[0]}:{line.address[1]}\r\nContent-Length: {LARGE}\r\n"
            head += f"Authorization: Bearer {TOKEN.get_secret_value()}\r\nContent-Type: application/json\r\n\r\n"
            # Who asks for more than its share is cut.
            with suppress(OSError):
                line.socket.sendall(head.encode() + b" " * (LARGE - 1))
        still_serves(proxy)


# Many at once


@requirement("mcp.answers-at-once")
def test_what_needs_no_event_on_record_does_not_wait_for_one(rig: Rig) -> None:
    proxy = start(rig, "progress")
    with StdioLine(proxy) as line:
        began = time.monotonic()
        for _ in range(20):
            line.initialize()
        meta = {"progressToken": "mine"}
        line.socket.sendall(document("tools/call", {"name": "progress", "arguments": {}, "_meta": meta}, 1) + b"\n")
        assert line.message()["params"] == {"progressToken": "mine", "progress": 1}
        # Beats come twice a second, and are on time for nobody.
        assert time.monotonic() - began < 2


@requirement("mcp.bounded-many")
def test_256_connections_are_served_at_once_and_one_more_is_told_so(rig: Rig) -> None:
    proxy = start(rig, "echo")
    with bounded(proxy, 64), ExitStack() as many:
        lines = [many.enter_context(HttpLine(proxy)) for _ in range(256)]
        for _ in range(3):
            for number, line in enumerate(lines):
                line.send("tools/call", {"name": "echo", "arguments": {"text": str(number)}}, number, stateless=True)
            for number, line in enumerate(lines):
                status, answer = line.receive()
                assert (status, answer["id"]) == (200, number)
                assert answer["result"]["content"][0]["text"] == str(number)
        with HttpLine(proxy) as late:
            late.send("ping", {}, stateless=True)
            with late.socket.makefile("rb") as told:
                assert told.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
                assert b"Too many connections" in told.read()
        for line in lines[:10]:
            line.close()
        wait_until(lambda: _connects(proxy), "there is room again")


def _connects(proxy: McpProxy) -> bool:
    try:
        with HttpLine(proxy) as line:
            status, answer = line.call("pid", stateless=True)
    except (OSError, ValueError):
        return False
    return status == 200 and "result" in answer


@requirement("mcp.bounded-many")
@pytest.mark.parametrize("stateless", [False, True])
def test_5000_lines_sent_ahead_are_all_answered(rig: Rig, stateless: bool) -> None:
    proxy = start(rig, "echo")
    with bounded(proxy, 64), StdioLine(proxy, seconds=60) as line:
        if not stateless:
            line.initialize()
        answers = line.calls("echo", [{"text": str(number)} for number in range(5000)], stateless=stateless)
        assert sorted(int(one["result"]["content"][0]["text"]) for one in answers) == list(range(5000))
        assert len({one["id"] for one in answers}) == 5000


@requirement("mcp.bounded-many")
def test_calls_that_never_end_stop_at_the_cap_and_leave_room_when_they_are_cancelled(rig: Rig) -> None:
    proxy = start(rig, "wait", "echo")
    with StdioLine(proxy) as line, HttpLine(proxy) as other:
        line.initialize()
        call = {"name": "wait", "arguments": {}}
        asked = [document("tools/call", call, number) for number in range(1, MAX_CALLS + 200)]
        line.socket.sendall(b"\n".join(asked) + b"\n")
        wait_until(lambda: _full(other), "no more is taken", 20)
    wait_until(lambda: _connects(proxy), "there is room again", 20)
    assert peak_mib(proxy) < 64


def _full(line: HttpLine) -> bool:
    return "Too many calls in flight" in str(line.call("pid", stateless=True)[1].get("error"))


# Servers that flood


@requirement("mcp.bounded-servers")
@pytest.mark.parametrize("how", ["flood", "shout"])
@pytest.mark.parametrize("allow", [{}, {"loaded": {"logging": True}}], ids=["dropped", "passed on"])
def test_a_server_that_never_stops_talking_keeps_nobody_from_being_served(
    rig: Rig, how: str, allow: dict[str, Any]
) -> None:
    proxy = start(rig, how, "echo", allow=allow)
    with bounded(proxy), HttpLine(proxy) as line:
        line.initialize()
        assert line.call(how)[0] == 200
        for _ in range(30):
            still_serves(proxy)
            began = time.monotonic()
            assert line.call("echo", {"text": "x"})[1]["result"]["content"][0]["text"] == "x"
            assert time.monotonic() - began < 5


@requirement("mcp.bounded-servers")
def test_a_client_that_does_not_read_what_a_server_floods_it_with_is_cut(rig: Rig) -> None:
    proxy = start(rig, "flood", allow={"loaded": {"logging": True}})
    with bounded(proxy), StdioLine(proxy) as line:
        line.initialize()
        line.begin("flood")
        wait_until(lambda: _cut(line), "it is cut", 40)


def _cut(line: StdioLine) -> bool:
    """Whether the proxy has closed its end, told without reading: a write fails then."""
    try:
        line.socket.send(b"\n", socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


@requirement("mcp.bounded-servers")
def test_a_line_that_never_ends_fails_its_call_and_the_server_is_started_again(rig: Rig) -> None:
    proxy = start(rig, "garbage", "echo")
    with bounded(proxy), HttpLine(proxy) as line:
        line.initialize()
        _, answer = line.call("garbage")
        assert answer["error"]["message"] == "MCP server 'loaded' failed: it sent a message of more than 10 MiB"
        still_serves(proxy)
        wait_until(lambda: "result" in line.call("echo", {"text": "x"})[1], "the server was started again")


# An audit log that does not take what happens


@requirement("mcp.bounded-audit")
def test_a_chain_that_somebody_holds_refuses_calls_within_the_deadline(rig: Rig) -> None:
    proxy = start(rig, "echo")
    with HttpLine(proxy) as line:
        line.initialize()
        with rig.audit_held():
            for _ in range(2):
                began = time.monotonic()
                status, answer = line.call("echo", {"text": "x"})
                assert (status, answer["error"]["message"]) == (503, "Audit unavailable: nothing was done")
                assert time.monotonic() - began < rig.audit_deadline + 1.5
        assert line.call("echo", {"text": "x"})[0] == 200


@requirement("mcp.bounded-audit")
def test_a_full_disk_refuses_calls_at_once_and_room_on_it_lets_them_go_on(rig: Rig) -> None:
    proxy = start(rig, "echo")
    chain = rig.path / "audit" / f"{HANDOFF}.jsonl"
    assert proxy.pid is not None
    with HttpLine(proxy) as line:
        line.initialize()
        assert line.call("echo", {"text": "x"})[0] == 200
        _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (chain.stat().st_size + 100, hard))
        began = time.monotonic()
        for _ in range(5):
            status, answer = line.call("echo", {"text": "y"})
            assert (status, answer["error"]["message"]) == (503, "Audit unavailable: nothing was done")
        assert time.monotonic() - began < 2
        resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        assert line.call("echo", {"text": "z"})[0] == 200
    assert rig.audit.verify(HANDOFF).ok
