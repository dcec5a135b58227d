"""The way back to a client, for one request of its own: what the relay asks of a front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Exchange(Protocol):
    """One request's answer, as it goes back. Bodies are canonical: ASCII JSON on one line.

    `gone` is set by the relay; the front calls it once, when the client goes away before `reply` or `end`. After that,
    and after `reply` or `end`, every method does nothing.
    """

    gone: Callable[[], None] | None

    def reply(self, body: bytes, *, status: int = 200, session: str | None = None) -> None:
        """The last word. `status` and `session` (a new `Mcp-Session-Id`) matter over HTTP alone; no body, no message."""
        ...

    def event(self, body: bytes, *, event_id: str | None = None, retry: int | None = None) -> None:
        """A message before the last one. Over HTTP the answer is an event stream from here on.

        An empty body is an event without a message; `retry` is in milliseconds.
        """
        ...

    def end(self) -> None:
        """End the stream without a last word."""
        ...
