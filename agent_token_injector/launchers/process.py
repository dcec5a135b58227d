"""The process launcher: an agent as a local process under a supervisor, with an environment from nothing.

    launcher = ProcessLauncher(["my-agent", "--card", "3206"], cwd=worktree)
    agent = launcher(context)
    agent.wait()

Three parties watch each other. The supervisor (supervisor.py) ends the whole tree of the agent when the agent exits,
when it is told to, when the time is over, and when this process is gone, however it went. This process, in one thread a
run, notices when the supervisor is gone or does not act, and ends what it can still find of the run.

What that cannot do, as long as agent and launcher are the same user on the same machine (isolation, a later launcher
option, closes it): an agent may SIGKILL its supervisor. Its main process dies with it (PR_SET_PDEATHSIG), and this
process kills everything that carries the run's mark in its environment, or is in the agent's session, or is below such
a process. A process which has left the session, cleared its environment (or forbidden its reading), and lost its
parents is not found. The credentials are still revoked and the MCP proxy is still closed. An agent that also kills this
process is ended by the supervisor at once; one that kills both leaves only its own death signal and the credentials'
expiry. An agent that runs as root can read any memory: see the launchers' documentation before running one so.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final

from agent_token_injector.clock import LOCAL_EARLY, Clock, SystemClock, iso
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.launchers import supervisor as supervision
from agent_token_injector.launchers.base import BASE_PATH, RunFolder, StopReport, agent_environment, new_run_id
from agent_token_injector.launchers.run import Link, Run
from agent_token_injector.session_context import SessionContext

Stream = int | IO[Any] | None

START_LIMIT: Final = 15.0
"""Seconds from the supervisor's start to the agent's: an overloaded machine is given time, a broken one is not."""
MARGIN: Final = 5.0
"""Seconds that the supervisor may be late before it is taken to be stopped or hung, and killed."""
CLEAN_LIMIT: Final = 60.0
"""Seconds for the supervisor to remove the run's folder once the agent is gone."""
_SHORTEST_SECRET: Final = 6
"""Shorter values (`1`, `main`) turn up in any command line by chance."""


