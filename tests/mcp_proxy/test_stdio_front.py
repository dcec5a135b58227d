"""Clients over stdio: who is served, what they may send, and how each end of a conversation shows at the servers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import McpProxy
from agent_token_injector.mcp_proxy.backlog import Backlog
from agent_token_injector.mcp_proxy.calls import Client
from agent_token_injector.mcp_proxy.desk import MAX_CALLS
from agent_token_injector.mcp_proxy.eras import Refused
from agent_token_injector.mcp_proxy.exchange import Exchange
from agent_token_injector.mcp_proxy.ledger import MAX_AGE
from agent_token_injector.mcp_proxy.relay import MAX_HELD
from agent_token_injector.mcp_proxy.stdio_connection import STALL_SECONDS, StdioConnection
from agent_token_injector.mcp_proxy.stdio_front import MAX_CONNECTIONS, StdioFront
from agent_token_injector.mcp_proxy.wire import MAX_BYTES
from tests.mcp_proxy.corpus.fronts import StdioClient, canonical, request, stdio_client
from tests.mcp_proxy.harness import TOKEN, RawClient, Rig, Standing, wait_until
from tests.mcp_proxy.servers.recorder import run
from tests.requirements import requirement

GREETING = f"HANDOFF-MCP/1 bytes {TOKEN.get_secret_value()}\n".encode()
PASSING = GREETING.replace(b"bytes", b"fds")
NO_GREETING = b"NO that is no greeting\n"
NO_STREAMS = b"NO stdin and stdout cannot be served\n"
CALL = {"name": "echo", "arguments": {"text": "x"}}
WAIT = {"name": "wait", "arguments": {}}


@pytest.fixture
def proxy(rig: Rig) -> McpProxy:
    return rig.start(["echo", "wait", "answer_others"])


@pytest.fixture
def client(proxy: McpProxy) -> Iterator[StdioClient]:
    with stdio_client(proxy.socket_path) as made:
        yield made


def connect(proxy: McpProxy) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(20)
    line.connect(str(proxy.socket_path))
    return line


def read_all(line: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionResetError):
        while part := line.recv(65536):
            found += part
    return found


def greeted(proxy: McpProxy, greeting: bytes) -> bytes:
    """What one who greets so is told before the proxy ends it."""
    with connect(proxy) as line:
        line.sendall(greeting)
        return read_all(line)


def descriptors(proxy: McpProxy) -> int:
    """How many descriptors the engine has, beside the audit's, which come with the first event."""
    found = 0
    for one in Path(f"/proc/{proxy.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "/audit" not in str(one.readlink())
    return found


def processor_seconds(proxy: McpProxy) -> float:
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def still_serves(proxy: McpProxy) -> None:
    with connect(proxy) as line:
        line.sendall(GREETING + request("tools/call", CALL) + b"\n")
        with line.makefile("rb") as answers:
            assert answers.readline() == b"OK\n"
            assert "result" in canonical(answers.readline())


# Greeting


@requirement("stdio.greeting")
@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (GREETING.replace(b"7f3a", b"7f3b"), b"NO the bearer token is not this handoff's\n"),
        (GREETING.replace(b"\n", b"x\n"), b"NO the bearer token is not this handoff's\n"),
        (b"HANDOFF-MCP/1 bytes \n", b"NO the bearer token is not this handoff's\n"),
        (b"HANDOFF-MCP/1 bytes\n", b"NO the bearer token is not this handoff's\n"),
        (GREETING.replace(b"bytes", b"both"), NO_GREETING),
        (GREETING.replace(b"/1", b"/2"), NO_GREETING),
        (b"\n", NO_GREETING),
        (b"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", NO_GREETING),
        (b"\xff\xfe\x00" * 100 + b"\n", NO_GREETING),
        (b"x" * 512, NO_GREETING),
        (b"x" * 100_000 + b"\n", NO_GREETING),
        (PASSING, NO_STREAMS),
    ],
)  # fmt: skip
def test_who_does_not_greet_with_this_handoffs_token_is_told_why_and_served_nothing(
    rig: Rig, proxy: McpProxy, greeting: bytes, said: bytes
) -> None:
    before = descriptors(proxy)
    with connect(proxy) as line:
        with suppress(BrokenPipeError, ConnectionResetError):
            line.sendall(greeting + request("tools/call", CALL) + b"\n")
        assert read_all(line) == said
    still_serves(proxy)
    assert TOKEN.get_secret_value() not in rig.written()
    wait_until(lambda: descriptors(proxy) == before, "no descriptor is left")
    assert rig.calls_received() == ["echo"]


