"""The control end of the channel to an engine process: start it, feed it beats, take its questions, end it.

The engine reads what a hostile agent and hostile servers say, so it is a process of its own, and what it says back is
read with care: one JSON document a line, bounded; anything else ends it. Its configuration holds every secret of the
handoff and goes over the channel, a socket pair, and never into argv, an environment or a file.

The engine lives no longer than the channel. It ends when the channel closes, so that a killed orchestrator leaves no
engine; and it is killed when it does not do what it was told, so that a hung one keeps nothing alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ENGINE: Final = (sys.executable, "-I", "-m", "agent_token_injector.mcp_proxy.engine")
"""-I: neither the environment nor the working directory decides what code handles a credential."""
BASE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BEAT_SECONDS: Final = 0.5
"""The engine refuses when it has heard no beat for 2 s: three may be late or lost."""
ACK_SECONDS: Final = 2.0
CUT_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 8.0
"""An engine that has taken no beat for so long is hung, and is killed: it may hold the audit chain."""
SEND_SECONDS: Final = 10.0
"""An engine that takes nothing for so long is hung, and is killed: it has been without a beat for most of it."""
MAX_LINE: Final = 64 * 1024 * 1024
"""No document of the engine is longer: the largest message a client may send, each byte of it escaped."""
MAX_WORDS: Final = 8 * 1024

Beat = Callable[[], Mapping[str, Any]]
Ask = Callable[[Mapping[str, Any]], None]


class EngineFailed(Exception):
    """The engine ended, or broke the protocol. The text may quote what it said: mask it."""


class Engine:
    """One engine process and the thread that speaks with it. Every method may be called from any thread.

    Args:
        beat: makes the next beat, `{"reason", "now"}`. Called in the control thread and in whatever calls `recheck`.
        asked: is given each question, `{"id", "kind", ...}`, in the control thread. It must not block; `say` answers.
        scratch: the directory for the engine's temporary files.
        command: what is started, with the number of the channel's descriptor as its last argument.
    """

    def __init__(self, *, beat: Beat, asked: Ask, scratch: Path, command: Sequence[str] = ENGINE) -> None:
        self._make_beat = beat
        self._asked = asked
        self._scratch = scratch
        self._command = tuple(command)
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._beating = threading.Lock()
        self._reaping = threading.Lock()
        self._life = threading.Lock()
        self._configured = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._words = bytearray()
        self._first: Mapping[str, Any] | None = None
        self._beats = 0
        self._heard_at = 0.0
        self._acked = 0
        self._closing = False
        self._over = False
        self._failed: str | None = None
        self._broken: str | None = None

    @property
    def failed(self) -> str | None:
        """Why the engine is gone though nobody closed it; None while it is not. May quote it: mask it."""
        return self._failed

    @property
    def pid(self) -> int | None:
        """The engine's process while it runs."""
        return None if self._process is None or self._over else self._process.pid

    def start(self, configuration: Mapping[str, Any]) -> None:
        """Start the process and hand it its configuration. Raises OSError when it cannot be started, EngineFailed."""
        with self._life:
            if self._closing:
                raise EngineFailed("it was closed before it was started")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with theirs:
                    process = self._popen(theirs.fileno())
            except BaseException:
                ours.close()
                raise
            ours.setblocking(False)
            self._process, self._socket = process, ours
            self._thread = threading.Thread(
                target=self._run, args=(process, ours, configuration), name="mcp-control", daemon=True
            )
            self._thread.start()

    def first(self, seconds: float) -> Mapping[str, Any]:
        """The engine's first word: `ready`, `refused` or `listed`. Raises EngineFailed when none comes in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._first is not None or self._over, seconds)
            if self._first is not None:
                return self._first
            raise EngineFailed(self._failed or f"it was not ready within {seconds:g} s")

    def say(self, document: Mapping[str, Any], seconds: float = SEND_SECONDS) -> bool:
        """Send one document. An engine that does not take it in time is killed: half a line cannot be mended."""
        return self._configured.wait(seconds) and self._tell(document, seconds)

    def recheck(self, seconds: float = ACK_SECONDS) -> bool:
        """Send a beat now; whether the engine has taken it within `seconds`."""
        until = time.monotonic() + seconds
        number = self._beat(seconds)
        return number > 0 and self._wait(lambda: self._acked >= number, until - time.monotonic())

    def cut(self, reason: str) -> None:
        """Have the engine refuse everything from now on, for good. One that does not confirm within 1 s is killed."""
        until = time.monotonic() + CUT_SECONDS
        if self._process is None or self._over:
            return
        # Documents are taken in order: who has taken the beat has taken the cut before it.
        told = self.say({"cut": reason}, CUT_SECONDS)
        if not told or not self.recheck(until - time.monotonic()):
            self._give_up("it did not confirm that it was cut off")

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the engine with all its servers; kill it when it takes longer. Nothing is left. Safe to call twice."""
        with self._life:
            self._closing = True
        if self._thread is None:
            return
        until = time.monotonic() + seconds
        if not self._over:
            self.say({"close": True}, seconds)
        if not self._wait(lambda: self._over, until - time.monotonic()):
            self._kill()
        # Bounded: what it calls, `beat`, is not ours.
        self._thread.join(seconds)

    def words(self) -> str:
        """The end of what the engine has written to stderr. Mask it."""
        return self._words.decode("utf-8", "replace").strip()

    def _wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true in time; an engine that is over is waited for no longer."""
        with self._changed:
            self._changed.wait_for(lambda: until() or self._over, max(0.0, seconds))
            return until()

    def _popen(self, channel: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, str(channel)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            close_fds=True,
            pass_fds=(channel,),
            cwd="/",
            env={"PATH": BASE_PATH, "LANG": "C.UTF-8", "TMPDIR": str(self._scratch)},
            start_new_session=True,
        )

    def _run(self, process: subprocess.Popen[bytes], channel: socket.socket, configuration: Mapping[str, Any]) -> None:
        why = ""
        try:
            # Before any beat. An engine that does not take it is killed, and found dead below.
            if self._tell(configuration, SEND_SECONDS):
                self._configured.set()
                self._serve(process, channel)
        except _Broke as error:
            why = str(error)
        finally:
            # Whatever ends this thread ends the engine: without beats it could only refuse.
            channel.close()
            how = self._reap(process)
            with self._changed:
                if not self._closing:
                    self._failed = self._describe(self._broken or why, how)
                self._over = True
                self._changed.notify_all()

    def _serve(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        """Beat and listen until the channel ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(channel, selectors.EVENT_READ)
            if process.stderr is not None:
                os.set_blocking(process.stderr.fileno(), False)
                selector.register(process.stderr, selectors.EVENT_READ)
            due = time.monotonic()
            while True:
                if (now := time.monotonic()) >= due:
                    due = now + BEAT_SECONDS
                    self._beat(SEND_SECONDS)
                    if self._first is not None and now - self._heard_at > SILENCE_SECONDS:
                        self._give_up("it did not answer")
                        return
                for key, _ in selector.select(max(0.0, due - time.monotonic())):
                    if key.fileobj is not channel:
                        if not self._hear_words(process):
                            selector.unregister(key.fileobj)
                    elif not self._hear(channel):
                        return

    def _beat(self, seconds: float) -> int:
        """Send a beat; its number, or 0 when it could not be sent. Made and sent in one go, so that none is overtaken."""
        if not self._beating.acquire(timeout=max(0.0, seconds)):
            return 0
        try:
            beat = self._make_beat()
            number = self._beats = self._beats + 1
            return number if self.say({"beat": {"n": number, **beat}}) else 0
        finally:
            self._beating.release()

    def _tell(self, document: Mapping[str, Any], seconds: float) -> bool:
        if not self._sending.acquire(timeout=seconds):
            return False
        try:
            sent = self._send(json.dumps(document).encode("ascii") + b"\n", time.monotonic() + seconds)
        finally:
            self._sending.release()
        if not sent:
            self._give_up("it did not take what it was told")
        return sent

    def _send(self, data: bytes, until: float) -> bool:
        left = memoryview(data)
        channel = self._socket
        if channel is None:
            return False
        while left:
            try:
                left = left[channel.send(left) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(channel.fileno(), select.POLLOUT)
                if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                    return False
            except OSError:
                return False
        return True

    def _hear(self, channel: socket.socket) -> bool:
        """Take what the engine says; False at its end. Raises _Broke."""
        try:
            data = channel.recv(256 * 1024)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        start = len(self._buffer)
        self._buffer += data
        if b"\n" not in data:
            if start + len(data) > MAX_LINE:
                raise _Broke("it said more in one line than it may")
            return True
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            self._take(line)
        return True

    def _take(self, line: bytes) -> None:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            raise _Broke("it said what is not JSON") from None
        match document:
            case {"ack": int(number)}:
                self._heard_at = time.monotonic()
                with self._changed:
                    self._acked = max(self._acked, number)
                    self._changed.notify_all()
            case {"ask": {"id": int(), "kind": str()} as question}:
                self._asked(question)
            case {"ready": {}} | {"refused": {}} | {"listed": [*_]} if self._first is None:
                self._heard_at = time.monotonic()
                with self._changed:
                    self._first = document
                    self._changed.notify_all()
            case {"closed": True}:
                pass  # it ends now, and so does the channel
            case _:
                raise _Broke("it said what the channel has no word for")

    def _hear_words(self, process: subprocess.Popen[bytes]) -> bool:
        """Take what stands in stderr; False at its end."""
        if process.stderr is None:
            return False
        try:
            data = os.read(process.stderr.fileno(), MAX_WORDS)
        except BlockingIOError:
            return True
        self._words += data
        del self._words[:-MAX_WORDS]
        return bool(data)

    def _give_up(self, why: str) -> None:
        if not self._closing and self._broken is None:
            self._broken = why
        self._kill()

    def _kill(self) -> None:
        with self._reaping:
            # Once it is reaped, its number may be another's.
            if self._process is not None and self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of an engine whose channel has ended, and which has a moment left to end by itself."""
        ended = select.poll()
        handle = os.pidfd_open(process.pid)
        try:
            ended.register(handle, select.POLLIN)
            ended.poll(CUT_SECONDS * 1000)
        finally:
            os.close(handle)
        self._kill()  # with whatever it has left behind in its group
        with self._reaping:
            status = process.wait()
        if process.stderr is not None:
            # What a child of it may still hold open is not waited for.
            while select.select([process.stderr], [], [], 0)[0] and self._hear_words(process):
                pass
            process.stderr.close()
        return status

    def _describe(self, why: str, status: int) -> str:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        words = self.words()
        return f"{why or 'it ended by itself'} ({how})" + (f"; it said: {words[-1000:]}" if words else "")


class _Broke(Exception):
    """The engine does not keep to the protocol."""
