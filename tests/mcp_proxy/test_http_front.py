"""The HTTP front under raw sockets: what is heard, what is refused, how it answers, and what a client can take of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_token_injector.errors import HandoffError
from agent_token_injector.mcp_proxy import http_front_rules, wire
from agent_token_injector.mcp_proxy.backlog import Backlog
from agent_token_injector.mcp_proxy.eras import McpHeaders, Refused
from agent_token_injector.mcp_proxy.exchange import Exchange
from agent_token_injector.mcp_proxy.http_front import HttpFront, HttpLimits
from agent_token_injector.mcp_proxy.http_front_connection import FrontConnection
from tests.requirements import requirement

TOKEN = "bearer-of-this-handoff-alone-7f3a"
BODY = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
BOTH = "application/json, text/event-stream"


def wait_until(true: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


@dataclass
class Asked:
    """One thing that the relay was asked, and where the answer goes."""

    what: str
    body: bytes
    headers: McpHeaders
    exchange: Exchange
    last_event_id: str | None = None
    gone: int = 0


def echo(asked: Asked) -> None:
    asked.exchange.reply(asked.body or b"{}")


def later(asked: Asked) -> None:
    def gone() -> None:
        asked.gone += 1

    asked.exchange.gone = gone


@dataclass
class ScriptedRelay:
    """Answers as `script` says, and keeps what it was asked."""

    script: Callable[[Asked], None] = echo
    asked: list[Asked] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    strangers: list[Refused] = field(default_factory=list)

    def message(self, body: bytes, headers: McpHeaders | None, exchange: Exchange, client: None) -> None:
        assert headers is not None
        assert client is None
        self._ask(Asked("message", body, headers, exchange))

    def listen(self, headers: McpHeaders, exchange: Exchange, last_event_id: str | None) -> None:
        self._ask(Asked("listen", b"", headers, exchange, last_event_id))

    def end_session(self, headers: McpHeaders, exchange: Exchange) -> None:
        self._ask(Asked("end_session", b"", headers, exchange))

    def refuse(self, refused: Refused, *, target: str, exchange: Exchange) -> None:
        assert target == "http"
        self.refused.append(refused)
        exchange.reply(wire.error(None, refused.code, refused.message), status=refused.http_status(None))

    def refuse_stranger(self, refused: Refused) -> None:
        self.strangers.append(refused)

    def _ask(self, asked: Asked) -> None:
        self.asked.append(asked)
        self.script(asked)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def read_answer(raw: bytes, *, to_head: bool = False) -> tuple[Answer, bytes] | None:
    """The first answer in `raw`, strictly read, and what follows it; None when it is not complete."""
    head, blank, rest = raw.partition(b"\r\n\r\n")
    if not blank:
        return None
    first, *lines = head.split(b"\r\n")
    version, status, _ = first.split(b" ", 2)
    assert version == b"HTTP/1.1"
    headers = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(": ")
        assert name.lower() not in headers
        headers[name.lower()] = value
    if status == b"100" or to_head:
        return Answer(int(status), headers, b""), rest
    if "transfer-encoding" in headers:
        return _read_chunks(Answer(int(status), headers, b""), rest)
    size = int(headers["content-length"])
    return (Answer(int(status), headers, rest[:size]), rest[size:]) if len(rest) >= size else None


def _read_chunks(answer: Answer, rest: bytes) -> tuple[Answer, bytes] | None:
    body = b""
    while True:
        size, line, rest = rest.partition(b"\r\n")
        length = int(size, 16) if line else 0
        if not line or len(rest) < length + 2:
            return None
        assert rest[length : length + 2] == b"\r\n"
        body, rest = body + rest[:length], rest[length + 2 :]
        if length == 0:
            return Answer(answer.status, answer.headers, body), rest


class Peer:
    """A client made of a socket: says any bytes, reads answers strictly."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.raw = b""
        sock.settimeout(10)

    def say(self, data: bytes) -> Peer:
        self.sock.sendall(data)
        return self

    def answer(self, *, to_head: bool = False) -> Answer:
        while (found := read_answer(self.raw, to_head=to_head)) is None:
            assert self._more(), f"closed after {self.raw!r}"
        answer, self.raw = found
        return answer

    def until(self, text: bytes) -> bytes:
        """What came up to and with `text`."""
        while text not in self.raw:
            assert self._more(), f"closed after {self.raw!r}"
        head, _, self.raw = self.raw.partition(text)
        return head + text

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._more():
            pass
        return self.raw

    def skip(self, until: bytes) -> int:
        """How many bytes came up to and with `until`, which ends a piece."""
        size, tail = len(self.raw), self.raw
        while not tail.endswith(until):
            data = self.sock.recv(65536)
            assert data
            size, tail = size + len(data), (tail + data)[-64:]
        self.raw = b""
        return size

    def quiet(self) -> bool:
        return not self.raw and not select.select([self.sock], [], [], 0)[0]

    def close(self) -> None:
        self.sock.close()

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            return False
        self.raw += data
        return bool(data)


