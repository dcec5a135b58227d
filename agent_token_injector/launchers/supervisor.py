"""The process between this host and a local agent: it starts the agent, and no process of the agent outlives the run.

It is run as a file of its own, `python -I -S -B supervisor.py FD`, by launchers/process.py, and imports nothing but the
standard library, and little of that, so that it is up in about 20 ms. It is started with an empty environment. FD is its
end of a socket pair; a socket and not a pipe, because a same-user agent can open another process's pipe through
/proc/PID/fd and so hold it open or write to it, and cannot do that to a socket.

To it, one JSON document a line: first the job (strings are bytes, read as Latin-1), then `{"stop": true}` or
`{"signal": N}`. From it: `{"event": "started", "pid", "started"}` or `{"event": "failed", "stage", "errno"}`, then
`{"event": "ended", "why", "exit_code", "survivors", "milliseconds"}` and `{"event": "cleaned", "left"}`.

The run ends, for `why`:
    exited        the agent's main process is over; what it left behind is ended too
    stopped       the launcher said so, or the socket was asked to
    signalled     somebody sent the supervisor SIGTERM, SIGINT or SIGHUP
    expired       the time is over, by the clock that counts through a suspend or by the wall, whichever is first
    parent-died   the launcher is gone, SIGKILL included: there is no grace then

Every orphan of the agent is re-parented to the supervisor (PR_SET_CHILD_SUBREAPER), so "no child is left" is the
kernel's own answer (ECHILD) that no descendant is left, and not a guess from a list.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, NoReturn

if TYPE_CHECKING or __package__:
    from agent_token_injector.launchers.tree_removal import remove_tree
else:
    # Run as a file under -I: no package is on the path, and nothing is put there but this file's own folder.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - as for pathlib below
    from tree_removal import remove_tree

KILL_LIMIT = 10.0
"""Seconds that a process may take to die of SIGKILL (it may sit in the kernel) before it is reported as a survivor."""
LOOK_AGAIN = 1.0
"""Seconds after which the clocks are read again: poll() sleeps through neither a suspend nor a step of the wall clock."""

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_ENDING_SIGNALS = bytes((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


class Process:
    """One line of the process table. `started` is in clock ticks since boot: with the pid, it names a process for good."""

    __slots__ = ("group", "parent", "pid", "session", "started", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        # The name is in parentheses and may itself hold any byte, a parenthesis included (proc_pid_stat(5)).
        fields = stat.rpartition(b")")[2].split()
        self.pid = pid
        self.state = fields[0].decode("ascii")
        self.parent, self.group, self.session = (int(field) for field in fields[1:4])
        self.started = int(fields[19])

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def look_up(pid: int) -> Process | None:
    """The process `pid`, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would double the start-up time
            return Process(pid, file.read())
    except (OSError, IndexError, ValueError):
        return None


