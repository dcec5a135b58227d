"""What must be so before anything is minted: the gate, the surfaces, the operator's credentials, and nobody before us.

Nothing here mints, and nothing is written but the audit, except that what an earlier provisioning of the same id left
dead is cleared away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from pydantic import SecretStr

from agent_token_injector.approval import Approval
from agent_token_injector.audit import Decision
from agent_token_injector.clock import iso
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ManifestExpired, ProvisionFailed, SpawnRefused, SpecError
from agent_token_injector.gate import GateReport, check
from agent_token_injector.lease import MintKind
from agent_token_injector.manifest import (
    PROVISION_INTENT,
    PROVISION_MANIFEST,
    ManifestState,
    ProvisionIntent,
    ProvisionManifest,
    read_record,
    state_of,
)
from agent_token_injector.names import HandoffId, IdentityName
from agent_token_injector.processes import ProcessId
from agent_token_injector.revocation import ATTEMPTS, clear
from agent_token_injector.spec import MAX_SPEC_BYTES, HandoffSpec
from agent_token_injector.surfaces.base import Surface

_MANIFEST_ROOM: Final = 48 * 1024
"""Bytes of a manifest beside the spec in it: leases, secrets' digests, approvals."""


def pass_gate(spec: HandoffSpec, ctx: HandoffContext, approvals: Sequence[Approval], now: datetime) -> GateReport:
    """Return the report of an open gate. Raises GateRefused, audited; nothing else has happened."""
    report = check(spec, ctx.policy, now, approvals=approvals, layout=ctx.layout)
    ctx.audit.record(
        spec.handoff_id(now),
        "gate.checked",
        decision=Decision.ALLOWED if report.ok else Decision.REFUSED,
        reason=report.refusals[0].code if report.refusals else "",
        detail={"spec": report.spec_digest, "policy": report.policy_digest, "codes": [f.code for f in report.findings]},
    )
    report.raise_if_refused()
    return report


def check_size(spec: HandoffSpec) -> None:
    """Refuse a spec that, with its defaults written out, makes a manifest which nobody would read back."""
    if len(json.dumps(spec.to_dict())) > MAX_SPEC_BYTES - _MANIFEST_ROOM:
        raise SpecError(
            "the spec is too large to be provisioned",
            cause=f"written out in full it has more than {(MAX_SPEC_BYTES - _MANIFEST_ROOM) // 1024} KiB",
            hint="grant fewer tools, or shorten their argument schemas; nothing was minted",
        )


def check_commands(spec: HandoffSpec) -> None:
    """Refuse a spec whose MCP servers this host cannot start, before a credential is minted for nothing."""
    if not spec.mcp_tools:
        return
    from agent_token_injector.mcp_proxy.servers import resolve_command

    for name, server in spec.mcp_servers.items():
        if not server.command:
            continue
        try:
            resolve_command(server.command[0])
        except SpawnRefused as error:
            raise ProvisionFailed(
                f"MCP server {name!r} cannot be started on this host, so its tools cannot be pinned",
                cause=str(error),
                hint="install it here, or write its full path in the spec; nothing was minted",
            ) from None


def resolve(spec: HandoffSpec, ctx: HandoffContext) -> dict[str, Surface]:
    """The surfaces, all of them usable, before anything is written."""
    missing = [name for name in spec.surfaces.requested() if name not in ctx.surfaces]
    if missing:
        raise ProvisionFailed(
            f"{missing[0]} cannot be provisioned",
            surface=missing[0],
            cause=f"this version provisions {', '.join(ctx.surfaces)}",
            hint="leave the surface out of the spec; nothing was minted",
        )
    return {name: ctx.surfaces[name] for name in spec.surfaces.requested()}


