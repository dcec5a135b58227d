"""Group fsync: one thread that puts lines on disk for every writer of a log, soon after they were written.

Whoever cannot wait asks for it at once and waits; the others' lines ride along. An error is never lost: once an fsync
failed, nobody knows what is on disk (the kernel may have dropped the pages), so the log stays failed for good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

GROUP_WINDOW: Final = 0.05
"""Seconds between a line that can wait and its fsync: with the fsync itself, under the 100 ms that are promised."""


class GroupSync:
    """Syncs file descriptors in a daemon thread, started when it is first needed.

    Args:
        sync: puts one descriptor's content on disk.
        monotonic: tells seconds. A disk keeps real time, so this is not the clock that dates events.
    """

    def __init__(self, sync: Callable[[int], None], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._sync = sync
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._dirty: set[int] = set()
        self._syncing: frozenset[int] = frozenset()
        self._marked = 0
        self._taken = 0
        self._synced = 0
        self._dirty_since = 0.0
        self._syncing_since = 0.0
        self._hurry = False
        self._stopping = False
        self._failure: str | None = None

    @property
    def failure(self) -> str | None:
        """Why an fsync failed, once one did."""
        return self._failure

    def mark(self, fd: int, *, urgent: bool) -> int:
        """Note that something was written to `fd`; the ticket can be waited for."""
        with self._changed:
            # Waking the thread at every line would cost more than the line.
            news = not self._dirty or (urgent and not self._hurry)
            if not self._dirty:
                self._dirty_since = self._monotonic()
            self._dirty.add(fd)
            self._marked += 1
            self._hurry = self._hurry or urgent
            if self._started():
                if news:
                    self._changed.notify_all()
            else:
                self._take()
                self._settle(self._sync_all())
            return self._marked

    def stalled(self, seconds: float) -> bool:
        """Whether something has been waiting for the disk for longer than `seconds`, or will for ever."""
        with self._changed:
            if self._failure is not None:
                return True
            if not self._syncing and not self._dirty:
                return False
            since = self._syncing_since if self._syncing else self._dirty_since
            return self._monotonic() - since > seconds

    def holds(self, fd: int) -> bool:
        """Whether `fd` still has to be synced, and so may not be closed."""
        with self._changed:
            return fd in self._dirty or fd in self._syncing

    def wait(self, ticket: int | None, timeout: float) -> bool:
        """Wait until what a ticket stands for (None: all there is) is on disk; False when it is not by then."""
        with self._changed:
            due = self._marked if ticket is None else ticket
            if self._synced < due:
                self._hurry = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._synced >= due or self._failure is not None, timeout)
            return self._synced >= due and self._failure is None

    def stop(self, timeout: float) -> None:
        """Sync what is left and end the thread; it is left behind when it does not end in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _started(self) -> bool:
        # An interpreter that is ending starts no thread any more: then whoever writes syncs.
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="audit-fsync", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while self._failure is None:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._stopping)
                self._changed.wait_for(lambda: self._hurry or self._stopping, GROUP_WINDOW)
                if not self._dirty:
                    return
                self._take()
            # Without the lock: writers go on while the disk works.
            failure = self._sync_all()
            with self._changed:
                self._settle(failure)

    def _take(self) -> None:
        self._syncing = frozenset(self._dirty)
        self._syncing_since = self._dirty_since
        self._dirty.clear()
        self._hurry = False
        self._taken = self._marked

    def _settle(self, failure: str | None) -> None:
        self._syncing = frozenset()
        if failure is None:
            self._synced = self._taken
        else:
            self._failure = failure
        self._changed.notify_all()

    def _sync_all(self) -> str | None:
        try:
            for fd in self._syncing:
                self._sync(fd)
        except Exception as error:  # noqa: BLE001 - whatever ends this thread has to be seen by every writer
            return f"fsync failed: {getattr(error, 'strerror', None) or type(error).__name__}"
        return None
