"""The vault: the one store of everything that outlives a process (D1).

Two faces, because two parties meet it. The provisioner administers (`Vault`): folders, secrets, machine identities.
An agent, or what serves it, logs in as a handoff's own identity and reads (`VaultSession`); the vault itself enforces
what it may read.

Rules that every implementation keeps, and that one contract suite (tests/contracts/) holds them all to:

- A folder must exist before a secret is written into it. Creating one creates its parents; creating it twice is
  `AlreadyExists`.
- A secret is created, never overwritten: of any number of concurrent creators exactly one succeeds.
- A guarded write or deletion happens only in the folder that was meant (`Guard`).
- An identity reads what its globs cover, lists nothing, writes nothing. Outside its globs an existing secret and an
  absent one are the same `VaultForbidden`.
- An access token lives at most 15 minutes and never past its identity.
- Deleting an identity kills its tokens and its client secret at once; deleting what is absent is no error.
- Every read through a session, allowed or refused, leaves an access event.

Raises, from every method: VaultUnreachable when no reliable answer came. Names and paths arrive typed and valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol, runtime_checkable

from pydantic import SecretStr

from agent_token_injector.names import SecretGlob, VaultPath

MAX_TOKEN_TTL: Final = timedelta(minutes=15)
"""ADR §3.1: an access token of a handoff's vault identity lives at most this long."""


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """A machine identity as the vault has it stored: what is read back after a mint (D5)."""

    id: str
    name: str
    client_id: str
    read: tuple[SecretGlob, ...]
    token_ttl: timedelta
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class IdentityCredentials:
    """What a new identity logs in with. The client secret is shown once, here."""

    identity_id: str
    client_id: str
    client_secret: SecretStr = field(repr=False)


@dataclass(frozen=True, slots=True)
class AccessEvent:
    """One access to the vault by an identity, as the vault saw it (H5)."""

    at: datetime
    identity_id: str
    identity_name: str
    action: str
    """`login` or `read`."""
    path: str
    """The folder; empty for a login."""
    name: str
    """The secret; empty for a login."""
    allowed: bool


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the folder that is written to: the secret `name` in it has `value`, or is absent when that is None.

    Folders of one name follow one another. A guard on what tells them apart keeps a writer that slept through the end
    of its own folder from touching its successor's. A vault that has transactions checks it inside of one.
    """

    name: str
    value: SecretStr | None = field(repr=False)


@runtime_checkable
class VaultSession(Protocol):
    """A handoff identity, logged in: it can read what its globs cover until its token expires."""

    @property
    def expires_at(self) -> datetime:
        """When the access token dies (at most 15 minutes after the login)."""
        ...

    def read_secret(self, path: VaultPath, name: str) -> SecretStr:
        """The value. Raises VaultForbidden outside the globs, or when token or identity are dead; SecretNotFound inside them."""
        ...


@runtime_checkable
class Vault(Protocol):
    """The administrator's face."""

    def create_folder(self, path: VaultPath) -> None:
        """Create a folder and its missing parents. Raises AlreadyExists."""
        ...

    def folder_exists(self, path: VaultPath) -> bool: ...

    def list_folders(self, path: VaultPath) -> tuple[str, ...]:
        """The names of the folders directly in `path`, sorted; empty when it does not exist."""
        ...

    def delete_folder(self, path: VaultPath, *, only_if: Guard | None = None) -> bool:
        """Delete a folder with all it holds, folders below it too. Returns whether it was there. The root is refused.

        Where `only_if` does not hold nothing is deleted, and False is returned.
        """
        ...

    def create_secret(self, path: VaultPath, name: str, value: SecretStr, *, only_if: Guard | None = None) -> None:
        """Write a new secret. Raises AlreadyExists, and SecretNotFound when the folder is missing or not the one meant."""
        ...

    def read_secret(self, path: VaultPath, name: str) -> SecretStr:
        """The value. Raises SecretNotFound."""
        ...

    def read_folder(self, path: VaultPath) -> Mapping[str, SecretStr]:
        """Every secret directly in a folder, by name, as of one instant. Raises SecretNotFound when there is no folder."""
        ...

    def delete_secret(self, path: VaultPath, name: str) -> bool:
        """Delete one secret. Returns whether it was there."""
        ...

    def create_identity(
        self, name: str, *, read: Sequence[SecretGlob], token_ttl: timedelta, expires_at: datetime
    ) -> IdentityCredentials:
        """Create a machine identity that reads `read` and nothing else until `expires_at`.

        Names are not unique: the caller looks with `find_identities` first. Raises ValueError for an empty `read` or a
        `token_ttl` above `MAX_TOKEN_TTL`.
        """
        ...

    def find_identities(self, name: str) -> tuple[IdentityRecord, ...]:
        """Every identity of exactly that name."""
        ...

    def delete_identity(self, identity_id: str) -> bool:
        """Delete an identity, its client secret and its tokens, at once. Returns whether it was there."""
        ...

    def login(self, client_id: str, client_secret: SecretStr) -> VaultSession:
        """Log in as a machine identity. Raises VaultForbidden for a wrong, dead or expired one, all alike."""
        ...

    def access_events(self, identity_name: str) -> tuple[AccessEvent, ...]:
        """What identities of that name did, oldest first. It outlives them."""
        ...

    def close(self) -> None: ...