def processes() -> dict[int, Process]:
    """Every process that /proc shows, by its pid. Only /proc/PID/stat is read, which every user may."""
    names = (name for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - as above
    return {found.pid: found for found in map(look_up, map(int, names)) if found is not None}


def descendants(of: set[int], table: Mapping[int, Process]) -> Iterator[Process]:
    """The living processes below those in `of`, which are not among them."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    pending, seen = list(of), set(of)
    while pending:
        for process in children.get(pending.pop(), ()):
            if process.pid not in seen:
                seen.add(process.pid)
                pending.append(process.pid)
                if process.alive:
                    yield process


def send(process: Process, number: int, *, group: bool = False) -> None:
    """Signal this process, or its whole group: a stranger that got its pid since is left alone. Gone is fine."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            return
        handle = -1
    try:
        now = look_up(process.pid)
        if now is None or now.started != process.started:
            return
        if group and now.group != os.getpgrp():
            os.killpg(now.group, number)
        elif handle < 0:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(handle, number)
    except OSError:
        return  # It ended by itself; if it did not, the caller's next look sees it.
    finally:
        if handle >= 0:
            os.close(handle)


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Line:
    """The socket to the launcher."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """What has arrived, after waiting for some of it; None when the launcher is gone."""
        try:
            data = os.read(self.fd, 65536)
        except ConnectionError:
            data = b""
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def report(self, **event: object) -> None:
        """Tell the launcher. When it is gone there is nobody to tell, and the loop learns that by itself."""
        data = json.dumps(event).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except ConnectionError:
            return


class Supervision:
    """One run of one agent, from the job to the last of its processes."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._agent = 0
        self._exit_code: int | None = None
        self._grace = 0.0
        self._ends_at = self._ends_at_wall = 0.0
        self._events = select.poll()
        self._wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._parent = -1

    def run(self) -> None:
        """Take the job, start the agent, wait for an end, end everything, clean up."""
        job = None
        while job is None:
            messages = self._line.receive()
            if messages is None:
                return
            job = messages[0] if messages else None
        root, identity = _bytes(job["root"]).decode("utf-8", "surrogateescape"), tuple(job["identity"])
        self._watch_parent(job["parent"])
        self._grace = job["grace"]
        self._ends_at, self._ends_at_wall = _boot_time() + job["seconds"], job["wall"]
        try:
            if os.getppid() != job["parent"]:
                return
            failure = self._start(job)
            job.clear()
            if failure is not None:
                self._line.report(event="failed", stage=failure[0], errno=failure[1])
                return
            agent = look_up(self._agent)
            self._line.report(event="started", pid=self._agent, started=0 if agent is None else agent.started)
            self._end(self._wait())
        except BaseException:
            # Whatever went wrong in here, the one thing that may not happen is an agent without a supervisor.
            self._end("supervisor-failed", at_once=True)
            raise
        finally:
            self._line.report(event="cleaned", left=remove_tree(root, identity))

    def _watch_parent(self, parent: int) -> None:
        """Learn of the launcher's death from the kernel too: a fork of it may hold its end of the socket open."""
        try:
            self._parent = os.pidfd_open(parent)
        except OSError:
            self._parent = -1
        for fd in (self._line.fd, self._wake, self._parent):
            if fd >= 0:
                self._events.register(fd, select.POLLIN)

    def _start(self, job: dict[str, Any]) -> tuple[str, int] | None:
        """Fork and execute the agent. Returns the step that failed and its errno, or None once it runs."""
        path, argv = _bytes(job["path"]), [_bytes(item) for item in job["argv"]]
        env = {_bytes(name): _bytes(value) for name, value in job["env"].items()}
        cwd = None if job["cwd"] is None else _bytes(job["cwd"])
        errors, report = os.pipe2(os.O_CLOEXEC)
        # A signal between fork and exec would be written by the child into the pipe that wakes this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        supervisor = os.getpid()
        self._agent = os.fork()
        if self._agent == 0:
            _become_agent(path, argv, env, cwd=cwd, report=report, supervisor=supervisor)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.close(report)
        # From here on only the agent holds its streams, so that a reader of them sees their end with the agent's.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        failure = b""
        while chunk := os.read(errors, 64):
            failure += chunk
        os.close(errors)
        if not failure:
            return None
        stage, _, number = failure.partition(b" ")
        return stage.decode("ascii"), int(number)

    def _wait(self) -> str:
        """Until there is a reason to end the run; returns it."""
        while True:
            left = min(self._ends_at - _boot_time(), self._ends_at_wall - time.time())
            if left <= 0:
                return "expired"
            why = self._look(min(left, LOOK_AGAIN))
            if why is not None:
                return why
            self._reap()
            if self._exit_code is not None:
                return "exited"

    def _look(self, seconds: float) -> str | None:
        """Wait for something to happen; returns why the run must end, if that is what happened."""
        for fd, _ in self._events.poll(seconds * 1000):
            if fd == self._parent:
                return "parent-died"
            if fd == self._wake:
                if any(number in _ENDING_SIGNALS for number in os.read(self._wake, 512)):
                    return "signalled"
                continue
            messages = self._line.receive()
            if messages is None:
                return "parent-died"
            for message in messages:
                if "stop" in message:
                    return "stopped"
                self._forward(message["signal"])
        return None

    def _forward(self, number: int) -> None:
        """Signal the agent's process group, as a terminal would. It is not reaped yet, so the number is still its."""
        self._reap()
        if self._exit_code is None:
            os.killpg(self._agent, number)

    def _reap(self) -> bool:
        """Collect who has ended; returns whether any descendant is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._agent:
                self._exit_code = os.waitstatus_to_exitcode(status)

    def _end(self, why: str, *, at_once: bool = False) -> None:
        """End every descendant and report. The launcher's death, or a second request to stop, cuts the grace short."""
        began = _boot_time()
        if not at_once and why != "parent-died" and self._reap():
            for process in self._descendants():
                send(process, signal.SIGTERM)
                send(process, signal.SIGCONT)
            grace_ends = began + self._grace
            while self._reap() and (left := grace_ends - _boot_time()) > 0:
                if self._look(min(left, LOOK_AGAIN)) in ("stopped", "parent-died"):
                    break
        limit = _boot_time() + KILL_LIMIT
        while self._reap() and _boot_time() < limit:
            found = self._descendants()
            # Whole groups first: the kernel lets no fork slip out of a signal to a group, so that a process which
            # forks and exits faster than it can be looked up is hit all the same. The agent began its own session,
            # and a group does not span two: every member is a descendant.
            for process in {one.group: one for one in found}.values():
                send(process, signal.SIGKILL, group=True)
            for process in found:
                send(process, signal.SIGKILL)
            # What was killed becomes a zombie of ours, or leaves one: SIGCHLD ends this wait.
            select.select([self._wake], [], [], 0.01)
            self._drain()
        survivors = max(1, len(self._descendants())) if self._reap() else 0
        milliseconds = round((_boot_time() - began) * 1000)
        self._line.report(
            event="ended", why=why, exit_code=self._exit_code, survivors=survivors, milliseconds=milliseconds
        )

    def _drain(self) -> None:
        try:
            os.read(self._wake, 512)
        except BlockingIOError:
            return

    @staticmethod
    def _descendants() -> list[Process]:
        return list(descendants({os.getpid()}, processes()))


def _become_agent(
    path: bytes, argv: list[bytes], env: dict[bytes, bytes], *, cwd: bytes | None, report: int, supervisor: int
) -> NoReturn:
    """In the forked child: everything that must hold before the agent's first instruction, then exec."""
    stage = b"setup"
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
        os.umask(0o077)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        stage = b"cwd"
        if cwd is not None:
            os.chdir(cwd)
        stage = b"setup"
        os.closerange(3, report)
        os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))
        stage = b"exec"
        os.execve(path, argv, env)  # noqa: S606 - the agent is started exactly as given, by no shell
    except OSError as error:
        os.write(report, b"%s %d" % (stage, error.errno or 0))
    except BaseException:  # noqa: BLE001 - the child of a fork must never run on into its parent's code
        os.write(report, stage + b" 0")
    os._exit(127)


def _bytes(text: str) -> bytes:
    """JSON has no bytes: the job writes each byte as the character of its number."""
    return text.encode("latin-1")


def main() -> None:
    """Supervise the run that arrives on the descriptor named in argv."""
    line = _Line(int(sys.argv[1]))
    os.set_inheritable(line.fd, False)
    # Before the secrets arrive: no other process of this user may read our memory, and no crash may write it down.
    _prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    Supervision(line).run()


if __name__ == "__main__":
    main()
