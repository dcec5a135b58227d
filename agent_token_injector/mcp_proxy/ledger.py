"""The gate between a decision and its effect: may the handoff still act, and is what it does on record?

Both questions may block on a disk, so they are asked in one worker thread, in the order of the calls.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.audit import Decision
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import HANDOFF_OVER, Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.audit import AuditLog
    from agent_token_injector.clock import Clock
    from agent_token_injector.masking import Redactor
    from agent_token_injector.names import HandoffId

SURFACE: Final = "mcp"
STRANGER_SECONDS: Final = 1.0
"""Refusals of strangers for one reason share an event for so long: whoever is on this machine can cause them, and each
event costs a write to disk."""
MAX_READ: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One audit event, before it is written. `target` and `detail` may quote the agent; they never hold a value."""

    name: str
    decision: Decision
    target: str
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Strangers:
    """Refusals of one reason: when the last event was written, and how many have happened that none stands for."""

    event: Event
    since: float = float("-inf")
    waiting: int = 0


class Ledger:
    """Writes the handoff's audit events and answers whether it may go on.

    Once `end` was called, or the expiry has passed, it is over for good; what `check` says may change again.
    """

    def __init__(
        self,
        *,
        handoff: HandoffId,
        audit: AuditLog,
        check: Callable[[], str | None],
        expires_at: datetime,
        clock: Clock,
    ) -> None:
        self._handoff = handoff
        self._audit = audit
        self._check = check
        self._expires_at = expires_at
        self._clock = clock
        self._ended: str | None = None
        # Changed in the worker thread alone.
        self._strangers: dict[str, _Strangers] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mcp-audit")

    @property
    def ended(self) -> str | None:
        """Why the handoff is over, as far as is known without asking anybody; None while it is not."""
        if self._ended is None and self._clock.now() >= self._expires_at:
            self._ended = Reason.EXPIRED
        return self._ended

    def end(self, reason: str) -> None:
        """Refuse everything from now on. The first reason stays."""
        self._ended = self._ended or reason

    def remaining_ms(self) -> int:
        """How long the handoff lives, in whole milliseconds, never negative."""
        return max(0, int((self._expires_at - self._clock.now()).total_seconds() * 1000))

    async def standing(self) -> str | None:
        """Why the handoff may not act now, `check` included; None when it may."""
        return self.ended or await asyncio.get_running_loop().run_in_executor(self._worker, self._standing)

    async def permit(self, event: Event) -> None:
        """Return when the handoff may act and `event` is on record. Raises Refused otherwise."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._permit, event)
        # Time has passed in the queue and on the disk.
        if (reason := self.ended) is not None:
            raise over(reason)

    async def note(self, event: Event) -> bool:
        """Record what has happened, or was refused; False when it could not be written."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._try_write, event)

    async def note_stranger(self, event: Event) -> None:
        """Record a refusal that whoever is on this machine can cause: one event per reason and STRANGER_SECONDS.

        `requests` in its detail says how many refusals it stands for. Those of an event that could not be written, or
        that is not due yet, are counted in the next one, which `settle_strangers` or `close` writes if nobody else does.
        """
        await asyncio.get_running_loop().run_in_executor(self._worker, self._count_stranger, event)

    async def settle_strangers(self) -> None:
        """Write the events of refused strangers that are due."""
        if self._strangers:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._settle_strangers)

    def write(self, event: Event) -> None:
        """Record from a worker thread. Raises AuditUnavailable."""
        self._audit.record(
            self._handoff,
            event.name,
            decision=event.decision,
            surface=SURFACE,
            target=event.target,
            reason=event.reason,
            detail=event.detail,
        )

    def close(self) -> None:
        """Record what is still only counted, and wait for the worker thread to end. Blocks. Safe to call twice."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._worker.submit(self._settle_strangers, at_once=True)
        self._worker.shutdown()

    def _standing(self) -> str | None:
        if self.ended is not None:
            return self._ended
        try:
            return self._check()
        except Exception:  # noqa: BLE001 - whatever keeps the question from being answered, the answer is no
            return "unchecked"

    def _permit(self, event: Event) -> None:
        if (reason := self._standing()) is not None:
            raise over(reason)
        if not self._try_write(event):
            raise unaudited()

    def _count_stranger(self, event: Event) -> None:
        self._strangers.setdefault(event.reason, _Strangers(event)).waiting += 1
        self._settle_strangers()

    def _settle_strangers(self, *, at_once: bool = False) -> None:
        now = self._clock.monotonic()
        for one in self._strangers.values():
            if not one.waiting or (now - one.since < STRANGER_SECONDS and not at_once):
                continue
            one.since = now
            if self._try_write(replace(one.event, detail={**one.event.detail, "requests": one.waiting})):
                one.waiting = 0

    def _try_write(self, event: Event) -> bool:
        try:
            self.write(event)
        except AuditUnavailable:
            return False
        return True


def over(reason: str) -> Refused:
    """The refusal of a handoff whose time is over. 403: no retry helps."""
    return Refused(HANDOFF_OVER, f"This handoff may not act: {reason}", reason=reason, status=403)


def unaudited() -> Refused:
    """The refusal of what cannot be put on record."""
    return Refused(wire.INTERNAL_ERROR, "Audit unavailable: nothing was done", reason=Reason.AUDIT, status=503)


def printable(text: object, redactor: Redactor, limit: int = 128) -> str:
    """What an agent sent, fit for an audit line: masked, ASCII, bounded, control characters escaped.

    Masked first, because no redactor knows half a secret, or an escaped one.
    """
    return ascii(redactor.text(text[:MAX_READ]))[1:-1][:limit] if isinstance(text, str) else type(text).__name__
