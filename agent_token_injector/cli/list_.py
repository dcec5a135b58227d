"""`handoff list`: every handoff in the vault."""

from __future__ import annotations

from typing import Any

import click

from agent_token_injector.cli.common import json_option, open_context
from agent_token_injector.cli.terminal import emit, say, write


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """List the handoffs in the vault: state, time left, surfaces."""
    with open_context() as ctx:
        rows = [_row(name, ctx) for name in ctx.vault.list_folders(ctx.layout.handoffs)]
    if as_json:
        emit(rows)
        return
    if not rows:
        say("there are no handoffs")
        return
    lines = [("handoff", "state", "left", "surfaces")]
    lines += [(row["handoff_id"], row["state"], row["left"], ", ".join(row["surfaces"])) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _row(name: str, ctx: Any) -> dict[str, Any]:
    from agent_token_injector.clock import human_duration, iso
    from agent_token_injector.errors import SignatureInvalid, VaultError, VaultUnreachable
    from agent_token_injector.manifest import PROVISION_MANIFEST, ProvisionManifest, read_record, state_of
    from agent_token_injector.names import HandoffId

    try:
        handoff = HandoffId.parse(name)
    except ValueError:
        return {"handoff_id": name, "state": "not ours", "left": "", "expires_at": None, "surfaces": []}
    try:
        folder = ctx.read_folder(handoff) or {}
        manifest = read_record(folder, PROVISION_MANIFEST, ProvisionManifest)
    except VaultUnreachable:
        raise
    except (SignatureInvalid, VaultError):
        # One folder that was tampered with hides no other one.
        return {"handoff_id": name, "state": "unreadable", "left": "", "expires_at": None, "surfaces": []}
    state = state_of(folder).value
    if manifest is None:
        return {"handoff_id": name, "state": state, "left": "", "expires_at": None, "surfaces": []}
    left = manifest.expires_at - ctx.clock.now()
    return {
        "handoff_id": name,
        "state": "expired" if left.total_seconds() <= 0 and state == "provisioned" else state,
        "left": human_duration(left),
        "expires_at": iso(manifest.expires_at),
        "surfaces": [lease.surface for lease in manifest.leases],
    }
