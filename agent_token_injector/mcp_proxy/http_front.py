"""Streamable HTTP on 127.0.0.1: requests to the relay, and its answers back, as JSON or as an event stream.

Everything runs in plain callbacks of the event loop: no task and no await per request. The requests of one connection
are answered in order, one at a time; what a client sends ahead waits, bounded, and is not read further. The rules of
what is heard at all are in http_front_rules.

Source: MCP 2025-11-25 and 2026-07-28, streamable HTTP; RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from agent_token_injector.errors import HandoffError
from agent_token_injector.mcp_proxy.http_front_connection import FrontConnection

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.backlog import Backlog
    from agent_token_injector.mcp_proxy.eras import McpHeaders, Refused
    from agent_token_injector.mcp_proxy.exchange import Exchange

HOST: Final = "127.0.0.1"
SEND_BUFFER: Final = 256 * 1024
CLOSE_SECONDS: Final = 1.0
"""How long what was already answered may take to be read, once the front closes."""


class HttpRelay(Protocol):
    """Who answers what comes through. None of it is async, none raises for anything a client sends."""

    def message(self, body: bytes, headers: McpHeaders | None, exchange: Exchange, client: None) -> None:
        """A POST's body."""
        ...

    def listen(self, headers: McpHeaders, exchange: Exchange, last_event_id: str | None) -> None:
        """A GET for the stream of what belongs to no request."""
        ...

    def end_session(self, headers: McpHeaders, exchange: Exchange) -> None:
        """A DELETE."""
        ...

    def refuse(self, refused: Refused, *, target: str, exchange: Exchange) -> None:
        """A request of a known client that is not heard: note it, and answer with `refused`."""
        ...

    def refuse_stranger(self, refused: Refused) -> None:
        """Somebody without the token was turned away; the front answers itself."""
        ...


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one client, and all together, may take of the proxy. Seconds, bytes, counts."""

    connections: int = 256
    pipelined: int = 16
    head_bytes: int = 16 * 1024
    head_lines: int = 100
    target_bytes: int = 1024
    framing_bytes: int = 1024 * 1024
    """Of one message beside its body: chunk sizes, their extensions."""
    receiving_bytes: int = 64 * 1024 * 1024
    """Of bodies that are not complete, and of what was sent ahead, over all connections."""
    unsent_bytes: int = 16 * 1024 * 1024
    """Of an event stream that its client does not read."""
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 120.0
    """Between two requests; a connection without a first one has `head_seconds`."""
    stalled_seconds: float = 30.0
    """A client that takes nothing for so long, while bytes wait for it, is gone."""
    comment_seconds: float = 15.0
    """An event stream that is silent for so long gets a comment, so that nobody on the way gives it up."""
    linger_seconds: float = 1.0
    """A refused client may go on sending for so long: closing at once could lose it the answer (RFC 9112 §9.6)."""


class HttpFront:
    """The HTTP server of one proxy.

    Args:
        relay: answers what comes through.
        token: what a client must present.
        backlog: counts what clients do not read, and says when to stop reading.
        limits: what clients may take.
        clock: seconds, never going back.
        tick_seconds: how often deadlines are looked at; they are met that much late at most.

    Raises:
        ValueError: the token is empty, which everybody could present.
    """

    def __init__(
        self,
        relay: HttpRelay,
        token: str,
        backlog: Backlog,
        *,
        limits: HttpLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_seconds: float = 1.0,
    ) -> None:
        if not token:
            raise ValueError("the bearer token is empty")
        self.relay = relay
        self.backlog = backlog
        self.limits = limits if limits is not None else HttpLimits()
        self.token = token.encode()
        self.hosts: frozenset[bytes] = frozenset()
        self.connections: set[FrontConnection] = set()
        self.receiving = 0
        self.full = False
        self.now = clock()
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unwatch: Callable[[], None] | None = None
        self._closing = False
        self._empty: asyncio.Event | None = None

    async def start(self, port: int = 0) -> int:
        """Listen on 127.0.0.1; returns the port. Raises HandoffError."""
        try:
            listener = socket.create_server((HOST, port), backlog=self.limits.connections)
        except OSError as error:
            raise HandoffError(
                f"the MCP proxy cannot listen on {HOST}:{port}",
                cause=os.strerror(error.errno) if error.errno else type(error).__name__,
                hint="let it choose a free port, or end what listens there",
            ) from None
        # Connections inherit it. What the kernel holds for a client that does not read is bounded too, and a client
        # that reads a little is soon seen to do so.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        chosen = int(listener.getsockname()[1])
        self.hosts = frozenset({f"127.0.0.1:{chosen}".encode(), f"localhost:{chosen}".encode()})
        self._unwatch = self.backlog.watch(self._pace)
        self._tick()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: FrontConnection(self), sock=listener, backlog=self.limits.connections
        )
        return chosen

    async def close(self) -> None:
        """Stop listening and drop every connection; who waits for an answer sees it break off. Harmless when repeated."""
        if self._closing or self._server is None:
            return
        self._closing = True
        self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._unwatch is not None:
            self._unwatch()
        self._empty = asyncio.Event()
        for connection in tuple(self.connections):
            connection.close()
        self.lost(None)
        try:
            await asyncio.wait_for(self._empty.wait(), CLOSE_SECONDS)
        except TimeoutError:
            for connection in tuple(self.connections):
                connection.abort()
            await self._empty.wait()
        await self._server.wait_closed()

    def opened(self, connection: FrontConnection) -> bool:
        """Count a new connection; False when it is one too many, or the front is closing."""
        self.connections.add(connection)
        return not self._closing and len(self.connections) <= self.limits.connections

    def lost(self, connection: FrontConnection | None) -> None:
        """A connection is gone."""
        if connection is not None:
            self.connections.discard(connection)
        if self._empty is not None and not self.connections:
            self._empty.set()

    def _pace(self, full: bool) -> None:
        self.full = full
        for connection in tuple(self.connections):
            connection.paced()

    def _tick(self) -> None:
        self.now = self._clock()
        for connection in tuple(self.connections):
            connection.check(self.now)
        self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
