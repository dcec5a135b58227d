"""A moment's attention before the loop sleeps: who is about to answer is heard at once.

A process that sleeps and is woken runs slowly at first, in caches that others have filled: with one call in flight that
costs more than all the proxy does for it. So when one call is all there is, the proxy looks for its answer for up to
LOOK_SECONDS, and then for the client's next message, yielding the processor in between. A source that keeps being silent is
looked for rarely; after ROUND_SECONDS everybody else is heard, whatever happens.
"""

from __future__ import annotations

import os
import time
from typing import Final, Protocol

LOOK_SECONDS: Final = 0.0002
ROUND_SECONDS: Final = 0.002
MAX_MISSES: Final = 3
"""So many looks in vain, and only every RARELY-th is made, until one finds something."""
RARELY: Final = 32


class Source(Protocol):
    """Something whose next bytes can be looked for."""

    patience: Patience

    def looked_for(self) -> bytes | None:
        """What can be read now; None when there is nothing, or nothing may be read."""
        ...

    def heard(self, data: bytes) -> None:
        """Take what was read."""
        ...


class Patience:
    """Whether it is worth looking for a source, by how often that was in vain."""

    __slots__ = ("_misses",)

    def __init__(self) -> None:
        self._misses = 0

    def worth_it(self) -> bool:
        """Whether to look now."""
        if self._misses <= MAX_MISSES:
            return True
        self._misses += 1
        return self._misses % RARELY == 0

    def found(self) -> None:
        """Something came."""
        self._misses = 0

    def missed(self) -> None:
        """Nothing came."""
        self._misses += 1


def look(source: Source) -> bytes | None:
    """The source's next bytes, when they come within LOOK_SECONDS."""
    if not source.patience.worth_it():
        return None
    until = time.monotonic() + LOOK_SECONDS
    while True:
        data = source.looked_for()
        if data is not None:
            source.patience.found()
            return data
        if time.monotonic() >= until:
            source.patience.missed()
            return None
        # Whoever is to answer may have to run on this very processor.
        os.sched_yield()
