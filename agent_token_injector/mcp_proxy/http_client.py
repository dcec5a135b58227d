"""An HTTP/1.1 client for one origin: kept connections, callbacks, bounds on everything.

It follows no redirect, keeps no cookie, asks no proxy of the environment and accepts no compressed answer. A request is
sent once; a second time only where its sender allows it, on a kept connection that closed before a byte of an answer.

Source: RFC 9112 (framing, connections), RFC 9110 §9.2.2 (which requests may be sent again).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from agent_token_injector.mcp_proxy.http_connection import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from agent_token_injector.mcp_proxy.backlog import Backlog

MAX_IDLE: Final = 64
MAX_QUEUED: Final = 8192
CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
IDLE_SECONDS: Final = 3.0
"""Under the five seconds after which uvicorn and Node.js close a kept connection."""
PROBED_SECONDS: Final = 0.001
"""A connection unused for longer is looked at before it is written to: its end may not have been read yet."""
STALL_SECONDS: Final = 10.0


class Lane(IntEnum):
    """What may hold how many connections, so that calls which wait for an answer never keep the answer's way shut."""

    CALLS = 0
    SAYS = 1
    STREAMS = 2


LIMITS: Final = {Lane.CALLS: 64, Lane.SAYS: 8, Lane.STREAMS: 64}


class Flight:
    """One request and what becomes of it: `head`, `body`..., then `done` or `failed`. None of them after `cancel`.

    Args:
        data: all of the request's bytes.
        lane: what it counts as.
        again: whether it may be sent a second time, when a kept connection closed before a byte of an answer.
    """

    __slots__ = ("again", "client", "connection", "data", "lane", "over", "queued")

    def __init__(self, lane: Lane, *, again: bool = False) -> None:
        self.data = b""
        self.lane = lane
        self.again = again
        self.client: HttpClient | None = None
        self.connection: Connection | None = None
        self.queued = False
        self.over = False

    def held(self) -> bool:
        """Whether its answer is not to be read now."""
        return False

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """The final answer's status, and of its headers KEPT_HEADERS in lower case; one that came twice is empty."""
        raise NotImplementedError

    def body(self, data: bytes) -> None:
        """A piece of its body."""
        raise NotImplementedError

    def done(self) -> None:
        """The answer is complete."""
        raise NotImplementedError

    def failed(self, why: str) -> None:
        """There is no answer, or no end of it. The text is ours."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Want no answer: its connection is closed. Safe to call twice, and before it was sent."""
        if not self.over:
            self.over = True
            if self.client is not None:
                self.client.cancelled(self)


class _Queue:
    """The flights of one lane: how many are under way, and which wait."""

    __slots__ = ("busy", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.waiting: deque[Flight] = deque()


class HttpClient:
    """Connections to one origin.

    Args:
        host, port: where to connect.
        tls: verifies the origin; None is plain HTTP.
        backlog: counts what the origin does not read, and says when nothing more is to be read from it.
        stall: seconds that the origin may leave our bytes unread.
        idle: seconds that an unused connection is kept.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        backlog: Backlog,
        tls: ssl.SSLContext | None = None,
        stall: float = STALL_SECONDS,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self.backlog = backlog
        self.stall = stall
        self.full = False
        self._host = host
        self._port = port
        self._tls = tls
        self._idle_seconds = idle
        self._loop = asyncio.get_running_loop()
        self._lanes = [_Queue(LIMITS[lane]) for lane in Lane]
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self._drained: asyncio.Event | None = None
        self._unwatch = backlog.watch(self._on_backlog)

    def send(self, flight: Flight) -> None:
        """Send a flight's `data`, at once or when its lane has room. A failure may come before this returns."""
        flight.client = self
        queue = self._lanes[flight.lane]
        if self._closed:
            flight.over = True
            flight.failed("it was stopped")
        elif queue.busy < queue.limit:
            queue.busy += 1
            self.start(flight)
        elif len(queue.waiting) < MAX_QUEUED:
            flight.queued = True
            queue.waiting.append(flight)
            self.backlog.add(len(flight.data))
        else:
            flight.over = True
            flight.failed("too many requests wait for it")

    def start(self, flight: Flight) -> None:
        """Give a flight, counted in its lane already, a connection."""
        while self._idle and not self._closed:
            connection = self._idle.pop()
            unused = self._loop.time() - connection.idle_since
            if connection.ended or (unused > PROBED_SECONDS and connection.is_stale()):
                connection.abort()
                continue
            connection.carry(flight)
            return
        task = self._loop.create_task(self._connect(flight))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, flight: Flight) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else self._host,
                )
        except (OSError, ValueError, asyncio.CancelledError) as error:
            if not flight.over:
                flight.over = True
                self.finished(flight)
                flight.failed(f"it cannot be reached: {_reason(error)}")
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        if connection.ended:
            if not flight.over:
                flight.over = True
                self.finished(flight)
                flight.failed("it closed the connection before it answered")
            return
        self._open.add(connection)
        if flight.over:
            self.kept(connection)
        else:
            connection.carry(flight)

    def kept(self, connection: Connection) -> None:
        """A connection is idle."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        connection.read_or_not()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._idle_seconds, self._sweep)

    def _sweep(self) -> None:
        """Close what was idle for too long; the longest unused are at the left."""
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= self._idle_seconds:
            self._idle.popleft().abort()
        self._sweeping = self._loop.call_later(self._idle_seconds, self._sweep) if self._idle else None

    def ended(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        if self._drained is not None and not self._open:
            self._drained.set()
        if connection in self._idle:
            self._idle.remove(connection)

    def finished(self, flight: Flight) -> None:
        """A flight is over; the next of its lane begins."""
        queue = self._lanes[flight.lane]
        queue.busy -= 1
        while queue.waiting and queue.busy < queue.limit:
            following = queue.waiting.popleft()
            following.queued = False
            self.backlog.done(len(following.data))
            queue.busy += 1
            self.start(following)

    def cancelled(self, flight: Flight) -> None:
        """Nobody wants that flight's answer any more."""
        if flight.queued:
            flight.queued = False
            self._lanes[flight.lane].waiting.remove(flight)
            self.backlog.done(len(flight.data))
            return
        if flight.connection is not None:
            flight.connection.flight = None
            flight.connection.abort()
            flight.connection = None
        self.finished(flight)

    def read_or_not(self) -> None:
        """Ask every connection again whether to read."""
        for connection in tuple(self._open):
            connection.read_or_not()

    def _on_backlog(self, full: bool) -> None:
        self.full = full
        self.read_or_not()

    async def close(self) -> None:
        """Close every connection; what is under way or waits fails. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for queue in self._lanes:
            waiting, queue.waiting = queue.waiting, deque()
            for flight in waiting:
                self.backlog.done(len(flight.data))
                flight.over = True
                flight.failed("it was stopped")
        for task in tuple(self._connecting):
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        for connection in tuple(self._open):
            connection.stop()
        if self._open:
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._drained.wait()


def _reason(error: BaseException) -> str:
    """Why there is no connection, in words of the system or of the TLS library."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, asyncio.CancelledError):
        return "it was stopped"
    verify = getattr(error, "verify_message", None)
    if verify:
        return f"its certificate is not trusted: {verify}"
    return getattr(error, "strerror", None) or type(error).__name__
