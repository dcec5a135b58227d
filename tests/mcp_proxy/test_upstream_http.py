"""Servers over streamable HTTP: what they are sent, what is taken from them, and what becomes of a call when they fail."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.inbound import decode_header_value

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.backlog import Backlog
from agent_token_injector.mcp_proxy.eras import Era
from agent_token_injector.mcp_proxy.http_upstream import HttpUpstream
from agent_token_injector.mcp_proxy.links import RequestHead, UpstreamFailed
from agent_token_injector.mcp_proxy.upstream import HttpServerConfig
from tests.mcp_proxy.servers.recorder import CLIENT_INFO, Recorder, run
from tests.mcp_proxy.servers.scripted_http import Reply, ScriptedHttp
from tests.mcp_proxy.servers.tls import certificate
from tests.requirements import requirement

SOON = 0.3
HANDSHAKE, STATELESS = frozenset({"handshake"}), frozenset({"stateless"})
ERAS = pytest.mark.parametrize("speaks", [HANDSHAKE, STATELESS], ids=["handshake", "stateless"])
META = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}


@dataclass
class Session:
    """A client's session as the relay has it."""

    key: str = "one"

    def capabilities_for(self, server: str) -> dict[str, Any]:
        return {"roots": {}, "for": server, "of": self.key}


@asynccontextmanager
async def reached(
    server: ScriptedHttp, recorder: Recorder, *, url: str | None = None, backlog: Backlog | None = None, **more: Any
) -> AsyncIterator[HttpUpstream]:
    config = HttpServerConfig(
        "web",
        url or server.url,
        more.pop("headers", {}),
        oauth="bearer" in more,
        protocol=more.pop("protocol", "auto"),
    )
    upstream = HttpUpstream(config, recorder, client_info=CLIENT_INFO, backlog=backlog or Backlog(), **more)
    try:
        await upstream.start()
        yield upstream
    finally:
        await upstream.stop()


def scenario(
    test: Callable[[ScriptedHttp, Recorder], Awaitable[None]], speaks: frozenset[str] = HANDSHAKE | STATELESS
) -> None:
    """Run a test against a scripted server."""

    async def main() -> None:
        async with ScriptedHttp(speaks).serving() as server:
            await test(server, Recorder())

    run(main())


@requirement("upstream.http-eras")
def test_a_server_of_both_eras_is_spoken_to_in_each() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder) as upstream:
            assert upstream.speaks == {Era.HANDSHAKE, Era.STATELESS}
            assert (upstream.house.era, upstream.house.version) == (Era.STATELESS, "2026-07-28")
            assert upstream.house.info == {"name": "scripted", "version": "2"}
            await server.until(lambda: server.deleted == ["session-1"])
            assert [tool["name"] for tool in await upstream.definitions()] == ["echo"]
            own, shared = upstream.link(Session(), Era.HANDSHAKE), upstream.link(Session(), Era.STATELESS)
            assert shared is upstream.house
            assert await recorder.text(own, "echo", n=1) == '{"n": 1}'
            assert await recorder.text(shared, "echo", n=2) == '{"n": 2}'
            assert server.sessions["session-2"]["capabilities"] == {"roots": {}, "for": "web", "of": "one"}
            methods = [request.method for request in server.requests[-5:]]
            assert methods == ["tools/list", "initialize", "notifications/initialized", "tools/call", "tools/call"]

    scenario(test)


@requirement("upstream.http-eras")
@ERAS
def test_a_server_of_one_era_is_used_in_it_whatever_the_client_speaks(speaks: frozenset[str]) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder) as upstream:
            (era,) = upstream.speaks
            assert era.value in speaks
            other = Era.STATELESS if era is Era.HANDSHAKE else Era.HANDSHAKE
            assert upstream.link(Session(), other) is upstream.house
            assert upstream.house.http
            assert await upstream.definitions()
            assert await recorder.text(upstream.house, "echo") == "{}"

    scenario(test, speaks)


@requirement("upstream.http-eras")
def test_a_server_of_neither_era_is_refused_with_what_it_answered() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        for protocol, why in (
            ("auto", "it answered with HTTP 400 and JSON-RPC error -32000; it answered with JSON-RPC error -32022"),
            ("2025-11-25", "it answered with JSON-RPC error -32022"),
            ("2026-07-28", "it answered with HTTP 400 and JSON-RPC error -32000"),
        ):
            with pytest.raises(UpstreamFailed) as refused:
                async with reached(server, recorder, protocol=protocol):
                    pass
            assert str(refused.value) == why

    scenario(test, frozenset())


