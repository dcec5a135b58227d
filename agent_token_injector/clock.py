"""The one clock, and the allowances for clocks that disagree.

Nothing in the pure core reads a clock: it is given `now`. Everything else reads this one, so that a test can hold it.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

LOCAL_EARLY = timedelta(seconds=30)
"""How much before a credential's expiry a local clock stops trusting it: skew counts in our disfavour."""

SWEEP_LATE = timedelta(seconds=60)
"""How much after an expiry a sweep waits, so that another host's late clock is not cut off early."""


class Clock(Protocol):
    """Tells wall time (aware, UTC) and monotonic seconds."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved: for tests and for the sandbox, which share one between processes' threads.

    Args:
        start: aware, UTC.
    """

    def __init__(self, start: datetime) -> None:
        if start.utcoffset() != timedelta(0):
            raise ValueError("a clock starts at an aware UTC time")
        self._lock = threading.Lock()
        self._now = start
        self._monotonic = 0.0

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Move wall and monotonic time forward together; `by` may not be negative."""
        if by < timedelta(0):
            raise ValueError("time moves forward; set the start earlier instead")
        with self._lock:
            self._now += by
            self._monotonic += by.total_seconds()


def iso(at: datetime) -> str:
    """`at` as ISO 8601 in UTC with a `Z`, whole seconds: the form every document here uses."""
    return at.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def parse_iso(text: str) -> datetime:
    """The aware UTC time that `iso` wrote, or any ISO 8601 time with an offset. Raises ValueError without one."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write it in UTC with a Z")
    return at.astimezone(UTC)


def human_duration(span: timedelta) -> str:
    """A span for people: `59 min`, `4 h`, `1 h 30 min`, `24 h 1 s`, `45 s`. Negative spans read as `0 s`."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds, 3600)
    minutes, secs = divmod(rest, 60)
    parts = [f"{hours} h"] if hours else []
    if minutes:
        parts.append(f"{minutes} min")
    if secs:
        parts.append(f"{secs} s")
    return " ".join(parts)
