"""What becomes of one HTTP request to an MCP server: an answer, a stream of events, or a reason why not.

Source: MCP 2025-11-25 and 2026-07-28, streamable HTTP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import Era
from agent_token_injector.mcp_proxy.http_client import Flight, Lane
from agent_token_injector.mcp_proxy.sse import SseError, SseEvent, SseReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_token_injector.mcp_proxy.http_link import HttpLink
    from agent_token_injector.mcp_proxy.links import RequestHead

MAX_ERROR_BODY: Final = 256 * 1024
LINGER_SECONDS: Final = 1.0
"""How long a stream may stay open behind its answer."""
SAY_SECONDS: Final = 10.0
SESSION_OVER: Final = "its session was lost; the next request begins another one"
READ_ONLY: Final = frozenset(
    {
        "initialize",
        "ping",
        "server/discover",
        "tools/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "prompts/list",
        "prompts/get",
    }
)
"""Requests that may be sent a second time. A tool's call is never: it may have run."""


class McpFlight(Flight):
    """A request of a link. `session` and `token` are what it was sent with."""

    __slots__ = ("link", "renewed", "session", "token")

    def __init__(self, link: HttpLink, lane: Lane, *, again: bool = False) -> None:
        super().__init__(lane, again=again)
        self.link = link
        self.session: str | None = None
        self.token: str | None = None
        self.renewed = False

    def compose(self) -> bytes:
        """The request's bytes, with the link's headers of this moment."""
        raise NotImplementedError

    def held(self) -> bool:
        return self.link.paused

    def renews(self, status: int) -> bool:
        """Whether this 401 is answered with a new bearer and the same request, once: nothing of it was carried out."""
        if status != 401 or self.renewed or not self.link.can_renew:
            return False
        self.renewed = True
        self.cancel()
        self.link.renew(self)
        return True

    def loses_session(self, status: int) -> bool:
        """Whether this status says that the session is unknown to the server. The link begins another one then."""
        if status != 404 or self.session is None:
            return False
        self.link.session_lost(self.session)
        return True


class Streaming(McpFlight):
    """A request whose answer may be a stream of events. `route` is who they are for."""

    __slots__ = ("last_id", "reader", "retry", "route", "status")

    def __init__(self, link: HttpLink, lane: Lane, route: object, *, again: bool = False) -> None:
        super().__init__(link, lane, again=again)
        self.route = route
        self.status = 0
        self.reader: SseReader | None = None
        self.last_id: str | None = None
        self.retry: int | None = None

    def events(self, data: bytes) -> None:
        """Read a piece of the stream."""
        assert self.reader is not None  # noqa: S101 - callers have looked
        try:
            events = self.reader.feed(data)
        except SseError as error:
            self.cancel()
            self.unreadable(str(error))
            return
        for event in events:
            if event.id is not None:
                self.last_id = event.id or None
            if event.retry is not None:
                self.retry = event.retry
            if event.data:
                self.link.take(event.data, self.route, event)
            else:
                self.primed(event)
            if self.over or self.answered():
                break

    def answered(self) -> bool:
        """Whether the stream has said its last word."""
        return False

    def primed(self, event: SseEvent) -> None:
        """An event without a message."""
        self.link.events.primed(self.link, self.route, event)

    def unreadable(self, why: str) -> None:
        """The stream broke its form."""
        raise NotImplementedError


