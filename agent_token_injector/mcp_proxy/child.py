"""A server's process with pipes, its own supervisor, its own home, and an end that leaves nothing behind.

child_main.py supervises it: what the server starts, daemons included, ends with the server or with this process. The pipes
are raw, non-blocking descriptors: whoever speaks to the server reads and writes them itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EOF_GRACE_SECONDS: Final = 0.3
TERM_GRACE_SECONDS: Final = 1.0
KILL_LIMIT_SECONDS: Final = 15.0
"""How long the supervisor may take to end the whole tree; beyond what it grants a process that the kernel holds."""
MAX_STDERR: Final = 8 * 1024
MAX_STDERR_LINE: Final = 4 * 1024
"""A longer line is given to nobody: half of one could hold half a secret, which no redactor knows."""
LAST_READS: Final = 64
"""Reads of what a server said before it ended."""
BUFFER_BYTES: Final = 256 * 1024
MARKED_LOOKS: Final = 20
MARKED_SECONDS: Final = 1.0
_FIRST: Final = str(Path(__file__).with_name("child_main.py"))


class Child:
    """A running server. The kernel tells its supervisor when this process is gone, and the supervisor ends the server.

    Args:
        argv, env, cwd: the server; `env` is added to PATH, HOME, TMPDIR and LANG, `cwd` defaults to its own HOME.
        on_stderr: is given every complete line of its stderr, unmasked, on the event loop.

    Attributes:
        stdin, stdout: non-blocking descriptors, -1 once `stop` has closed them.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None = None,
        on_stderr: Callable[[str], None] | None = None,
    ) -> None:
        """Start its supervisor. Raises OSError when the interpreter cannot be started."""
        self._home = tempfile.mkdtemp(prefix="handoff-mcp-")
        full = {"PATH": PATH, "HOME": self._home, "TMPDIR": self._home, "LANG": "C.UTF-8", **env}
        self._job = json.dumps({"argv": list(argv), "env": full}).encode("ascii") + b"\n"
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        # Not pipes: another process of this user could open those through /proc, and speak to the server past the proxy.
        (self.stdin, stdin), (self.stdout, stdout), (self._stderr, stderr) = (_pair() for _ in range(3))
        try:
            with theirs, stdin, stdout, stderr:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", _FIRST, str(os.getpid()), str(theirs.fileno())],
                    stdin=stdin.fileno(),
                    stdout=stdout.fileno(),
                    stderr=stderr.fileno(),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    cwd=cwd or self._home,
                    env={},
                )
        except OSError:
            self._control.close()
            for descriptor in (self.stdin, self.stdout, self._stderr):
                os.close(descriptor)
            shutil.rmtree(self._home, ignore_errors=True)
            raise
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._exited = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._loop.add_reader(self._stderr, self._listen)
        self._on_stderr = on_stderr
        self._words = b""
        self._line = b""
        self._too_long = False
        self._cut = False

    async def connect(self) -> None:
        """Let the supervisor start the server. Raises OSError when it died meanwhile."""
        job, self._job = self._job, b""
        await self._loop.sock_sendall(self._control, job)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._exited.set()

    def _listen(self) -> bool:
        """Take some of what stderr holds. False when it holds nothing, or nothing more will come."""
        try:
            chunk = os.read(self._stderr, 4096)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self._loop.remove_reader(self._stderr)
            return False
        joined = self._words + chunk
        self._cut = self._cut or len(joined) > MAX_STDERR
        self._words = joined[-MAX_STDERR:]
        if self._on_stderr is not None:
            self._tell_lines(chunk, self._on_stderr)
        return True

    def _tell_lines(self, chunk: bytes, tell: Callable[[str], None]) -> None:
        *lines, rest = (self._line + chunk).split(b"\n")
        for line in lines:
            if not self._too_long and len(line) <= MAX_STDERR_LINE and line.strip():
                tell(line.decode("utf-8", errors="replace").rstrip("\r"))
            self._too_long = False
        self._too_long = self._too_long or len(rest) > MAX_STDERR_LINE
        self._line = b"" if self._too_long else rest

    def last_words(self) -> str:
        """The end of stderr, from a line's beginning: half a line could hold half a secret, which no redactor knows."""
        if self._stderr >= 0:
            # What it said just before it died may not have been read yet.
            self._listen()
        words = self._words.partition(b"\n")[2] if self._cut else self._words
        return words.decode("utf-8", errors="replace").strip()

    def close_stdin(self) -> None:
        """Tell the server that nothing more comes. Safe to call twice."""
        self.stdin = self._close(self.stdin)

    async def stop(self) -> None:
        """Close its stdin, then SIGTERM, then SIGKILL for its whole tree; reap it and remove its home.

        Whoever reads `stdout` or waits to write `stdin` on the event loop has stopped that before.
        """
        if self._process.returncode is not None:
            return
        self.close_stdin()
        if not await self._ends_within(EOF_GRACE_SECONDS):
            # A supervisor that somebody has stopped could end nothing.
            self._process.send_signal(signal.SIGCONT)
            with contextlib.suppress(OSError):
                self._control.send(b"T")
            await self._ends_within(TERM_GRACE_SECONDS)
        self._control.close()
        if not await self._ends_within(KILL_LIMIT_SECONDS):
            # The kernel ends the server's first process with its supervisor.
            self._process.kill()
        await self._exited.wait()
        if self._process.wait() != 0:
            # Somebody of this user has killed the supervisor, and what the server started lives on.
            mark = f"HOME={self._home}".encode()
            await self._loop.run_in_executor(None, _kill_marked, mark)
        os.close(self._pidfd)
        for _ in range(LAST_READS):
            if not self._listen():
                break
        self._loop.remove_reader(self._stderr)
        self._stderr = self._close(self._stderr)
        self.stdout = self._close(self.stdout)
        await self._loop.run_in_executor(None, lambda: shutil.rmtree(self._home, ignore_errors=True))

    @staticmethod
    def _close(fd: int) -> int:
        if fd >= 0:
            os.close(fd)
        return -1

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return self._exited.is_set()


def _pair() -> tuple[int, socket.socket]:
    """Our end's descriptor, non-blocking, and theirs: another open file, which stays as it is."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        # Fewer wake-ups for large messages, as far as the system allows.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    ours.setblocking(False)
    return ours.detach(), theirs


def _kill_marked(mark: bytes) -> None:
    """Kill every process that has `mark` in its environment, until a look finds none or MARKED_LOOKS were taken."""
    for _ in range(MARKED_LOOKS):
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        found = [pid for pid in pids if _has(pid, mark)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                try:
                    # Looked at again behind the handle: the number may be another process's by now.
                    if _has(pid, mark):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        select.select([handle], [], [], MARKED_SECONDS)
                finally:
                    os.close(handle)


def _has(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
