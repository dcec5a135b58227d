"""The answer to one HTTP request, as bytes: one JSON document, or an event stream from the first event on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from agent_token_injector.mcp_proxy.sse import format_event

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.http_front_rules import Head, Rejection

_COMMENT: Final = b": \n\n"
"""Keeps a stream alive and says nothing (WHATWG HTML §9.2.7)."""
_LAST_CHUNK: Final = b"0\r\n\r\n"
_CLOSE: Final = b"Connection: close\r\n"


def _start(status: int, phrase: str) -> bytes:
    allow = "Allow: POST, DELETE\r\n" if status == HTTPStatus.METHOD_NOT_ALLOWED else ""
    return f"HTTP/1.1 {status} {phrase}\r\nCache-Control: no-store\r\n{allow}".encode()


_STARTS: Final[Mapping[int, bytes]] = {one.value: _start(one.value, one.phrase) for one in HTTPStatus}
_JSON: Final[Mapping[int, bytes]] = {
    status: start + b"Content-Type: application/json\r\n" for status, start in _STARTS.items()
}
_STREAM: Final = _STARTS[200] + b"Content-Type: text/event-stream\r\n"


class Way(Protocol):
    """What an exchange needs of its connection."""

    def write(self, data: bytes) -> None:
        """Send."""
        ...

    def overflow(self) -> None:
        """Give the client up if it leaves too much unread."""
        ...

    def answered(self, exchange: HttpExchange) -> None:
        """The answer is complete."""
        ...


class HttpExchange:
    """An `Exchange` over HTTP.

    Args:
        connection: where the answer goes.
        keep: whether another request may follow on it.
        chunked: whether the client knows chunks (HTTP/1.1); otherwise the end of a stream is the end of the connection.

    Attributes:
        streaming: whether the answer is an event stream by now.
    """

    __slots__ = ("_chunked", "_connection", "gone", "keep", "streaming")

    def __init__(self, connection: Way, *, keep: bool, chunked: bool) -> None:
        self._connection: Way | None = connection
        self._chunked = chunked
        self.keep = keep
        self.streaming = False
        self.gone: Callable[[], None] | None = None

    def reply(self, body: bytes, *, status: int = 200, session: str | None = None) -> None:
        """The last word. In a stream it is the last event, and `status` and `session` come too late to be said."""
        if self._connection is None:
            return
        if self.streaming:
            self._finish((self._chunk(format_event(body)) if body else b"") + self._last())
            return
        start = (_JSON if body else _STARTS).get(status) or _start(status, "")
        if session is not None:
            start += b"Mcp-Session-Id: %b\r\n" % session.encode("ascii")
        if not self.keep:
            start += _CLOSE
        self._finish(b"%bContent-Length: %d\r\n\r\n%b" % (start, len(body), body))

    def event(self, body: bytes, *, event_id: str | None = None, retry: int | None = None) -> None:
        """A message before the last one. Without body, id and retry it opens the stream and says nothing."""
        if self._connection is None:
            return
        said = bool(body) or event_id is not None or retry is not None
        event = self._chunk(format_event(body, event_id, retry) if said else _COMMENT)
        self._connection.write(event if self.streaming else self._opening() + event)
        self.streaming = True
        self._connection.overflow()

    def end(self) -> None:
        """End the stream without a last word."""
        if self._connection is not None:
            self._finish(self._last() if self.streaming else self._opening() + self._last())

    def comment(self) -> None:
        """Show the client that the stream is alive."""
        if self._connection is not None and self.streaming:
            self._connection.write(self._chunk(_COMMENT))

    def lost(self) -> None:
        """The client is gone."""
        self._connection = None
        gone, self.gone = self.gone, None
        if gone is not None:
            gone()

    def _finish(self, data: bytes) -> None:
        connection, self._connection, self.gone = self._connection, None, None
        if connection is not None:
            connection.write(data)
            connection.answered(self)

    def _opening(self) -> bytes:
        coding = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        return _STREAM + coding + (b"" if self.keep else _CLOSE) + b"\r\n"

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _last(self) -> bytes:
        return _LAST_CHUNK if self._chunked else b""


def turned_away(head: Head, rejection: Rejection) -> bytes:
    """The front's own answer, in plain text; what follows on the connection is not read."""
    start = _STARTS[rejection.status]
    if rejection.allow is not None:
        start = f"HTTP/1.1 405 Method Not Allowed\r\nCache-Control: no-store\r\nAllow: {rejection.allow}\r\n".encode()
    if rejection.status == HTTPStatus.UNAUTHORIZED:
        start += b"WWW-Authenticate: Bearer\r\n"
    text = rejection.text.encode("ascii")
    # RFC 9110 §9.3.2: an answer to HEAD has no body.
    return b"%bContent-Type: text/plain\r\nContent-Length: %d\r\n%b\r\n%b" % (
        start,
        len(text),
        _CLOSE,
        b"" if head.method == b"HEAD" else text,
    )
