"""What a run consists of on the launcher's side, and how it is ended when its supervisor is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_token_injector.launchers import supervisor as supervision
from agent_token_injector.launchers.base import RUN_ID, RunFolder


@dataclass(frozen=True, slots=True)
class Run:
    """A supervisor, the line to it, and the folder and the mark of its run."""

    process: subprocess.Popen[bytes]
    link: Link
    folder: RunFolder
    run_id: str
    since: int
    """The supervisor's start: nothing older can belong to the run, and nothing older is looked into."""

    def abandon(self) -> None:
        """Leave nothing of a run that did not come to be."""
        self.close()
        self.sweep(None)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def close(self) -> list[str]:
        """End the supervisor and the line to it. Returns what could not be done."""
        self.process.kill()
        self.link.close()
        try:
            self.process.wait(supervision.KILL_LIMIT)
        except subprocess.TimeoutExpired:
            return [f"the supervisor {self.process.pid} did not die of SIGKILL"]
        return []

    def sweep(self, agent: tuple[int, int] | None) -> int:
        """Kill what is left of a run whose supervisor is gone; returns how many would not die."""
        limit = time.monotonic() + supervision.KILL_LIMIT
        quiet = 0
        while True:
            left = self._left_behind(agent)
            quiet = 0 if left else quiet + 1
            # A process can fork and end between two lines of one look at the table; not twice unseen.
            if quiet == 2 or time.monotonic() > limit:
                return len(left)
            for process in left:
                supervision.send(process, signal.SIGKILL)
            if left:
                time.sleep(0.002)

    def _left_behind(self, agent: tuple[int, int] | None) -> list[supervision.Process]:
        table = {pid: found for pid, found in supervision.processes().items() if found.started >= self.since}
        pid, started = agent or (0, 0)
        # Its session keeps the agent's number in use; but once all of it is gone, the number can be a stranger's.
        if pid in table and table[pid].started != started:
            pid = 0
        mark = f"{RUN_ID}={self.run_id}".encode("ascii")
        found = {
            process.pid: process
            for process in table.values()
            if process.alive
            and _is_ours(process.pid)
            and ((pid and pid in (process.session, process.group)) or mark in _environ(process.pid))
        }
        found |= {process.pid: process for process in supervision.descendants(set(found), table)}
        found.pop(os.getpid(), None)
        return list(found.values())


class Link:
    """The line to a supervisor: one JSON document a line, in either direction.

    One thread receives and others send. They share the socket's timeout: a wait may end early, and is then repeated.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""

    def send(self, data: bytes, timeout: float) -> None:
        self._socket.settimeout(timeout)
        self._socket.sendall(data)

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next document, or None at the end. Raises TimeoutError, OSError, and ValueError for anything else."""
        self._socket.settimeout(timeout)
        while b"\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("a supervisor speaks in objects")  # noqa: TRY004 - one error for every malformed line
        return document

    def close(self) -> None:
        self._socket.close()


def _is_ours(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
