"""The five verbs of a credential surface: `mint`, `find`, `verify`, `revoke`, `prove_dead` (D3).

Provisioning calls them in that order and knows nothing else of a vendor. A surface keeps these promises, and one
contract suite (tests/contracts/) holds all of them to it:

- `mint` ends in one of three ways: a `Minted`, `MintRefused` (nothing exists), `MintAmbiguous` (something may).
  It never retries a request that may have been carried out.
- `verify` reads the credential's effective scope, expiry and mode from the surface, and raises `ScopeTooWide` when
  they are not what was asked (D5). It returns the lease with the scope as read.
- `revoke` takes an absent credential as revoked. `prove_dead` asks the surface, with the credential itself where the
  surface allows it, and returns a `Proof`; it raises `RevokeFailed` while the credential answers.
- No verb logs, returns or raises a secret, except `mint` in `Minted.secrets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from pydantic import SecretStr

from agent_token_injector.lease import Lease, Proof, SurfaceFacts
from agent_token_injector.names import HandoffId, IdentityName


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class MintRequest:
    """What one surface is asked to mint for one handoff."""

    handoff: HandoffId
    identity: IdentityName
    request: Any
    """The surface's part of the spec, typed (spec/)."""
    not_after: datetime
    """The handoff's own end: nothing minted may need to outlive it."""
    supplied: SecretStr | None = field(default=None, repr=False)
    """What the operator supplied, on surfaces whose vendor cannot mint."""
    begin: Callable[[], None] = field(default=_nothing, repr=False)
    """To be called right before the request that creates a credential, once all that can be checked without creating one
    is checked. What it raises is passed on, and then nothing was requested. It leaves the record without which a
    credential that only its holder can revoke counts as never asked for."""


@dataclass(frozen=True, slots=True)
class Minted:
    """A credential that exists: its lease and, by their names in the vault, its values.

    `recorded()` is called once the values are in the vault. Until then whoever minted holds a way to undo it
    even when this process is killed.
    """

    lease: Lease
    secrets: Mapping[str, SecretStr] = field(repr=False)
    recorded: Callable[[], None] = field(default=_nothing, repr=False)


@dataclass(frozen=True, slots=True)
class Search:
    """What is known of an identity whose minting left no record.

    `leases` were found. When `certain` is false, one more may be alive: `why` says what is not known and
    `live_until` bounds it.
    """

    leases: tuple[Lease, ...] = ()
    certain: bool = True
    why: str = ""
    live_until: datetime | None = None


class Surface(Protocol):
    """One vendor, or one kind of credential of one."""

    @property
    def facts(self) -> SurfaceFacts: ...

    def supply_hint(self, identity: IdentityName, request: Any) -> str:
        """What an operator does to supply this credential; empty where the surface mints its own."""
        ...

    def mint(self, order: MintRequest) -> Minted:
        """Make the credential, or take the operator's. Raises MintRefused, MintAmbiguous."""
        ...

    def find(self, identity: IdentityName, minted_after: datetime) -> Search:
        """Look for credentials of that name whose record was lost; none was minted before `minted_after`."""
        ...

    def verify(self, lease: Lease, secrets: Mapping[str, SecretStr], order: MintRequest) -> Lease:
        """Read the credential back and compare it with the order. Raises ScopeTooWide, SurfaceError."""
        ...

    def revoke(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> None:
        """Ask the surface to end the credential. Absent is success. Raises RevokeFailed."""
        ...

    def prove_dead(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> Proof:
        """See the credential dead. Raises RevokeFailed while it answers, or when nobody answers."""
        ...
