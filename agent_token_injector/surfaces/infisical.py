"""The vault itself as a surface: one machine identity a handoff, which reads its own folder and what was granted (ADR §3.1).

It goes through the `Vault` protocol, so it is the same over every vault.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from pydantic import SecretStr

from agent_token_injector.clock import Clock, iso
from agent_token_injector.errors import (
    MintAmbiguous,
    MintRefused,
    RevokeFailed,
    ScopeTooWide,
    SecretNotFound,
    SurfaceError,
    VaultError,
    VaultForbidden,
    VaultUnreachable,
)
from agent_token_injector.lease import Lease, MintKind, Proof, Recovery, SurfaceFacts
from agent_token_injector.names import HandoffId, IdentityName, Layout, SecretGlob, VaultPath
from agent_token_injector.policy import REVOCATION_PATHS
from agent_token_injector.spec import InfisicalRequest
from agent_token_injector.surfaces.base import Minted, MintRequest, Search
from agent_token_injector.vaults.base import MAX_TOKEN_TTL, IdentityRecord, Vault, VaultSession

CLIENT_ID: Final = "INFISICAL_CLIENT_ID"
CLIENT_SECRET: Final = "INFISICAL_CLIENT_SECRET"  # noqa: S105  a name
_CANARY: Final = "HANDOFF_SCOPE_PROBE"
_FACTS: Final = SurfaceFacts(
    surface="infisical",
    kind=MintKind.MINTED,
    recovery=Recovery.BY_NAME,
    identity_prefix="infisical",
    secrets={CLIENT_ID: CLIENT_ID, CLIENT_SECRET: CLIENT_SECRET},
    longest_lifetime=None,
    kill_latency="at once: deleting the identity ends its client secret and its access tokens",
    revoke_by_hand=REVOCATION_PATHS["infisical"],
)


class InfisicalSurface:
    """Machine identities of one vault.

    Args:
        vault: the administrator's face of it.
        layout: where handoffs live in it.
        clock: wall time.
        token_ttl: how long an access token lives; the policy's, at most `MAX_TOKEN_TTL`.
    """

    def __init__(self, vault: Vault, layout: Layout, clock: Clock, token_ttl: timedelta = MAX_TOKEN_TTL) -> None:
        self._vault = vault
        self._layout = layout
        self._clock = clock
        self._token_ttl = token_ttl

    @property
    def facts(self) -> SurfaceFacts:
        return _FACTS

    def supply_hint(self, identity: IdentityName, request: InfisicalRequest) -> str:  # noqa: ARG002  the protocol's
        return ""

    def mint(self, order: MintRequest) -> Minted:
        name = str(order.identity)
        try:
            taken = self._vault.find_identities(name)
        except VaultError as error:
            raise MintRefused(
                f"the vault cannot be asked about {name}", surface="infisical", cause=str(error)
            ) from None
        if taken:
            raise MintRefused(
                f"an identity named {name} exists already",
                surface="infisical",
                cause="an earlier provisioning of this handoff left it",
                hint=f"`handoff revoke {order.handoff}` first",
            )
        order.begin()
        try:
            made = self._vault.create_identity(
                name, read=self._globs(order), token_ttl=self._token_ttl, expires_at=order.not_after
            )
        except VaultUnreachable as error:
            raise MintAmbiguous(
                f"the vault may have created {name}",
                surface="infisical",
                live_until=order.not_after,
                cause=str(error),
                hint="it is looked up by its name",
            ) from None
        except (VaultError, ValueError) as error:
            raise MintRefused(f"the vault did not create {name}", surface="infisical", cause=str(error)) from None
        lease = self._lease(
            name,
            made.identity_id,
            self._clock.now(),
            order.not_after,
            {"read": [str(glob) for glob in self._globs(order)]},
        )
        return Minted(lease, {CLIENT_ID: SecretStr(made.client_id), CLIENT_SECRET: made.client_secret})

    def find(self, identity: IdentityName, minted_after: datetime) -> Search:
        """Every identity of that name, whenever it was made: the vault lists them all. Raises SurfaceError."""
        try:
            records = self._vault.find_identities(str(identity))
        except VaultError as error:
            raise SurfaceError(
                f"the vault cannot be asked about {identity}", surface="infisical", cause=str(error)
            ) from None
        return Search(
            tuple(
                self._lease(record.name, record.id, minted_after, record.expires_at, _scope(record))
                for record in records
            )
        )

    def verify(self, lease: Lease, secrets: Mapping[str, SecretStr], order: MintRequest) -> Lease:
        try:
            record = self._stored(lease)
            self._compare(lease, record, order)
            session = self._vault.login(record.client_id, secrets[CLIENT_SECRET])
            self._prove_inside(lease, session, secrets[CLIENT_ID], order.handoff)
            self._prove_outside(lease, session, record.read, order.handoff)
        except VaultError as error:
            raise SurfaceError(f"{lease.identity} cannot be read back", surface="infisical", cause=str(error)) from None
        return lease.model_copy(update={"scope": _scope(record), "expires_at": record.expires_at})

    def revoke(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> None:  # noqa: ARG002  the protocol's
        try:
            for identity_id in self._ids(lease):
                self._vault.delete_identity(identity_id)
        except VaultError as error:
            raise RevokeFailed(f"{lease.identity} was not deleted", surface="infisical", cause=str(error)) from None

    def prove_dead(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> Proof:
        how = "no identity of that name and id is listed"
        try:
            if self._ids(lease):
                raise RevokeFailed(f"{lease.identity} is alive", surface="infisical", cause="the vault still lists it")
            if CLIENT_ID in secrets and CLIENT_SECRET in secrets:
                self._refuses_login(lease, secrets)
                how = f"its login is refused, and {how}"
        except VaultError as error:
            raise RevokeFailed(f"{lease.identity} was not seen dead", surface="infisical", cause=str(error)) from None
        return Proof(surface="infisical", identity=lease.identity, how=how, at=self._clock.now())

    # -- helpers --------------------------------------------------------------------------------------------------

    def _globs(self, order: MintRequest) -> tuple[SecretGlob, ...]:
        request: InfisicalRequest = order.request
        return (self._layout.own_glob(order.handoff), *(SecretGlob.parse(text) for text in request.read))

    def _lease(
        self, name: str, identity_id: str, minted_at: datetime, expires_at: datetime, scope: dict[str, object]
    ) -> Lease:
        return Lease(
            surface="infisical",
            identity=name,
            kind=_FACTS.kind,
            recovery=_FACTS.recovery,
            handle=identity_id,
            minted_at=minted_at,
            expires_at=expires_at,
            scope=scope,
            secrets=(CLIENT_ID, CLIENT_SECRET),
            kill_latency=_FACTS.kill_latency,
            revoke_by_hand=_FACTS.revoke_by_hand.format(identity=name),
        )

    def _ids(self, lease: Lease) -> tuple[str, ...]:
        """The vault's ids of the lease that are still listed: its own, or without one every identity of its name."""
        found = self._vault.find_identities(lease.identity)
        return tuple(record.id for record in found if lease.handle in (None, record.id))

    def _stored(self, lease: Lease) -> IdentityRecord:
        for record in self._vault.find_identities(lease.identity):
            if record.id == lease.handle:
                return record
        raise SurfaceError(f"{lease.identity} is not in the vault", surface="infisical", cause="it was deleted")

    def _compare(self, lease: Lease, record: IdentityRecord, order: MintRequest) -> None:
        asked, stored = {str(glob) for glob in self._globs(order)}, {str(glob) for glob in record.read}
        if stored != asked:
            raise self._too_wide(lease, f"asked for {', '.join(sorted(asked))}; stored is {', '.join(sorted(stored))}")
        if record.token_ttl != self._token_ttl:
            raise self._too_wide(lease, f"its access tokens live {record.token_ttl}, not {self._token_ttl}")
        # Vaults keep whole seconds.
        if abs(record.expires_at - order.not_after) > timedelta(seconds=1):
            raise self._too_wide(lease, f"it expires {iso(record.expires_at)}, not {iso(order.not_after)}")

    def _prove_inside(self, lease: Lease, session: VaultSession, client_id: SecretStr, handoff: HandoffId) -> None:
        """See that it reads its own folder, where its client id has been stored by now."""
        try:
            found = session.read_secret(self._layout.of(handoff), CLIENT_ID)
        except VaultForbidden:
            raise SurfaceError(
                f"{lease.identity} cannot read its own folder", surface="infisical", cause="the vault refuses it"
            ) from None
        if found.get_secret_value() != client_id.get_secret_value():
            raise SurfaceError(f"{CLIENT_ID} in the vault is not that of {lease.identity}", surface="infisical")

    def _prove_outside(
        self, lease: Lease, session: VaultSession, read: tuple[SecretGlob, ...], handoff: HandoffId
    ) -> None:
        """See that it is refused in every place near its own that no glob covers."""
        for folder in self._places(handoff):
            if any(glob.matches(folder, _CANARY) for glob in read):
                continue
            try:
                session.read_secret(folder, _CANARY)
            except VaultForbidden:
                continue
            except SecretNotFound:
                pass  # It was allowed to learn that nothing is there.
            raise self._too_wide(lease, f"it is not refused in {folder}")

    def _places(self, handoff: HandoffId) -> tuple[VaultPath, ...]:
        return (
            self._layout.root,
            self._layout.handoffs,
            self._layout.handoffs.child(f"{handoff}-other"),
            self._layout.supplied_for(handoff.slug),
        )

    def _refuses_login(self, lease: Lease, secrets: Mapping[str, SecretStr]) -> None:
        try:
            self._vault.login(secrets[CLIENT_ID].get_secret_value(), secrets[CLIENT_SECRET])
        except VaultForbidden:
            return
        raise RevokeFailed(f"{lease.identity} is alive", surface="infisical", cause="it can still log in")

    def _too_wide(self, lease: Lease, cause: str) -> ScopeTooWide:
        return ScopeTooWide(f"{lease.identity} can do more than was asked", surface="infisical", cause=cause)


def _scope(record: IdentityRecord) -> dict[str, object]:
    return {
        "read": [str(glob) for glob in record.read],
        "token_ttl": int(record.token_ttl.total_seconds()),
    }
