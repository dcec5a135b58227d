"""The audit log: every access of every handoff, written down before it happens (H5), without a value (H6).

`record` returns once the line is written; what must not be lost is on disk by then, the rest within 100 ms. It raises
AuditUnavailable when it cannot promise that, and whoever called it does not act. `append` writes many events in one go
and leaves the disk to `stalled`: for whoever may never wait. Revocation alone may not wait for audit (D10):
`record_or_spool` never raises and never waits long, and says when it could not keep up.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from agent_token_injector.audit.chain import ChainHead, extend, follow, genesis, head_of
from agent_token_injector.audit.event import AuditEvent, Decision, Draft, clean, stamp
from agent_token_injector.audit.files import SUFFIX, ChainFile, Directory, NoChain
from agent_token_injector.audit.spelling import spell_batch
from agent_token_injector.audit.sync import GroupSync
from agent_token_injector.audit.verify import Verification, read_file, verify_file
from agent_token_injector.clock import Clock
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.masking import Redactor, Secret
from agent_token_injector.names import HandoffId

LOCK_DEADLINE: Final = 2.0
"""Seconds a writer waits for a chain that another one holds."""

SYNC_DEADLINE: Final = 30.0
"""Seconds a writer waits for a disk: far beyond a busy one, so that only a dead one counts as unavailable."""

SPOOL_WAIT: Final = 0.25
"""Seconds a revocation waits, at most, for the lock and again for the disk."""

_MAX_OPEN: Final = 64

_forks = 0
"""How many forks this process comes from, since this module was imported."""


def _forked() -> None:
    global _forks  # noqa: PLW0603 - the kernel's own count, as it were
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class AuditLog:
    """The chains of one directory, written by this process and any number of others. Safe to share between threads.

    Nothing is opened before it is needed, so that a broken audit directory keeps nobody from revoking. Close it: only
    then is everything known to be on disk (the end of the interpreter closes it as well).

    Args:
        directory: made with mode 0700 when it does not exist.
        clock: dates the events.
        actor: who writes: the command or the service, and its user.
        redactor: masks every text of an event; `add_secrets` adds to it.
        durability: `sync` waits for the disk at every event; `group` at urgent ones only.
        deadline: seconds to wait for a chain that another writer holds.

    `degraded` is True once an event could not be written, or not be known to be on disk, when `record_or_spool` was
    asked to.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        actor: str,
        redactor: Redactor | None = None,
        durability: Literal["group", "sync"] = "group",
        deadline: float = LOCK_DEADLINE,
        _sync: Callable[[int], None] = os.fsync,
        _monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.degraded = False
        self._directory = Directory(directory)
        self._clock = clock
        self._redactor = redactor if redactor is not None else Redactor()
        self._actor = clean(actor, self._redactor)
        self._durability = durability
        self._deadline = deadline
        self._sync_one = _sync
        self._sync = GroupSync(_sync, _monotonic)
        self._guard = threading.Lock()
        self._chains: dict[HandoffId, ChainFile] = {}
        self._latest: ChainFile | None = None
        self._closed = False
        self._forks = _forks
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except AuditUnavailable:
            # What went wrong inside the block is not hidden by what followed from it.
            if error is None:
                raise

    @property
    def directory(self) -> Path:
        """Where the chains are."""
        return self._directory.path

    @property
    def actor(self) -> str:
        """Who writes."""
        return self._actor

    @property
    def deadline(self) -> float:
        """Seconds that a writer waits for a chain."""
        return self._deadline

    @property
    def durability(self) -> Literal["group", "sync"]:
        """Which events are on disk on return."""
        return self._durability

    def record(
        self,
        handoff: HandoffId,
        action: str,
        *,
        decision: Decision,
        surface: str = "",
        target: str = "",
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> AuditEvent:
        """Write an event, behind all that were spooled for this handoff. Raises AuditUnavailable: then do not act.

        Urgent events (refused, failed, and those of minting, revoking, spawning, approving and provisioning) are on
        disk when it returns.
        """
        draft = self._draft(action, decision, surface=surface, target=target, reason=reason, detail=detail)
        event, ticket = self._write(handoff, draft, self._deadline)
        if (draft.urgent or self._durability == "sync") and not self._sync.wait(ticket, SYNC_DEADLINE):
            raise self._not_synced()
        return event

    def record_or_spool(
        self,
        handoff: HandoffId,
        action: str,
        *,
        decision: Decision,
        surface: str = "",
        target: str = "",
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write an event, or keep it in memory for later; never raises AuditUnavailable, never waits long (D10).

        Returns whether the event is written and, when urgent, on disk. One that is kept is written before the next of
        its handoff, or by `flush` and `close`, dated then, with the time of the call as its detail `spooled_at`.
        """
        draft = self._draft(action, decision, surface=surface, target=target, reason=reason, detail=detail)
        chain = self._chain(handoff)
        wait = 0.0 if chain.spool else min(self._deadline, SPOOL_WAIT)
        try:
            _, ticket = self._write(handoff, draft, wait)
        except AuditUnavailable:
            chain.spool.append(draft.adding(spooled_at=stamp(self._clock.now())))
            self.degraded = True
            return False
        if (draft.urgent or self._durability == "sync") and not self._sync.wait(ticket, SPOOL_WAIT):
            self.degraded = True
            return False
        return True

    def append(self, handoff: HandoffId, drafts: Sequence[Draft | bytes], *, keep: float = 0.0) -> int:
        """Write many events under one lock, in one write and at one time, behind all that were spooled.

        The drafts are masked and cut as `record` does it; the rows of a `Template` are clean as they are. Does not wait for the disk (unless durability is `sync`); an
        urgent draft hurries it. Returns a ticket for `on_disk`, 0 for no drafts.

        With `keep` the chain stays ours for so many seconds, so that appends that follow soon cost one write each; other
        writers wait until then, or until `let_go`, and changes of the file by anybody else are seen then.

        Raises AuditUnavailable: then nothing of the batch is to be relied on, though some of its events may stand in
        the chain. Raises TypeError, with nothing written, for a draft whose action or other text is none.
        """
        if not drafts:
            return 0
        rows = spell_batch(drafts, self._redactor)
        chain = self._writable(handoff)
        with chain.held(self._deadline, create=True, keep=keep):
            self._prepare(chain)
            lines, head = extend(chain.head, chain.frame, rows, at=stamp(self._clock.now()), actor=self._actor)
            chain.append(lines, head)
            ticket = self._sync.mark(
                chain.fd, urgent=any(isinstance(draft, Draft) and draft.urgent for draft in drafts)
            )
        if self._durability == "sync" and not self._sync.wait(ticket, SYNC_DEADLINE):
            raise self._not_synced()
        return ticket

    def let_go(self, handoff: HandoffId) -> None:
        """Let other writers have a chain that `append` has kept."""
        self._chain(handoff).let_go()

    def on_disk(self, ticket: int, seconds: float = SYNC_DEADLINE) -> bool:
        """Wait up to `seconds` until what a ticket of `append` stands for is on disk; whether it is."""
        return self._sync.wait(ticket, seconds)

    def stalled(self, seconds: float) -> bool:
        """Whether something written has been waiting for the disk for longer than `seconds`: the disk hangs, or failed.

        Whoever does not wait for the disk asks this before acting, and does not act.
        """
        return self._sync.stalled(seconds)

    def add_secrets(self, secrets: Iterable[str | Secret]) -> None:
        """Mask these too, in every later event."""
        with self._guard:
            self._redactor = self._redactor.with_secrets(secrets)
            self._actor = clean(self._actor, self._redactor)

    def head(self, handoff: HandoffId) -> ChainHead:
        """The last event of a chain, on disk: what a manifest is bound to. Raises AuditUnavailable."""
        chain = self._chain(handoff)
        try:
            with chain.held(self._deadline, create=False):
                head = chain.head
        except NoChain:
            return genesis(str(handoff))
        if not self._sync.wait(None, SYNC_DEADLINE):
            raise self._not_synced()
        return head

    def events(self, handoff: HandoffId) -> Iterator[AuditEvent]:
        """The events of a chain, oldest first. Raises AuditUnavailable at the first one that does not hold."""
        return read_file(self._path(handoff), handoff)

    def verify(self, handoff: HandoffId, *, checkpoints: Sequence[ChainHead] = ()) -> Verification:
        """Whether a chain is whole, holds every checkpoint, and all that this log has seen of it."""
        known = self._chain(handoff).head
        return verify_file(self._path(handoff), handoff, checkpoints=[*checkpoints, known])

    def handoffs(self) -> tuple[str, ...]:
        """The handoffs that have a chain, sorted. Raises AuditUnavailable."""
        found = []
        for name in self._directory.names():
            stem = name.removesuffix(SUFFIX)
            try:
                known = name.endswith(SUFFIX) and str(HandoffId.parse(stem)) == stem
            except ValueError:
                known = False
            if known:
                found.append(stem)
        return tuple(sorted(found))

    @property
    def spooled(self) -> int:
        """How many events are kept in memory because they could not be written."""
        with self._guard:
            return sum(len(chain.spool) for chain in self._chains.values())

    def flush(self) -> None:
        """Write what was spooled and wait until all is on disk. Raises AuditUnavailable when not all of it is."""
        with self._guard:
            waiting = [chain for chain in self._chains.values() if chain.spool]
        problem: AuditUnavailable | None = None
        for chain in waiting:
            try:
                self._drain(chain)
            except AuditUnavailable as error:
                problem = error
        if not self._sync.wait(None, SYNC_DEADLINE):
            raise self._not_synced()
        if problem is not None:
            raise AuditUnavailable(
                f"{self.spooled} audit events are not written", cause=str(problem), hint=problem.hint
            ) from problem

    def close(self) -> None:
        """Flush, and let go of every file; nothing can be recorded afterwards. Raises AuditUnavailable as `flush` does."""
        with self._guard:
            if self._closed or self._forks != _forks:
                return
            self._closed = True
        atexit.unregister(self.close)
        try:
            self.flush()
        finally:
            self._sync.stop(SPOOL_WAIT)
            for chain in self._chains.values():
                chain.release(lambda fd: not self._sync.holds(fd))
            self._directory.close()

    def _path(self, handoff: HandoffId) -> Path:
        return self._directory.path / f"{handoff}{SUFFIX}"

    def _draft(
        self,
        action: str,
        decision: Decision,
        *,
        surface: str,
        target: str,
        reason: str,
        detail: Mapping[str, Any] | None,
    ) -> Draft:
        return Draft(action, decision, surface, target, reason, detail or {}).cleaned(self._redactor)

    def _chain(self, handoff: HandoffId) -> ChainFile:
        with self._guard:
            if self._latest is not None and self._latest.handoff is handoff:
                return self._latest
            chain = self._chains.pop(handoff, None) or ChainFile(self._directory, handoff)
            # Most recently used last: a dispatcher of many handoffs keeps few files open.
            self._chains[handoff] = self._latest = chain
            opened = [other for other in self._chains.values() if other.is_open]
            for other in opened[: max(0, len(opened) - _MAX_OPEN)]:
                other.release(lambda fd: not self._sync.holds(fd))
            return chain

    def _writable(self, handoff: HandoffId) -> ChainFile:
        if self._closed:
            raise AuditUnavailable("the audit log is closed", hint="open another")
        if self._forks != _forks:
            # A file's lock belongs to whoever has it open, and parent and child have it open together.
            raise AuditUnavailable("the audit log was opened before this process was forked", hint="open another")
        return self._chain(handoff)

    def _write(self, handoff: HandoffId, draft: Draft, wait: float) -> tuple[AuditEvent, int]:
        chain = self._writable(handoff)
        with chain.held(wait, create=True):
            self._prepare(chain)
            return self._put(chain, draft)

    def _drain(self, chain: ChainFile) -> None:
        with chain.held(self._deadline, create=True):
            self._prepare(chain)

    def _prepare(self, chain: ChainFile) -> None:
        """Everything that has to stand in the chain before the next event."""
        if self._sync.failure is not None:
            raise self._not_synced()
        if not chain.placed:
            # The file's name has to survive a crash as well as its lines.
            self._sync.mark(self._directory.open(create=False), urgent=False)
            chain.placed = True
        if chain.torn:
            self._close_off(chain)
        while chain.spool:
            self._put(chain, chain.spool[0])
            chain.spool.popleft()

    def _put(self, chain: ChainFile, draft: Draft) -> tuple[AuditEvent, int]:
        event, line = self._follow(chain, draft, stamp(self._clock.now()))
        chain.append([line], head_of(event))
        return event, self._sync.mark(chain.fd, urgent=draft.urgent)

    def _close_off(self, chain: ChainFile) -> None:
        at = stamp(self._clock.now())
        draft = Draft(
            "audit.torn",
            Decision.FAILED,
            reason="writer-killed",
            detail={"length": len(chain.torn), "sha256": hashlib.sha256(chain.torn).hexdigest()},
        )
        event, line = self._follow(chain, draft, at)
        chain.close_off(line, head_of(event), at=at, sync=self._sync_one)
        self._sync.mark(chain.fd, urgent=True)

    def _follow(self, chain: ChainFile, draft: Draft, at: str) -> tuple[AuditEvent, bytes]:
        return follow(chain.head, chain.frame, draft, at=at, actor=self._actor)

    def _not_synced(self) -> AuditUnavailable:
        return AuditUnavailable(
            "the audit log is not known to be on disk",
            cause=self._sync.failure or f"the disk did not answer within {SYNC_DEADLINE:g} s",
            hint="check the audit directory's disk, then start this process anew",
        )