class Call(Streaming):
    """A POST of one request."""

    __slots__ = ("chunks", "linger", "message", "minted", "reading", "request", "said_last", "size")

    def __init__(self, link: HttpLink, minted: int, message: bytes, request: RequestHead) -> None:
        lane = Lane.STREAMS if request.method == "subscriptions/listen" else Lane.CALLS
        super().__init__(link, lane, minted, again=request.method in READ_ONLY)
        self.minted = minted
        self.message = message
        self.request = request
        self.chunks: list[bytes] = []
        self.size = 0
        self.said_last = False
        self.reading = False
        self.linger: asyncio.TimerHandle | None = None

    def compose(self) -> bytes:
        return self.link.post(self.message, self.request)

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status = status
        if self.renews(status):
            return
        if self.loses_session(status):
            self._end(SESSION_OVER)
            return
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if headers.get(b"content-encoding", b"identity") != b"identity":
            self._end("its answer is encoded, which was not asked for")
        elif kind == b"text/event-stream" and status == 200:
            self.reader = SseReader()
        elif kind == b"application/json" and (status == 200 or status >= 400):
            pass
        elif status == 200:
            self._end("its answer is neither JSON nor an event stream")
        else:
            self._end(f"it answered with HTTP {status}")
        if status == 200 and self.request.method == "initialize" and not self.over:
            self.link.session_given(headers.get(b"mcp-session-id"))

    def body(self, data: bytes) -> None:
        if self.said_last:
            return
        if self.reader is not None:
            self.reading = True
            self.events(data)
            self.reading = False
            if self.answered() and not self.over:
                self.linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self.cancel)
            return
        self.size += len(data)
        if self.size > (wire.MAX_BYTES if self.status == 200 else MAX_ERROR_BODY):
            self.cancel()
            self.unreadable(f"larger than {wire.MAX_BYTES // 1024 // 1024} MiB")
        else:
            self.chunks.append(data)

    def done(self) -> None:
        self._no_linger()
        if self.reader is not None:
            self._stream_over("it closed the stream before its answer")
            return
        self.link.flights.pop(self.minted, None)
        raw = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        if self.status == 200:
            self.link.take(raw, self.minted)
            if self.link.waits(self.minted):
                self.link.fail(self.minted, "it answered another question")
        else:
            self._refused(raw)

    def failed(self, why: str) -> None:
        self._no_linger()
        if self.reader is not None:
            self._stream_over(why)
        else:
            self._end(why)

    def cancel(self) -> None:
        self._no_linger()
        super().cancel()

    def answered(self) -> bool:
        self.said_last = self.said_last or not self.link.waits(self.minted)
        return self.said_last

    def primed(self, event: SseEvent) -> None:
        if not self.link.asks(self.minted):
            super().primed(event)

    def unreadable(self, why: str) -> None:
        self.link.flights.pop(self.minted, None)
        self.link.unread(self.minted, why)

    def _no_linger(self) -> None:
        if self.linger is not None:
            self.linger.cancel()
            self.linger = None

    def _refused(self, raw: bytes) -> None:
        """An HTTP error with a body: the stateless era puts its JSON-RPC errors there."""
        code: object = None
        try:
            message = wire.read_reply(raw)
        except wire.WireError:
            message = {}
        problem = message.get("error")
        if isinstance(problem, dict):
            if message.get("id") == self.minted and type(message["id"]) is int:
                self.link.take(raw, self.minted)
                return
            code, said = problem.get("code"), problem.get("message")
            # The TypeScript SDK's examples answer so to a session that they do not know.
            if self.status == 400 and self.session is not None and isinstance(said, str) and "session" in said.lower():
                self.link.session_lost(self.session)
                self.link.fail(self.minted, SESSION_OVER)
                return
        named = f" and JSON-RPC error {code}" if type(code) is int and abs(code) < 10**6 else ""
        self.link.fail(self.minted, f"it answered with HTTP {self.status}{named}")

    def _stream_over(self, why: str) -> None:
        link = self.link
        link.flights.pop(self.minted, None)
        if self.said_last or not link.waits(self.minted):
            return
        if self.last_id is None or link.era is not Era.HANDSHAKE:
            link.fail(self.minted, why)
        elif link.asks(self.minted):
            link.resume_own(self.minted, self.last_id, self.retry)
        else:
            link.events.paused(link, self.minted)

    def _end(self, why: str) -> None:
        self.cancel()
        self.link.flights.pop(self.minted, None)
        self.link.fail(self.minted, why)


class Say(McpFlight):
    """A POST of a notification or of an answer to the server; what comes of it matters little."""

    __slots__ = ("message", "size", "then", "timer")

    def __init__(self, link: HttpLink, message: bytes, then: Callable[[], None] | None = None) -> None:
        super().__init__(link, Lane.SAYS)
        self.message = message
        self.size = 0
        self.then = then
        self.timer = asyncio.get_running_loop().call_later(SAY_SECONDS, self._settle)

    def compose(self) -> bytes:
        return self.link.post(self.message, None)

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:  # noqa: ARG002 - nothing is in them
        if not self.renews(status):
            self.loses_session(status)

    def body(self, data: bytes) -> None:
        """Nobody reads it; its end leaves a connection that can be used again."""
        self.size += len(data)
        if self.size > MAX_ERROR_BODY:
            self._settle()

    def done(self) -> None:
        self._settle()

    def failed(self, why: str) -> None:  # noqa: ARG002 - a notification has no answer
        self._settle()

    def _settle(self) -> None:
        self.timer.cancel()
        self.cancel()
        then, self.then = self.then, None
        if then is not None:
            then()


class Delete(Say):
    """The DELETE of a session."""

    __slots__ = ()

    def __init__(self, link: HttpLink, then: Callable[[], None]) -> None:
        super().__init__(link, b"", then)
        self.data = link.delete()

    def renews(self, status: int) -> bool:  # noqa: ARG002 - the link is over; the session ends by itself
        return False

    def loses_session(self, status: int) -> bool:  # noqa: ARG002 - that is what it is for
        return False


class Listen(Streaming):
    """A GET of the server's own stream, or of one to go on with."""

    __slots__ = ("after",)

    def __init__(self, link: HttpLink, route: object, after: str | None) -> None:
        super().__init__(link, Lane.STREAMS, route)
        self.after = after

    def compose(self) -> bytes:
        return self.link.get(self.after)

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        if self.renews(status):
            return
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if self.loses_session(status):
            self._end(SESSION_OVER)
        elif status != 200:
            self._end(f"it answered with HTTP {status}")
        elif kind != b"text/event-stream" or headers.get(b"content-encoding", b"identity") != b"identity":
            self._end("its answer is no event stream")
        else:
            self.reader = SseReader()

    def body(self, data: bytes) -> None:
        self.events(data)
        if not self.over and self.answered():
            self.cancel()

    def done(self) -> None:
        self._end("it closed the stream")

    def failed(self, why: str) -> None:
        self._end(why)

    def answered(self) -> bool:
        """A stream that was resumed for a question of our own ends with its answer."""
        return isinstance(self.route, int) and not self.link.waits(self.route)

    def primed(self, event: SseEvent) -> None:
        if not isinstance(self.route, int):
            super().primed(event)

    def unreadable(self, why: str) -> None:
        self._end(why)

    def _end(self, why: str) -> None:
        self.cancel()
        self.link.listen_over(self, why)
