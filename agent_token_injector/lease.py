"""Leases: what was granted on one surface, to whom, until when, and how it can be taken back. Never a secret.

A lease is what the manifest keeps of a credential: its name, the vendor's handle, its scope and expiry, and the names
(not the values) of the secrets that carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agent_token_injector.clock import human_duration, iso


class MintKind(StrEnum):
    """Where a surface's credential comes from."""

    MINTED = "minted"
    """The vendor's API makes one for this handoff alone."""
    DERIVED = "derived"
    """A short-lived token made from a long-lived key that stays with the provisioner."""
    OPERATOR_SUPPLIED = "operator-supplied"
    """The vendor has no API to mint: an operator makes it, and it is verified before it is used."""


class Recovery(StrEnum):
    """How a credential can be found again when the record of its minting was lost (D3)."""

    BY_NAME = "by-name"
    """The surface lists what exists; ours carries a name of ours."""
    BY_HANDLE = "by-handle"
    """Only whoever holds the value, or the vendor's id, can revoke it."""
    EXPIRY_ONLY = "expiry-only"
    """Nothing finds or ends it; its expiry does."""


class LeaseState(StrEnum):
    """Where a credential is in its life, as far as it has been seen."""

    INTENDED = "intended"
    LIVE = "live"
    DEAD = "dead"
    """Seen dead on the surface: its proof is in the receipt."""
    EXPIRED = "expired"
    """Past its own expiry on a surface where that ends it."""
    AWAITING_OPERATOR = "awaiting-operator"
    """Alive, and only a person can end it."""
    NEVER_HANDED_OVER = "never-handed-over"
    """An operator's own credential that no agent was given: there is nothing to take back, and it is still theirs."""
    IRREVOCABLE = "irrevocable"
    """Should be dead, was not seen dead: it is residue, and retried until its expiry has passed."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SurfaceFacts(_Frozen):
    """What a surface declares about itself; docs and the gate read it, nothing guesses."""

    surface: str
    kind: MintKind
    recovery: Recovery
    identity_prefix: str
    """The first part of the identity's name (ADR §4.2)."""
    secrets: dict[str, str]
    """The names of its secrets in the vault -> the names the agent finds them under."""
    longest_lifetime: timedelta | None
    """No credential of this surface lives longer; None where the vendor sets no bound."""
    kill_latency: str
    """How long a revocation takes to bite, as honestly as is known."""
    revoke_by_hand: str
    """Who can end it without this tool, and where."""


class Lease(_Frozen):
    """One credential of one handoff on one surface, without its value."""

    surface: str
    identity: str
    kind: MintKind
    recovery: Recovery
    handle: str | None = None
    """The vendor's own id for it, or None where it has none (then `secrets` carry it)."""
    minted_at: datetime
    expires_at: datetime | None
    """When it dies by itself; None when it does not."""
    scope: dict[str, Any] = Field(default_factory=dict)
    """What it can do, as read back from the surface (D5)."""
    secrets: tuple[str, ...] = ()
    """The names in the vault of the secrets that carry it."""
    kill_latency: str = ""
    revoke_by_hand: str = ""

    def describe_lifetime(self) -> str:
        """`until 2026-06-21T00:00:00Z`, or that nothing ends it by itself."""
        return "no expiry of its own" if self.expires_at is None else f"until {iso(self.expires_at)}"


class Proof(_Frozen):
    """How a credential was seen dead: the question that was asked of the surface and its answer."""

    surface: str
    identity: str
    how: str
    """For people: `GET /installation/repositories answered 401`."""
    at: datetime


class Residue(_Frozen):
    """A credential that may be alive after we were done, and what ends it."""

    surface: str
    identity: str
    state: LeaseState
    why: str
    live_until: datetime | None
    """It dies by itself then; None when nothing but a person ends it."""
    next_step: str

    def __str__(self) -> str:
        bound = f"dies by itself {iso(self.live_until)}" if self.live_until else "does not expire"
        return f"{self.surface} ({self.identity}): {self.why}; {bound}; {self.next_step}"


def shortest(
    leases: tuple[Lease, ...], requested: datetime, asked: Mapping[str, datetime] = MappingProxyType({})
) -> tuple[datetime, str | None]:
    """When a set of leases stops being whole: the earliest end among them and the surface that sets it.

    `asked` has, by surface, an end that the spec asks for where the vendor's own is later or none. Returns `requested`
    and None when nothing ends before it.
    """
    ends = [(lease.expires_at, lease.surface) for lease in leases if lease.expires_at is not None]
    ends += [(end, surface) for surface, end in asked.items()]
    earliest = min(ends, default=(requested, ""), key=lambda end: end[0])
    return earliest if earliest[0] < requested else (requested, None)


def describe_limit(expires_at: datetime, requested: datetime, limited_by: str | None, now: datetime) -> str:
    """One sentence on how long a handoff lives, and on what cut it short."""
    lives = f"lives {human_duration(expires_at - now)}, until {iso(expires_at)}"
    if limited_by is None:
        return lives
    return (
        f"{lives}: no longer than its {limited_by} credential (asked for until {iso(requested)}; renewal comes later)"
    )
