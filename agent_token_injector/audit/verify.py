"""Whether a chain is whole: read from its file alone, by anyone, now or years later (H5).

What a file cannot show is that its end is missing. A checkpoint shows it: a head that was written down elsewhere, such as
the one in a signed manifest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_token_injector.audit.chain import ChainBroken, ChainHead, genesis, head_of, read_after
from agent_token_injector.audit.event import MAX_LINE, AuditEvent
from agent_token_injector.audit.files import SUFFIX, unavailable
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.names import HandoffId

_LOCK_WAIT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found: `events` good ones up to `head`, and, when not `ok`, the first `problem` and the event it is at."""

    ok: bool
    events: int
    head: ChainHead
    problem: str | None = None
    at_seq: int | None = None


def verify_file(path: Path, handoff: HandoffId | None = None, *, checkpoints: Sequence[ChainHead] = ()) -> Verification:
    """Verify the chain in a file, and that it holds every checkpoint. The file's name says whose chain it is.

    A file that does not exist is the empty chain. Raises AuditUnavailable when it cannot be read, ValueError when its
    name is no handoff's and none was given.
    """
    of = handoff if handoff is not None else HandoffId.parse(path.name.removesuffix(SUFFIX))
    due: dict[int, set[str]] = {}
    for checkpoint in checkpoints:
        due.setdefault(checkpoint.seq, set()).add(checkpoint.digest)
    good = genesis(str(of))
    last_checked: int | None = None

    def found(problem: str, seq: int) -> Verification:
        return Verification(ok=False, events=good.seq, head=good, problem=problem, at_seq=seq)

    def rewritten(seq: int) -> Verification:
        since = "since the beginning" if last_checked is None else f"after event {last_checked}"
        return found(f"event {seq} is not the one that was recorded: the chain was rewritten {since}", seq)

    if due.pop(0, {good.digest}) != {good.digest}:
        return rewritten(0)
    with _reading(path) as chain:
        try:
            for event in _walk(chain, good, str(of)):
                digests = due.pop(event.seq, None)
                if digests is not None and digests != {event.digest}:
                    return rewritten(event.seq)
                last_checked = event.seq if digests is not None else last_checked
                good = head_of(event)
        except ChainBroken as broken:
            return found(f"event {good.seq + 1}: {broken}", good.seq + 1)
        if chain.torn:
            return found(
                f"event {good.seq + 1} is unfinished ({chain.torn} bytes): its writer was killed, or its end was cut off",
                good.seq + 1,
            )
    if due:
        return found(f"the end is missing: event {max(due)} was recorded, the chain ends at {good.seq}", good.seq + 1)
    return Verification(ok=True, events=good.seq, head=good)


def read_file(path: Path, handoff: HandoffId) -> Iterator[AuditEvent]:
    """The events of a chain, oldest first. Raises AuditUnavailable at the first one that does not hold."""
    with _reading(path) as chain:
        try:
            yield from _walk(chain, genesis(str(handoff)), str(handoff))
        except ChainBroken as broken:
            raise AuditUnavailable(
                f"the audit chain of {handoff} was altered", cause=str(broken), hint="run `handoff audit verify` on it"
            ) from None


@dataclass(frozen=True, slots=True)
class _Chain:
    fd: int | None
    size: int
    torn: int


def _walk(chain: _Chain, head: ChainHead, handoff: str) -> Iterator[AuditEvent]:
    if chain.fd is None:
        return
    with os.fdopen(os.dup(chain.fd), "rb") as file:
        file.seek(0)
        remaining = chain.size
        while remaining > 0:
            line = file.readline(min(remaining, MAX_LINE + 1))
            event = read_after(head, line, handoff)
            head = head_of(event)
            remaining -= len(line)
            yield event


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[_Chain]:
    """The whole lines of a file as of now, and how much of an unfinished one stands behind them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield _Chain(None, 0, 0)
        return
    except OSError as error:
        raise unavailable(f"the audit chain {path.name} cannot be opened", error) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise AuditUnavailable(f"the audit chain {path.name} is not a file")
        _share(fd)
        try:
            size = os.fstat(fd).st_size
            torn = _torn(fd, size)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
        yield _Chain(fd, size - torn, torn)
    except OSError as error:
        raise unavailable(f"the audit chain {path.name} cannot be read", error) from None
    finally:
        os.close(fd)


def _share(fd: int) -> None:
    """Wait for a writer in the middle of a line; a lock that is never free does not keep anyone from reading."""
    until = time.monotonic() + _LOCK_WAIT
    while time.monotonic() < until:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        else:
            return


def _torn(fd: int, size: int) -> int:
    position = size
    while position > 0:
        start = max(0, position - 65536)
        newline = os.pread(fd, position - start, start).rfind(b"\n")
        if newline >= 0:
            return size - (start + newline + 1)
        position = start
    return size
