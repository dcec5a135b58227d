"""The process between the proxy and one MCP server: it starts the server, and no process of the server outlives it.

Run as a script by the interpreter, isolated and without site (`python -I -S child_main.py PARENT FD`), with an empty
environment. FD is its end of a socket pair; a socket and not a pipe, because another process of this user can open a pipe
through /proc/PID/fd and hold it open. Over it comes the job, one line of JSON (`argv` and `env`), and then at most one
byte, which asks for a polite end. The server inherits stdin, stdout and stderr; nothing is relayed.

It ends the server and all that the server started, by SIGKILL,

- when the server's first process has exited;
- when the socket's other end is closed, or the proxy's process is gone, a SIGKILL of it included;
- POLITE_SECONDS after the polite end was asked for: SIGTERM goes to the server's group first.

Every orphan below it is re-parented to it (PR_SET_CHILD_SUBREAPER), a daemon of a session of its own as well. So "no child
is left" is the kernel's own answer (ECHILD) that no descendant is left.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

POLITE_SECONDS = 1.0
KILL_SECONDS = 10.0
"""How long a process may take to die of SIGKILL; one that the kernel holds is not waited for any longer."""

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_POLITE_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def main() -> None:
    """Supervise the server that is described on the descriptor named in argv."""
    parent, control = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(control, False)
    # Before the secrets arrive: no other process of this user may read our memory, and no crash may write it down.
    # The limit is the server's too: its memory holds granted secrets (D7).
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        parent_end = os.pidfd_open(parent)
    except ProcessLookupError:
        sys.exit("the proxy is gone")
    if os.getppid() != parent:
        sys.exit("the proxy is gone")
    job = _receive(control)
    if job is None:
        return
    wake = _wake_on_signals()
    server = _start(job["argv"], job["env"])
    del job
    try:
        _watch(server, control=control, parent_end=parent_end, wake=wake)
    finally:
        _end_all(wake)


def _receive(control: int) -> dict[str, Any] | None:
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(control, 65536)
        if not chunk:
            return None
        line += chunk
    job: dict[str, Any] = json.loads(line)
    return job


def _wake_on_signals() -> int:
    """A pipe that holds the number of every signal that came."""
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_POLITE_SIGNALS):
        signal.signal(number, lambda *_: None)
    return wake


def _start(argv: list[str], env: dict[str, str]) -> int:
    """Fork, and become the server in the child. Returns its process id."""
    supervisor = os.getpid()
    # A signal between fork and exec would be written by the child into the pipe that wakes this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    server = os.fork()
    if server == 0:
        _become(argv, env, supervisor)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # From here on only the server holds its streams, so that the proxy sees their end with the server's.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return server


def _become(argv: list[str], env: dict[str, str], supervisor: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        # A session of its own: a signal to its own group does not reach this supervisor.
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(argv[0], argv, env)  # noqa: S606 - becoming the command, without a shell, is the purpose
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode("utf-8", "backslashreplace"))
    except BaseException as error:  # noqa: BLE001 - the child of a fork must never run on into its parent's code
        os.write(2, f"cannot start {argv[0]}: {type(error).__name__}\n".encode("utf-8", "backslashreplace"))
    os._exit(127)


def _watch(server: int, *, control: int, parent_end: int, wake: int) -> None:
    """Return when the server's tree is to be killed."""
    events = select.poll()
    for fd in (control, parent_end, wake):
        events.register(fd, select.POLLIN)
    deadline: float | None = None
    while server not in _reaped():
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return
        polite = False
        for fd, _ in events.poll(None if left is None else left * 1000):
            if fd == parent_end:
                return
            if fd == wake:
                polite |= not _POLITE_SIGNALS.isdisjoint(_drained(wake))
            elif _closed(control):
                return
            else:
                polite = True
        if polite and deadline is None:
            deadline = time.monotonic() + POLITE_SECONDS
            _signal_group(server, signal.SIGTERM)
            _signal_group(server, signal.SIGCONT)


def _closed(control: int) -> bool:
    try:
        return os.read(control, 64) == b""
    except ConnectionError:
        return True


def _end_all(wake: int) -> None:
    """Kill until there is no child left.

    Only children are signalled, never what is below them: a child's id is its own until it is reaped here, and what
    is below becomes a child when its parent dies. Whole groups first: the kernel lets no fork slip out of a signal to a
    group, so that a process which forks and exits faster than it can be looked up is hit all the same. The server began
    its own session, and a group does not span two, so every member is a descendant.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while True:
        _reaped()
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            return
        for pid, group in list(_children()):
            if group != os.getpgrp():
                _signal_group(group, signal.SIGKILL)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        # What was killed becomes a zombie of ours, or leaves one: SIGCHLD ends this wait.
        select.select([wake], [], [], 0.01)
        _drained(wake)


def _reaped() -> set[int]:
    """Collect who has ended."""
    found: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.add(pid)


def _children() -> Iterator[tuple[int, int]]:
    """The children of this process, each with its process group. Only /proc/PID/stat is read, which every user may."""
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would double the start-up time
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - as above
                # The name is in parentheses and may itself hold any byte, a parenthesis included (proc_pid_stat(5)).
                fields = file.read().rpartition(b")")[2].split()
            parent, group = int(fields[1]), int(fields[2])
        except (OSError, IndexError, ValueError):
            continue
        if parent == own:
            yield int(name), group


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except OSError:
        return  # It ended by itself; if it did not, the next look sees it.


def _drained(wake: int) -> bytes:
    try:
        return os.read(wake, 512)
    except BlockingIOError:
        return b""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
