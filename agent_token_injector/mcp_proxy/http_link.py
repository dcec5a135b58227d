"""A conversation over streamable HTTP: the server's session for one client, or the stateless one that all share."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import STATELESS_VERSIONS, Era
from agent_token_injector.mcp_proxy.http_flights import Call, Delete, Listen, McpFlight, Say
from agent_token_injector.mcp_proxy.links import MAX_PENDING, Link, RequestHead, UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.sse import MAX_EVENT_ID
from agent_token_injector.mcp_proxy.upstream import shake_hands, stateless_params

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.http_upstream import Origin
    from agent_token_injector.mcp_proxy.upstream import UpstreamEvents

BEGIN_SECONDS: Final = 30.0
MAX_KEPT_NAME: Final = 256
RESUMES: Final = 8
"""How often a question of our own goes on after its stream was closed."""
RESUME_SECONDS: Final = 1.0
MAX_RESUME_SECONDS: Final = 10.0
FIRST: Final = frozenset({"initialize", "server/discover"})
"""What begins a conversation: the only requests that leave before it is ready."""
_SESSION: Final = re.compile(rb"[\x21-\x7e]{1,1024}")
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_SENTINEL: Final = re.compile(r"=\?base64\?.*\?=")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")


class HttpLink(Link):
    """One conversation. In the handshake era it begins with the first request, and again when the server lost it.

    Args:
        origin: the server's address, connections and credentials, shared by its links.
        declare: the client capabilities that the server is told.
    """

    def __init__(self, origin: Origin, events: UpstreamEvents, era: Era, declare: Mapping[str, Any]) -> None:
        super().__init__(origin.name, events)
        self.http = True
        self.era = era
        self.flights: dict[int, McpFlight] = {}
        self.paused = False
        self._origin = origin
        self._declare = declare
        self._queue: list[McpFlight] = []
        self._listens: dict[int, Listen] = {}
        self._session: str | None = None
        self._common: bytes | None = None
        self._common_token: str | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._resumed: dict[int, int] = {}
        self._losses = 0

    # Out

    def send(self, minted: int, message: bytes, head: RequestHead) -> None:
        if self.lost is not None:
            self.fail(minted, self.lost)
        elif len(self._queue) >= MAX_PENDING:
            self.fail(minted, "too many requests wait for it")
        else:
            flight = self.flights[minted] = Call(self, minted, message, head)
            self._queue.append(flight)

    def say(self, message: bytes) -> None:
        if self.lost is None and len(self._queue) < MAX_PENDING:
            self._queue.append(Say(self, message))

    async def ask(self, method: str, params: Mapping[str, Any], head: RequestHead | None = None) -> Any:
        if self.era is Era.STATELESS:
            params = stateless_params(params, self._origin.client_info, self._declare)
        return await super().ask(method, params, head)

    def flush(self) -> None:
        if not self._queue or self.lost is not None:
            return
        if not self._origin.may_send(self):
            return
        queue, self._queue = self._queue, []
        if not self.ready:
            self._queue = [flight for flight in queue if not _is_first(flight)]
            queue = [flight for flight in queue if _is_first(flight)]
            if self._queue and not queue and self._beginning is None and self.era is Era.HANDSHAKE:
                self._beginning = asyncio.get_running_loop().create_task(self._begin())
        for flight in queue:
            if not flight.over:
                self._post(flight)

    def _post(self, flight: McpFlight) -> None:
        flight.session, flight.token = self._session, self._origin.token
        flight.data = flight.compose()
        self._origin.client.send(flight)

    def forget(self, minted: int) -> None:
        flight = self.flights.pop(minted, None)
        # A stream that has just brought the answer ends by itself, and its connection serves the next request.
        if flight is not None and not (isinstance(flight, Call) and flight.reading):
            flight.cancel()

    def listen(self, last_event_id: str | None, listen: object) -> None:
        why = self.lost
        if self.era is Era.STATELESS:
            why = "this protocol version has no such stream"
        elif last_event_id is not None and not _is_event_id(last_event_id):
            why = "that event id cannot be sent"
        elif len(self._queue) >= MAX_PENDING:
            why = "too many requests wait for it"
        if why is not None:
            self.events.ended(self, listen, why)
            return
        flight = self._listens[id(listen)] = Listen(self, listen, last_event_id)
        self._queue.append(flight)
        self.flush()

    def unlisten(self, listen: object) -> None:
        flight = self._listens.pop(id(listen), None)
        if flight is not None:
            flight.cancel()

    def listen_over(self, flight: Listen, why: str) -> None:
        """A GET's stream has ended."""
        if isinstance(flight.route, int):
            self.flights.pop(flight.route, None)
            if self.waits(flight.route):
                if flight.last_id is None:
                    self.fail(flight.route, why)
                else:
                    self.resume_own(flight.route, flight.last_id, flight.retry)
        elif self._listens.pop(id(flight.route), None) is not None:
            self.events.ended(self, flight.route, why)

    def resume_own(self, minted: int, last_id: str, retry: int | None) -> None:
        """Go on, after a while, with the stream that is to answer a question of our own."""
        times = self._resumed[minted] = self._resumed.get(minted, 0) + 1
        if times > RESUMES:
            self.fail(minted, "it closed the stream before its answer")
            return
        flight = self.flights[minted] = Listen(self, minted, last_id)
        seconds = RESUME_SECONDS if retry is None else min(retry / 1000, MAX_RESUME_SECONDS)
        asyncio.get_running_loop().call_later(seconds, self._resume, flight)

    def _resume(self, flight: Listen) -> None:
        if not flight.over and self.lost is None:
            self._queue.append(flight)
            self.flush()

    # Who waits

    def waits(self, minted: int) -> bool:
        """Whether that question has no answer yet."""
        waiting = self.pending.get(minted)
        return not waiting.done() if isinstance(waiting, asyncio.Future) else waiting is not None

    def asks(self, minted: int) -> bool:
        """Whether that question is our own."""
        return isinstance(self.pending.get(minted), asyncio.Future)

    def unread(self, minted: int, why: str) -> None:
        """Its answer came, and cannot be read safely."""
        self._give_up_on(b"", minted, why)

    # In

    def pause(self) -> None:
        self.paused = True
        self._origin.client.read_or_not()

    def resume(self) -> None:
        self.paused = False
        self._origin.client.read_or_not()

    # The session

    async def begin(self) -> None:
        """Shake hands. Raises UpstreamFailed, UpstreamError."""
        self._session, self._common = None, None
        self.version = ""
        await shake_hands(self, self.era, self._origin.client_info, self._declare)
        self._common = None
        if self.era is Era.HANDSHAKE:
            # Nothing else may overtake it on another connection.
            said, session = asyncio.Event(), self._session
            self._post(Say(self, wire.notification("notifications/initialized"), said.set))
            await said.wait()
            if self._session != session:
                raise UpstreamFailed("it lost its session at once")
        if self.lost is not None:
            raise UpstreamFailed(self.lost)
        self.ready = True

    async def _begin(self) -> None:
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                await self.begin()
        except (UpstreamFailed, UpstreamError, TimeoutError) as error:
            self._beginning = None
            self._fail_queue(f"it began no session: {describe(error)}")
            return
        self._beginning = None
        self.flush()
        if self._losses:
            self._losses = 0
            self._origin.restarted()

    def _fail_queue(self, why: str) -> None:
        queue, self._queue = self._queue, []
        for flight in queue:
            if not flight.over:
                flight.failed(why)

    def session_given(self, value: bytes | None) -> None:
        """The id that `initialize` was answered with; one that cannot be sent back is none."""
        self._session = value.decode("ascii") if value is not None and _SESSION.fullmatch(value) else None
        self._common = None

    def session_lost(self, session: str) -> None:
        """The server does not know that session; what comes next begins another one."""
        if session == self._session:
            self._session, self._common = None, None
            self.ready = False
            self._losses += 1

    # Credentials

    @property
    def can_renew(self) -> bool:
        """Whether there is another bearer to be had."""
        return self._origin.bearer is not None and self.lost is None

    def renew(self, flight: McpFlight) -> None:
        """Send that flight again with a new bearer."""
        flight.over = False
        flight.connection = None
        self._queue.append(flight)
        self._origin.renew(flight.token)
        self.flush()

    def credentials_changed(self) -> None:
        """There is a bearer: what waits may go."""
        self.flush()

    def credentials_failed(self, why: str) -> None:
        """There is no bearer to be had."""
        self._fail_queue(why)

    # Bytes

    def _headers(self) -> bytes:
        """What every request of this conversation has, without secrets of the agent: there are none."""
        if self._common is None or self._common_token is not self._origin.token:
            self._common_token = self._origin.token
            lines = [self._origin.headers()]
            version = STATELESS_VERSIONS[-1] if self.era is Era.STATELESS else self.version
            if version:
                lines.append(f"MCP-Protocol-Version: {version}\r\n".encode("ascii"))
            if self._session is not None:
                lines.append(f"Mcp-Session-Id: {self._session}\r\n".encode("ascii"))
            self._common = b"".join(lines)
        return self._common

    def post(self, message: bytes, head: RequestHead | None) -> bytes:
        """The bytes of a POST. `head` is None for what is no request."""
        routing = _routing(head) if head is not None and self.era is Era.STATELESS else b""
        return (
            b"POST %b HTTP/1.1\r\n%bContent-Type: application/json\r\n"
            b"Accept: application/json, text/event-stream\r\n%bContent-Length: %d\r\n\r\n%b"
            % (self._origin.target, self._headers(), routing, len(message), message)
        )

    def get(self, last_event_id: str | None) -> bytes:
        """The bytes of a GET."""
        after = b"" if last_event_id is None else b"Last-Event-ID: %b\r\n" % last_event_id.encode("utf-8")
        return b"GET %b HTTP/1.1\r\n%bAccept: text/event-stream\r\n%b\r\n" % (
            self._origin.target,
            self._headers(),
            after,
        )

    def delete(self) -> bytes:
        """The bytes of a DELETE."""
        return b"DELETE %b HTTP/1.1\r\n%b\r\n" % (self._origin.target, self._headers())

    # End

    def lose(self, why: str) -> None:
        if self._beginning is not None:
            self._beginning.cancel()
            self._beginning = None
        for flight in [*self.flights.values(), *self._queue]:
            flight.cancel()
        self.flights.clear()
        self._queue.clear()
        listens, self._listens = self._listens, {}
        super().lose(why)
        for flight in listens.values():
            flight.cancel()
            self.events.ended(self, flight.route, why)

    def end_session(self) -> asyncio.Event:
        """Give up the server's session, and the conversation with it; the event says that the server was told."""
        told = asyncio.Event()
        flight = Delete(self, told.set) if self._session is not None else None
        self.lose("its session is over")
        if flight is None:
            told.set()
        else:
            self._origin.client.send(flight)
        return told