@requirement("upstream.http-headers")
def test_a_stateless_request_repeats_in_headers_what_its_body_says() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder, headers={"X-Key": "of ours"}) as upstream:
            link = upstream.house
            for name in ("echo", "écho", " echo", "=?base64?ZWNobw==?=", "", "a\tb"):
                head = RequestHead("tools/call", name, {"Region": "eu", "City": "Zürich\r\nX-Evil: 1"})
                minted = recorder.ask(link, "tools/call", {"name": name, "arguments": {}, **META}, head)
                link.flush()
                await recorder.answer(link, minted)
                found = server.requests[-1]
                assert decode_header_value(found.headers.pop("mcp-name")) == name
                assert decode_header_value(found.headers.pop("mcp-param-city")) == "Zürich\r\nX-Evil: 1"
                found.headers.pop("content-length")
                assert found.headers == {
                    "host": f"127.0.0.1:{server.port}",
                    "x-key": "of ours",
                    "content-type": "application/json",
                    "accept": "application/json, text/event-stream",
                    "mcp-protocol-version": "2026-07-28",
                    "mcp-method": "tools/call",
                    "mcp-param-region": "eu",
                }
                assert (found.verb, found.target, found.twice) == ("POST", "/mcp?of=tests", [])

    scenario(test, STATELESS)


@requirement("upstream.http-headers")
def test_a_request_of_a_session_has_its_id_and_version_and_nothing_of_the_other_era() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder) as upstream:
            assert set(server.requests[-2].headers) == {"host", "content-type", "accept", "content-length"}
            await recorder.text(upstream.house, "echo")
            assert server.requests[-1].headers["mcp-session-id"] == "session-1"
            assert server.requests[-1].headers["mcp-protocol-version"] == "2025-11-25"
            assert "mcp-method" not in server.requests[-1].headers

    scenario(test, HANDSHAKE)


@requirement("upstream.http-headers", "upstream.config")
@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://127.0.0.1/mcp", {"Host": "hunter2"}),
        ("http://127.0.0.1/mcp", {"mcp-session-id": "hunter2"}),
        ("http://127.0.0.1/mcp", {"X": "hunter2\r\nY: 1"}),
        ("http://127.0.0.1/mcp", {"X": "hünter2"}),
        ("http://127.0.0.1/mcp", {"X Y": "hunter2"}),
        ("http://user:hunter2@127.0.0.1/mcp", {}),
        ("http://127.0.0.1/mcp#hunter2", {}),
        ("http://127.0.0.1/hunter2 HTTP/1.1", {}),
        ("http://127.0.0.1:hunter2/mcp", {}),
        ("file:///hunter2", {}),
        ("http:///hunter2", {}),
        ("http://[hunter2/mcp", {}),
    ],
)
def test_a_configuration_that_http_cannot_say_is_refused_without_its_values(url: str, headers: dict[str, str]) -> None:
    async def main() -> None:
        with pytest.raises(UpstreamFailed) as refused:
            HttpUpstream(HttpServerConfig("web", url, headers), Recorder(), client_info=CLIENT_INFO, backlog=Backlog())
        assert "hunter2" not in str(refused.value)

    run(main())


@requirement("upstream.many-in-flight", "upstream.bounded")
@ERAS
def test_a_thousand_calls_in_flight_share_a_bounded_number_of_connections(speaks: frozenset[str]) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        backlog = Backlog()
        async with reached(server, recorder, backlog=backlog) as upstream:
            link = upstream.house
            asked = {
                recorder.ask(link, "tools/call", {"name": "echo", "arguments": {"n": n}, **META}): n
                for n in range(1000)
            }
            link.flush()
            assert backlog.waiting > 0
            for minted, number in asked.items():
                answer = await recorder.answer(link, minted)
                assert json.loads(answer["result"]["content"][0]["text"]) == {"n": number}
            assert server.open_connections <= 64
            assert (link.pending, backlog.waiting) == ({}, 0)

    scenario(test, speaks)


