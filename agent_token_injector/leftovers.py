"""What a handoff left on its surfaces: by its manifest, by its intent, by what its path holds, and by its names.

Reads and searches only; revocation.py ends what is found. Nothing here trusts a record more than it must: a manifest
counts when a trusted key signed it, and where a record cannot be read every surface is searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr

from agent_token_injector.clock import SWEEP_LATE
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import HandoffError, SecretNotFound, SignatureInvalid, VaultError, VaultUnreachable
from agent_token_injector.lease import Lease, LeaseState, Proof, Recovery, Residue
from agent_token_injector.manifest import (
    PROVISION_INTENT,
    PROVISION_MANIFEST,
    REVOCATION_MARK,
    ProvisionIntent,
    ProvisionManifest,
    read_record,
)
from agent_token_injector.names import HandoffId, IdentityName, is_record, mint_begun
from agent_token_injector.policy import REVOCATION_PATHS
from agent_token_injector.vaults.base import Guard

VAULT: Final = "vault"
"""What a residue names when it is the handoff's own path."""
R = TypeVar("R", ProvisionManifest, ProvisionIntent)


class SurfaceOutcome(BaseModel):
    """What revoking did on one surface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    surface: str
    identity: str
    state: LeaseState
    milliseconds: float
    proof: Proof | None = None
    residue: Residue | None = None


@dataclass(frozen=True)
class Target:
    """One credential to end: its lease, its values where we have them, and what is not known of it."""

    lease: Lease
    secrets: Mapping[str, SecretStr]
    handed_over: bool = True
    """False for an operator's credential of a handoff that never started: nobody was given it, so nobody must end it."""
    searched: bool = False
    """Found by its name alone: it is this handoff's only if no other of the same id has begun since."""


def read_path(ctx: HandoffContext, handoff: HandoffId, notes: list[str]) -> Mapping[str, SecretStr] | None:
    """The handoff's folder, or what can still be read of it where someone has tampered with the vault."""
    try:
        return ctx.read_folder(handoff)
    except VaultUnreachable:
        raise
    except VaultError as error:
        notes.append(f"{error}: revoked by what can still be read")
    found: dict[str, SecretStr] = {}
    for name in _every_name(ctx):
        try:
            found[name] = ctx.vault.read_secret(ctx.path_of(handoff), name)
        except VaultUnreachable:
            raise
        except SecretNotFound:
            continue
        except VaultError:
            # A record that is there counts, whatever it says; a secret that cannot be read is lost.
            if is_record(name):
                found[name] = SecretStr("")
    return found


def _every_name(ctx: HandoffContext) -> set[str]:
    """Every name that this version writes into a handoff's folder."""
    names = {PROVISION_INTENT, PROVISION_MANIFEST, REVOCATION_MARK, *(mint_begun(surface) for surface in ctx.surfaces)}
    for surface in ctx.surfaces:
        with suppress(HandoffError):  # One that is not configured here minted nothing from here.
            names.update(ctx.surfaces[surface].facts.secrets)
    return names


def guard_of(folder: Mapping[str, SecretStr]) -> Guard | None:
    """What tells this provisioning's folder from that of another under the same id; None when it cannot be read."""
    intent = folder.get(PROVISION_INTENT)
    return None if intent is not None and not intent.get_secret_value() else Guard(PROVISION_INTENT, intent)


def find_targets(
    ctx: HandoffContext, handoff: HandoffId, folder: Mapping[str, SecretStr] | None, notes: list[str]
) -> tuple[list[Target], tuple[SurfaceOutcome, ...]]:
    """What there is to end: by the manifest, by the intent, and whatever a surface lists under the handoff's names."""
    records = folder or {}
    doubts: list[str] = []
    manifest = _signed(ctx, handoff, _readable(records, PROVISION_MANIFEST, ProvisionManifest, doubts), doubts)
    intent = _readable(records, PROVISION_INTENT, ProvisionIntent, doubts)
    notes.extend(doubts)
    held = {name: value for name, value in records.items() if not is_record(name)}
    ctx.audit.add_secrets(held.values())
    targets: dict[tuple[str, str, str | None], Target] = {}
    unknown: list[SurfaceOutcome] = []
    for lease in manifest.leases if manifest is not None else ():
        own = {name: held[name] for name in lease.secrets if name in held}
        targets[lease.surface, lease.identity, lease.handle] = Target(lease, own)
    midnight = datetime.combine(handoff.day, datetime.min.time(), UTC)
    since = intent.begun_at if intent is not None else midnight
    for surface in _named(ctx, manifest, intent, bool(doubts), notes):
        try:
            facts = ctx.surfaces[surface].facts
        except HandoffError as error:
            if manifest is None and (intent is None or surface in intent.identities):
                unknown.append(left(surface, f"{surface}-handoff-{handoff}", str(error), None))
            continue  # With a manifest its lease is a target, and the same error makes it residue there.
        asked_for = mint_begun(surface) in records or bool(facts.secrets.keys() & held.keys())
        if facts.recovery is not Recovery.BY_NAME and (manifest is not None or not asked_for):
            continue  # The manifest lists it, or it was never asked for.
        leases, outcome = _search(ctx, handoff, surface, held, since)
        for lease, secrets in leases:
            found = Target(lease, secrets, handed_over=PROVISION_MANIFEST in records, searched=lease.handle is not None)
            targets.setdefault((lease.surface, lease.identity, lease.handle), found)
        if outcome is not None and folder is not None:
            unknown.append(outcome)
    return list(targets.values()), tuple(unknown)


