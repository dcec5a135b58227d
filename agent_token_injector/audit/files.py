"""One file a chain: `<dir>/<handoff-id>.jsonl`, mode 0600, in a directory of mode 0700, both ours and no links.

Several processes append to one file. Each takes the file's lock (flock), catches up with what the others appended, and
writes behind it, so that an append costs the same however long the chain is. What was read once is not trusted twice:
with the lock held, the file has to be the same file in the same place, no shorter, and its last line the one that was
left there. Anything else is AuditUnavailable, never a chain that silently starts again.

Opening an existing chain reads its last line only; whether all of it holds is for `verify` to say.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from agent_token_injector.audit.chain import ChainBroken, ChainHead, Frame, genesis, head_of, read, read_after
from agent_token_injector.audit.event import MAX_LINE, Draft
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.names import HandoffId

SUFFIX: Final = ".jsonl"
TORN_SUFFIX: Final = ".torn"
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_BLOCK: Final = 1 << 20
_HINT: Final = "stop, keep the file as it is, and run `handoff audit verify` on it"


class NoChain(Exception):
    """There is no chain of this handoff, and none was to be made."""


def unavailable(what: str, error: OSError) -> AuditUnavailable:
    """An operating system's refusal as our error: the code and its meaning, no path beyond `what`."""
    hints = {
        errno.ENOSPC: "free space on the audit directory's file system",
        errno.EDQUOT: "raise the quota of the audit directory's file system",
        errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
        errno.ELOOP: "the audit directory and its files may not be symbolic links",
        errno.EROFS: "mount the audit directory's file system for writing",
    }
    return AuditUnavailable(
        what,
        cause=error.strerror or type(error).__name__,
        hint=hints.get(error.errno or 0, "check the audit directory"),
    )


