"""What the tests of the audit log have in common."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent_token_injector.audit import AuditLog, Decision
from agent_token_injector.clock import ManualClock
from agent_token_injector.names import HandoffId

HANDOFF = HandoffId.parse("founders-checkout-20260620")
OTHER = HandoffId.parse("raxx-report-20260620")
START = datetime(2026, 6, 20, 12, 0, tzinfo=UTC)
DEADLINE = 30.0


def open_log(directory: Path, **options: Any) -> AuditLog:
    return AuditLog(directory, **{"clock": ManualClock(START), "actor": "test", **options})


def chain_of(directory: Path, handoff: HandoffId = HANDOFF) -> Path:
    return directory / f"{handoff}.jsonl"


def write_chain(directory: Path, events: int, *, reason: str = "") -> Path:
    """A chain of that many events; returns its file."""
    with open_log(directory) as log:
        for number in range(events):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED, target=f"tool_{number}", reason=reason)
    return chain_of(directory)


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE
    while not true():
        if time.monotonic() > until:
            raise AssertionError("it did not happen in time")
        threading.Event().wait(0.005)


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from agent_token_injector.audit import AuditLog, Decision
from agent_token_injector.clock import SystemClock
from agent_token_injector.names import HandoffId

handoff = HandoffId.parse("founders-checkout-20260620")
log = AuditLog(Path(sys.argv[1]), clock=SystemClock(), actor=sys.argv[2], deadline=30)
"""


def start_writer(directory: Path, actor: str, body: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process with a log of its own: `log`, `handoff`, and `sys.argv[3:]` are there for `body`."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + body, str(directory), actor, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class Disk:
    """An fsync that is watched, and can be held up or made to fail. It really syncs as well."""

    def __init__(self, sync: Callable[[int], None]) -> None:
        self._sync = sync
        self.calls = 0
        self.entered = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self.error: OSError | None = None

    def __call__(self, fd: int) -> None:
        self.entered.set()
        if not self.free.wait(DEADLINE):
            raise TimeoutError("nobody freed the disk")
        if self.error is not None:
            raise self.error
        self._sync(fd)
        self.calls += 1