def _readable(folder: Mapping[str, SecretStr], name: str, kind: type[R], notes: list[str]) -> R | None:
    try:
        return read_record(folder, name, kind)
    except SignatureInvalid as error:
        notes.append(f"{error}: revoked by names and by what the path holds instead")
        return None


def _signed(
    ctx: HandoffContext, handoff: HandoffId, manifest: ProvisionManifest | None, doubts: list[str]
) -> ProvisionManifest | None:
    """The manifest where a trusted key signed it; one that was tampered with could leave a credential out."""
    try:
        if manifest is not None:
            manifest.verify(handoff, ctx.trusted)
    except SignatureInvalid as error:
        doubts.append(f"{error}: revoked by names and by what the path holds instead")
        return None
    return manifest


def _named(
    ctx: HandoffContext,
    manifest: ProvisionManifest | None,
    intent: ProvisionIntent | None,
    unreadable: bool,
    notes: list[str],
) -> Sequence[str]:
    """The surfaces on which this handoff may have left something; all of them when a record cannot be read."""
    named = {"infisical", *(intent.identities if intent is not None else ())}
    if manifest is not None:
        named.update(lease.surface for lease in manifest.leases)
    if unreadable:
        named.update(ctx.surfaces)
    unknown = sorted(named - set(ctx.surfaces))
    if unknown:
        notes.append(f"this version has no surface {', '.join(unknown)}: revoke by hand what was minted there")
    return [surface for surface in ctx.surfaces if surface in named]


def _search(
    ctx: HandoffContext, handoff: HandoffId, surface: str, held: Mapping[str, SecretStr], since: datetime
) -> tuple[list[tuple[Lease, Mapping[str, SecretStr]]], SurfaceOutcome | None]:
    """Credentials on one surface that no manifest lists: by name, or by the value that reached the vault."""
    facts = ctx.surfaces[surface].facts
    identity = IdentityName(facts.identity_prefix, handoff)
    own = {name: held[name] for name in facts.secrets if name in held}
    if own:
        lease = Lease(
            surface=surface,
            identity=str(identity),
            kind=facts.kind,
            recovery=facts.recovery,
            minted_at=since,
            expires_at=since + facts.longest_lifetime + SWEEP_LATE if facts.longest_lifetime else None,
            secrets=tuple(own),
            kill_latency=facts.kill_latency,
            revoke_by_hand=facts.revoke_by_hand,
        )
        if facts.recovery is not Recovery.BY_NAME:
            return [(lease, own)], None
    try:
        search = ctx.surfaces[surface].find(identity, since)
    except HandoffError as error:
        return [], left(surface, str(identity), f"it could not be searched: {error}", None)
    if not search.certain:
        return [], left(surface, str(identity), search.why, search.live_until)
    return [(lease, own) for lease in search.leases], None


def left(surface: str, identity: str, why: str, live_until: datetime | None) -> SurfaceOutcome:
    """A credential, or a path, that could not be ended or not even be seen."""
    residue = Residue(
        surface=surface,
        identity=identity,
        state=LeaseState.IRREVOCABLE,
        why=why,
        live_until=live_until,
        next_step="run `handoff revoke` again after that"
        if live_until
        else REVOCATION_PATHS.get(surface, "run `handoff revoke` again").format(identity=identity),
    )
    return SurfaceOutcome(
        surface=surface, identity=identity, state=LeaseState.IRREVOCABLE, milliseconds=0.0, residue=residue
    )
