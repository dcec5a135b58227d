"""The kill-switch: `revoke(handoff_id, ctx)` ends every credential of a handoff and proves each one dead (H8, D10).

In this order, and waiting for nothing that is not part of it:

1. the mark: from here on nothing of this handoff starts, on any host;
2. every credential at once, each on its own surface with its own deadline: revoke, then see it dead;
3. the vault path, last, and only when nothing is left that it is needed for.

Absent is success, so revoking twice, or from two hosts at once, is safe. Audit never holds it up: events that cannot be
written are spooled and the receipt says so. What was not seen dead is residue, listed with what ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.clock import SWEEP_LATE, iso
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import (
    AlreadyExists,
    AuditUnavailable,
    HandoffError,
    SecretNotFound,
    SignatureInvalid,
    VaultError,
    VaultUnreachable,
)
from agent_token_injector.lease import Lease, LeaseState, MintKind, Proof, Recovery, Residue
from agent_token_injector.manifest import (
    PROVISION_INTENT,
    PROVISION_MANIFEST,
    REVOCATION_MARK,
    AuditHead,
    ProvisionIntent,
    ProvisionManifest,
    RevocationMark,
    read_record,
)
from agent_token_injector.names import HandoffId, IdentityName, is_record, mint_begun
from agent_token_injector.policy import REVOCATION_PATHS

SURFACE_DEADLINE: Final = timedelta(seconds=30)
VAULT: Final = "vault"
"""What a residue names when it is the handoff's own path."""
R = TypeVar("R", ProvisionManifest, ProvisionIntent)
Progress = Callable[["SurfaceOutcome"], None]


class SurfaceOutcome(BaseModel):
    """What revoking did on one surface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    surface: str
    identity: str
    state: LeaseState
    milliseconds: float
    proof: Proof | None = None
    residue: Residue | None = None


class RevocationReceipt(BaseModel):
    """What was revoked, how each credential was seen dead and how fast, and exactly what is left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    handoff_id: str
    found: Literal["nothing", "debris", "provisioned", "revoking"]
    """What the handoff was when revocation began."""
    revoked_at: AwareDatetime
    outcomes: tuple[SurfaceOutcome, ...]
    path_deleted: bool
    notes: tuple[str, ...] = ()
    audit_degraded: bool = False
    audit_head: AuditHead | None = None

    @property
    def residue(self) -> tuple[Residue, ...]:
        return tuple(outcome.residue for outcome in self.outcomes if outcome.residue is not None)

    @property
    def ok(self) -> bool:
        """Whether nothing of the handoff is alive, as far as can be seen."""
        return not self.residue

    def to_dict(self) -> dict[str, Any]:
        """The receipt as `handoff revoke --json` prints it."""
        return {"ok": self.ok, **self.model_dump(mode="json")}


@dataclass(frozen=True)
class Target:
    """One credential to end: its lease, its values where we have them, and what is not known of it."""

    lease: Lease
    secrets: Mapping[str, SecretStr]
    handed_over: bool = True
    """False for an operator's credential of a handoff that never started: nobody was given it, so nobody must end it."""