@requirement("upstream.large-messages")
def test_large_messages_pass_both_ways() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        backlog = Backlog()
        async with reached(server, recorder, backlog=backlog) as upstream:
            long = "a" * (9 * 1024 * 1024)
            assert json.loads(await recorder.text(upstream.house, "echo", long=long)) == {"long": long}
            assert backlog.waiting == 0
            assert await recorder.text(upstream.house, "echo") == "{}"
            assert server.requests[-1].connection == server.requests[-2].connection

    scenario(test)


async def _answer_another(reply: Reply) -> None:
    await reply.json({"jsonrpc": "2.0", "id": reply.request.body["id"] - 1, "result": {}})


def _raw(data: bytes) -> Callable[[Reply], Awaitable[None]]:
    async def act(reply: Reply) -> None:
        await reply.raw(data.replace(b"ID", str(reply.request.body["id"]).rjust(2).encode()))
        if b"Content-Length" not in data or data == CUT:
            reply.writer.close()

    return act


def _json(status: int, kind: str = "application/json", body: bytes = b'{"jsonrpc":"2.0","id":ID,"result":{}}') -> bytes:
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nX: y\r\nContent-Length: "
    return head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body


CUT = _json(200)[:-3]


@requirement("upstream.http-strict")
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_json(302), "it answered with HTTP 302"),
        (b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", "it answered with HTTP 307"),
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", "it answered with HTTP 202"),
        (b"HTTP/1.1 503 No\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n<b>", "it answered with HTTP 503"),
        (_json(500, body=b"{}"), "it answered with HTTP 500"),
        (_json(400, body=b'{"jsonrpc":"2.0","id":null,"error":{"code":-32020}}'), "HTTP 400 and JSON-RPC error -32020"),
        (_json(200, "application/jsonx"), "its answer is neither JSON nor an event stream"),
        (_json(200, "text/plain"), "its answer is neither JSON nor an event stream"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "its answer is neither JSON nor an event stream"),
        (_json(200, "application/json\r\nContent-Type: application/json"), "neither JSON nor an event stream"),
        (_json(200, "application/json\r\nContent-Encoding: gzip"), "its answer is encoded"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "its HTTP answer cannot be read"),
        (b"SSH-2.0-OpenSSH\r\n", "its HTTP answer cannot be read"),
        (_json(200, "application/json\r\nTransfer-Encoding: chunked"), "its HTTP answer cannot be read"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "more than 64 KiB beside its body"),
        (CUT, "it closed the connection in the middle of its answer"),
        (b"", "it closed the connection before it answered"),
        (_json(200, body=b'{"jsonrpc":"2.0","id":1,"result":{}}'), "it answered another question"),
        (_json(200, body=b"[]"), "cannot be read safely"),
        (_json(200, body=b'{"jsonrpc":"2.0","id":ID,"result":NaN}'), "cannot be read safely"),
        (_json(200, body=b" " * (10 * 1024 * 1024 + 1)), "larger than 10 MiB"),
    ],
)
def test_an_answer_of_another_form_fails_its_call_and_nothing_else(answer: bytes, why: str) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        server.tools["odd"] = _raw(answer)
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            link = upstream.house
            minted = recorder.call(link, "odd")
            await recorder.until(lambda: recorder.over(link, minted))
            assert (link, minted) not in recorder.answers
            assert why in (recorder.failures.get((link, minted)) or recorder.unreadable[link, minted])
            assert len(server.calls("odd")) == 1
            assert await recorder.text(link, "echo") == "{}"

    scenario(test)


@requirement("upstream.http-strict")
def test_an_error_in_an_http_error_is_the_calls_answer() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def fail(reply: Reply) -> None:
            await reply.error(400, -32602, "Unknown tool")

        server.tools["none"] = fail
        async with reached(server, recorder) as upstream:
            for link in (upstream.house, upstream.link(Session(), Era.HANDSHAKE)):
                answer = await recorder.answer(link, recorder.call(link, "none"))
                assert answer["error"] == {"code": -32602, "message": "Unknown tool"}

    scenario(test)


