"""`handoff show`: one handoff's manifest, checked."""

from __future__ import annotations

import click

from agent_token_injector.cli.common import json_option, open_context, parse_handoff
from agent_token_injector.cli.terminal import emit, paper


@click.command("show")
@click.argument("handoff_id")
@json_option
def command(handoff_id: str, as_json: bool) -> None:
    """Show what HANDOFF_ID was given, until when, and how each credential is revoked. No values.

    Exit 6 when there is no manifest, or it may not be dispatched.
    """
    from rich.markup import escape

    from agent_token_injector.clock import iso
    from agent_token_injector.session_context import admit

    handoff = parse_handoff(handoff_id, "there is nothing to show")
    with open_context() as ctx:
        manifest = admit(handoff, ctx).manifest
    if as_json:
        emit(manifest.to_dict())
        return
    console = paper()
    console.print(f"[bold]{manifest.handoff_id}[/]  signed by key {manifest.key_id}, secrets as signed")
    console.print(
        f"  ends {iso(manifest.expires_at)}" + (f" with its {manifest.limited_by}" if manifest.limited_by else "")
    )
    for lease in manifest.leases:
        console.print(f"[bold]{lease.surface}[/]  {lease.identity}  ({lease.kind}, {lease.describe_lifetime()})")
        for key, value in lease.scope.items():
            console.print(f"  {escape(key)}: {escape(str(value))}")
        console.print(f"  revoked: {escape(lease.kill_latency)}; by hand: {escape(lease.revoke_by_hand)}", style="dim")
    for record in manifest.secrets:
        console.print(f"  {record.name} -> {record.env}", style="dim")
    for tool in manifest.tools:
        # Escaped twice over: what a server calls its tool must neither move a cursor nor be read as markup.
        console.print(f"  tool {escape(ascii(f'{tool.server}/{tool.tool}')[1:-1])}  {tool.digest[:19]}", style="dim")
    for approval in manifest.approvals:
        console.print(f"  approved: {approval.surface} {approval.mode} by {escape(approval.operator)}")