@requirement("stdio.greeting", "mcp.strangers-coalesced")
def test_a_wrong_token_is_counted_as_a_strangers(rig: Rig, proxy: McpProxy) -> None:
    for _ in range(5):
        greeted(proxy, GREETING.replace(b"7f3a", b"0000"))

    def counted() -> int:
        return sum(
            int(str(one.detail["requests"])) for one in rig.events("tool.denied") if one.reason == "unauthenticated"
        )

    wait_until(lambda: counted() == 5, "every refusal is counted")


@requirement("stdio.greeting")
def test_a_greeting_may_come_in_pieces_and_what_follows_it_is_the_clients(proxy: McpProxy) -> None:
    with connect(proxy) as line:
        for one in GREETING + request("tools/call", CALL) + b"\n":
            line.sendall(bytes([one]))
        with line.makefile("rb") as answers:
            assert answers.readline() == b"OK\n"
            assert canonical(answers.readline())["id"] == 1


@requirement("stdio.greeting")
def test_a_greeting_that_takes_too_long_is_given_up_and_costs_nothing_meanwhile(proxy: McpProxy) -> None:
    before = descriptors(proxy)
    used = processor_seconds(proxy)
    reading, writing = os.pipe()
    with connect(proxy) as silent, connect(proxy) as halting, connect(proxy) as passing:
        halting.sendall(GREETING[:-1])
        socket.send_fds(passing, [PASSING[:10]], [reading, writing])
        began = time.monotonic()
        for one in (silent, halting, passing):
            assert read_all(one) == b"NO the greeting took too long\n"
        assert 4 < time.monotonic() - began < 10
    os.close(reading)
    os.close(writing)
    assert processor_seconds(proxy) - used < 2
    wait_until(lambda: descriptors(proxy) == before, "no descriptor is left")


@requirement("stdio.streams")
@pytest.mark.parametrize("which", ["file", "one", "three", "directory", "terminal", "none", "with-bytes"])
def test_streams_that_cannot_be_served_are_refused_and_closed(proxy: McpProxy, tmp_path: Path, which: str) -> None:
    before = descriptors(proxy)
    with ExitStack() as stack:
        pipe = os.pipe()
        primary, secondary = os.openpty()
        given = {
            "file": [os.open(tmp_path / "in", os.O_RDWR | os.O_CREAT), pipe[1]],
            "one": [pipe[0]],
            "three": [pipe[0], pipe[1], os.dup(pipe[1])],
            "directory": [pipe[0], os.open(tmp_path, os.O_RDONLY)],
            "terminal": [secondary, secondary],
            "none": [],
            "with-bytes": list(pipe),
        }
        for one in {primary, secondary, *pipe, *(fd for fds in given.values() for fd in fds)}:
            stack.callback(os.close, one)
        line = stack.enter_context(connect(proxy))
        socket.send_fds(line, [GREETING if which == "with-bytes" else PASSING], given[which])
        assert read_all(line) in (NO_STREAMS, NO_GREETING)
    wait_until(lambda: descriptors(proxy) == before, "no descriptor is left")
    still_serves(proxy)


@requirement("stdio.streams")
@pytest.mark.parametrize("order", ["swapped", "listening", "datagrams"])
def test_streams_that_turn_out_to_be_others_end_the_conversation_and_nothing_else(proxy: McpProxy, order: str) -> None:
    before = descriptors(proxy)
    with ExitStack() as stack:
        pipe = os.pipe()
        for one in pipe:
            stack.callback(os.close, one)
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        given = {
            "swapped": [pipe[1], pipe[0]],
            "listening": [listening.fileno(), listening.fileno()],
            "datagrams": [datagrams.fileno(), pipe[1]],
        }
        with connect(proxy) as line:
            socket.send_fds(line, [PASSING], given[order])
            assert line.recv(100) == b"OK\n"
        wait_until(lambda: descriptors(proxy) == before, "no descriptor is left")
    still_serves(proxy)