@requirement("upstream.http-strict")
def test_answers_before_the_last_one_and_answers_that_end_with_their_connection_are_read() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        body = b'{"jsonrpc":"2.0","id":ID,"result":{"content":[{"type":"text","text":"x"}]}}'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: Application/JSON ; charset=utf-8\r\n"
        server.tools["early"] = _raw(b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + head + b"\r\n" + body)
        server.tools["old"] = _raw(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)
        async with reached(server, recorder) as upstream:
            assert await recorder.text(upstream.house, "early") == "x"
            assert await recorder.text(upstream.house, "old") == "x"

    scenario(test)


@requirement("upstream.http-once")
def test_a_call_whose_connection_dies_before_the_answer_is_not_sent_again() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def hang_up(reply: Reply) -> None:
            reply.writer.transport.abort()

        server.tools["dies"] = hang_up
        async with reached(server, recorder) as upstream:
            link = upstream.house
            for _ in range(3):
                await recorder.text(link, "echo")
                assert "it closed the connection" in await recorder.failure(link, recorder.call(link, "dies"))
            assert len(server.calls("dies")) == 3

    scenario(test)


@requirement("upstream.http-once")
def test_a_list_is_asked_for_again_when_its_kept_connection_has_died() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        died: list[int] = []

        async def once(reply: Reply) -> bool:
            if reply.request.method == "tools/list" and not died:
                died.append(reply.request.connection)
                reply.writer.transport.abort()
                return True
            return False

        server.before = once
        async with reached(server, recorder, protocol="2026-07-28") as upstream:
            assert await upstream.definitions()
            assert len(died) == 1

    scenario(test)


@requirement("upstream.http-once")
def test_a_connection_that_was_closed_while_unused_costs_no_call() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder, idle=SOON) as upstream:
            await recorder.text(upstream.house, "echo")
            server.hang_up()
            await server.until(lambda: server.open_connections == 0)
            assert await recorder.text(upstream.house, "echo") == "{}"
            await server.until(lambda: server.open_connections == 0)
            assert await recorder.text(upstream.house, "echo") == "{}"

    scenario(test)


@requirement("upstream.http-cancel")
@ERAS
def test_forgetting_a_call_closes_its_connection_and_one_that_waits_is_never_sent(speaks: frozenset[str]) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        closed: list[int] = []

        async def wait(reply: Reply) -> None:
            await reply.gone()
            closed.append(reply.request.body["id"])

        server.tools["wait"] = wait
        backlog = Backlog()
        async with reached(server, recorder, backlog=backlog) as upstream:
            link = upstream.house
            asked = [recorder.call(link, "wait") for _ in range(70)]
            await server.until(lambda: len(server.calls("wait")) == 64)
            assert backlog.waiting > 0
            for minted in reversed(asked):
                del link.pending[minted]
                link.forget(minted)
                link.forget(minted)
            await server.until(lambda: len(closed) == 64)
            assert backlog.waiting == 0
            assert await recorder.text(link, "echo") == "{}"
            assert len(server.calls("wait")) == 64

    scenario(test, speaks)


@requirement("upstream.http-cancel", "upstream.bounded")
def test_what_is_said_to_a_server_is_not_held_up_by_calls_that_wait() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        released = asyncio.Event()

        async def wait(reply: Reply) -> None:
            await released.wait()
            await reply.text("released")

        async def release(reply: Reply) -> bool:
            if reply.request.method == "notifications/cancelled":
                released.set()
            return False

        server.tools["wait"], server.before = wait, release
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            link = upstream.house
            asked = [recorder.call(link, "wait") for _ in range(80)]
            await server.until(lambda: len(server.calls("wait")) == 64)
            link.say(wire.notification("notifications/cancelled", {"requestId": 0}))
            link.flush()
            for minted in asked:
                await recorder.answer(link, minted)

    scenario(test)


@requirement("upstream.http-sessions")
def test_each_client_has_a_session_of_its_own_that_ends_with_it() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            one, two = Session("one"), Session("two")
            links = [upstream.link(one, Era.HANDSHAKE), upstream.link(two, Era.HANDSHAKE)]
            assert upstream.link(one, Era.HANDSHAKE) is links[0]
            assert not links[0].ready
            for link in links:
                assert len({await recorder.text(link, "echo") for _ in range(2)}) == 1
            used = [request.headers["mcp-session-id"] for request in server.calls("echo")]
            assert used == ["session-2", "session-2", "session-3", "session-3"]
            upstream.drop(one)
            upstream.drop(one)
            await server.until(lambda: server.deleted == ["session-2"])
            assert "its session is over" in await recorder.failure(links[0], recorder.call(links[0], "echo"))
            assert await recorder.text(upstream.link(one, Era.HANDSHAKE), "echo") == "{}"
        assert sorted(server.deleted) == ["session-1", "session-2", "session-3", "session-4"]

    scenario(test, HANDSHAKE)


