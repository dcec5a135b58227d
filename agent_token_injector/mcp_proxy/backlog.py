"""How many bytes wait for somebody who does not read, over all clients and servers of one handoff: bounded (D8).

Whoever keeps bytes that could not be sent yet counts them here. Above the limit nothing more is read from anybody until
what waits has been taken, so that a flood ends at its source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

LIMIT: Final = 32 * 1024 * 1024
"""Above it reading stops; each message is at most 10 MiB more."""


class Backlog:
    """Counts bytes that wait; tells its listeners when reading should stop, and when it may go on."""

    __slots__ = ("_limit", "_listeners", "full", "waiting")

    def __init__(self, limit: int = LIMIT) -> None:
        self.waiting = 0
        self.full = False
        self._limit = limit
        self._listeners: list[Callable[[bool], None]] = []

    def watch(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Call `listener(True)` when reading should stop, `listener(False)` when it may go on; returns what ends that."""
        self._listeners.append(listener)
        if self.full:
            listener(True)
        return lambda: self._listeners.remove(listener)

    def add(self, size: int) -> None:
        """`size` more bytes wait."""
        self.waiting += size
        if self.waiting > self._limit and not self.full:
            self._tell(full=True)

    def done(self, size: int) -> None:
        """`size` bytes wait no more."""
        self.waiting -= size
        if self.full and self.waiting <= self._limit // 2:
            self._tell(full=False)

    def _tell(self, *, full: bool) -> None:
        self.full = full
        for listener in tuple(self._listeners):
            listener(full)