def _is_first(flight: McpFlight) -> bool:
    return isinstance(flight, Call) and flight.request.method in FIRST


def _is_event_id(text: str) -> bool:
    # Blanks at its ends would not survive a header (RFC 9110 §5.5).
    return text.isprintable() and text == text.strip() and 0 < len(text.encode("utf-8", "replace")) <= MAX_EVENT_ID


def _routing(head: RequestHead) -> bytes:
    # A name can be a URI of megabytes; only short ones are kept.
    short = head.name is None or len(head.name) <= MAX_KEPT_NAME
    common = (_method_and_name if short else _method_and_name.__wrapped__)(head.method, head.name)
    if not head.params:
        return common
    lines = [
        f"Mcp-Param-{name}: {header_value(value)}\r\n" for name, value in head.params.items() if _TOKEN.fullmatch(name)
    ]
    return common + "".join(lines).encode("ascii")


@lru_cache(maxsize=256)
def _method_and_name(method: str, name: str | None) -> bytes:
    called = "" if name is None else f"Mcp-Name: {header_value(name)}\r\n"
    return f"Mcp-Method: {header_value(method)}\r\n{called}".encode("ascii")


def header_value(text: str) -> str:
    """`text` as a header's value: itself, or base64 in `=?base64?...?=` where a header could not hold it (2026-07-28)."""
    if _PLAIN.fullmatch(text) and text == text.strip() and not _SENTINEL.fullmatch(text):
        return text
    return f"=?base64?{base64.b64encode(text.encode('utf-8')).decode('ascii')}?="


def describe(error: BaseException) -> str:
    """An error of a handshake in our own words: nothing that the server said."""
    if isinstance(error, UpstreamError):
        return f"it answered with JSON-RPC error {error.code}"
    return "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