@requirement("upstream.http-sessions")
@pytest.mark.parametrize("status", [404, 400])
def test_a_session_that_the_server_lost_fails_the_call_and_the_next_one_begins_another(status: int) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            link = upstream.link(Session(), Era.HANDSHAKE)
            await recorder.text(link, "echo")

            async def unknown(reply: Reply) -> bool:
                known = reply.request.headers.get("mcp-session-id") in {None, *server.sessions}
                if not known:
                    await reply.error(status, -32000, "Bad Request: no valid Session", own_id=False)
                return not known

            server.before = unknown
            server.sessions.clear()
            failed = recorder.call(link, "echo")
            assert await recorder.failure(link, failed) == "its session was lost; the next request begins another one"
            assert not recorder.restarts
            assert await recorder.text(link, "echo") == "{}"
            await recorder.until(lambda: recorder.restarts == [upstream])
            assert len(server.calls("echo")) == 3

    scenario(test, HANDSHAKE)


@requirement("upstream.http-sessions")
def test_a_session_that_cannot_begin_fails_what_waits_for_it() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            server.speaks = frozenset()
            link = upstream.link(Session(), Era.HANDSHAKE)
            asked = [recorder.call(link, "echo") for _ in range(3)]
            for minted in asked:
                why = await recorder.failure(link, minted)
                assert why == "it began no session: it answered with JSON-RPC error -32022"
            server.speaks = HANDSHAKE
            assert await recorder.text(link, "echo") == "{}"

    scenario(test, HANDSHAKE)


@requirement("upstream.http-sessions")
def test_a_server_that_is_not_there_fails_each_call_until_it_is() -> None:
    async def main() -> None:
        recorder, server = Recorder(), ScriptedHttp(HANDSHAKE)
        async with server.serving():
            upstream = HttpUpstream(
                HttpServerConfig("web", server.url), recorder, client_info=CLIENT_INFO, backlog=Backlog()
            )
            await upstream.start()
        try:
            link = upstream.house
            why = await recorder.failure(link, recorder.call(link, "echo"))
            assert why.startswith("it cannot be reached: ")
            server.sessions.clear()
            async with server.serving():
                assert "session was lost" in await recorder.failure(link, recorder.call(link, "echo"))
                assert await recorder.text(link, "echo") == "{}"
                await upstream.stop()
        finally:
            await upstream.stop()

    run(main())


@requirement("upstream.http-streams")
@ERAS
def test_what_comes_on_a_calls_stream_before_its_answer_is_routed_to_it(speaks: frozenset[str]) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def stream(reply: Reply) -> None:
            await reply.stream()
            await reply.chunk(b": comment\n\nid: 0\nretry: 500\ndata:\n\n")
            await reply.event({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}, "1")
            await reply.answer_event("streamed", "2")
            await reply.end()

        server.tools["stream"] = stream
        async with reached(server, recorder) as upstream:
            link = upstream.house
            for _ in range(2):
                minted = recorder.call(link, "stream")
                await recorder.answer(link, minted)
                message, route, event = recorder.others.pop()
                assert (message["method"], route, event.id) == ("notifications/progress", minted, "1")  # type: ignore[union-attr]
                route, event = recorder.primes.pop()
                assert (route, event.id, event.retry) == (minted, "0", 500)
            assert not recorder.pauses
            assert not recorder.failures
            assert len({request.connection for request in server.calls("stream")}) == 1

    scenario(test, speaks)


@requirement("upstream.http-streams")
def test_a_stream_that_stays_open_behind_its_answer_is_closed() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        closed = asyncio.Event()

        async def stream(reply: Reply) -> None:
            await reply.stream()
            await reply.answer_event("answered")
            await reply.event({"jsonrpc": "2.0", "method": "notifications/late"})
            await reply.gone()
            closed.set()

        server.tools["stream"] = stream
        async with reached(server, recorder) as upstream:
            assert await recorder.text(upstream.house, "stream") == "answered"
            await closed.wait()
            assert not recorder.others

    scenario(test)


