"""Server-sent events, as streamable HTTP uses them: read as the WHATWG says, and written in one spelling.

The reader takes bytes split anywhere and gives events. What it cannot hold, or what a client of another make could read
differently, ends the stream: it fails closed. Pure: no I/O.

Source: WHATWG HTML §9.2 (server-sent events); MCP 2025-11-25 and 2026-07-28, streamable HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent_token_injector.mcp_proxy.wire import MAX_BYTES

MAX_EVENT_ID: Final = 1024
MAX_LINES: Final = 65536
"""Data lines of one event; a message needs one."""
MAX_RETRY_DIGITS: Final = 9
_BOM: Final = b"\xef\xbb\xbf"
_MESSAGE: Final = (b"", b"message")
"""The event types that carry MCP messages; another type's data is nobody's message."""


class SseError(Exception):
    """The stream cannot be read on. The text is ours, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event.

    `id` is what this event gave, None when it gave none; an empty one takes back what was given before. `retry` is in
    milliseconds. `data` is the message; empty for an event without one.
    """

    id: str | None
    retry: int | None
    data: bytes


class SseReader:
    """Reads one stream. After SseError it reads no more."""

    __slots__ = ("_begun", "_cr", "_data", "_held", "_id", "_partial", "_partial_size", "_retry", "_type")

    def __init__(self) -> None:
        self._begun = False
        self._cr = False
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._clear()

    def _clear(self) -> None:
        self._data: list[bytes] = []
        self._held = 0
        self._id: str | None = None
        self._retry: int | None = None
        self._type = b""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes. Raises SseError: the event is too large, or its id cannot be told."""
        if self._cr and chunk:
            # The line ended with the last chunk's CR; this LF belongs to it.
            self._cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, newline, rest = chunk.partition(b"\n")
        self._grow(head)
        if not newline:
            return []
        lines = rest.split(b"\n")
        lines.insert(0, b"".join(self._partial))
        tail = lines.pop()
        self._partial, self._partial_size = [], 0
        events: list[SseEvent] = []
        for line in lines:
            if line:
                self._line(line)
            else:
                self._dispatch(events)
        self._grow(tail)
        return events

    def _grow(self, part: bytes) -> None:
        if part:
            self._partial.append(part)
            self._partial_size += len(part)
        # The field's name, colon and blank come on top of what a message may have.
        if self._held + self._partial_size > MAX_BYTES + 64 or len(self._data) > MAX_LINES:
            raise SseError(f"an event is larger than {MAX_BYTES // 1024 // 1024} MiB or {MAX_LINES} lines")

    def _line(self, line: bytes) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._held += len(value) + 1
        elif name == b"id":
            self._take_id(value)
        elif name == b"event":
            self._type = value
        elif name == b"retry" and value.isdigit() and len(value) <= MAX_RETRY_DIGITS:
            self._retry = int(value)

    def _take_id(self, value: bytes) -> None:
        if b"\0" in value:
            return
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            raise SseError("an event's id is not UTF-8") from None
        if len(value) > MAX_EVENT_ID:
            raise SseError(f"an event's id is longer than {MAX_EVENT_ID} bytes")
        self._id = text

    def _dispatch(self, events: list[SseEvent]) -> None:
        self._begun = True
        data = b"\n".join(self._data) if self._type in _MESSAGE else b""
        if data or self._id is not None or self._retry is not None:
            events.append(SseEvent(self._id, self._retry, data))
        self._clear()


def format_event(body: bytes, event_id: str | None = None, retry: int | None = None) -> bytes:
    """One event's bytes. `body` is one line; empty makes an event without a message. `retry` is in milliseconds.

    Raises ValueError when a line break or NUL in the body or the id would say something else to the reader.
    """
    if b"\n" in body or b"\r" in body:
        raise ValueError("an event's body is one line")
    parts: list[bytes] = []
    if event_id is not None:
        if any(character in event_id for character in "\r\n\0"):
            raise ValueError("an event's id is one line without NUL")
        parts.append(b"id: " + event_id.encode("utf-8") + b"\n")
    if retry is not None:
        parts.append(b"retry: %d\n" % retry)
    if body:
        parts.append(b"event: message\n")
    parts.append(b"data: " + body + b"\n\n")
    return b"".join(parts)