class Directory:
    """The directory of the chains; made when it is first needed, and held on to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = os.fspath(path)
        self._what = f"the audit directory {path}"
        self._fd: int | None = None
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def open(self, *, create: bool) -> int:
        """A descriptor of the directory, checked to be ours and in its place.

        Raises NoChain when it does not exist and is not to be made, AuditUnavailable.
        """
        with self._lock:
            try:
                if self._fd is None:
                    if create:
                        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                    self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
                    self._identity = _identity(os.fstat(self._fd))
                there = os.lstat(self._place)
            except FileNotFoundError as error:
                if self._fd is None and not create:
                    raise NoChain from None
                raise unavailable(f"{self._what} is gone", error) from None
            except OSError as error:
                raise unavailable(f"{self._what} cannot be opened", error) from None
            if self._identity != _identity(there):
                raise AuditUnavailable(f"{self._what} was replaced while it was in use", hint=_HINT)
            _check_ours(there, 0o700, self._what)
            return self._fd

    def names(self) -> list[str]:
        """What is in it; nothing when it does not exist."""
        try:
            return os.listdir(self.open(create=False))  # noqa: PTH208 - by descriptor: the one that was checked
        except NoChain:
            return []

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_ours(found: os.stat_result, mode: int, what: str) -> None:
    if found.st_uid != os.geteuid():
        raise AuditUnavailable(f"{what} belongs to another user", hint="move it away, or run as its owner")
    if found.st_mode & 0o777 != mode:
        raise AuditUnavailable(
            f"{what} has mode {stat.S_IMODE(found.st_mode):04o}",
            cause=f"only {mode:04o} keeps it from other users",
            hint=f"find out who could write to it, then chmod {mode:04o}",
        )


class ChainFile:
    """The file of one chain as one process knows it. Use it between `held()` only.

    `frame` is what its lines have in common, `head` the last event, `torn` what a killed writer left behind it, `spool`
    the events that could not be written yet, oldest first, `placed` whether the file's entry in the directory goes to
    disk with its lines.
    """

    def __init__(self, directory: Directory, handoff: HandoffId) -> None:
        self.handoff = handoff
        self.name = f"{handoff}{SUFFIX}"
        self._what = f"the audit chain {self.name}"
        self.frame = Frame.of(str(handoff), str(handoff.slug))
        self.head: ChainHead = genesis(str(handoff))
        self.torn = b""
        self.spool: deque[Draft] = deque()
        self.placed = False
        self._directory = directory
        self._mutex = threading.Lock()
        self._fd: int | None = None
        self._identity: tuple[int, int] | None = None
        self._locked = False
        self._kept_until = 0.0
        self._loaded = False
        self._end = 0
        self._last = b""

    @property
    def fd(self) -> int:
        """The open file, between `held()`."""
        if self._fd is None:
            raise RuntimeError(f"{self._what} is used outside held()")
        return self._fd

    @contextlib.contextmanager
    def held(self, deadline: float, *, create: bool, keep: float = 0.0) -> Iterator[None]:
        """Hold the chain against every other writer, caught up with what they wrote.

        With `keep` it stays held afterwards, for so many seconds or until `let_go`: whoever holds it again within them
        finds it as it was left, without a look at the file.

        Raises AuditUnavailable when the lock is not to be had within `deadline` seconds or the chain is not the one we
        left; NoChain.
        """
        now = time.monotonic()
        if not self._mutex.acquire(timeout=deadline):
            raise self._busy(deadline)
        try:
            if now >= self._kept_until:
                self._unlock()
                self._open(create=create)
                self._flock(now + deadline, deadline)
                self._locked = True
                self._kept_until = 0.0
            try:
                if not self._kept_until:
                    self._catch_up(self._check_in_place())
                    self._kept_until = time.monotonic() + keep if keep else 0.0
                yield
            except OSError as error:
                self._kept_until = 0.0
                raise unavailable(f"{self._what} cannot be read", error) from None
            except BaseException:
                self._kept_until = 0.0
                raise
            finally:
                if not self._kept_until:
                    self._unlock()
        finally:
            self._mutex.release()

    def let_go(self) -> None:
        """Let other writers have a chain that `held` has kept."""
        with self._mutex:
            self._kept_until = 0.0
            self._unlock()

    def _unlock(self) -> None:
        if self._locked and self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._locked = False

    def append(self, lines: Sequence[bytes], head: ChainHead) -> None:
        """Write the next lines in one go; `head` is then the chain's.

        Raises AuditUnavailable, with the file as it was, or with its last line torn where not even that can be had.
        """
        data = b"".join(lines)
        try:
            self._write(data)
        except OSError as error:
            # Half a line would be taken for a killed writer's; when even this fails, that is how it is closed off.
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self._end)
            raise unavailable(f"{self._what} cannot be written", error) from None
        self._advance(head, lines[-1], len(data))

    def close_off(self, line: bytes, head: ChainHead, *, at: str, sync: Callable[[int], None]) -> None:
        """Move what a killed writer left to the side file and write `line`, which tells of it, in its place.

        A crash at any step leaves either the torn piece or a new one, never a chain without a word of it.
        """
        entry = {
            "at": at,
            "seq": head.seq,
            "length": len(self.torn),
            "sha256": hashlib.sha256(self.torn).hexdigest(),
            "bytes": base64.b64encode(self.torn).decode("ascii"),
        }
        try:
            side = os.open(
                self.name + TORN_SUFFIX,
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OPEN,
                0o600,
                dir_fd=self._directory.open(create=False),
            )
            try:
                _check_ours(os.fstat(side), 0o600, f"{self._what}'s side file")
                os.write(side, json.dumps(entry).encode() + b"\n")
                sync(side)
            finally:
                os.close(side)
            self._write(line)
            os.ftruncate(self.fd, self._end + len(line))
        except OSError as error:
            raise unavailable(f"{self._what} cannot be closed off behind a killed writer", error) from None
        self.torn = b""
        self._advance(head, line, len(line))

    def release(self, may_close: Callable[[int], bool]) -> None:
        """Close the file, to be opened again when it is needed; not when it is in use or may not be closed yet."""
        if self._mutex.acquire(blocking=False):
            try:
                if self._fd is not None and may_close(self._fd):
                    os.close(self._fd)
                    self._fd = None
            finally:
                self._mutex.release()

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    def _busy(self, deadline: float) -> AuditUnavailable:
        return AuditUnavailable(
            f"{self._what} is held by another writer",
            cause=f"its lock was not free within {deadline:g} s",
            hint="find the process that holds it (lslocks)",
        )

    def _open(self, *, create: bool) -> None:
        if self._fd is not None:
            return
        directory = self._directory.open(create=create)
        # A chain that we know is never made anew.
        make = os.O_CREAT if create and self._identity is None else 0
        try:
            fd = os.open(self.name, os.O_RDWR | make | _OPEN, 0o600, dir_fd=directory)
        except FileNotFoundError as error:
            if self._identity is None:
                raise NoChain from None
            raise unavailable(f"{self._what} is gone", error) from None
        except OSError as error:
            raise unavailable(f"{self._what} cannot be opened", error) from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise AuditUnavailable(f"{self._what} is not a file", hint=_HINT)
        if self._identity not in {None, _identity(found)}:
            os.close(fd)
            raise self._replaced()
        self._fd, self._identity = fd, _identity(found)

    def _flock(self, until: float, deadline: float) -> None:
        # flock has no deadline of its own. The waits differ, so that writers do not wait in step; they are real time,
        # because other processes do not know our clock.
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise self._busy(deadline) from None
                time.sleep(random.uniform(0.0002, 0.002))  # noqa: S311 - nobody is to be kept from guessing it
            except OSError as error:
                raise unavailable(f"{self._what} cannot be locked", error) from None
            else:
                return

    def _check_in_place(self) -> int:
        """The size of the file, when it is the one we left and stands where it stood. Raises AuditUnavailable."""
        try:
            there = os.stat(self.name, dir_fd=self._directory.open(create=False), follow_symlinks=False)
        except FileNotFoundError as error:
            raise unavailable(f"{self._what} was deleted while it was in use", error) from None
        if self._identity != _identity(there):
            raise self._replaced()
        _check_ours(there, 0o600, self._what)
        if there.st_nlink != 1:
            raise AuditUnavailable(f"{self._what} has a second name", cause="it is hard-linked", hint=_HINT)
        return there.st_size

    def _catch_up(self, size: int) -> None:
        if not self._loaded:
            self._load_tail(size)
            return
        if size < self._end:
            raise self._altered("it is shorter than it was")
        if os.pread(self.fd, len(self._last), self._end - len(self._last)) != self._last:
            raise self._altered(f"event {self.head.seq} was altered")
        self.torn = b""
        rest = b""
        position = self._end
        while position < size:
            block = os.pread(self.fd, min(_BLOCK, size - position), position)
            if not block:
                raise self._altered("it became shorter while it was read")
            position += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._take(line + b"\n")
            self._check_length(rest)
        self.torn = rest

    def _load_tail(self, size: int) -> None:
        for window in (8192, 2 * MAX_LINE + 2):
            start = max(0, size - window)
            tail = os.pread(self.fd, size - start, start)
            whole, newline, torn = tail.rpartition(b"\n")
            _, found, line = whole.rpartition(b"\n")
            if start == 0 or found:
                break
        else:
            raise self._altered("its last line is longer than any that we write")
        self._check_length(torn)
        if newline:
            try:
                event = read(line + b"\n", str(self.handoff))
                if event.seq == 1:
                    event = read_after(genesis(str(self.handoff)), line + b"\n", str(self.handoff))
            except ChainBroken as broken:
                raise self._altered(f"its last event cannot be followed: {broken}") from None
            self.head, self._last = head_of(event), line + b"\n"
        self._end = size - len(torn)
        self.torn = torn
        self._loaded = True

    def _take(self, line: bytes) -> None:
        try:
            event = read_after(self.head, line, str(self.handoff))
        except ChainBroken as broken:
            raise self._altered(f"event {self.head.seq + 1}: {broken}") from None
        self._advance(head_of(event), line, len(line))

    def _check_length(self, torn: bytes) -> None:
        if len(torn) > MAX_LINE:
            raise self._altered("what stands at its end is longer than any line that we write")

    def _advance(self, head: ChainHead, last: bytes, size: int) -> None:
        self.head = head
        self._last = last
        self._end += size

    def _replaced(self) -> AuditUnavailable:
        return AuditUnavailable(f"{self._what} was replaced while it was in use", hint=_HINT)

    def _altered(self, cause: str) -> AuditUnavailable:
        return AuditUnavailable(f"{self._what} was altered", cause=cause, hint=_HINT)

    def _write(self, data: bytes) -> None:
        done = os.pwrite(self.fd, data, self._end)
        while done < len(data):
            done += os.pwrite(self.fd, data[done:], self._end + done)