class Served:
    """A front on its own loop in its own thread, with a clock that stands still until it is moved."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: HttpLimits | None = None) -> None:
        self.loop = loop
        self.relay = ScriptedRelay()
        self.backlog = Backlog()
        self.now = 1000.0
        self.peers: list[Peer] = []
        self.front = HttpFront(
            self.relay, TOKEN, self.backlog, limits=limits, clock=lambda: self.now, tick_seconds=0.005
        )
        self.thread = threading.Thread(target=loop.run_forever, daemon=True)
        self.thread.start()
        self.port = self.wait(self.front.start())

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def do(self, action: Callable[[], object]) -> None:
        """Do it on the loop, and wait."""

        async def once() -> None:
            action()

        self.wait(once())

    def ticked(self) -> None:
        """Wait until the front has seen the clock."""
        wait_until(lambda: self.front.now == self.now, "a tick")
        # The tick that set `now` may still be at work; what is done on the loop comes after it.
        self.do(lambda: None)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.ticked()

    def peer(self, *, receive_buffer: int | None = None) -> Peer:
        sock = socket.socket()
        self.peers.append(Peer(sock))
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        return self.peers[-1]

    def request(
        self, method: str = "POST", target: str = "/mcp", version: str = "HTTP/1.1", body: bytes = BODY, **changes: Any
    ) -> bytes:
        """A good request; `changes` replaces headers, `_` for `-`, None leaves one out, a list repeats it."""
        headers: dict[str, Any] = {"host": f"127.0.0.1:{self.port}", "authorization": f"Bearer {TOKEN}", "accept": BOTH}
        if method == "POST":
            headers |= {"content-type": "application/json", "content-length": str(len(body))}
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        lines = [f"{method} {target} {version}"]
        for name, value in headers.items():
            lines += [f"{name}: {one}" for one in ([value] if isinstance(value, str) else value or [])]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body if method == "POST" else b"")

    def ask(self, *args: Any, **changes: Any) -> Answer:
        return self.peer().say(self.request(*args, **changes)).answer()

    def bodies(self) -> list[bytes]:
        return [asked.body for asked in self.relay.asked]

    def close(self) -> None:
        self.wait(self.front.close())
        for peer in self.peers:
            peer.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(**limits: Any) -> Served:
        loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
        made.append(Served(loop, HttpLimits(**limits)))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture
def served(make: Callable[..., Served]) -> Served:
    return make()


# What is heard, and how it is answered.


@requirement("http.answers")
def test_a_post_reaches_the_relay_and_its_reply_comes_back(served: Served) -> None:
    answer = served.ask(
        Mcp_Protocol_Version="2026-07-28", Mcp_Method=" ping\t", Mcp_Name="=?base64?eA==?=", Mcp_Session_Id="s"
    )
    assert answer == Answer(
        200,
        {"cache-control": "no-store", "content-type": "application/json", "content-length": str(len(BODY))},
        BODY,
    )
    (asked,) = served.relay.asked
    assert asked.what == "message"
    assert asked.headers == McpHeaders("2026-07-28", "ping", "=?base64?eA==?=", "s")


@requirement("http.answers")
def test_a_new_session_and_a_status_are_said_in_the_head(served: Served) -> None:
    served.relay.script = lambda asked: asked.exchange.reply(b"{}", status=404, session="fresh")
    answer = served.ask()
    assert (answer.status, answer.headers["mcp-session-id"]) == (404, "fresh")
    served.relay.script = lambda asked: asked.exchange.reply(b"", status=202)
    answer = served.ask()
    assert (answer.status, answer.body) == (202, b"")
    assert "content-type" not in answer.headers
    served.relay.script = lambda asked: asked.exchange.reply(b"{}", status=405)
    assert served.ask("GET").headers["allow"] == "POST, DELETE"


@requirement("http.answers")
def test_get_listens_and_delete_ends_the_session(served: Served) -> None:
    assert served.ask("GET", Last_Event_ID=" 7/4 ", Mcp_Session_Id="s").status == 200
    assert served.ask("DELETE", Mcp_Session_Id="s", accept=None).status == 200
    listened, ended = served.relay.asked
    assert (listened.what, listened.last_event_id, listened.headers.session) == ("listen", "7/4", "s")
    assert (ended.what, ended.headers.session) == ("end_session", "s")


@requirement("http.answers")
def test_parameter_headers_reach_the_relay_by_their_short_names(served: Served) -> None:
    served.ask(Mcp_Param_Region=" eu\t", MCP_PARAM_Tenant_Id="")
    assert served.relay.asked[0].headers.params == {"region": "eu", "tenant-id": ""}


@requirement("http.answers")
@pytest.mark.parametrize(
    "name", ["Mcp-Protocol-Version", "Mcp-Method", "Mcp-Name", "Mcp-Session-Id", "Mcp-Param-Region"]
)
def test_a_routing_header_that_comes_twice_is_named_and_nothing_else_is_said(served: Served, name: str) -> None:
    served.ask(Mcp_Method="ping", **{name: ["a", "a"]})
    assert served.relay.asked[0].headers == McpHeaders(twice=name.lower())
    for method in ("GET", "DELETE"):
        assert served.ask(method, **{name: ["a", "a"]}).status == 400
    assert [one.reason for one in served.relay.refused] == ["headers", "headers"]


@requirement("http.one-at-a-time")
def test_requests_of_one_connection_are_answered_in_their_order_and_one_at_a_time(served: Served) -> None:
    served.relay.script = later
    peer = served.peer().say(b"".join(served.request(body=b'"%d"' % number) for number in range(3)))
    peer.say(served.request(body=b'"3"'))
    for number in range(4):
        wait_until(lambda number=number: len(served.relay.asked) == number + 1, "the next request")
        assert peer.quiet()
        asked = served.relay.asked[number]
        served.do(lambda asked=asked: asked.exchange.reply(asked.body))
        assert peer.answer().body == b'"%d"' % number


@requirement("http.one-at-a-time")
def test_too_many_requests_sent_ahead_are_refused_after_those_before_them(make: Callable[..., Served]) -> None:
    served = make(pipelined=4)
    peer = served.peer().say(served.request() * 9)
    assert [peer.answer().status for _ in range(5)] == [200, 200, 200, 200, 400]
    assert peer.rest() == b""
    assert len(served.relay.asked) == 4


@requirement("http.one-at-a-time")
def test_a_connection_serves_until_its_client_says_otherwise(served: Served) -> None:
    peer = served.peer()
    for number in range(20):
        assert peer.say(served.request(body=b"%d" % number)).answer().body == b"%d" % number
    assert peer.say(served.request(connection="close")).answer().headers["connection"] == "close"
    assert peer.rest() == b""
    old = served.peer().say(served.request(version="HTTP/1.0", connection="keep-alive"))
    assert old.answer().headers["connection"] == "close"
    assert old.rest() == b""


@requirement("http.answers")
def test_the_standard_library_s_client_is_served(served: Served) -> None:
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    headers = {"Authorization": f"bearer {TOKEN}", "Content-Type": 'application/json; charset="UTF-8"', "Accept": "*/*"}
    for body in (BODY, iter([b'{"in":', b'"chunks"}'])):
        client.request("POST", "/mcp", body, headers, encode_chunked=True)
        assert client.getresponse().read() in (BODY, b'{"in":"chunks"}')
    client.close()
    assert served.bodies() == [BODY, b'{"in":"chunks"}']


@requirement("http.answers")
def test_continue_is_said_to_those_alone_who_showed_the_token(served: Served) -> None:
    head, _, body = served.request(expect="100-Continue").partition(b"\r\n\r\n")
    peer = served.peer().say(head + b"\r\n\r\n")
    assert peer.answer().status == 100
    assert peer.say(body).answer().body == BODY
    stranger = served.request(expect="100-continue", authorization="Bearer no").partition(b"\r\n\r\n")[0]
    assert served.peer().say(stranger + b"\r\n\r\n").answer().status == 401
    # Behind a request that is being answered it waits for its turn.
    served.relay.script = later
    peer = served.peer().say(served.request(body=b"1") + head + b"\r\n\r\n")
    wait_until(lambda: len(served.relay.asked) == 2, "the first request")
    assert peer.quiet()
    served.do(lambda: served.relay.asked[1].exchange.reply(b"[1]"))
    assert (peer.answer().body, peer.answer().status) == (b"[1]", 100)


def _parts(served: Served) -> bytes:
    chunked = served.request(content_length=None, transfer_encoding="chunked", body=b"")
    return (
        served.request(mcp_method="ping", mcp_param_x="1")
        + chunked
        + b"3;x=y\r\n{}\n\r\n28\r\n"
        + b" " * 40
        + b"\r\n0\r\n\r\n"
        + served.request("DELETE")
    )


@pytest.fixture(scope="module")
def split() -> Iterator[Served]:
    served = Served(uvloop.new_event_loop())
    yield served
    served.close()


def _fed(served: Served, pieces: list[bytes]) -> Peer:
    """A connection that is given exactly these pieces, over a real socket pair for the answers."""
    ours, theirs = socket.socketpair()

    async def feed() -> None:
        _, connection = await served.loop.connect_accepted_socket(lambda: FrontConnection(served.front), theirs)
        for piece in pieces:
            connection.data_received(piece)

    served.wait(feed())
    served.peers.append(Peer(ours))
    return served.peers[-1]


@requirement("http.split-anywhere")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(0, 900), max_size=12))
@example(cuts=set(range(900)))
def test_it_does_not_matter_where_the_bytes_are_split(split: Served, cuts: set[int]) -> None:
    split.relay.asked.clear()
    raw = _parts(split)
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[a:b] for a, b in pairwise(edges)]
    peer = _fed(split, pieces)
    assert [peer.answer().body for _ in range(3)] == [BODY, b"{}\n" + b" " * 40, b"{}"]
    assert [(asked.what, asked.headers) for asked in split.relay.asked] == [
        ("message", McpHeaders(method="ping", params={"x": "1"})),
        ("message", McpHeaders()),
        ("end_session", McpHeaders()),
    ]
    peer.close()


@requirement("http.split-anywhere")
def test_every_single_cut_of_two_requests_means_the_same(split: Served) -> None:
    raw = _parts(split)
    for cut in range(1, len(raw)):
        split.relay.asked.clear()
        peer = _fed(split, [raw[:cut], raw[cut:]])
        assert [peer.answer().status for _ in range(3)] == [200, 200, 200], cut
        assert split.bodies() == [BODY, b"{}\n" + b" " * 40, b""], cut
        peer.close()


@requirement("http.one-reading")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 320),
            st.integers(0, 8),
            st.binary(max_size=4)
            | st.sampled_from(
                [
                    b"\r\n",
                    b"\n",
                    b"\r",
                    b"Content-Length: 9\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b" ",
                    b"\x00",
                    b":",
                ]
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_mutation_of_a_request_is_heard_without_the_token_or_breaks_the_front(
    split: Served, edits: list[tuple[int, int, bytes]]
) -> None:
    split.relay.asked.clear()
    raw = split.request()
    for at, cut, piece in edits:
        raw = raw[:at] + piece + raw[at + cut :]
    ours = _fed(split, [raw])
    ours.sock.shutdown(socket.SHUT_WR)
    while (found := read_answer(ours.rest())) is not None:
        answer, ours.raw = found
        assert answer.status in {100, 200, 400, 401, 403, 404, 405, 406, 413, 414, 415, 417, 431, 501, 505}
    if split.relay.asked:
        assert f"bearer {TOKEN}".encode() in raw.lower()
    ours.close()


# What is refused.


@requirement("mcp.token-required")
@pytest.mark.parametrize(
    "value",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}",
     f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN},", [f"Bearer {TOKEN}"] * 2, "Bearer \xe9"],
)  # fmt: skip
def test_without_the_token_everything_has_the_same_answer(served: Served, value: Any) -> None:
    answers = [
        served.ask(*form, authorization=value)
        for form in [
            ("POST",),
            ("GET",),
            ("DELETE",),
            ("PUT",),
            ("OPTIONS",),
            ("POST", "/elsewhere"),
            ("POST", "/mcp?x"),
        ]
    ]
    assert {answer.status for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert len({answer.body for answer in answers}) == 1
    assert not served.relay.asked
    assert {one.reason for one in served.relay.strangers} == {"unauthenticated"}
    assert len(served.relay.strangers) == len(answers)


@requirement("mcp.token-required")
def test_the_token_is_compared_in_constant_time_and_must_not_be_empty(served: Served) -> None:
    assert "compare_digest" in http_front_rules.unknown_caller.__code__.co_names
    for shown in ("", "x", TOKEN[:5], TOKEN[:-1] + "b"):
        assert served.ask(authorization=f"Bearer {shown}").status == 401
    with pytest.raises(ValueError, match="empty"):
        HttpFront(served.relay, "", served.backlog)
    assert TOKEN not in repr(served.front)
    assert TOKEN not in repr(HttpLimits())


@requirement("mcp.dns-rebinding")
@pytest.mark.parametrize(
    "changes",
    [{"host": None}, {"host": "evil.example"}, {"host": "127.0.0.1"}, {"host": "127.0.0.1:1"}, {"host": "[::1]:1"},
     {"host": ["127.0.0.1:{port}", "127.0.0.1:{port}"]}, {"host": "127.0.0.1:{port}."}, {"host": "evil@127.0.0.1:{port}"},
     {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost.evil.example"},
     {"origin": "http://localhost:1/"}, {"origin": ["http://localhost", "http://localhost"]}, {"origin": ""}],
)  # fmt: skip
def test_another_host_or_origin_is_forbidden_even_with_the_token(served: Served, changes: dict[str, Any]) -> None:
    port = str(served.port)
    filled = {
        name: [one.replace("{port}", port) for one in ([value] if isinstance(value, str) else value or [])]
        for name, value in changes.items()
    }
    assert served.ask(**filled).status == 403
    assert [one.reason for one in served.relay.strangers] == ["headers"]
    assert served.ask(host=f"LocalHost:{port}", origin="http://127.0.0.1:6274").status == 200
    assert len(served.relay.asked) == 1


@requirement("mcp.form")
@pytest.mark.parametrize(
    ("form", "changes", "status"),
    [
        (("POST", "/mcp/"), {}, 404),
        (("POST", "/mcp?a=b"), {}, 404),
        (("POST", "/mcp?"), {}, 404),
        (("POST", "/%6dcp"), {}, 404),
        (("POST", "//mcp"), {}, 404),
        (("POST", "/MCP"), {}, 404),
        (("POST", "/x/../mcp"), {}, 404),
        (("POST", "http://127.0.0.1/mcp"), {}, 404),
        (("POST", "*"), {}, 404),
        (("CONNECT", "127.0.0.1:80"), {}, 404),
        (("PUT",), {}, 405),
        (("PATCH",), {}, 405),
        (("HEAD",), {}, 405),
        (("OPTIONS",), {"origin": "http://localhost", "access_control_request_method": "POST"}, 405),
        (("TRACE",), {}, 405),
        (("POST",), {"content_type": None}, 415),
        (("POST",), {"content_type": "text/plain"}, 415),
        (("POST",), {"content_type": "application/jsonx"}, 415),
        (("POST",), {"content_type": "application/json; charset=latin-1"}, 415),
        (("POST",), {"content_type": "application/json, text/plain"}, 415),
        (("POST",), {"content_type": ["application/json", "application/json"]}, 415),
        (("POST",), {"content_encoding": "gzip"}, 415),
        (("POST",), {"content_encoding": ["identity", "identity"]}, 415),
        (("POST",), {"accept": "application/json"}, 406),
        (("POST",), {"accept": "text/event-stream"}, 406),
        (("POST",), {"accept": "text/html"}, 406),
        (("POST",), {"accept": ""}, 406),
        (("POST",), {"accept": "*/*, text/event-stream;q=0.0"}, 406),
        (("GET",), {"accept": "application/json"}, 406),
        (("GET",), {"accept": None}, 406),
        (("GET",), {"last_event_id": ["1", "2"]}, 400),
        (("GET",), {"content_length": "2"}, 400),
        (("DELETE",), {"transfer_encoding": "chunked"}, 400),
        (("POST",), {"expect": "200-ok"}, 417),
        (("POST",), {"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings"}, 400),
        (("POST",), {"upgrade": "websocket"}, 400),
        (("POST",), {"transfer_encoding": "gzip, chunked", "content_length": None}, 501),
        (("POST",), {"content_length": str(wire.MAX_BYTES + 1)}, 413),
        (("POST",), {"content_length": "9" * 12}, 413),
        (("POST", "/mcp", "HTTP/2.0"), {}, 505),
        (("POST", "/" + "a" * 2000), {}, 414),
        (("POST",), {"x_long": "a" * 17000}, 431),
        (("POST",), {"x_many": ["a"] * 101}, 431),
    ],
)  # fmt: skip
def test_another_form_is_refused_and_the_connection_closed(
    served: Served, form: tuple[str, ...], changes: dict[str, Any], status: int
) -> None:
    peer = served.peer().say(served.request(*form, **changes))
    answer = peer.answer(to_head=form[0] == "HEAD")
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (answer.headers.get("allow") == "GET, POST, DELETE") is (status == 405)
    assert peer.rest() == b""
    assert not served.relay.asked
    if status not in (404, 405, 505):
        (noted,) = served.relay.refused + served.relay.strangers
        assert noted.reason in ("malformed", "headers")
        assert noted.http_status(None) == status


@requirement("mcp.form")
@pytest.mark.parametrize(
    "accept",
    [None, "*/*", "application/*, text/*", "text/event-stream;q=0.5,application/json ;q=0.9", ["application/json",
     "text/event-stream"], "TEXT/Event-Stream, Application/JSON", "application/json, text/event-stream, */*;q=0"],
)  # fmt: skip
def test_every_way_to_accept_both_forms_is_heard(served: Served, accept: Any) -> None:
    assert served.ask(accept=accept).status == 200


HEAD = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer " + TOKEN.encode()
JSON = b"\r\nContent-Type: application/json\r\n"
HIDDEN = b"POST /mcp HTTP/1.1\r\nHidden: yes\r\n\r\n"


@requirement("http.one-reading")
@pytest.mark.parametrize(
    "rest",
    [
        JSON + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        JSON + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
        JSON + b"Content-Length: 2, 2\r\n\r\n{}",
        JSON + b"Content-Length: +2\r\n\r\n{}",
        JSON + b"Content-Length: 0x2\r\n\r\n{}",
        JSON + b"Content-Length: -2\r\n\r\n{}",
        JSON + b"Content-Length: \r\n\r\n",
        JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding : chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding:\x0bchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nMcp-Method: other\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\n\r\n2;a\n=b\r\n{}\r\n0\r\n\r\n",
        JSON + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff2\r\n{}\r\n0\r\n\r\n",
        b"\r\nContent-Type: application/json\nContent-Length: 2\r\n\r\n{}",
        b"\r\nContent-Type: application/json\rContent-Length: 2\r\n\r\n{}",
        b"\r\nContent-Type: application/json\r\nContent-Length: 2\n\n{}",
        b"\r\nContent-Type:\r\n application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"\r\nX: a\r\n\tb" + JSON + b"Content-Length: 2\r\n\r\n{}",
        b"\r\nX: a\0b" + JSON + b"Content-Length: 2\r\n\r\n{}",
        b"\r\nNoColon" + JSON + b"Content-Length: 2\r\n\r\n{}",
        b"\r\n: nameless" + JSON + b"Content-Length: 2\r\n\r\n{}",
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_refused_and_nothing_behind_it_is_heard(
    served: Served, rest: bytes
) -> None:
    peer = served.peer().say(HEAD % served.port + rest + HIDDEN + served.request())
    assert peer.answer().status in (400, 501)
    assert peer.rest() == b""
    assert not served.relay.asked
    assert len(served.relay.refused + served.relay.strangers) == 1


@requirement("http.one-reading")
@pytest.mark.parametrize(
    "raw",
    [b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST /mcp\r\n\r\n", b"POST /mcp HTTP/1.1\n\n",
     b"POST /mcp HTTP/1.1\r\n Host: a\r\n\r\n", b"POST /mc\xc3\xb6 HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"\0" * 40,
     b"POST /mcp HTTP/1.2\r\n\r\n"],
)  # fmt: skip
def test_what_is_not_http_is_a_strangers_and_is_refused(served: Served, raw: bytes) -> None:
    peer = served.peer().say(raw)
    assert peer.answer().status in (400, 401, 403)
    assert peer.rest() == b""
    assert len(served.relay.strangers) == 1
    assert not served.relay.refused


@requirement("http.one-reading")
def test_what_follows_a_body_is_another_request(served: Served) -> None:
    peer = served.peer().say(served.request() + b"{}trailing")
    assert (peer.answer().status, peer.answer().status) == (200, 400)
    assert peer.rest() == b""
    closing = served.peer().say(served.request(connection="close") + served.request())
    assert closing.answer().status == 200
    assert closing.rest() == b""
    assert len(served.relay.asked) == 2


@requirement("http.answers")
def test_a_refused_client_that_goes_on_sending_still_reads_why(served: Served) -> None:
    size = 4 * 1024 * 1024
    peer = served.peer().say(served.request(authorization=None, content_length=str(size), body=b"x" * size))
    assert peer.answer().status == 401
    assert peer.rest() == b""


# What a client can take.


@requirement("http.bounded")
def test_a_body_larger_than_the_limit_is_not_read_to_its_end(served: Served) -> None:
    chunked = served.request(content_length=None, transfer_encoding="chunked", body=b"")
    peer = served.peer().say(chunked)
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    for _ in range(11):
        peer.say(piece)
    assert peer.answer().status == 413
    largest = served.peer().say(served.request(body=b" " * wire.MAX_BYTES))
    assert len(largest.answer().body) == wire.MAX_BYTES
    assert served.front.receiving == 0


@requirement("http.bounded")
@pytest.mark.parametrize("endless", [b"\r\n" * 9000, b"POST /mcp HTTP/1.1\r\nX: " + b"a" * 17000])
def test_a_head_without_end_is_refused(served: Served, endless: bytes) -> None:
    peer = served.peer().say(endless)
    assert peer.answer().status == 431
    assert [one.reason for one in served.relay.strangers] == ["malformed"]


@requirement("http.bounded")
def test_a_body_in_too_many_pieces_is_refused(make: Callable[..., Served]) -> None:
    served = make(framing_bytes=1000)
    chunked = served.request(content_length=None, transfer_encoding="chunked", body=b"")
    peer = served.peer().say(chunked + b"1;" + b"x" * 20000)
    assert peer.answer().status == 400
    served.ticked()
    assert served.front.receiving == 0


@requirement("http.bounded")
def test_unfinished_bodies_are_bounded_over_all_connections(make: Callable[..., Served]) -> None:
    served = make(receiving_bytes=300_000)
    unfinished = served.request(content_length="900000", body=b" " * 100_000)
    first = [served.peer().say(unfinished) for _ in range(2)]
    wait_until(lambda: served.front.receiving == 200_000, "two bodies")
    assert served.peer().say(unfinished + b" " * 150_000).rest() == b""
    wait_until(lambda: served.front.receiving == 200_000, "the third forgotten")
    for peer in first:
        peer.close()
    wait_until(lambda: served.front.receiving == 0, "all forgotten")


@requirement("http.bounded")
def test_one_connection_too_many_is_told_so_and_the_others_are_served(served: Served) -> None:
    peers = [served.peer() for _ in range(256)]
    for peer in peers:
        assert peer.say(served.request()).answer().status == 200
    late = served.peer()
    assert late.answer().status == 503
    assert late.rest() == b""
    late.close()
    peers[0].close()
    wait_until(lambda: len(served.front.connections) == 255, "room")
    assert served.ask().status == 200
    assert peers[255].say(served.request()).answer().status == 200


@requirement("http.deadlines")
def test_a_head_or_body_that_takes_too_long_is_given_up(served: Served) -> None:
    served.ticked()
    silent, slow = served.peer(), served.peer().say(b"POST /mcp HTTP/1.1\r\nHo")
    body = served.peer().say(served.request()[:-1])
    wait_until(lambda: len(served.front.connections) == 3 and served.front.receiving == len(BODY) - 1, "all three")
    served.pass_time(9.9)
    assert all(peer.quiet() for peer in (silent, slow, body))
    slow.say(b"st: x\r\n")
    served.pass_time(0.2)
    assert silent.rest() == b""
    assert slow.answer().status == 408
    served.pass_time(19.8)
    assert body.quiet()
    served.pass_time(0.3)
    assert body.answer().status == 408
    assert not served.relay.strangers + served.relay.refused + served.relay.asked


@requirement("http.deadlines")
def test_an_idle_connection_is_closed_in_silence_and_one_that_waits_for_its_answer_is_not(served: Served) -> None:
    idle, waiting = served.peer(), served.peer()
    assert idle.say(served.request()).answer().status == 200
    served.relay.script = later
    waiting.say(served.request())
    wait_until(lambda: len(served.relay.asked) == 2, "the request")
    served.pass_time(119)
    assert idle.quiet()
    served.pass_time(2)
    assert idle.rest() == b""
    served.pass_time(3600)
    served.do(lambda: served.relay.asked[1].exchange.reply(b"{}"))
    assert waiting.answer().status == 200


@requirement("http.deadlines")
def test_a_refused_client_that_stays_is_dropped(served: Served) -> None:
    peer = served.peer().say(served.request(authorization=None))
    assert peer.answer().status == 401
    assert len(served.front.connections) == 1
    served.pass_time(1.1)
    wait_until(lambda: not served.front.connections, "the connection dropped")


# Event streams.


@requirement("http.event-streams")
def test_the_first_event_makes_the_answer_a_stream_and_the_reply_ends_it(served: Served) -> None:
    served.relay.script = later
    peer = served.peer().say(served.request())
    wait_until(lambda: served.relay.asked, "the request")
    exchange = served.relay.asked[0].exchange
    served.do(lambda: exchange.event(b'{"a":1}', event_id="7", retry=500))
    head = peer.answer(to_head=True)
    assert head.status == 200
    assert head.headers == {
        "cache-control": "no-store",
        "content-type": "text/event-stream",
        "transfer-encoding": "chunked",
    }
    assert b'id: 7\nretry: 500\nevent: message\ndata: {"a":1}\n\n' in peer.until(b"\n\n\r\n")
    served.do(lambda: exchange.event(b"", event_id="8"))
    assert b"id: 8\ndata: \n\n" in peer.until(b"\n\n\r\n")
    served.do(lambda: exchange.reply(b'{"b":2}'))
    assert peer.until(b"0\r\n\r\n").endswith(b'data: {"b":2}\n\n\r\n0\r\n\r\n')
    # After the last word nothing is said any more, and the connection serves on.
    served.do(lambda: (exchange.event(b"{}"), exchange.reply(b"{}"), exchange.end()))
    served.relay.script = echo
    assert peer.say(served.request()).answer().body == BODY


@requirement("http.event-streams")
def test_a_stream_can_open_without_an_event_and_end_without_a_reply(served: Served) -> None:
    served.relay.script = later
    peer = served.peer().say(served.request("GET"))
    wait_until(lambda: served.relay.asked, "the request")
    served.do(lambda: served.relay.asked[0].exchange.event(b""))
    assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert peer.until(b"\n\n") == b"4\r\n: \n\n"
    served.do(served.relay.asked[0].exchange.end)
    assert peer.until(b"0\r\n\r\n") == b"\r\n0\r\n\r\n"
    served.relay.script = lambda asked: asked.exchange.end()
    assert peer.say(served.request("GET")).answer().body == b""


@requirement("http.event-streams")
def test_a_client_without_chunks_reads_the_stream_to_the_end_of_the_connection(served: Served) -> None:
    served.relay.script = lambda asked: (asked.exchange.event(b"[1]"), asked.exchange.reply(b"[2]"))
    raw = served.peer().say(served.request(version="HTTP/1.0")).rest()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert body == b"event: message\ndata: [1]\n\nevent: message\ndata: [2]\n\n"


@requirement("http.event-streams")
def test_a_silent_stream_gets_a_comment_every_fifteen_seconds(served: Served) -> None:
    served.ticked()
    served.relay.script = later
    peer = served.peer().say(served.request())
    wait_until(lambda: served.relay.asked, "the request")
    served.pass_time(60)
    assert peer.quiet()
    served.do(lambda: served.relay.asked[0].exchange.event(b"{}"))
    peer.until(b"{}\n\n\r\n")
    for _ in range(3):
        served.pass_time(14.9)
        assert peer.quiet()
        served.pass_time(0.2)
        assert peer.until(b"\n\n\r\n") == b"4\r\n: \n\n\r\n"


@requirement("http.client-gone")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_the_relay_is_told_once_when_a_client_goes_before_its_answer(
    served: Served, *, streaming: bool, reset: bool
) -> None:
    served.relay.script = later
    peer = served.peer().say(served.request())
    wait_until(lambda: served.relay.asked, "the request")
    asked = served.relay.asked[0]
    if streaming:
        served.do(lambda: asked.exchange.event(b"{}"))
        peer.until(b"{}")
    if reset:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    wait_until(lambda: asked.gone, "gone")
    served.do(lambda: (asked.exchange.event(b"{}"), asked.exchange.reply(b"{}"), asked.exchange.end()))
    wait_until(lambda: not served.front.connections, "the connection forgotten")
    assert asked.gone == 1


@requirement("http.client-gone")
def test_a_client_that_goes_after_its_answer_is_not_reported(served: Served) -> None:
    served.relay.script = lambda asked: (later(asked), asked.exchange.reply(b"{}"))
    peer = served.peer().say(served.request())
    assert peer.answer().status == 200
    peer.close()
    wait_until(lambda: not served.front.connections, "the connection forgotten")
    assert served.relay.asked[0].gone == 0


# Clients that do not read.


def _stuffed(served: Served, most: int) -> tuple[Asked, Peer]:
    """A stream whose client reads nothing, with `most` bytes of events said to it."""
    served.relay.script = later
    peer = served.peer(receive_buffer=4096).say(served.request())
    wait_until(lambda: served.relay.asked, "the request")
    asked = served.relay.asked[-1]
    event = b'"' + b"x" * 1_000_000 + b'"'
    for _ in range(most // len(event)):
        served.do(lambda: asked.exchange.event(event))
    return asked, peer


@requirement("http.slow-readers")
def test_what_a_client_does_not_read_is_counted_and_freed_when_it_reads(served: Served) -> None:
    asked, peer = _stuffed(served, 12_000_000)
    wait_until(lambda: served.backlog.waiting > 2_000_000, "bytes that wait")
    served.do(lambda: asked.exchange.reply(b"[0]"))
    assert peer.skip(b"[0]\n\n\r\n0\r\n\r\n") > 10_000_000
    wait_until(lambda: served.backlog.waiting == 0, "nothing waits")
    served.relay.script = echo
    assert peer.say(served.request()).answer().status == 200
    assert asked.gone == 0


@requirement("http.slow-readers")
def test_a_stream_that_leaves_too_much_unread_is_dropped(make: Callable[..., Served]) -> None:
    served = make(unsent_bytes=4_000_000)
    asked, _ = _stuffed(served, 30_000_000)
    wait_until(lambda: asked.gone == 1, "given up")
    wait_until(lambda: served.backlog.waiting == 0, "nothing waits")


@requirement("http.slow-readers")
def test_a_client_that_takes_nothing_for_thirty_seconds_is_dropped(served: Served) -> None:
    asked, peer = _stuffed(served, 12_000_000)
    served.ticked()
    served.pass_time(29)
    assert asked.gone == 0
    # A client that takes a little has its time again.
    taken = 0
    while taken < 3_000_000:
        taken += len(peer.sock.recv(65536))
    served.pass_time(0.5)
    served.pass_time(29)
    assert asked.gone == 0
    served.pass_time(1.5)
    wait_until(lambda: asked.gone == 1, "given up")
    wait_until(lambda: served.backlog.waiting == 0, "nothing waits")


@requirement("http.slow-readers")
def test_the_next_request_of_a_client_that_does_not_read_waits(served: Served) -> None:
    served.relay.script = lambda asked: asked.exchange.reply(b" " * 8_000_000)
    peer = served.peer(receive_buffer=4096).say(served.request())
    wait_until(lambda: served.relay.asked, "the request")
    wait_until(lambda: served.backlog.waiting > 0, "bytes that wait")
    served.relay.script = echo
    peer.say(served.request(body=b'"two"'))
    for _ in range(3):
        served.pass_time(1)
    assert len(served.relay.asked) == 1
    assert peer.skip(b'"two"') > 8_000_000


@requirement("http.slow-readers")
def test_nobody_is_read_while_too_much_waits_and_no_deadline_runs(served: Served) -> None:
    half = served.peer().say(served.request()[:-1])
    wait_until(lambda: served.front.receiving, "half a body")
    served.do(lambda: served.backlog.add(40_000_000))
    other = served.peer().say(served.request(body=b'"late"'))
    half.say(b"}")
    for _ in range(3):
        served.pass_time(60)
    assert not served.relay.asked
    served.do(lambda: served.backlog.done(40_000_000))
    assert half.answer().body == BODY
    assert other.answer().body == b'"late"'


# Life.


@requirement("http.close")
def test_closing_drops_everybody_and_frees_the_port(make: Callable[..., Served]) -> None:
    served = make()
    served.relay.script = later
    waiting, streaming, idle = served.peer(), served.peer(), served.peer()
    waiting.say(served.request())
    streaming.say(served.request())
    wait_until(lambda: len(served.relay.asked) == 2 and len(served.front.connections) == 3, "all three")
    served.do(lambda: served.relay.asked[1].exchange.event(b"{}"))
    served.wait(served.front.close())
    assert waiting.rest() == idle.rest() == b""
    assert not streaming.rest().endswith(b"0\r\n\r\n")
    assert [asked.gone for asked in served.relay.asked] == [1, 1]
    assert not served.front.connections
    with pytest.raises(ConnectionRefusedError):
        served.peer()


@requirement("http.close")
def test_closing_does_not_wait_for_a_client_that_does_not_read(served: Served) -> None:
    asked, _ = _stuffed(served, 12_000_000)
    began = time.monotonic()
    served.wait(served.front.close())
    assert time.monotonic() - began < 5
    assert asked.gone == 1
    assert served.backlog.waiting == 0


@requirement("http.close")
def test_a_port_that_is_taken_is_named(served: Served) -> None:
    second = HttpFront(served.relay, TOKEN, served.backlog)
    with pytest.raises(HandoffError, match=f"cannot listen on 127.0.0.1:{served.port}"):
        served.wait(second.start(served.port))


@requirement("http.answers")
def test_answers_to_a_refused_known_client_are_json(served: Served) -> None:
    answer = served.ask(content_type="text/plain")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["error"]["message"] == "Content-Type must be application/json"
