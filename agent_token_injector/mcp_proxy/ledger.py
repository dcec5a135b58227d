"""The gate between a decision and its effect: may the handoff still act, and is what it does on record?

Both questions may block on a disk, so they are asked in one worker thread, in the order of the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    from agent_token_injector.names import HandoffId

SURFACE: Final = "mcp"


@dataclass(frozen=True, slots=True)
class Event:
    """One audit event, before it is written. `target` and `detail` may quote the agent; they never hold a value."""

    name: str
    decision: Decision
    target: str
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


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
        """Wait for the worker thread to end. Blocks."""
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


def printable(text: object, limit: int = 128) -> str:
    """What an agent sent, fit for an audit line: ASCII, bounded, control characters escaped."""
    return ascii(text)[1:-1][:limit] if isinstance(text, str) else type(text).__name__
