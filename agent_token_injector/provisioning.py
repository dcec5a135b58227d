"""Step 0: `provision(spec, ctx)` mints every credential the spec asks for, or leaves none behind (H4, D2..D6).

The order is the promise:

1. the gate: a refusal costs nothing and touches nobody;
2. the intent: every identity's name is in the vault, create-only, before the first is minted; it is also the lock;
3. surface by surface: mint, store, read back and compare;
4. the MCP servers are asked what the granted tools are: a grant that cannot be honoured ends it here;
5. the signed manifest, create-only: the only commit point. Until it exists nothing may spawn.

Any failure, Ctrl-C included, undoes what was minted in reverse order. A process that is killed leaves the intent, by
which `revoke`, or the next `provision` on the same machine, finds and ends what there is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import SecretStr

from agent_token_injector import preflight
from agent_token_injector.approval import Approval
from agent_token_injector.audit import Decision
from agent_token_injector.clock import human_duration, iso
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import (
    AlreadyExists,
    HandoffError,
    MintAmbiguous,
    MintRefused,
    ProvisionFailed,
    SecretNotFound,
    SettingsError,
    VaultError,
)
from agent_token_injector.gate import GateReport
from agent_token_injector.lease import Lease, LeaseState, MintKind, Recovery, Residue, shortest
from agent_token_injector.leftovers import VAULT, Target, guard_of
from agent_token_injector.manifest import (
    PROVISION_INTENT,
    PROVISION_MANIFEST,
    REVOCATION_MARK,
    AuditHead,
    Holder,
    MintBegun,
    PinnedTool,
    ProvisionIntent,
    ProvisionManifest,
    SecretRecord,
)
from agent_token_injector.names import HandoffId, IdentityName, mint_begun
from agent_token_injector.processes import ProcessId
from agent_token_injector.revocation import end_all, mark
from agent_token_injector.spec import HandoffSpec
from agent_token_injector.surfaces.base import MintRequest, Surface
from agent_token_injector.vaults.base import Guard

Progress = Callable[[str, str, Mapping[str, Any]], None]
"""Called with a step (`minting`, `minted`, ...), the surface, and details without secrets."""


def _silent(_step: str, _surface: str, _detail: Mapping[str, Any]) -> None:
    return None


def provision(
    spec: HandoffSpec,
    ctx: HandoffContext,
    *,
    approvals: Sequence[Approval] = (),
    supplied: Mapping[str, SecretStr] | None = None,
    progress: Progress = _silent,
) -> ProvisionManifest:
    """Mint every credential the spec asks for, or leave none behind; return the signed manifest.

    - Intents are durable before any surface is called.
    - The signed manifest is the only commit point: until it exists nothing may spawn.
    - Each granted tool is pinned in it: the spec's MCP servers run for a moment, with what they were granted.
    - Provisioning the same spec twice on one day returns the manifest that is there; another spec under the same id is
      refused until the first is revoked.

    `supplied` gives an operator's credential by surface where no vendor API mints one; without it the vault's supplied
    path is read. Raises GateRefused before any effect; ProvisionFailed with `residue` naming whatever could not be
    revoked; VaultUnreachable; AuditUnavailable. Does not start the agent and never returns a secret.
    """
    now = ctx.clock.now()
    handoff = spec.handoff_id(now)
    report = preflight.pass_gate(spec, ctx, approvals, now)
    preflight.check_size(spec)
    surfaces = preflight.resolve(spec, ctx)
    offered = preflight.supplied(spec, ctx, surfaces, supplied or {}, handoff)
    existing = preflight.existing(spec, ctx, handoff)
    if existing is not None:
        return existing
    preflight.check_commands(spec)
    if ctx.signer is None:
        raise SettingsError("this host has no provisioner's key", hint="provision where the signing key is")
    return _Run(ctx, spec, handoff, report, surfaces, offered, progress).go()


@dataclass
class _Run:
    """One provisioning, from the intent to the commit or the undo."""

    ctx: HandoffContext
    spec: HandoffSpec
    handoff: HandoffId
    report: GateReport
    surfaces: Mapping[str, Surface]
    offered: Mapping[str, SecretStr] = field(repr=False)
    progress: Progress
    targets: list[Target] = field(default_factory=list, repr=False)
    residue: list[Residue] = field(default_factory=list)
    records: list[SecretRecord] = field(default_factory=list)
    secrets: dict[str, SecretStr] = field(default_factory=dict, repr=False)
    """By the variable under which the agent will get them."""
    at: str = ""
    guard: Guard | None = None
    """Our own intent: what we write and delete, we do only where it still stands."""
    handed_over: bool = False
    """Whether an agent may have been given what was minted."""
    asked_for: bool = False
    """Whether the request that creates the present surface's credential may have left."""

    def go(self) -> ProvisionManifest:
        begun = self.ctx.clock.now()
        self._audit("provision.started", Decision.ALLOWED, detail={"surfaces": list(self.surfaces)})
        self._write_intent(begun)
        try:
            leases = tuple(self._one(name, surface, begun) for name, surface in self.surfaces.items())
            return self._commit(leases, self._pin_tools(begun), begun)
        except BaseException as error:
            self._undo(error)
            raise

    def _write_intent(self, begun: datetime) -> None:
        identities = {name: str(self._identity(surface)) for name, surface in self.surfaces.items()}
        me = ProcessId.current()
        intent = ProvisionIntent(
            handoff_id=str(self.handoff),
            spec_digest=self.spec.digest,
            identities=identities,
            begun_at=begun,
            deadline=begun + self.ctx.provision_deadline,
            holder=Holder(boot=me.boot, pid=me.pid, started=me.started),
        )
        self.guard = Guard(PROVISION_INTENT, intent.to_secret())
        path = self.ctx.path_of(self.handoff)
        with suppress(AlreadyExists):
            self.ctx.vault.create_folder(path)
        try:
            self.ctx.vault.create_secret(path, PROVISION_INTENT, intent.to_secret())
        except AlreadyExists:
            raise ProvisionFailed(
                f"{self.handoff} is being provisioned by another process",
                cause="it was there a moment earlier",
                hint="wait for it; nothing was minted here",
            ) from None
        except SecretNotFound:
            raise ProvisionFailed(
                f"{self.handoff} is being revoked",
                cause="its path was deleted just now",
                hint="try again; nothing was minted",
            ) from None

    def _write(self, name: str, value: SecretStr) -> None:
        """Write into our own folder, and into no other that has taken its place."""
        self.ctx.vault.create_secret(self.ctx.path_of(self.handoff), name, value, only_if=self.guard)

    def _identity(self, surface: Surface) -> IdentityName:
        return IdentityName(surface.facts.identity_prefix, self.handoff)

    def _one(self, name: str, surface: Surface, begun: datetime) -> Lease:
        """Mint, store, read back: one surface."""
        self.at, self.asked_for = name, False
        self._still_wanted(begun)
        identity = self._identity(surface)
        order = MintRequest(
            handoff=self.handoff,
            identity=identity,
            request=getattr(self.spec.surfaces, name),
            not_after=begun + self.spec.expires_in,
            supplied=self.offered.get(name),
            begin=lambda: self._begin(name, surface, identity),
        )
        self.progress("minting", name, {"identity": str(identity), "kind": surface.facts.kind.value})
        self._audit("mint.requested", Decision.ALLOWED, surface=name, target=str(identity))
        minted = surface.mint(order)
        self.targets.append(
            Target(minted.lease, minted.secrets, handed_over=minted.lease.kind is not MintKind.OPERATOR_SUPPLIED)
        )
        self.ctx.audit.add_secrets(minted.secrets.values())
        for secret_name, value in minted.secrets.items():
            self._write(secret_name, value)
            env = surface.facts.secrets[secret_name]
            self.records.append(SecretRecord.of(secret_name, value, env=env, surface=name))
            self.secrets[env] = value
        minted.recorded()
        self._audit("mint.done", Decision.DONE, surface=name, target=str(identity))
        lease = surface.verify(minted.lease, minted.secrets, order)
        self._audit(
            "verify.done",
            Decision.DONE,
            surface=name,
            target=str(identity),
            detail={"expires": lease.describe_lifetime()},
        )
        self.progress("minted", name, {"identity": str(identity), "lease": lease})
        return lease

    def _begin(self, name: str, surface: Surface, identity: IdentityName) -> None:
        if surface.facts.recovery is not Recovery.BY_NAME:
            self._record_begun(name, identity)
        self.asked_for = True

    def _record_begun(self, name: str, identity: IdentityName) -> None:
        begun = MintBegun(surface=name, identity=str(identity), at=self.ctx.clock.now())
        self._write(mint_begun(name), begun.to_secret())

    def _still_wanted(self, begun: datetime) -> None:
        """Stop early when someone is revoking this handoff, or when we have become debris ourselves."""
        folder = self.ctx.read_folder(self.handoff)
        if folder is None or REVOCATION_MARK in folder or guard_of(folder) != self.guard:
            raise ProvisionFailed(f"{self.handoff} is being revoked", hint="it was stopped on purpose")
        # A provisioner gives up sooner than its deadline, after which others may clear what it does.
        if self.ctx.clock.now() > begun + self.ctx.provision_deadline * 0.8:
            raise ProvisionFailed(
                f"{self.handoff} took too long to provision",
                cause=f"more than {human_duration(self.ctx.provision_deadline * 0.8)}",
                hint="try again",
            )

    def _pin_tools(self, begun: datetime) -> tuple[PinnedTool, ...]:
        """Ask the MCP servers what the granted tools are. Raises SpawnRefused when a grant cannot be honoured."""
        self.at = ""
        if not self.spec.mcp_tools:
            return ()
        from agent_token_injector.mcp_proxy.pinning import MCP, SERVERS_SECONDS, details, pin_tools

        self._still_wanted(begun)
        left = begun + self.ctx.provision_deadline * 0.8 - self.ctx.clock.now()
        self.progress("listing", MCP, {"servers": sorted(self.spec.mcp_servers)})
        seconds = min(SERVERS_SECONDS, left.total_seconds())
        pins = pin_tools(self.spec, self.ctx, self.handoff, self.secrets, seconds=seconds)
        for detail in details(pins):
            self._audit("provision.tools", Decision.DONE, surface=MCP, detail=detail)
        self.progress("listed", MCP, {"tools": [f"{pin.server}/{pin.tool}" for pin in pins]})
        return tuple(PinnedTool(**pin.to_plain()) for pin in pins)

    def _commit(self, leases: tuple[Lease, ...], tools: tuple[PinnedTool, ...], begun: datetime) -> ProvisionManifest:
        assert self.ctx.signer is not None  # noqa: S101 - provision() has checked it
        key = self.ctx.signer()
        requested = begun + self.spec.expires_in
        expires_at, limited_by = shortest(leases, requested, self._asked_ends(begun))
        if expires_at <= self.ctx.clock.now() + timedelta(minutes=1):
            raise ProvisionFailed(
                f"{self.handoff} would end at once",
                surface=limited_by,
                cause=f"its {limited_by} credential lives until {iso(expires_at)}",
            )
        self._still_wanted(begun)
        self._audit(
            "provision.committed", Decision.ALLOWED, detail={"expires": iso(expires_at), "limited_by": limited_by or ""}
        )
        head = self.ctx.audit.head(self.handoff)
        manifest = ProvisionManifest(
            handoff_id=str(self.handoff),
            task_slug=self.spec.task_slug,
            spec=self.spec.to_dict(),
            spec_digest=self.spec.digest,
            policy_digest=self.report.policy_digest,
            provisioned_at=begun,
            expires_at=expires_at,
            requested_until=requested,
            limited_by=limited_by,
            leases=leases,
            secrets=tuple(self.records),
            approvals=self.report.approvals,
            tools=tools,
            audit_head=AuditHead(seq=head.seq, digest=head.digest),
            key_id=key.key_id,
        ).sign(key)
        manifest.check_tools()
        # From the moment it may be readable, some host may have handed everything to an agent.
        self.handed_over = True
        try:
            self._write(PROVISION_MANIFEST, manifest.to_secret())
        except (AlreadyExists, SecretNotFound):
            self.handed_over = False
            raise
        # A revocation that began meanwhile has seen no manifest; it is we who must end what it could not know of.
        self._still_wanted(begun)
        self.progress("committed", "", {"manifest": manifest})
        return manifest

    def _asked_ends(self, begun: datetime) -> dict[str, datetime]:
        """The ends that the spec asks for surface by surface; a vendor's own may be later, the handoff's is not."""
        asked = {
            name: getattr(request, "duration", None) or getattr(request, "expires_in", None)
            for name, request in self.spec.surfaces.requested().items()
        }
        return {name: begun + span for name, span in asked.items() if span is not None}

    def _undo(self, error: BaseException) -> None:
        """End what was minted, in reverse order, and raise what happened with exactly what is left."""
        if self.at and not isinstance(error, MintRefused) and self.at not in {t.lease.surface for t in self.targets}:
            self._reconcile(error)
        with suppress(VaultError):
            # A manifest that is committed already must not be dispatched while it is taken apart, nor afterwards.
            mark(self.ctx, self.handoff, "its provisioning failed", self.guard)
        with suppress(Exception, KeyboardInterrupt):  # Whoever watches must not keep a credential alive.
            self.progress("undoing", self.at, {})
        if self.handed_over:
            self.targets = [dataclasses.replace(target, handed_over=True) for target in self.targets]
        for target in reversed(self.targets):
            for outcome in end_all(self.ctx, self.handoff, [target]):
                if outcome.residue is not None:
                    self.residue.append(outcome.residue)
        if not self.residue:
            try:
                self.ctx.vault.delete_folder(self.ctx.path_of(self.handoff), only_if=self.guard)
            except VaultError as failure:
                self.residue.append(self._left_path(str(failure)))
        self.ctx.audit.record_or_spool(
            self.handoff,
            "provision.failed",
            decision=Decision.FAILED,
            surface=self.at,
            reason=error.code if isinstance(error, HandoffError) else type(error).__name__,
            detail={"residue": [item.surface for item in self.residue]},
        )
        if isinstance(error, HandoffError):
            raise ProvisionFailed(
                f"provisioning {self.handoff} failed" + (f" at {self.at}" if self.at else ""),
                surface=self.at or None,
                residue=self.residue,
                cause=str(error),
                hint=error.hint if not self.residue else f"`handoff revoke {self.handoff}` until nothing is left",
            ) from error
        if self.residue:
            raise ProvisionFailed(
                f"provisioning {self.handoff} was interrupted",
                surface=self.at or None,
                residue=self.residue,
                hint=f"`handoff revoke {self.handoff}` until nothing is left",
            ) from error

    def _reconcile(self, error: BaseException) -> None:
        """A mint whose outcome is not known is looked up by name, never asked for again (D3)."""
        surface = self.surfaces[self.at]
        identity = self._identity(surface)
        if not self.asked_for:
            return
        began = self.ctx.clock.now() - self.ctx.provision_deadline
        bound = error.live_until if isinstance(error, MintAmbiguous) else None
        try:
            search = surface.find(identity, began)
        except HandoffError as failure:
            self.residue.append(self._maybe_alive(surface, identity, str(failure), bound))
            return
        if self._is_ours():
            # Where another has taken our place, what bears the name is its own, and ours was ended before it began.
            self.targets.extend(Target(lease, {}) for lease in search.leases)
        if not search.certain:
            self.residue.append(self._maybe_alive(surface, identity, search.why, search.live_until or bound))

    def _is_ours(self) -> bool:
        try:
            folder = self.ctx.read_folder(self.handoff)
        except VaultError:
            return True
        return folder is None or guard_of(folder) == self.guard

    def _maybe_alive(self, surface: Surface, identity: IdentityName, why: str, until: datetime | None) -> Residue:
        return Residue(
            surface=surface.facts.surface,
            identity=str(identity),
            state=LeaseState.IRREVOCABLE,
            why=f"it may have been minted: {why}",
            live_until=until,
            next_step=f"run `handoff revoke {self.handoff}` again after that",
        )

    def _left_path(self, why: str) -> Residue:
        return Residue(
            surface=VAULT,
            identity=str(self.ctx.path_of(self.handoff)),
            state=LeaseState.IRREVOCABLE,
            why=f"the path could not be deleted: {why}",
            live_until=None,
            next_step=f"run `handoff revoke {self.handoff}` again",
        )

    def _audit(self, action: str, decision: Decision, **fields: Any) -> None:
        self.ctx.audit.record(self.handoff, action, decision=decision, **fields)