def supplied(
    spec: HandoffSpec,
    ctx: HandoffContext,
    surfaces: Mapping[str, Surface],
    given: Mapping[str, SecretStr],
    handoff: HandoffId,
) -> dict[str, SecretStr]:
    """The operator's credentials, all of them there, before anything is minted."""
    strangers = sorted(set(given) - {n for n, s in surfaces.items() if s.facts.kind is MintKind.OPERATOR_SUPPLIED})
    if strangers:
        raise ProvisionFailed(
            f"a credential was supplied for {strangers[0]}, which takes none",
            surface=strangers[0],
            hint="supply only what the spec asks for and no API can mint; nothing was minted",
        )
    found: dict[str, SecretStr] = {}
    for name, surface in surfaces.items():
        if surface.facts.kind is not MintKind.OPERATOR_SUPPLIED:
            continue
        secret_name = next(iter(surface.facts.secrets))
        value = given.get(name) or ctx.supplied(spec.slug, secret_name)
        if value is None:
            raise ProvisionFailed(
                f"{name} needs a credential that only an operator can make",
                surface=name,
                cause=f"none was supplied for {handoff}",
                hint=surface.supply_hint(
                    IdentityName(surface.facts.identity_prefix, handoff), getattr(spec.surfaces, name)
                ),
            )
        found[name] = value
    return found


def existing(spec: HandoffSpec, ctx: HandoffContext, handoff: HandoffId) -> ProvisionManifest | None:
    """The manifest already there for this very spec; None when the way is free. Clears debris of a dead provisioner."""
    for _ in range(ATTEMPTS):
        folder = ctx.read_folder(handoff)
        if folder is None:
            return None
        manifest = _usable(spec, ctx, handoff, folder)
        if manifest is not None:
            return manifest
        if state_of(folder) is ManifestState.PROVISIONING and PROVISION_INTENT not in folder:
            return None  # An empty folder: whoever made it was killed before the intent, so nothing was asked for.
        _refuse_if_held(ctx, handoff, folder)
        receipt = clear(handoff, ctx, folder, reason="what an earlier provisioning of this day left")
        if receipt is not None and not receipt.ok:
            raise ProvisionFailed(
                f"what an earlier provisioning of {handoff} left could not be cleared",
                residue=receipt.residue,
                hint=f"`handoff revoke {handoff}` until it succeeds; nothing new was minted",
            )
        # Another process may have cleared it and begun anew in the meantime: look again.
    raise ProvisionFailed(f"{handoff} is provisioned and revoked over and over by others", hint="stop one of them")


def _usable(
    spec: HandoffSpec, ctx: HandoffContext, handoff: HandoffId, folder: Mapping[str, SecretStr]
) -> ProvisionManifest | None:
    """The manifest of a handoff that lives, when it is of this spec; None when there is none or its time is over."""
    if state_of(folder) is not ManifestState.PROVISIONED:
        return None
    manifest = ProvisionManifest.from_secret(folder[PROVISION_MANIFEST])
    manifest.verify(handoff, ctx.trusted)
    try:
        manifest.check_time(ctx.clock.now())
    except ManifestExpired:
        return None
    if manifest.spec_digest != spec.digest:
        raise ProvisionFailed(
            f"{handoff} is already provisioned from another spec",
            cause=f"there it is {manifest.spec_digest[:19]}, here {spec.digest[:19]}",
            hint=f"`handoff revoke {handoff}` first; nothing was minted",
        )
    return manifest


def _refuse_if_held(ctx: HandoffContext, handoff: HandoffId, folder: Mapping[str, SecretStr]) -> None:
    """Return when nobody is provisioning this; raise ProvisionFailed while someone is, or may be."""
    intent = read_record(folder, PROVISION_INTENT, ProvisionIntent)
    if intent is None or state_of(folder) is not ManifestState.PROVISIONING:
        return
    alive = ProcessId(boot=intent.holder.boot, pid=intent.holder.pid, started=intent.holder.started).is_alive()
    if alive is not False and ctx.clock.now() < intent.deadline:
        raise ProvisionFailed(
            f"{handoff} is being provisioned by another process",
            cause=f"pid {intent.holder.pid}, since {iso(intent.begun_at)}" if alive else "on another machine",
            hint=f"wait until {iso(intent.deadline)}, or `handoff revoke {handoff}`; nothing was minted",
        )
