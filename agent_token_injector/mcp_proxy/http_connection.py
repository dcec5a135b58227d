"""One connection of the HTTP client: bytes to callbacks, one request at a time.

Source: RFC 9112 (message framing); httptools is llhttp in its strict mode.
"""

from __future__ import annotations

import asyncio
import socket
from select import POLLIN, poll
from typing import TYPE_CHECKING, Final, cast

import httptools

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.http_client import Flight, HttpClient

MAX_HEAD: Final = 64 * 1024
"""Bytes of an answer that are no body: its head, chunk sizes between two pieces of body, trailers."""
KEPT_HEADERS: Final = frozenset(
    {b"content-type", b"content-encoding", b"content-length", b"transfer-encoding", b"mcp-session-id"}
)


class Connection(asyncio.Protocol):
    """One connection to the origin: idle, or carrying one flight."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.flight: Flight | None = None
        self.idle_since = 0.0
        self.reused = False
        self.transport: asyncio.Transport | None = None
        self.ended = False
        self._reading = True
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._clean = True
        self._begun = self._head_done = self._head_told = self._complete = self._keep = False
        self._beside = 0
        self._unsent = 0
        self._stall: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No isinstance: uvloop's transports are no subclass.
        self.transport = made = cast("asyncio.Transport", transport)
        # Whatever cannot be written at once is counted.
        made.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # A peer that is gone without a word is noticed within minutes, however long an answer may take.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)

    def data_received(self, data: bytes) -> None:
        flight = self.flight
        if flight is None:
            # Nothing was asked, so that nothing may come.
            self.abort()
            return
        self._begun = True
        self._beside += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # Behind a complete answer, whatever comes costs the connection and not the answer.
            self._clean = False
        except httptools.HttpParserUpgrade:
            self._clean = False
            self._complete = False
        if not self._clean and not self._complete:
            self._fail("its HTTP answer cannot be read")
            return
        if self._head_done and not self._head_told:
            self._head_told = True
            flight.head(self._status, self._headers)
        if self._chunks and self.flight is flight:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            flight.body(body)
        if self.flight is not flight:
            return
        if self._complete:
            self._finish(flight)
        elif self._beside > MAX_HEAD:
            self._fail(f"its HTTP answer has more than {MAX_HEAD // 1024} KiB beside its body")

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._writable()
        flight, self.flight = self.flight, None
        self.client.ended(self)
        if flight is None or flight.over:
            return
        if exc is None and self._head_done and not self._headers.keys() & {b"content-length", b"transfer-encoding"}:
            # RFC 9112 §6.3: such an answer's end is the connection's.
            flight.over = True
            self.client.finished(flight)
            flight.done()
        elif not self._begun and self.reused and flight.again:
            flight.again = False
            flight.connection = None
            self.client.start(flight)
        else:
            where = "in the middle of its answer" if self._begun else "before it answered"
            flight.over = True
            self.client.finished(flight)
            flight.failed(f"it closed the connection {where}")

    def pause_writing(self) -> None:
        if self.transport is not None:
            self._unsent = self.transport.get_write_buffer_size()
            self.client.backlog.add(self._unsent)
            self._watch_stall(self._unsent)

    def resume_writing(self) -> None:
        self._writable()

    # httptools

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        if key in KEPT_HEADERS and not self._head_done:
            self._headers[key] = b"" if key in self._headers else value.strip(b" \t")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._head_done = True
            self._beside = 0
        else:
            self._headers = {}

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
            self._keep = self._parser.should_keep_alive()

    # The client's side

    def carry(self, flight: Flight) -> None:
        """Send a flight's request."""
        self.flight = flight
        flight.connection = self
        self._headers = {}
        self._begun = self._head_done = self._head_told = self._complete = False
        self._beside = 0
        self.read_or_not()
        assert self.transport is not None  # noqa: S101 - only connected ones carry
        self.transport.write(flight.data)
        if not flight.again:
            flight.data = b""

    def read_or_not(self) -> None:
        """Read, or do not, as the backlog and the flight have it."""
        flight = self.flight
        wanted = flight is None or not (self.client.full or flight.held())
        transport = self.transport
        if wanted is self._reading or transport is None or transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def is_stale(self) -> bool:
        """Whether something, its end most likely, waits to be read on this idle connection."""
        sock = None if self.transport is None else self.transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return True
        look = poll()
        look.register(sock.fileno(), POLLIN)
        return bool(look.poll(0))

    def stop(self) -> None:
        """Close now, whatever is under way."""
        if self.flight is not None:
            self._fail("it was stopped")
        else:
            self.abort()

    def abort(self) -> None:
        """Close now; `connection_lost` follows."""
        if self.transport is not None:
            self.transport.abort()

    def _finish(self, flight: Flight) -> None:
        self.flight = flight.connection = None
        flight.over = True
        if self._keep and self._clean and not self._unsent:
            self.reused = True
            self.client.kept(self)
        else:
            self.abort()
        self.client.finished(flight)
        flight.done()

    def _fail(self, why: str) -> None:
        flight, self.flight = self.flight, None
        self.abort()
        if flight is not None and not flight.over:
            flight.over = True
            self.client.finished(flight)
            flight.failed(why)

    def _watch_stall(self, size: int) -> None:
        self._stall = asyncio.get_running_loop().call_later(self.client.stall, self._look_at_stall, size)

    def _look_at_stall(self, before: int) -> None:
        size = 0 if self.transport is None else self.transport.get_write_buffer_size()
        if size >= before:
            self._fail("it stopped reading")
        else:
            self._watch_stall(size)

    def _writable(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._unsent:
            unsent, self._unsent = self._unsent, 0
            self.client.backlog.done(unsent)
