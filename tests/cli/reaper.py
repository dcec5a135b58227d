"""Runs a command as its children's reaper, and says which processes the command left behind.

    python -m tests.cli.reaper MARK SIGNAL COMMAND...

A process that its parent abandons becomes a child of this one (PR_SET_CHILD_SUBREAPER), whatever session it is in. When
MARK is not empty, SIGNAL is sent to the command as soon as it has printed MARK. Prints one JSON document.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LIMIT = 20.0


def children() -> list[str]:
    """The living children of this process, by what they run; those that are dead are reaped."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if pid == 0:
            break
    pids = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    return [Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in pids]


def main(mark: str, number: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if mark and mark in line:
            process.send_signal(number)
            mark = ""
    code = process.wait()
    until = time.monotonic() + LIMIT
    while (left := children()) and time.monotonic() < until:
        time.sleep(0.02)
    sys.stdout.write(json.dumps({"code": code, "out": "".join(lines), "left": left, "signalled": not mark}))


if __name__ == "__main__":
    main(sys.argv[1], getattr(signal, sys.argv[2]), sys.argv[3:])
