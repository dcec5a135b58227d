"""What a rule of the gate is given, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agent_token_injector.approval import Approval
from agent_token_injector.clock import human_duration
from agent_token_injector.names import HandoffId, Layout
from agent_token_injector.policy import FORBIDDEN_BY_NAME, Policy
from agent_token_injector.spec import HandoffSpec, RevokedByHand


class Finding(BaseModel):
    """One thing that the gate found: its stable code, where, what is wrong, and how to mend it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    severity: Literal["refuse", "warn"] = "refuse"
    surface: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.surface}: {self.what}"


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule judges: the spec under a policy at a moment, with the approvals given for it."""

    spec: HandoffSpec
    policy: Policy
    now: datetime
    handoff: HandoffId
    layout: Layout
    approvals: Sequence[Approval]

    @property
    def by_hand(self) -> RevokedByHand | None:
        """Who revokes by hand and how, when the spec says both in so many words; None when it names nobody."""
        named = self.spec.revocation.by_hand
        return named if named and says_something(named.who) and says_something(named.how) else None

    def approved(self, surface: str, mode: str) -> Approval | None:
        """The first valid approval for a surface and mode."""
        return next((found for found in self._for(surface, mode) if self._problem(found) is None), None)

    def why_not_approved(self, surface: str, mode: str) -> str:
        problems = [self._problem(found) for found in self._for(surface, mode)]
        return problems[0] or "" if problems else "no operator has approved it"

    def _for(self, surface: str, mode: str) -> list[Approval]:
        return [found for found in self.approvals if (found.surface, found.mode) == (surface, mode)]

    def _problem(self, approval: Approval) -> str | None:
        if approval.expires_at - approval.approved_at > self.policy.max_approval_age:
            return f"it was given for more than {human_duration(self.policy.max_approval_age)}"
        return approval.problem(self.spec.digest, self.policy.operators, self.now)


Rule = Callable[[Case], Iterator[Finding]]


def says_something(text: str) -> bool:
    """Whether a text that a person was to write holds a letter or a digit."""
    # Not strip(): a zero-width space, a lone # or a dash is no name either.
    return any(char.isalnum() for char in text)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def forbidden_name(name: str) -> tuple[str, str] | None:
    """The code and reason for which a permission's or tool's name is forbidden under any spelling, or None."""
    letters = _letters(name)
    return next((verdict for part, verdict in FORBIDDEN_BY_NAME.items() if part in letters), None)