class ProcessLauncher:
    """Starts `argv` as a supervised process of this machine.

    Args:
        argv: the agent's command, used as given. A name without a slash is looked up on the constant base PATH, never
            on this process's. Secrets reach the agent in its environment; a command that holds one is refused.
        cwd: where the agent starts; None is where this process is.
        stdin, stdout, stderr: as subprocess.Popen takes them (a descriptor, a file, PIPE, DEVNULL, STDOUT), but that
            None is an empty input; None for the outputs is this process's own.
        grace: how long the agent has between SIGTERM and SIGKILL.
        clock: tells how much of the handoff's time is left.

    Calling it raises SpawnRefused when the agent cannot be started. No process, folder or descriptor is left then.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        grace: timedelta = timedelta(seconds=2),
        clock: Clock | None = None,
    ) -> None:
        if isinstance(argv, str):
            raise TypeError("argv is a list of arguments, not a command line")
        if grace < timedelta(0):
            raise ValueError("grace is a span of time, and not a negative one")
        self._argv = tuple(argv)
        self._cwd = cwd
        self._streams = (subprocess.DEVNULL if stdin is None else stdin, stdout, stderr)
        self._grace = grace.total_seconds()
        self._clock = SystemClock() if clock is None else clock

    def __call__(self, context: SessionContext) -> AgentProcess:
        path = self._resolve(context)
        seconds = (context.expires_at - LOCAL_EARLY - self._clock.now()).total_seconds()
        if seconds <= 0:
            raise SpawnRefused(
                f"the handoff {context.handoff} has no time left",
                cause=f"it expires {iso(context.expires_at)}, and the last {LOCAL_EARLY.seconds} s are not used",
                hint="provision it again",
            )
        run_id = new_run_id()
        with ExitStack() as undo:
            folder = RunFolder.make()
            undo.callback(folder.remove)
            try:
                env = agent_environment(context, folder, run_id)
                job = self._job(path, env, folder, seconds)
                process, link = self._start_supervisor()
            except (OSError, UnicodeEncodeError) as error:
                # Both can quote what they were given: the reason alone is safe to repeat.
                raise _refused(self._argv[0], error.strerror if isinstance(error, OSError) else error.reason) from None
            run = Run(process, link, folder, run_id, _started(process.pid))
            undo.callback(run.abandon)
            pid, started = self._hand_over(run, job)
            agent = AgentProcess(run, pid=pid, started=started, seconds=seconds, grace=self._grace)
            undo.pop_all()
        return agent

    def _resolve(self, context: SessionContext) -> str:
        if not self._argv or not self._argv[0]:
            raise SpawnRefused("there is no agent to start", cause="its command is empty")
        secrets = [secret.get_secret_value() for secret in context.secrets()]
        for index, argument in enumerate(self._argv):
            if "\0" in argument:
                raise SpawnRefused(
                    f"argument {index} of the agent's command cannot be passed", cause="it has a NUL in it"
                )
            if any(len(secret) >= _SHORTEST_SECRET and secret in argument for secret in secrets):
                raise SpawnRefused(
                    f"argument {index} of the agent's command holds a secret",
                    cause="every user of this machine can read a command line",
                    hint="let the agent read it from its environment",
                )
        if "/" in self._argv[0]:
            return self._argv[0]
        path = shutil.which(self._argv[0], path=BASE_PATH)
        if path is None:
            raise SpawnRefused(
                f"the agent {self._argv[0]!r} was not found",
                cause=f"it is in none of the folders of the base PATH ({BASE_PATH})",
                hint="give its full path",
            )
        return path

    def _job(self, path: str, env: dict[str, str], folder: RunFolder, seconds: float) -> bytes:
        job = {
            "path": _text(path),
            "argv": [_text(argument) for argument in self._argv],
            "env": {_text(name): _text(value) for name, value in env.items()},
            "cwd": None if self._cwd is None else _text(os.fspath(self._cwd)),
            "seconds": seconds,
            "wall": time.time() + seconds,
            "grace": self._grace,
            "root": _text(str(folder.path)),
            "identity": folder.identity,
            "parent": os.getpid(),
        }
        return json.dumps(job).encode("ascii") + b"\n"

    def _start_supervisor(self) -> tuple[subprocess.Popen[bytes], Link]:
        stdin, stdout, stderr = self._streams
        ours, theirs = socket.socketpair()
        with ExitStack() as undo:
            undo.enter_context(theirs)
            undo.callback(ours.close)
            # Where this process has its own standard streams closed, a new socket would take the place of one.
            end = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
            try:
                # The supervisor's own environment, which /proc shows for as long as it lives, is empty.
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", supervision.__file__, str(end)],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env={},
                    close_fds=True,
                    pass_fds=(end,),
                    start_new_session=True,
                )
            finally:
                os.close(end)
            theirs.close()
            undo.pop_all()
        return process, Link(ours)

    def _hand_over(self, run: Run, job: bytes) -> tuple[int, int]:
        """Give the supervisor its job. Returns the agent's pid and its start time in ticks."""
        try:
            run.link.send(job, START_LIMIT)
            answer = run.link.receive(START_LIMIT)
        except (OSError, ValueError):
            answer = None
        match answer:
            case {"event": "started", "pid": int(pid), "started": int(started)}:
                return pid, started
            case {"event": "failed", "stage": "cwd", "errno": int(number)}:
                raise SpawnRefused(
                    f"the agent cannot start in {str(self._cwd)!r}",
                    cause=os.strerror(number) if number else "that is not a path",
                    hint="give a folder that exists and may be entered",
                )
            case {"event": "failed", "errno": int(number)}:
                raise _refused(self._argv[0], os.strerror(number) if number else None)
            case _:
                raise _refused(self._argv[0], f"its supervisor ended, or gave no answer within {START_LIMIT:.0f} s")