@requirement("upstream.http-streams")
def test_a_session_goes_on_with_a_stream_that_was_closed_before_its_answer() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def stream(reply: Reply) -> None:
            await reply.stream()
            await reply.chunk(b"id: first\ndata:\n\n")
            await reply.end()

        async def go_on(reply: Reply) -> None:
            await reply.stream()
            answer = {"jsonrpc": "2.0", "id": minted, "result": {"content": []}}
            await reply.event(answer, "second")
            await reply.end()

        server.tools["stream"], server.get = stream, go_on
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            link, listen = upstream.link(Session(), Era.HANDSHAKE), object()
            minted = recorder.call(link, "stream")
            await recorder.until(lambda: recorder.pauses == [minted])
            assert minted in link.pending
            link.listen("first", listen)
            await recorder.answer(link, minted)
            await recorder.until(lambda: recorder.ends == [(listen, "it closed the stream")])
            asked = server.requests[-1].headers
            assert (asked["last-event-id"], asked["mcp-session-id"]) == ("first", "session-2")
            assert asked["accept"] == "text/event-stream"
            assert "content-type" not in asked

    scenario(test)


@requirement("upstream.http-streams")
@pytest.mark.parametrize(("speaks", "event_id"), [(HANDSHAKE, b""), (HANDSHAKE, b"id\n"), (STATELESS, b"id: 7\n")])
def test_a_stream_closed_before_its_answer_with_nothing_to_go_on_from_fails_the_call(
    speaks: frozenset[str], event_id: bytes
) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def stream(reply: Reply) -> None:
            await reply.stream()
            await reply.chunk(event_id + b"data:\n\n")
            await reply.end()

        server.tools["stream"] = stream
        async with reached(server, recorder) as upstream:
            why = await recorder.failure(upstream.house, recorder.call(upstream.house, "stream"))
            assert why == "it closed the stream before its answer"
            assert not recorder.pauses

    scenario(test, speaks)


@requirement("upstream.http-streams")
def test_our_own_question_goes_on_with_its_stream_by_itself() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        asked: list[Any] = []

        async def stream(reply: Reply) -> bool:
            if reply.request.method != "tools/list":
                return False
            asked.append(reply.request.body["id"])
            await reply.stream()
            await reply.chunk(b"retry: 1\nid: first\ndata:\n\n")
            await reply.end()
            return True

        async def go_on(reply: Reply) -> None:
            await reply.stream()
            if len([one for one in server.requests if one.verb == "GET"]) < 3:
                await reply.chunk(b"retry: 1\nid: more\ndata:\n\n")
            else:
                await reply.event({"jsonrpc": "2.0", "id": asked[0], "result": {"tools": []}})
            await reply.end()

        server.before, server.get = stream, go_on
        async with reached(server, recorder, protocol="2025-11-25") as upstream:
            assert await upstream.definitions() == []
            gets = [one.headers["last-event-id"] for one in server.requests if one.verb == "GET"]
            assert gets == ["first", "more", "more"]
            assert not recorder.primes

    scenario(test)