def revoke(
    handoff_id: str, ctx: HandoffContext, *, reason: str = "asked for", progress: Progress | None = None
) -> RevocationReceipt:
    """End every credential of a handoff, prove each dead, then delete its vault path.

    Returns a receipt whose `residue` is exactly what was not seen dead. Raises ValueError for what is no handoff id and
    VaultUnreachable when the vault cannot be asked what there is to revoke; a vendor's failure is residue, not an error.
    """
    handoff = HandoffId.parse(handoff_id)
    say = _Auditor(ctx, handoff)
    say("revoke.requested", Decision.ALLOWED, reason=reason)
    notes: list[str] = []
    folder = _read(ctx, handoff, notes)
    found: Literal["nothing", "debris", "provisioned", "revoking"] = "nothing"
    if folder is not None:
        found = "debris" if PROVISION_MANIFEST not in folder else "provisioned"
        found = "revoking" if REVOCATION_MARK in folder else found
        try:
            mark(ctx, handoff, reason)
        except VaultError as error:
            notes.append(f"{error}: the handoff could not be marked, and its credentials are ended all the same")
        # Again, behind the mark: what a provisioner writes from now on it will end itself, what it wrote before is here.
        folder = _read(ctx, handoff, notes)
    targets, unknown = _targets(ctx, handoff, folder, notes)
    outcomes = (*end_all(ctx, handoff, targets, progress=progress), *unknown)
    deleted = False
    if all(outcome.residue is None for outcome in outcomes):
        try:
            deleted = _delete_path(ctx, handoff, targets)
        except VaultError as error:
            outcomes = (*outcomes, _left(VAULT, str(ctx.path_of(handoff)), f"it could not be deleted: {error}", None))
    say(
        "revoke.finished",
        Decision.DONE if all(outcome.residue is None for outcome in outcomes) else Decision.FAILED,
        detail={"residue": [outcome.surface for outcome in outcomes if outcome.residue is not None]},
    )
    return RevocationReceipt(
        handoff_id=str(handoff),
        found=found,
        revoked_at=ctx.clock.now(),
        outcomes=outcomes,
        path_deleted=deleted,
        notes=tuple(dict.fromkeys(notes)),
        audit_degraded=ctx.audit.degraded,
        audit_head=_head(ctx, handoff),
    )


class _Auditor:
    """Records events of one revocation; one that cannot be written is spooled and never stops it (D10)."""

    def __init__(self, ctx: HandoffContext, handoff: HandoffId) -> None:
        self._ctx, self._handoff = ctx, handoff

    def __call__(self, action: str, decision: Decision, **fields: Any) -> None:
        self._ctx.audit.record_or_spool(self._handoff, action, decision=decision, **fields)


def _head(ctx: HandoffContext, handoff: HandoffId) -> AuditHead | None:
    if ctx.audit.degraded:
        return None
    try:
        head = ctx.audit.head(handoff)
    except AuditUnavailable:
        return None
    return AuditHead(seq=head.seq, digest=head.digest)


def mark(ctx: HandoffContext, handoff: HandoffId, reason: str) -> None:
    """Write the mark: from here on nothing of the handoff starts. Raises VaultError when it could not be written."""
    record = RevocationMark(handoff_id=str(handoff), marked_at=ctx.clock.now(), by=ctx.actor, reason=reason)
    try:
        ctx.vault.create_secret(ctx.path_of(handoff), REVOCATION_MARK, record.to_secret())
    except (AlreadyExists, SecretNotFound):
        return  # Another revocation was here first, or has even finished.


def _read(ctx: HandoffContext, handoff: HandoffId, notes: list[str]) -> Mapping[str, SecretStr] | None:
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
        except (SecretNotFound, VaultUnreachable) as error:
            if isinstance(error, VaultUnreachable):
                raise
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