@requirement("stdio.greeting")
def test_a_client_that_greets_and_is_gone_leaves_nothing(proxy: McpProxy) -> None:
    before = descriptors(proxy)
    for number in range(20):
        reading, writing = os.pipe()
        with connect(proxy) as line:
            if number % 2:
                socket.send_fds(line, [PASSING], [reading, writing])
            else:
                line.sendall(GREETING)
        os.close(reading)
        os.close(writing)
    wait_until(lambda: descriptors(proxy) == before, "no descriptor is left")
    still_serves(proxy)


@requirement("stdio.connections")
def test_so_many_connections_are_served_and_no_more_until_one_ends(proxy: McpProxy) -> None:
    with ExitStack() as stack:
        lines = [stack.enter_context(connect(proxy)) for _ in range(MAX_CONNECTIONS)]
        for number, line in enumerate(lines):
            line.sendall(GREETING + request("tools/call", CALL, message_id=number) + b"\n")
        for number, line in enumerate(lines):
            with line.makefile("rb") as answers:
                assert answers.readline() == b"OK\n"
                assert canonical(answers.readline())["id"] == number
        with connect(proxy) as one_more:
            assert read_all(one_more) == b""
        lines[0].close()

        def served() -> bool:
            with connect(proxy) as line, suppress(BrokenPipeError, ConnectionResetError):
                line.sendall(GREETING)
                return line.recv(100) == b"OK\n"
            return False

        wait_until(served, "there is room again")


# Lines


@requirement("stdio.lines", "corpus.framing")
@pytest.mark.parametrize("splitter", ["\r", "\u2028", "\u2029", "\u0085"])
def test_what_some_reader_takes_for_the_end_of_a_line_is_refused_wherever_it_stands(
    rig: Rig, client: StdioClient, splitter: str
) -> None:
    whole = request("tools/call", CALL).decode()
    client.say((whole.replace('"x"', f'"{splitter}"') + "\n" + whole.replace(", ", f",{splitter}") + "\n").encode())
    client.say(splitter.encode() + whole.encode() + b"\n")
    for _ in range(3):
        assert canonical(client.line())["error"]["code"] == -32700
    assert "result" in client.call("echo", {"text": "after"}, message_id="after")
    assert rig.calls_received() == ["echo"]


@requirement("stdio.lines")
def test_blank_lines_and_windows_line_ends_are_no_messages(rig: Rig, client: StdioClient) -> None:
    client.say(b"\n\r\n\n" + request("tools/call", CALL) + b"\r\n\r\n")
    assert "result" in client.until(1)[0]
    assert "result" in client.call("echo", {"text": "after"}, message_id="after")
    assert rig.calls_received() == ["echo", "echo"]


@requirement("stdio.lines")
def test_a_conversation_split_at_every_byte_is_the_same(rig: Rig, proxy: McpProxy, client: StdioClient) -> None:
    client.initialize()
    client.say(b"".join(request("tools/call", CALL, message_id=number) + b"\n" for number in range(3)))
    whole = [client.until(number) for number in range(3)]
    with connect(proxy) as line:
        line.sendall(GREETING)
        assert line.recv(3) == b"OK\n"
        for number in range(3):
            for one in request("tools/call", CALL, message_id=number) + b"\n":
                line.sendall(bytes([one]))
        with line.makefile("rb") as answers:
            assert [[canonical(answers.readline())] for _ in range(3)] == whole
    assert rig.calls_received() == ["echo"] * 6


