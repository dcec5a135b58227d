"""A server's process with pipes, its own supervisor, its own home, and an end that leaves nothing behind.

child_main.py supervises it: what the server starts, daemons included, ends with the server or with this process.
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
from typing import Final

from pydantic import SecretStr

from agent_token_injector.mcp_proxy.servers import StdioServer
from agent_token_injector.mcp_proxy.wire import MAX_BYTES

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EOF_GRACE_SECONDS: Final = 0.3
TERM_GRACE_SECONDS: Final = 1.0
KILL_LIMIT_SECONDS: Final = 15.0
"""How long the supervisor may take to end the whole tree; beyond what it grants a process that the kernel holds."""
MAX_STDERR: Final = 8 * 1024
MARKED_LOOKS: Final = 20
MARKED_SECONDS: Final = 1.0
_FIRST: Final = str(Path(__file__).with_name("child_main.py"))


class Child:
    """A running server. The kernel tells its supervisor when this process is gone, and the supervisor ends the server."""

    def __init__(self, server: StdioServer) -> None:
        """Start its supervisor. Raises OSError when the interpreter cannot be started."""
        self._home = tempfile.mkdtemp(prefix="handoff-mcp-")
        env = {"PATH": PATH, "HOME": self._home, "TMPDIR": self._home, "LANG": "C.UTF-8"}
        env |= {key: _reveal(value) for key, value in server.env.items()}
        self._job = json.dumps({"argv": server.argv, "env": env}).encode("ascii") + b"\n"
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", _FIRST, str(os.getpid()), str(theirs.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    cwd=server.cwd or self._home,
                    env={},
                )
        except OSError:
            self._control.close()
            shutil.rmtree(self._home, ignore_errors=True)
            raise
        self._pidfd = os.pidfd_open(self._process.pid)
        self._exited = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        self._out = asyncio.StreamReader(limit=MAX_BYTES)
        self._in: asyncio.StreamWriter | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self._listening: asyncio.Task[None] | None = None
        self._stderr = b""
        self._cut = False

    async def connect(self) -> None:
        """Open its pipes and start the server. Until then nothing can be read or written; `stop` works all the same.

        Raises OSError when its supervisor died meanwhile.
        """
        loop = asyncio.get_running_loop()
        stderr = asyncio.StreamReader()
        await self._connect_reader(self._out, self._process.stdout)
        await self._connect_reader(stderr, self._process.stderr)
        self._listening = asyncio.create_task(self._listen(stderr))
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), self._process.stdin
        )
        self._transports.append(transport)
        self._in = asyncio.StreamWriter(transport, protocol, None, loop)
        job, self._job = self._job, b""
        await loop.sock_sendall(self._control, job)

    async def _connect_reader(self, reader: asyncio.StreamReader, pipe: object) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._transports.append(transport)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exited.set()

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while chunk := await stderr.read(4096):
            joined = self._stderr + chunk
            self._cut = self._cut or len(joined) > MAX_STDERR
            self._stderr = joined[-MAX_STDERR:]

    def last_words(self) -> str:
        """The end of stderr, from a line's beginning: half a line could hold half a secret, which no redactor knows."""
        words = self._stderr.partition(b"\n")[2] if self._cut else self._stderr
        return words.decode("utf-8", errors="replace").strip()

    def write(self, line: bytes) -> None:
        """Queue one line for its stdin; nothing happens when that is closed."""
        if self._in is not None and not self._in.is_closing():
            self._in.write(line + b"\n")

    async def drain(self) -> None:
        """Wait until the queue is short. Raises OSError when the child closed its stdin."""
        if self._in is not None:
            await self._in.drain()

    async def read_line(self) -> bytes | None:
        """The next line without its end, None at the end of stdout. Raises LimitOverrunError when it is too long."""
        try:
            return (await self._out.readuntil(b"\n"))[:-1]
        except asyncio.IncompleteReadError:
            return None

    async def stop(self) -> None:
        """Close its stdin, then SIGTERM, then SIGKILL for its whole tree; reap it and remove its home."""
        if self._process.returncode is not None:
            return
        if self._in is not None:
            self._in.close()
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
            await asyncio.get_running_loop().run_in_executor(None, _kill_marked, mark)
        os.close(self._pidfd)
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        for transport in self._transports:
            transport.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        await asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(self._home, ignore_errors=True))

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()
        return self._exited.is_set()


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


def _reveal(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