class AgentProcess:
    """A supervised local agent (a RunningAgent). Thread-safe; keep it, or not: the run is watched either way.

    `stdin`, `stdout` and `stderr` are this side of the streams that were asked for as PIPE, else None; whoever asked
    for them closes them.
    """

    def __init__(self, run: Run, *, pid: int, started: int, seconds: float, grace: float) -> None:
        self._run = run
        self._pid = pid
        self._agent = (pid, started)
        self._patience = grace + supervision.KILL_LIMIT + MARGIN
        self._overdue = time.monotonic() + seconds + self._patience
        self._lock = threading.Lock()
        self._stop: tuple[str, float] | None = None
        self._ended = threading.Event()
        self._done = threading.Event()
        self._report = StopReport("unknown", None, 1, 0, ("the watch over the run failed",))
        self.stdin, self.stdout, self.stderr = run.process.stdin, run.process.stdout, run.process.stderr
        threading.Thread(target=self._watch, name=f"handoff-agent-{pid}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<AgentProcess {self._pid} {self._report.reason if self._done.is_set() else 'running'}>"

    @property
    def pid(self) -> int:
        """The agent's main process."""
        return self._pid

    @property
    def supervisor_pid(self) -> int:
        """The process that watches over it."""
        return self._run.process.pid

    @property
    def report(self) -> StopReport | None:
        """How the run ended; None while it has not."""
        return self._report if self._done.is_set() else None

    def poll(self) -> int | None:
        """The exit code, or minus the signal, once no process of the run is left; None until then.

        -9 where the supervisor died before it could tell: its death kills the agent. `report` tells that apart.
        """
        if not self._done.is_set():
            return None
        return -signal.SIGKILL if self._report.exit_code is None else self._report.exit_code

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the run is over and return what `poll` does. Raises TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"the agent {self._pid} still runs after {timeout} s")
        code = self.poll()
        return -signal.SIGKILL if code is None else code

    def send_signal(self, number: int) -> None:
        """Signal the agent's process group, as a terminal would; nothing happens when the agent is gone.

        Raises ValueError when `number` is no signal.
        """
        self._tell({"signal": signal.Signals(number).value})

    def stop(self, reason: str) -> StopReport:
        """End every process of the run: SIGTERM, the grace, SIGKILL. Returns when it is done, however it was done.

        A run that is over keeps the report of how it ended. `reason` is for the report: `revoked`, `left the block`.
        """
        with self._lock:
            first = self._stop is None and not self._ended.is_set()
            if first:
                self._stop = (reason, time.monotonic())
        if first:
            self._tell({"stop": True})
            # An agent of the same user may have stopped its supervisor; this undoes that, and harms no other.
            self._run.process.send_signal(signal.SIGCONT)
        if not self._ended.wait(self._patience):
            # A stopped or hung supervisor: its death kills the agent, and the watch ends what is left.
            self._run.process.kill()
        self._done.wait()
        return self._report

    def _tell(self, message: dict[str, object]) -> None:
        with self._lock, suppress(OSError):
            self._run.link.send(json.dumps(message).encode("ascii") + b"\n", MARGIN)

    def _watch(self) -> None:
        """One thread a run: follow the supervisor to its end, and do what it could not."""
        run, events, not_done = self._run, {}, []
        try:
            while "cleaned" not in events:
                event = self._next_event(cleaning="ended" in events)
                if event is None:
                    break
                events[event["event"]] = event
                if event["event"] == "ended":
                    ended_at = time.monotonic()
                    self._ended.set()
            # It is over or it is useless: either way it goes, and with it the agent if it still had one.
            not_done += run.close()
            if "ended" in events:
                ended = events["ended"]
                why, code, survivors = ended["why"], ended["exit_code"], ended["survivors"]
                milliseconds = ended["milliseconds"]
            else:
                why, code = "supervisor-died", None
                began = time.monotonic()
                survivors = run.sweep(self._agent)
                ended_at = time.monotonic()
                milliseconds = round((ended_at - began) * 1000)
                not_done.append("the supervisor was killed before it could tell how the agent ended")
            if survivors:
                not_done.append(f"{survivors} of the agent's processes did not die of SIGKILL; look at the machine")
            left = events["cleaned"]["left"] if "cleaned" in events else run.folder.remove()
            if left:
                not_done.append(f"the folder {run.folder.path} could not be removed ({left}); remove it by hand")
            with self._lock:
                stop = self._stop
            if stop is not None and why in ("stopped", "supervisor-died"):
                why, milliseconds = stop[0], round((ended_at - stop[1]) * 1000)
            self._report = StopReport(why, code, survivors, milliseconds, tuple(not_done))
        finally:
            self._ended.set()
            self._done.set()

    def _next_event(self, *, cleaning: bool) -> dict[str, Any] | None:
        """What the supervisor says next; None when it is gone, and when it is so late that it must go."""
        limit = time.monotonic() + CLEAN_LIMIT if cleaning else self._overdue
        while (left := limit - time.monotonic()) > 0:
            try:
                return self._run.link.receive(min(left, 3600.0))
            except TimeoutError:
                continue
            except (OSError, ValueError):
                return None
        return None


def _text(value: str) -> str:
    """A string of the operating system as JSON carries it: each byte as the character of its number."""
    return os.fsencode(value).decode("latin-1")


def _started(pid: int) -> int:
    found = supervision.look_up(pid)
    return 0 if found is None else found.started


def _refused(name: str, cause: str | None) -> SpawnRefused:
    return SpawnRefused(
        f"the agent {name!r} did not start",
        cause=cause,
        hint="check that it exists, is executable, and that its interpreter does and is",
    )