@requirement("stdio.lines", "mcp.size-cap")
def test_a_line_over_the_limit_is_refused_and_ends_the_conversation(rig: Rig, proxy: McpProxy) -> None:
    with connect(proxy) as line:
        line.sendall(GREETING)
        assert line.recv(3) == b"OK\n"
        with suppress(BrokenPipeError, ConnectionResetError):
            line.sendall(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"')
            for _ in range(MAX_BYTES // 65536 + 40):
                line.sendall(b"x" * 65536)
        said = read_all(line)
    assert canonical(said)["error"]["message"].endswith("a line that does not end")
    assert rig.calls_received() == []
    still_serves(proxy)


@requirement("stdio.lines", "mcp.size-cap")
def test_a_line_just_within_the_limit_is_served_and_one_just_beyond_is_refused(rig: Rig, client: StdioClient) -> None:
    head, tail = request("tools/call", {"name": "echo", "arguments": {"text": "@"}}).split(b"@")
    fill = MAX_BYTES - len(head) - len(tail)
    client.say(head + b"x" * fill + tail + b"\n")
    assert "result" in client.until(1)[0]
    client.say(head + b"x" * (fill + 1) + tail + b"\n")
    assert "error" in canonical(client.line())
    assert len(rig.calls_received()) == 1


# What goes the other way


@requirement("stdio.notifications")
def test_a_client_is_told_when_the_list_of_tools_is_another_one(rig: Rig, client: StdioClient) -> None:
    client.initialize()
    assert "result" in client.call("answer_others")
    assert rig.calls_received() == ["answer_others"]
    client.say(request("tools/list", message_id="x") + b"\n")
    found = client.until("x")
    # Only what changed is told of: the server said that its list did, and it is the same.
    assert [one["method"] for one in found if "method" in one] in ([], ["notifications/tools/list_changed"])


@requirement("stdio.cancel")
@pytest.mark.parametrize("era", ["handshake", "stateless"])
def test_a_cancelled_call_is_not_answered_and_its_server_is_told(rig: Rig, client: StdioClient, era: str) -> None:
    client.say(request("tools/call", WAIT, message_id="w", era=era) + b"\n")
    wait_until(lambda: rig.calls_received() == ["wait"], "the call arrives")
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w", "reason": "x"}}
    client.say(json.dumps(cancel).encode() + b"\n")
    wait_until(lambda: rig.received()[-1]["method"] == "notifications/cancelled", "the server is told")
    minted = next(one["id"] for one in rig.received() if one.get("method") == "tools/call")
    assert rig.received()[-1]["params"]["requestId"] == minted
    assert "result" in client.call("echo", {"text": "x"}, message_id="w", era=era)
    assert rig.events("tool.result")[0].reason == "cancelled"


@requirement("stdio.ids", "D8.minted-ids")
@pytest.mark.parametrize("era", ["handshake", "stateless"])
def test_an_id_in_flight_is_refused_whatever_asks_for_it_and_answered_once(
    rig: Rig, client: StdioClient, era: str
) -> None:
    client.say(request("tools/call", WAIT, message_id=5, era=era) + b"\n")
    wait_until(lambda: rig.calls_received() == ["wait"], "the call arrives")
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    again = [("tools/call", CALL, 5), ("tools/call", CALL, "5"), ("tools/list", {}, 5)]
    if era == "handshake":
        again += [("initialize", hello, 5), ("ping", {}, 5)]
    for method, params, message_id in again:
        answer = client.ask(method, params, message_id=message_id, era=era)
        assert answer["error"]["message"] == "Invalid Request: this id is in flight", method
    assert rig.calls_received() == ["wait"]


# Ends


@requirement("stdio.ends")
def test_calls_in_flight_are_answered_when_the_client_says_no_more(rig: Rig, client: StdioClient) -> None:
    client.say(b"".join(request("tools/call", CALL, message_id=number) + b"\n" for number in range(200)))
    rest = client.finish()
    assert sorted(canonical(line)["id"] for line in rest) == list(range(200))
    assert client.process.wait(20) == 0
    assert len(rig.calls_received()) == 200


@requirement("stdio.ends")
def test_a_client_that_dies_stops_its_calls_at_the_server(rig: Rig, proxy: McpProxy) -> None:
    before = descriptors(proxy)
    with stdio_client(proxy.socket_path) as client:
        for number in range(3):
            client.say(request("tools/call", WAIT, message_id=number) + b"\n")
        wait_until(lambda: len(rig.calls_received()) == 3, "the calls arrive")
        client.process.kill()

    def told() -> list[Any]:
        return [one["params"]["requestId"] for one in rig.received() if one["method"] == "notifications/cancelled"]

    wait_until(lambda: len(told()) == 3, "the server is told")
    assert sorted(told()) == [one["id"] for one in rig.received() if one["method"] == "tools/call"]
    wait_until(lambda: descriptors(proxy) == before, "its descriptors are closed")
    still_serves(proxy)


@requirement("stdio.ends")
def test_a_connection_of_bytes_that_breaks_off_stops_its_calls(rig: Rig, proxy: McpProxy) -> None:
    before = descriptors(proxy)
    with connect(proxy) as line:
        line.sendall(GREETING + request("tools/call", WAIT) + b"\n")
        wait_until(lambda: rig.calls_received() == ["wait"], "the call arrives")
    wait_until(lambda: rig.received()[-1]["method"] == "notifications/cancelled", "the server is told")
    wait_until(lambda: descriptors(proxy) == before, "no descriptor is left")


@requirement("stdio.ends", "D8.cut-off")
def test_a_cut_off_answers_the_call_in_flight_and_refuses_the_next(
    rig: Rig, proxy: McpProxy, client: StdioClient
) -> None:
    client.say(request("tools/call", WAIT, message_id="w") + b"\n")
    wait_until(lambda: rig.calls_received() == ["wait"], "the call arrives")
    proxy.cut_off("revoked")
    assert client.until("w")[0]["error"]["code"] == -32001
    assert client.call("echo", {"text": "x"})["error"]["code"] == -32001
    assert rig.calls_received() == ["wait"]


@requirement("stdio.bounded", "mcp.in-flight-cap")
def test_more_calls_than_may_be_in_flight_wait_and_are_all_answered_in_the_end(rig: Rig, client: StdioClient) -> None:
    count = 3 * MAX_CALLS
    said = b"".join(request("tools/call", CALL, message_id=number) + b"\n" for number in range(count))
    writing = threading.Thread(target=client.say, args=(said,))
    writing.start()
    answered = [canonical(client.line()) for _ in range(count)]
    writing.join()
    assert all("result" in one for one in answered)
    assert sorted(one["id"] for one in answered) == list(range(count))
    assert len(rig.calls_received()) == count


@requirement("stdio.bounded")
def test_calls_that_wait_for_room_are_read_on_when_there_is_some(
    rig: Rig, proxy: McpProxy, client: StdioClient
) -> None:
    waiting = b"".join(request("tools/call", WAIT, message_id=number) + b"\n" for number in range(MAX_CALLS))
    writing = threading.Thread(target=client.say, args=(waiting,))
    writing.start()
    wait_until(lambda: len(rig.calls_received()) == MAX_CALLS, "as many as may be are in flight", 30)
    writing.join()
    with stdio_client(proxy.socket_path) as other:
        other.say(b"".join(request("tools/call", CALL, message_id=number) + b"\n" for number in range(5)))
        client.process.kill()
        assert sorted(canonical(other.line())["id"] for _ in range(5)) == list(range(5))


@requirement("stdio.bounded")
def test_a_client_that_does_not_read_is_not_read_from_and_the_others_are_served(rig: Rig, proxy: McpProxy) -> None:
    text = "x" * 5_000
    line = request("tools/call", {"name": "echo", "arguments": {"text": text}}) + b"\n"
    with closing(connect(proxy)) as deaf:
        deaf.sendall(GREETING)
        deaf.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < 20_000:
                deaf.sendall(line.replace(b'"id": 1', b'"id": %d' % (1000 + sent)))
                sent += 1
        assert sent < 20_000
        rss = Path(f"/proc/{proxy.pid}/statm").read_text().split()[1]
        assert int(rss) * os.sysconf("SC_PAGE_SIZE") < 200 * 1024 * 1024
        still_serves(proxy)
        # What it has asked for is answered as soon as it reads.
        deaf.settimeout(20)
        with deaf.makefile("rb") as answers:
            assert answers.readline() == b"OK\n"
            assert {canonical(answers.readline())["id"] for _ in range(10)} >= {1000}
    client = RawClient(proxy.url)
    client.initialize()
    assert client.call("echo", {"text": "x"}).status == 200
    assert len(rig.calls_received()) <= sent + 3


class Talker:
    """What the front needs of a relay, which answers every line with `said`."""

    full = False

    def __init__(self, said: list[bytes]) -> None:
        self.said = said
        self.gone = 0
        self.answered = asyncio.Event()

    def message(self, body: bytes, headers: None, exchange: Exchange, client: Client | None) -> None:
        del body, headers, client
        for one in self.said:
            exchange.event(one)

    def refuse(self, refused: Refused, *, target: str, exchange: Exchange) -> None:
        raise AssertionError(target, refused, exchange)

    def refuse_stranger(self, refused: Refused) -> None:
        raise AssertionError(refused)

    def connected(self, exchange: Exchange) -> Client:
        del exchange
        return Client({}, stdio=True)

    def disconnected(self, client: Client) -> None:
        del client
        self.gone += 1

    def when_there_is_room(self, go_on: Callable[[], None]) -> None:
        raise AssertionError(go_on)

    def mark(self, one: StdioConnection) -> None:
        asyncio.get_running_loop().call_soon(one.flush)
        asyncio.get_running_loop().call_soon(self.answered.set)

    def turn(self, read: Callable[[], object]) -> None:
        read()


async def spoken_to(path: Path, said: list[bytes], then: Callable[[StdioFront, Talker, Backlog], None]) -> None:
    """Greet a front, send a line, read nothing, and let `then` happen while much waits; the conversation is cut."""
    clock = [1000.0]
    talker, backlog = Talker(said), Backlog()
    front = StdioFront(talker, TOKEN.get_secret_value(), backlog, lambda: clock[0])
    front.start(str(path / "s"))
    with socket.socket(socket.AF_UNIX) as line:
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(line, str(path / "s"))
        await loop.sock_sendall(line, GREETING + b"{}\n")
        await talker.answered.wait()
        then(front, talker, backlog)
        clock[0] += STALL_SECONDS + 1
        front.tick()
        assert (talker.gone, backlog.waiting) == (1, 0)
        # It can still read what had left, and then it sees the end.
        while await loop.sock_recv(line, 1 << 20):
            pass
    front.close()


@requirement("stdio.bounded")
def test_a_client_that_takes_nothing_for_thirty_seconds_is_cut_off(tmp_path: Path) -> None:
    def then(front: StdioFront, talker: Talker, backlog: Backlog) -> None:
        front.tick()
        assert talker.gone == 0
        assert backlog.waiting > 0

    run(spoken_to(tmp_path, [b'"%b"' % (b"x" * 1024 * 1024)] * 8, then))


@requirement("stdio.bounded")
def test_a_client_that_leaves_too_much_unread_is_cut_off_at_once(tmp_path: Path) -> None:
    def then(front: StdioFront, talker: Talker, backlog: Backlog) -> None:
        del front
        assert (talker.gone, backlog.waiting) == (1, 0)

    run(spoken_to(tmp_path, [b'"%b"' % (b"x" * 1024 * 1024)] * 40, then))


class Slow(Standing):
    """A check that takes as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self) -> str | None:
        self.may_answer.wait()
        return super().__call__()


@requirement("stdio.bounded", "D8.recheck-standing")
def test_what_waits_to_hear_that_the_handoff_stands_is_answered_when_it_does(tmp_path: Path) -> None:
    slow = Slow()
    rig = Rig(tmp_path, standing=slow)
    try:
        proxy = rig.start(["echo"])
        with stdio_client(proxy.socket_path) as client:
            slow.may_answer.clear()
            stale = time.monotonic() + MAX_AGE + 1
            wait_until(lambda: time.monotonic() > stale, "what is known of the standing is too old")
            refused = [request("tools/call", {"name": "forbidden"}, message_id=one) for one in range(MAX_HELD + 300)]
            said = b"\n".join([*refused, request("tools/call", CALL, message_id="last")]) + b"\n"
            writing = threading.Thread(target=client.say, args=(said,))
            writing.start()
            unanswered = client.lines.empty()
            slow.may_answer.set()
            found = client.until("last")
            writing.join()
            assert unanswered
            assert len(found) == len(refused) + 1
            assert "result" in found[-1]
    finally:
        slow.may_answer.set()
        rig.close()
