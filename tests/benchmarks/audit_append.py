"""What an event costs in a batch, chained, masked and written: `python tests/benchmarks/audit_append.py [EVENTS]`.

Each size of a batch is measured in several rounds, taken in turn so that a noisy moment hits all of them; the median
counts. Beside the time that passed stands the processor time of the thread that appends, which other processes on the
machine disturb less. Masking is told apart by a log that knows no secret.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from agent_token_injector.audit import AuditLog, Decision, Draft
from agent_token_injector.clock import SystemClock
from agent_token_injector.masking import Redactor
from agent_token_injector.names import HandoffId

SIZES = (1, 2, 16, 64)
ROUNDS = 9
HANDOFF = HandoffId.parse("founders-checkout-20260620")


SECRETS = [f"ghs_{number:02d}Zk3x9QpLmvW2rTyU{number:02d}" for number in range(8)]


def drafts(size: int) -> list[Draft]:
    """A call's two events, as the proxy writes them, for as many calls as fit."""
    digest = "sha256:" + "0f" * 32
    call = Draft("tool.call", Decision.ALLOWED, "mcp", "github/create_pull_request", "granted", {})
    return [
        call._replace(detail={"era": "2025-11-25", "arguments": digest, "bytes": 311 + number})
        if number % 2 == 0
        else call._replace(action="tool.result", detail={"bytes": 1234, "ms": 17, "masked": 0, "is_error": False})
        for number in range(size)
    ]


def seconds(log: AuditLog, size: int, events: int) -> tuple[float, float]:
    """How long one append of `size` events takes, on average over `events` events: on the wall, and in this thread."""
    batch = drafts(size)
    appends = max(1, events // size)
    began, began_working = time.perf_counter(), time.thread_time()
    for _ in range(appends):
        log.append(HANDOFF, batch)
    return (time.perf_counter() - began) / appends, (time.thread_time() - began_working) / appends


def measure(secrets: list[str], events: int) -> dict[int, tuple[float, float]]:
    """The median of every size of a batch, in microseconds an append."""
    taken: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    with (
        tempfile.TemporaryDirectory() as folder,
        AuditLog(Path(folder) / "audit", clock=SystemClock(), actor="bench", redactor=Redactor(secrets)) as log,
    ):
        seconds(log, 16, events)
        for _ in range(ROUNDS):
            for size, found in taken.items():
                found.append(seconds(log, size, events))
        whole = log.verify(HANDOFF)
    if not whole.ok:
        raise SystemExit(f"the chain does not hold: {whole.problem}")
    return {
        size: (statistics.median(wall for wall, _ in found) * 1e6, statistics.median(cpu for _, cpu in found) * 1e6)
        for size, found in taken.items()
    }


def main() -> None:
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    for secrets in ([], SECRETS):
        medians = measure(secrets, events)
        print(f"{len(secrets)} secrets   us/append   us/event   (processor: us/append   us/event)")
        for size, (wall, cpu) in medians.items():
            print(f"batch of {size:>2} {wall:11.1f} {wall / size:10.2f} {cpu:23.1f} {cpu / size:10.2f}")
        one = (medians[64][1] - medians[16][1]) / 48
        print(f"an event {one:.2f} us, an append beside them {max(0.0, medians[1][1] - one):.1f} us (processor)")


if __name__ == "__main__":
    main()
