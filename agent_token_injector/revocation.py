"""The kill-switch: `revoke(handoff_id, ctx)` ends every credential of a handoff and proves each one dead (H8, D10).

In this order, and waiting for nothing that is not part of it:

1. the mark: from here on nothing of this handoff starts, on any host;
2. every credential at once, each on its own surface with its own deadline: revoke, then see it dead;
3. the vault path, last, and only when nothing is left that it is needed for.

Absent is success, so revoking twice, or from two hosts at once, is safe. Handoffs of one id follow one another on a day:
what is marked and deleted is the one that was read, and never its successor. Audit holds nothing up: events that cannot
be written are spooled and the receipt says so. What was not seen dead is residue, listed with what ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.clock import SWEEP_LATE, iso
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import (
    AlreadyExists,
    AuditUnavailable,
    HandoffError,
    SecretNotFound,
    VaultError,
)
from agent_token_injector.lease import Lease, LeaseState, MintKind, Proof, Residue
from agent_token_injector.leftovers import VAULT, SurfaceOutcome, Target, find_targets, guard_of, left, read_path
from agent_token_injector.manifest import PROVISION_MANIFEST, REVOCATION_MARK, AuditHead, RevocationMark
from agent_token_injector.names import HandoffId
from agent_token_injector.policy import REVOCATION_PATHS
from agent_token_injector.vaults.base import Guard

SURFACE_DEADLINE: Final = timedelta(seconds=30)
ATTEMPTS: Final = 5
"""How often a handoff is read again when it was replaced between the reading and the mark."""
Progress = Callable[[SurfaceOutcome], None]
Folder = Mapping[str, SecretStr]


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


def revoke(
    handoff_id: str, ctx: HandoffContext, *, reason: str = "asked for", progress: Progress | None = None
) -> RevocationReceipt:
    """End every credential of a handoff, prove each dead, then delete its vault path.

    Returns a receipt whose `residue` is exactly what was not seen dead. Raises ValueError for what is no handoff id and
    VaultUnreachable when the vault cannot be asked what there is to revoke; a vendor's failure is residue, not an error.
    """
    handoff = HandoffId.parse(handoff_id)
    for _ in range(ATTEMPTS):
        receipt = _attempt(handoff, ctx, reason, progress)
        if receipt is not None:
            return receipt
    raise HandoffError(
        f"{handoff} was not revoked", cause="it was replaced each time it was looked at", hint="stop what provisions it"
    )


def clear(handoff: HandoffId, ctx: HandoffContext, found: Folder, *, reason: str) -> RevocationReceipt | None:
    """Revoke exactly the handoff whose folder was read as `found`; None, and nothing is touched, when it is another's."""
    return _attempt(handoff, ctx, reason, None, only=found)


def _attempt(
    handoff: HandoffId, ctx: HandoffContext, reason: str, progress: Progress | None, *, only: Folder | None = None
) -> RevocationReceipt | None:
    """Revoke what is there; None when it was replaced before it was marked, so that nothing was done yet."""
    say = _Auditor(ctx, handoff)
    say("revoke.requested", Decision.ALLOWED, reason=reason)
    notes: list[str] = []
    folder = read_path(ctx, handoff, notes)
    guard = None if folder is None else guard_of(folder)
    if only is not None and (folder is None or guard != guard_of(only)):
        return None
    state = _state(folder)
    if folder is not None:
        try:
            if not mark(ctx, handoff, reason, guard):
                return None
        except VaultError as error:
            notes.append(f"{error}: the handoff could not be marked, and its credentials are ended all the same")
        # Again, behind the mark: what a provisioner writes from now on it will end itself, what it wrote before is here.
        # Where another revocation has finished meanwhile, what was read before is still seen dead.
        again = read_path(ctx, handoff, notes)
        folder = again if again is not None and guard_of(again) == guard else folder
    targets, unknown = find_targets(ctx, handoff, folder, notes)
    targets = _own(ctx, handoff, folder, targets, notes)
    outcomes = (*end_all(ctx, handoff, targets, progress=progress), *unknown)
    deleted = False
    if all(outcome.residue is None for outcome in outcomes):
        try:
            deleted = _delete_path(ctx, handoff, targets, guard)
        except VaultError as error:
            outcomes = (*outcomes, left(VAULT, str(ctx.path_of(handoff)), f"it could not be deleted: {error}", None))
    say(
        "revoke.finished",
        Decision.DONE if all(outcome.residue is None for outcome in outcomes) else Decision.FAILED,
        detail={"residue": [outcome.surface for outcome in outcomes if outcome.residue is not None]},
    )
    return RevocationReceipt(
        handoff_id=str(handoff),
        found=state,
        revoked_at=ctx.clock.now(),
        outcomes=outcomes,
        path_deleted=deleted,
        notes=tuple(dict.fromkeys(notes)),
        audit_degraded=ctx.audit.degraded,
        audit_head=_head(ctx, handoff),
    )


def _state(folder: Folder | None) -> Literal["nothing", "debris", "provisioned", "revoking"]:
    if folder is None:
        return "nothing"
    if REVOCATION_MARK in folder:
        return "revoking"
    return "provisioned" if PROVISION_MANIFEST in folder else "debris"


def _own(
    ctx: HandoffContext,
    handoff: HandoffId,
    folder: Folder | None,
    targets: list[Target],
    notes: list[str],
) -> list[Target]:
    """The targets without those that may be a successor's: names are the same all day long.

    A successor mints nothing before its intent, and writes that only when the folder that was read is gone. So while
    that folder is still there, whatever was found by name is not a successor's.
    """
    if not any(target.searched for target in targets):
        return targets
    now = read_path(ctx, handoff, notes)
    if now is None or (folder is not None and guard_of(now) == guard_of(folder)):
        return targets  # Without a folder nothing has begun since.
    notes.append("it is being provisioned anew meanwhile; that one was not touched")
    return [target for target in targets if not target.searched]


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


def mark(ctx: HandoffContext, handoff: HandoffId, reason: str, guard: Guard | None) -> bool:
    """Write the mark: from here on nothing of the handoff starts. False when the folder is gone or another's.

    Raises VaultError when it could not be written.
    """
    record = RevocationMark(handoff_id=str(handoff), marked_at=ctx.clock.now(), by=ctx.actor, reason=reason)
    try:
        ctx.vault.create_secret(ctx.path_of(handoff), REVOCATION_MARK, record.to_secret(), only_if=guard)
    except AlreadyExists:
        return True  # Another revocation was here first.
    except SecretNotFound:
        return False
    return True


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
        return SurfaceOutcome(
            surface=lease.surface, identity=lease.identity, state=LeaseState.NEVER_HANDED_OVER, milliseconds=0.0
        )
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


def _delete_path(ctx: HandoffContext, handoff: HandoffId, targets: Sequence[Target], guard: Guard | None) -> bool:
    """Delete the folder that was read, and the operator's own copy of what has just been seen dead."""
    for target in targets:
        if target.lease.kind is MintKind.OPERATOR_SUPPLIED and target.handed_over:
            for name, value in target.secrets.items():
                kept = ctx.supplied(handoff.slug, name)
                if kept is not None and kept.get_secret_value() == value.get_secret_value():
                    ctx.vault.delete_secret(ctx.layout.supplied_for(handoff.slug), name)
    return ctx.vault.delete_folder(ctx.path_of(handoff), only_if=guard)
