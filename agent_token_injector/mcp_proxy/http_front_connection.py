"""One connection of a client to the HTTP front: bytes to requests, one at a time, and answers back in their order.

The parser is llhttp (httptools) in its strict mode. Nothing is done for a request before its head was judged, and of
one that was refused nothing more is read.

Source: RFC 9112; the rules of http_front_rules.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from agent_token_injector.mcp_proxy import http_front_rules as rules
from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import Refused, repeated
from agent_token_injector.mcp_proxy.http_front_exchange import HttpExchange, turned_away
from agent_token_injector.mcp_proxy.http_front_rules import Head, Rejection
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.http_front import HttpFront

_HIGH_WATER: Final = 64 * 1024
"""Unsent bytes from which on a client counts as slow: they are counted, and its next request waits."""


class FrontConnection(asyncio.Protocol):
    """One client's connection.

    Args:
        front: whose it is: the relay, the limits, and what all connections share.
    """

    __slots__ = (
        "_advancing",
        "_body",
        "_broken",
        "_clogged",
        "_closing",
        "_continue",
        "_counted",
        "_exchange",
        "_front",
        "_head",
        "_held",
        "_in_body",
        "_parser",
        "_paused",
        "_queue",
        "_raw",
        "_sent",
        "_served",
        "_since",
        "_size",
        "_taken",
        "_taken_at",
        "_transport",
        "_wrote_at",
    )

    def __init__(self, front: HttpFront) -> None:
        self._front = front
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        # The request that is being read.
        self._head: Head | None = None
        self._in_body = False
        self._continue = False
        self._body: list[bytes] = []
        self._size = 0
        self._raw = 0
        self._since = front.now
        # What waits for its turn, and what is being answered.
        self._queue: deque[tuple[Head, bytes | Rejection]] = deque()
        self._held = b""
        self._exchange: HttpExchange | None = None
        self._advancing = False
        # The connection itself.
        self._served = False
        self._broken = False
        self._closing = False
        self._paused = False
        self._clogged = False
        self._counted = 0
        self._sent = 0
        self._taken = 0
        self._taken_at = self._wrote_at = front.now

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        if self._front.opened(self):
            return
        if len(self._front.connections) > 2 * self._front.limits.connections:
            self.abort()
        else:
            self._turn_away(Head(), Rejection(503, "Too many connections"))

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._exchange is None and not self._clogged and not self._held and not self._front.full:
            self._feed(data)
            self._advance()
            return
        self._held += data
        self._receiving(len(data))
        self._pace()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._closing = True
        self._parser = None  # It refers to us, and we to it.
        self._forget_unread()
        counted, self._counted = self._counted, 0
        exchange, self._exchange = self._exchange, None
        self._front.lost(self)
        self._front.backlog.done(counted)
        if exchange is not None:
            exchange.lost()

    def pause_writing(self) -> None:
        self._clogged = True
        self._counted = self._transport.get_write_buffer_size()
        self._front.backlog.add(self._counted)

    def resume_writing(self) -> None:
        self._clogged = False
        counted, self._counted = self._counted, 0
        self._front.backlog.done(counted)
        self._advance()

    # What the parser calls. `_head` is None once the connection is broken, and nothing is noted any more.

    def on_message_begin(self) -> None:
        if self._broken:
            return
        self._since = self._front.now
        self._head = Head()
        if len(self._queue) >= self._front.limits.pipelined:
            self._reject(Rejection(400, "Too many requests sent ahead", Reason.MALFORMED, stranger=True))

    def on_url(self, target: bytes) -> None:
        if self._head is not None:
            self._head.target += target
            if len(self._head.target) > self._front.limits.target_bytes:
                self._reject(Rejection(414, "The address is too long", Reason.MALFORMED, stranger=True))

    def on_header(self, name: bytes, value: bytes) -> None:
        head = self._head
        if head is None:
            return
        key = name.lower()
        if self._in_body:
            self._reject(Rejection(400, "Nothing may follow the body", Reason.MALFORMED))
        elif key in head.headers:
            head.again(key, value)
        else:
            head.headers[key] = value

    def on_headers_complete(self) -> None:
        head, parser, front = self._head, self._parser, self._front
        if head is None or parser is None:
            return
        head.method = parser.get_method()
        head.version = parser.get_http_version()
        head.keep = parser.should_keep_alive() and head.version == "1.1"
        rejection = rules.oversized(head, front.limits.head_bytes, front.limits.head_lines)
        rejection = rejection or rules.unknown_caller(head, front.hosts, front.token)
        if rejection is None:
            self._served = True
            rejection = rules.unfit_request(head)
        if rejection is not None:
            self._reject(rejection)
            return
        self._in_body = True
        self._since = front.now
        self._continue = b"expect" in head.headers and head.version == "1.1"

    def on_body(self, piece: bytes) -> None:
        if self._head is None:
            return
        self._continue = False
        self._size += len(piece)
        self._body.append(piece)
        self._receiving(len(piece))
        if self._size > wire.MAX_BYTES:
            self._reject(rules.body_too_large())

    def on_message_complete(self) -> None:
        head = self._head
        if head is None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._queue.append((head, body))
        self._head = None
        self._in_body = self._continue = False
        self._raw = 0
        self._forget_body()
        self._since = self._front.now

    # What the exchange calls.

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._sent += len(data)
        self._wrote_at = self._front.now
        clogged = self._clogged
        self._transport.write(data)
        if clogged:
            self._counted += len(data)
            self._front.backlog.add(len(data))

    def overflow(self) -> None:
        if self._clogged and self._transport.get_write_buffer_size() > self._front.limits.unsent_bytes:
            self.abort()

    def answered(self, exchange: HttpExchange) -> None:
        self._exchange = None
        if not exchange.keep:
            self._linger()
            return
        self._since = self._front.now
        if self._queue or self._held or self._continue:
            self._advance()

    # What the front calls.

    def paced(self) -> None:
        """Reading was stopped for everybody, or may go on."""
        if not self._front.full:
            # The time in which nothing was read is nobody's fault.
            self._since = self._front.now
            self._advance()
        self._pace()

    def check(self, now: float) -> None:
        """Look at every deadline."""
        limits, unsent = self._front.limits, self._transport.get_write_buffer_size()
        if self._stalled(now, unsent):
            self.abort()
        elif self._closing:
            if not unsent and now - self._since >= limits.linger_seconds:
                self.abort()
        elif self._exchange is not None:
            if self._exchange.streaming and not unsent and now - self._wrote_at >= limits.comment_seconds:
                self._exchange.comment()
        elif not unsent and not self._held and not self._front.full:
            self._check_reading(now)

    def close(self) -> None:
        """Send what is answered, and close."""
        self._closing = True
        self._transport.close()

    def abort(self) -> None:
        """Close, whatever still waits."""
        self._closing = True
        self._transport.abort()

    # The rest.

    def _feed(self, data: bytes) -> None:
        parser, limits = self._parser, self._front.limits
        if parser is None or self._broken:
            return
        self._raw += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._reject(Rejection(400, "Not HTTP as RFC 9112 has it", Reason.MALFORMED, stranger=not self._in_body))
        if self._in_body:
            if self._raw - self._size > limits.head_bytes + limits.framing_bytes:
                self._reject(Rejection(400, "The body is in too many pieces", Reason.MALFORMED))
        elif self._raw > limits.head_bytes:
            self._reject(rules.HEAD_TOO_LARGE)

    def _advance(self) -> None:
        """Take the next request, or read on, as long as nothing is being answered."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._exchange is None and not self._closing and not self._clogged:
                if self._queue:
                    self._take(*self._queue.popleft())
                elif self._held and not self._front.full:
                    data, self._held = self._held, b""
                    self._front.receiving -= len(data)
                    self._feed(data)
                else:
                    break
        finally:
            self._advancing = False
        if self._continue and self._exchange is None and not self._closing:
            # Only now: whoever waits for it is known, and nothing else is being said to it.
            self._continue = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._pace()

    def _take(self, head: Head, what: bytes | Rejection) -> None:
        relay = self._front.relay
        if isinstance(what, Rejection) and (what.stranger or what.reason is None):
            if what.reason is not None:
                relay.refuse_stranger(_refused(what, what.reason))
            self._turn_away(head, what)
            return
        keep = head.keep and not isinstance(what, Rejection)
        exchange = self._exchange = HttpExchange(self, keep=keep, chunked=head.version == "1.1")
        if isinstance(what, Rejection):
            relay.refuse(_refused(what, what.reason or Reason.MALFORMED), target="http", exchange=exchange)
            return
        headers = rules.mcp_headers(head)
        if head.method == b"POST":
            relay.message(what, headers, exchange, None)
        elif headers.twice is not None:
            relay.refuse(repeated(headers.twice), target="http", exchange=exchange)
        elif head.method == b"GET":
            relay.listen(headers, exchange, rules.last_event_id(head))
        else:
            relay.end_session(headers, exchange)

    def _reject(self, rejection: Rejection) -> None:
        """The request that is being read is refused, in its turn; nothing after it is read. The first reason stays."""
        if self._broken:
            return
        self._broken = True
        self._queue.append((self._head if self._head is not None else Head(), rejection))
        self._head = None
        self._in_body = self._continue = False
        self._forget_body()

    def _turn_away(self, head: Head, rejection: Rejection) -> None:
        self.write(turned_away(head, rejection))
        self._linger()

    def _linger(self) -> None:
        """No more is said; what still comes is thrown away for a while."""
        self._closing = True
        self._since = self._front.now
        self._forget_unread()
        if not self._transport.is_closing():
            self._transport.write_eof()
        self._pace()

    def _pace(self) -> None:
        pause = bool(self._held) or (self._front.full and not self._closing)
        if pause == self._paused or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _receiving(self, size: int) -> None:
        self._front.receiving += size
        if self._front.receiving > self._front.limits.receiving_bytes:
            self.abort()

    def _forget_body(self) -> None:
        self._front.receiving -= self._size
        self._body, self._size = [], 0

    def _forget_unread(self) -> None:
        self._forget_body()
        self._front.receiving -= len(self._held)
        self._held = b""
        self._queue.clear()

    def _stalled(self, now: float, unsent: int) -> bool:
        if self._clogged and unsent < self._counted:
            # Frees the others as soon as this client has taken something, not only when it has taken all.
            counted, self._counted = self._counted, unsent
            self._front.backlog.done(counted - unsent)
        taken = self._sent - unsent
        if not unsent or taken != self._taken:
            self._taken, self._taken_at = taken, now
            return False
        return now - self._taken_at >= self._front.limits.stalled_seconds

    def _check_reading(self, now: float) -> None:
        limits, waited = self._front.limits, now - self._since
        if self._head is None:
            if waited >= (limits.idle_seconds if self._served else limits.head_seconds):
                self.close()
        elif waited >= (limits.body_seconds if self._in_body else limits.head_seconds):
            self._reject(Rejection(408, "The request took too long"))
            self._advance()


def _refused(rejection: Rejection, reason: Reason) -> Refused:
    return Refused(wire.INVALID_REQUEST, rejection.text, reason=reason, status=rejection.status)
