"""Between a decision and its effect: may the handoff still act, and is what it does on record? (D8, H5)

Effects are staged with their audit event. `flush` writes the events of all that is staged in one append and only then
lets each effect happen, or fail where nothing could be written. It runs once per turn of the event loop, so that many
calls in flight share one append.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.audit.event import Decision, Draft
from agent_token_injector.clock import parse_iso
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import HANDOFF_OVER, Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.audit.log import AuditLog
    from agent_token_injector.masking import Redactor
    from agent_token_injector.names import HandoffId

SURFACE: Final = "mcp"
MAX_AGE: Final = 2.0
"""Seconds for which what we were told of the handoff's standing counts; then nothing is done until we are told anew."""
STALL_SECONDS: Final = 2.0
"""A disk that has not answered for so long is a disk that does not work."""
KEEP_SECONDS: Final = 0.05
SHARE_SECONDS: Final = 0.01
"""The chain's file stays locked for as long as KEEP, then is open to other writers for SHARE at least: a lock, and a look
at the file, for every single call would cost more than the call."""
STRANGER_SECONDS: Final = 1.0
"""Refusals of strangers for one reason share an event for so long: whoever is on this machine can cause them, and each
event costs a write to disk."""
MAX_READ: Final = 64 * 1024


class BeatClock:
    """The control side's time: what its last beat said, and what has passed here since. Never goes back.

    Args:
        now: what the control side's clock says at the start.
        monotonic: this machine's own, in seconds.
    """

    def __init__(self, now: datetime, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._start = self._beat = self._last = now
        self._at = monotonic()

    def set(self, now: datetime) -> None:
        """What a beat said."""
        self._beat = now
        self._at = self._monotonic()

    def now(self) -> datetime:
        self._last = max(self._last, self._beat + timedelta(seconds=self._monotonic() - self._at))
        return self._last

    def monotonic(self) -> float:
        return (self.now() - self._start).total_seconds()


@dataclass(slots=True)
class _Strangers:
    """Refusals of one reason: when the last event was written, and how many have happened that none stands for."""

    draft: Draft
    since: float = float("-inf")
    waiting: int = 0


class Ledger:
    """The handoff's standing, and its audit chain.

    Once `end` was called, or the expiry has passed, it is over for good; what beats say may change again.

    Args:
        handoff: whose it is.
        audit: the log that holds its chain.
        expires_at: nothing is allowed from then on.
        clock: tells that time.
        monotonic: real seconds, for the age of a beat.
        schedule: called when something was staged: arranges for a flush within this turn of the loop.
        later: calls something after so many seconds.
    """

    def __init__(
        self,
        *,
        handoff: HandoffId,
        audit: AuditLog,
        expires_at: datetime,
        clock: BeatClock,
        monotonic: Callable[[], float],
        schedule: Callable[[], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._handoff = handoff
        self._audit = audit
        self._expires_at = expires_at
        self._clock = clock
        self._monotonic = monotonic
        self.schedule = schedule
        self._later = later
        self.held_back = False
        self._keeping = False
        self._share_until = 0.0
        self._broken = False
        self._ended: str | None = None
        self._said: str | None = None
        self._beat = float("-inf")
        self._staged: list[tuple[Draft | bytes, Callable[..., None] | None, tuple[Any, ...]]] = []
        self._strangers: dict[str, _Strangers] = {}
        self._lives = (expires_at - clock.now()).total_seconds() + monotonic()

    # Standing

    def beat(self, reason: str | None, now: str) -> None:
        """Take what the control side says: None for a handoff that may go on, else why not; and its time."""
        self._said = reason
        self._clock.set(parse_iso(now))
        self._beat = self._monotonic()
        self._lives = (self._expires_at - self._clock.now()).total_seconds() + self._beat

    def end(self, reason: str) -> None:
        """Refuse everything from now on. The first reason stays."""
        self._ended = self._ended or reason

    @property
    def fresh(self) -> bool:
        """Whether `standing` can be relied on: it is over for good, or we were told lately."""
        return self._monotonic() - self._beat <= MAX_AGE or self._ended is not None

    @property
    def standing(self) -> str | None:
        """Why the handoff may not act, as of the last beat; None when it may."""
        if self._ended is None and self._monotonic() >= self._lives:
            self._ended = Reason.EXPIRED
        return self._ended or self._said

    @property
    def standing_now(self) -> str | None:
        """The same, where what is not known lately counts as no."""
        return self.standing or (None if self.fresh else "unchecked")

    def seconds(self) -> float:
        """The control side's time, in seconds since this ledger was made: for budgets."""
        return self._clock.monotonic()

    def remaining_ms(self) -> int:
        """How long the handoff lives, in whole milliseconds, never negative."""
        return max(0, int((self._lives - self._monotonic()) * 1000))

    # The record

    def stage(self, draft: Draft | bytes, act: Callable[..., None], *args: Any) -> None:
        """Write `draft`, then call `act(recorded, *args)`: with False when it could not be written."""
        self._staged.append((draft, act, args))
        if not self.held_back:
            self.schedule()

    def note(self, draft: Draft) -> None:
        """Write `draft` with the next append; nothing hangs on it."""
        self._staged.append((draft, None, ()))
        self.schedule()

    def flush(self) -> None:
        """Write all that is staged, in one append, and let it happen; and what that stages, until nothing is staged."""
        while self._staged:
            staged, self._staged = self._staged, []
            recorded = self._append([draft for draft, _, _ in staged])
            for _, act, args in staged:
                if act is not None:
                    act(recorded, *args)

    def _append(self, drafts: Sequence[Draft | bytes]) -> bool:
        if self._broken or self._audit.stalled(STALL_SECONDS):
            return False
        keep = 0.0
        if self._keeping:
            keep = KEEP_SECONDS
        elif self._monotonic() >= self._share_until:
            keep = KEEP_SECONDS
            self._keeping = True
            self._later(KEEP_SECONDS, self.let_go)
        try:
            self._audit.append(self._handoff, drafts, keep=keep)
        except AuditUnavailable:
            # What follows from it in this turn does not wait for the same thing again.
            self._broken = True
            return False
        return True

    def begin_turn(self) -> None:
        """From here on a chain that could not be written is tried again."""
        self._broken = False

    def let_go(self) -> None:
        """Let other writers have the chain for a while."""
        self._keeping = False
        self._share_until = self._monotonic() + SHARE_SECONDS
        self._audit.let_go(self._handoff)

    def write(self, draft: Draft) -> bool:
        """Write one event now; whether that was possible."""
        return self._append([draft])

    # Strangers

    def stranger(self, reason: str, code: int) -> None:
        """Count a refusal that whoever is on this machine can cause: one event per reason and STRANGER_SECONDS.

        `requests` in its detail says how many refusals it stands for. Those of an event that could not be written, or
        that is not due yet, are counted in the next one, which `settle_strangers` writes if nobody else does.
        """
        draft = Draft("tool.denied", Decision.REFUSED, SURFACE, "http", reason, {"code": code, "era": ""})
        self._strangers.setdefault(reason, _Strangers(draft)).waiting += 1
        self.settle_strangers()

    def settle_strangers(self, *, at_once: bool = False) -> None:
        """Write the events of refused strangers that are due."""
        now = self._monotonic()
        for one in self._strangers.values():
            if not one.waiting or (now - one.since < STRANGER_SECONDS and not at_once):
                continue
            one.since = now
            if self.write(one.draft.adding(requests=one.waiting)):
                one.waiting = 0


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