@requirement("upstream.http-streams", "upstream.bounded")
@pytest.mark.parametrize(
    ("chunk", "why"),
    [(b"data: {not json\n\n", "not JSON"), (b"id: \xff\n\n", "not UTF-8"), (b"data: " + b"x" * 11 * 2**20, "10 MiB")],
)
def test_an_event_that_cannot_be_read_fails_the_call_and_closes_its_stream(chunk: bytes, why: str) -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        closed = asyncio.Event()

        async def stream(reply: Reply) -> None:
            await reply.stream()
            await reply.chunk(b"id: 1\ndata:\n\n")
            await reply.chunk(chunk)
            await reply.gone()
            closed.set()

        server.tools["stream"] = stream
        async with reached(server, recorder) as upstream:
            link = upstream.house
            minted = recorder.call(link, "stream")
            await recorder.until(lambda: recorder.over(link, minted))
            assert why in recorder.unreadable[link, minted]
            await asyncio.wait(
                [
                    asyncio.ensure_future(closed.wait()),
                    asyncio.ensure_future(server.until(lambda: closed.is_set() or server.open_connections == 0)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )

    scenario(test)


@requirement("upstream.http-streams")
def test_a_sessions_own_stream_brings_what_belongs_to_no_call() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        closed = asyncio.Event()

        async def stream(reply: Reply) -> None:
            await reply.stream()
            await reply.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            await reply.gone()
            closed.set()

        async with reached(server, recorder) as upstream:
            link, listen = upstream.link(Session(), Era.HANDSHAKE), object()
            link.listen(None, listen)
            await recorder.until(lambda: recorder.ends == [(listen, "it answered with HTTP 405")])
            server.get = stream
            link.listen(None, listen)
            await recorder.until(lambda: recorder.others)
            message, route, _ = recorder.others[0]
            assert (message["method"], route) == ("notifications/tools/list_changed", listen)
            link.unlisten(listen)
            link.unlisten(listen)
            await closed.wait()
            assert len(recorder.ends) == 1
            upstream.house.listen(None, listen)
            assert recorder.ends[1] == (listen, "this protocol version has no such stream")
            for odd in ("a\r\nb", "", " a", "i" * 1025):
                link.listen(odd, listen)
                assert recorder.ends[-1] == (listen, "that event id cannot be sent")

    scenario(test)


@requirement("upstream.bounded")
def test_nothing_is_read_while_the_backlog_is_full_or_the_link_is_paused() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        backlog = Backlog(limit=1000)
        async with reached(server, recorder, backlog=backlog) as upstream:
            link = upstream.house
            for stop, go_on in (
                (lambda: backlog.add(2000), lambda: backlog.done(2000)),
                (link.pause, link.resume),
            ):
                stop()
                minted = recorder.call(link, "echo")
                await server.until(lambda: len(server.calls("echo")) == len(recorder.answers) + 1)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(SOON):
                        await recorder.answer(link, minted)
                go_on()
                await recorder.answer(link, minted)

    scenario(test)


@requirement("upstream.bounded")
def test_a_server_that_does_not_read_is_counted_and_its_call_fails() -> None:
    async def main() -> None:
        async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            try:
                await stop.wait()
            finally:
                writer.transport.abort()

        stop = asyncio.Event()
        recorder, backlog, server = Recorder(), Backlog(), ScriptedHttp(HANDSHAKE)
        async with server.serving(), reached(server, recorder, backlog=backlog, stall=SOON) as upstream:
            deaf = await asyncio.start_server(never, "127.0.0.1", 0, limit=1024)
            port = deaf.sockets[0].getsockname()[1]
            other = HttpUpstream(
                HttpServerConfig("deaf", f"http://127.0.0.1:{port}/", {"X-Fill": "f" * 9_000_000}),
                recorder,
                client_info=CLIENT_INFO,
                backlog=backlog,
                stall=SOON,
            )
            with pytest.raises(UpstreamFailed, match="it stopped reading"):
                await other.start()
            assert backlog.waiting == 0
            await other.stop()
            stop.set()
            deaf.close()
            await deaf.wait_closed()
            assert await recorder.text(upstream.house, "echo") == "{}"

    run(main())


@requirement("upstream.http-bearer")
def test_a_refused_bearer_is_renewed_once_and_the_call_sent_again() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        asked: list[str | None] = []
        valid = {"Bearer t1"}

        async def bearer(refused: str | None) -> str:
            asked.append(refused)
            return f"t{len(asked)}"

        async def guard(reply: Reply) -> bool:
            if reply.request.headers.get("authorization") in valid:
                return False
            await reply.empty(401, WWW_Authenticate="Bearer")
            return True

        server.before = guard
        async with reached(server, recorder, bearer=bearer) as upstream:
            link = upstream.house
            assert await recorder.text(link, "echo") == "{}"
            valid.clear()
            valid.add("Bearer t2")
            minted = [recorder.call(link, "echo", n=n) for n in range(20)]
            for one in minted:
                await recorder.answer(link, one)
            assert asked == [None, "t1"]
            valid.clear()
            assert await recorder.failure(link, recorder.call(link, "echo")) == "it answered with HTTP 401"
            assert len(asked) == 3
            assert "t1" not in repr(upstream.__dict__)

    scenario(test)


@requirement("upstream.http-bearer")
def test_no_bearer_is_no_call() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def bearer(refused: str | None) -> str:
            raise UpstreamFailed("the authorization server said no")

        async def broken(refused: str | None) -> str:
            return "two\r\nlines"

        async def faulty(refused: str | None) -> str:
            raise KeyError("token")

        for source in (bearer, broken, faulty):
            with pytest.raises(UpstreamFailed, match="no OAuth token could be got for it"):
                async with reached(server, recorder, bearer=source):
                    pass
        assert server.requests == []
        with pytest.raises(UpstreamFailed, match="nobody gets tokens"):
            HttpUpstream(
                HttpServerConfig("web", server.url, oauth=True), recorder, client_info=CLIENT_INFO, backlog=Backlog()
            )

    scenario(test)


@requirement("upstream.http-tls")
def test_a_server_over_tls_is_used_when_its_certificate_is_trusted_and_sent_nothing_otherwise(tmp_path: Path) -> None:
    async def main() -> None:
        theirs, ours = certificate(tmp_path, "127.0.0.1")
        recorder, server = Recorder(), ScriptedHttp()
        async with server.serving(tls=theirs):
            url = server.url.replace("http:", "https:")
            async with reached(server, recorder, url=url, tls=ours) as upstream:
                long = "a" * 3_000_000
                assert json.loads(await recorder.text(upstream.house, "echo", long=long)) == {"long": long}
            server.requests.clear()
            with pytest.raises(UpstreamFailed, match="its certificate is not trusted"):
                async with reached(server, recorder, url=url):
                    pass
            other = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
            with pytest.raises(UpstreamFailed, match="its certificate is not trusted"):
                async with reached(server, recorder, url=url.replace("127.0.0.1", "localhost"), tls=other):
                    pass
            assert server.requests == []

    run(main())


@requirement("upstream.sdk-servers")
@pytest.mark.parametrize("options", [(), ("json",), ("stateless",)], ids=["sse", "json", "stateless"])
def test_servers_of_the_official_sdk_are_spoken_to_in_both_eras(options: tuple[str, ...]) -> None:
    async def main() -> None:
        recorder = Recorder()
        async with sdk_server(*options) as url, reached(ScriptedHttp(), recorder, url=url) as upstream:
            assert upstream.speaks == {Era.HANDSHAKE, Era.STATELESS}
            assert [tool["name"] for tool in await upstream.definitions()] == ["add", "count"]
            own = upstream.link(Session(), Era.HANDSHAKE)
            for number in range(20):
                assert await recorder.text(own, "add", a=number, b=1) == str(number + 1)
            params = {"name": "count", "arguments": {"to": 3}, "_meta": {"progressToken": 9}}
            await recorder.answer(own, (minted := recorder.ask(own, "tools/call", params), own.flush())[0])
            progress = [message["params"]["progress"] for message, route, _ in recorder.others if route == minted]
            assert progress == ([] if "json" in options else [1, 2, 3])
            listen = object()
            own.listen(None, listen)
            own.unlisten(listen)

    run(main())


@asynccontextmanager
async def sdk_server(*options: str) -> AsyncIterator[str]:
    """The SDK's own server in its own process; yields its URL once it listens."""
    import socket
    import sys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("servers") / "sdk_server.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, "http", str(port), *options, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        await process.wait()


@requirement("upstream.no-leak")
def test_servers_that_come_and_go_leave_no_descriptor_and_no_counted_byte() -> None:
    async def test(server: ScriptedHttp, recorder: Recorder) -> None:
        async def wait(reply: Reply) -> None:
            await reply.gone()

        server.tools["wait"] = wait
        backlog = Backlog()

        def descriptors() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        async def once() -> int:
            came = len(server.calls("wait"))
            async with reached(server, recorder, backlog=backlog) as upstream:
                own = upstream.link(Session(), Era.HANDSHAKE)
                asked = [recorder.call(link, "wait") for link in (own, upstream.house) for _ in range(40)]
                own.listen(None, object())
                await server.until(lambda: len(server.calls("wait")) == came + 64)
            assert len(asked) == 80
            await server.until(lambda: server.open_connections == 0)
            return descriptors()

        before = await once()
        for _ in range(5):
            recorder.failures.clear()
            assert await once() <= before
            assert len(recorder.failures) == 80
        assert backlog.waiting == 0

    scenario(test)