def _targets(
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
                unknown.append(_left(surface, f"{surface}-handoff-{handoff}", str(error), None))
            continue  # With a manifest its lease is a target, and the same error makes it residue there.
        asked_for = mint_begun(surface) in records or bool(facts.secrets.keys() & held.keys())
        if facts.recovery is not Recovery.BY_NAME and (manifest is not None or not asked_for):
            continue  # The manifest lists it, or it was never asked for.
        leases, outcome = _search(ctx, handoff, surface, held, since)
        for lease, secrets in leases:
            found = Target(lease, secrets, handed_over=PROVISION_MANIFEST in records)
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
        return [], _left(surface, str(identity), f"it could not be searched: {error}", None)
    if not search.certain:
        return [], _left(surface, str(identity), search.why, search.live_until)
    return [(lease, own) for lease in search.leases], None


def _left(surface: str, identity: str, why: str, live_until: datetime | None) -> SurfaceOutcome:
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


def end_all(
    ctx: HandoffContext, handoff: HandoffId, targets: Sequence[Target], *, progress: Progress | None = None
) -> tuple[SurfaceOutcome, ...]:
    """End credentials side by side, each with its own deadline; one that fails or hangs holds up no other (D10)."""
    if not targets:
        return ()
    pool = ThreadPoolExecutor(max_workers=len(targets), thread_name_prefix="revoke")
    try:
        running: list[tuple[Target, Future[SurfaceOutcome]]] = [
            (target, pool.submit(_end, ctx, handoff, target)) for target in targets
        ]
        outcomes = []
        limit = time.monotonic() + SURFACE_DEADLINE.total_seconds()
        for target, future in running:
            try:
                outcome = future.result(timeout=max(0.0, limit - time.monotonic()))
            except FutureTimeout:
                outcome = _alive(target.lease, f"no answer within {SURFACE_DEADLINE.total_seconds():.0f} s", 0.0)
            outcomes.append(outcome)
            if progress is not None:
                with suppress(Exception):  # Whoever watches must not keep a credential alive.
                    progress(outcome)
        return tuple(outcomes)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end(ctx: HandoffContext, handoff: HandoffId, target: Target) -> SurfaceOutcome:
    lease, say = target.lease, _Auditor(ctx, handoff)
    where: dict[str, Any] = {"surface": lease.surface, "target": lease.identity}
    if lease.kind is MintKind.OPERATOR_SUPPLIED and not target.handed_over:
        say("revoke.proved", Decision.DONE, reason="never-handed-over", **where)
        return SurfaceOutcome(surface=lease.surface, identity=lease.identity, state=LeaseState.DEAD, milliseconds=0.0)
    say("revoke.surface", Decision.ALLOWED, **where)
    began = ctx.clock.monotonic()
    failure: HandoffError | None = None
    proof: Proof | None = None
    try:
        surface = ctx.surfaces[lease.surface]
        surface.revoke(lease, target.secrets)
        proof = surface.prove_dead(lease, target.secrets)
    except HandoffError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - a defect in one surface must not keep the others' credentials alive
        failure = HandoffError(f"revoking on {lease.surface} failed with {type(error).__name__}")
    took = (ctx.clock.monotonic() - began) * 1000
    if proof is None and lease.expires_at is not None and ctx.clock.now() >= lease.expires_at + SWEEP_LATE:
        proof = Proof(
            surface=lease.surface,
            identity=lease.identity,
            how=f"its own expiry passed {iso(lease.expires_at)}",
            at=ctx.clock.now(),
        )
    if proof is None:
        say("revoke.failed", Decision.FAILED, reason=failure.code if failure else "", **where)
        return _alive(lease, str(failure), took)
    say("revoke.proved", Decision.DONE, reason=proof.how, detail={"ms": round(took, 1)}, **where)
    return SurfaceOutcome(
        surface=lease.surface, identity=lease.identity, state=LeaseState.DEAD, milliseconds=took, proof=proof
    )


def _alive(lease: Lease, why: str, took: float) -> SurfaceOutcome:
    by_person = lease.kind is MintKind.OPERATOR_SUPPLIED
    state = LeaseState.AWAITING_OPERATOR if by_person else LeaseState.IRREVOCABLE
    path = REVOCATION_PATHS[lease.surface].format(identity=lease.identity)
    residue = Residue(
        surface=lease.surface,
        identity=lease.identity,
        state=state,
        why=why,
        live_until=lease.expires_at,
        next_step=f"{path}; then run `handoff revoke` again" if by_person else f"run `handoff revoke` again, or {path}",
    )
    return SurfaceOutcome(
        surface=lease.surface, identity=lease.identity, state=state, milliseconds=took, residue=residue
    )


def _delete_path(ctx: HandoffContext, handoff: HandoffId, targets: Sequence[Target]) -> bool:
    """Delete the folder, and the operator's own copy of what has just been seen dead."""
    for target in targets:
        if target.lease.kind is MintKind.OPERATOR_SUPPLIED and target.handed_over:
            for name, value in target.secrets.items():
                left = ctx.supplied(handoff.slug, name)
                if left is not None and left.get_secret_value() == value.get_secret_value():
                    ctx.vault.delete_secret(ctx.layout.supplied_for(handoff.slug), name)
    return ctx.vault.delete_folder(ctx.path_of(handoff))
