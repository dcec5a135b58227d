"""Who a process is, beyond its number: so that a record of one can be told from a later process with the same number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process on one boot of one machine: where its number means something, the pid, its start time in clock ticks.

    `boot` is the kernel's boot id and the pid namespace: containers of one machine share the first and not the second.
    """

    boot: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(boot=_boot_id(), pid=pid, started=_start_ticks(pid) or 0)

    def is_alive(self) -> bool | None:
        """Whether it still runs; None when it is of another machine's, boot's or container's, where this one cannot see."""
        if self.boot != _boot_id():
            return None
        return _start_ticks(self.pid) == self.started


def _boot_id() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name may hold blanks and parentheses; the fields are counted after the last of them.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
