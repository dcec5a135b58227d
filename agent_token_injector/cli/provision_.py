"""`handoff provision`: step 0 (H4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_token_injector.cli.common import (
    SPEC,
    approvals_option,
    json_option,
    load_approvals,
    load_spec,
    open_context,
    read_supplies,
    supply_option,
)
from agent_token_injector.cli.terminal import emit, prose, say, write

if TYPE_CHECKING:
    from agent_token_injector.manifest import ProvisionManifest
    from agent_token_injector.provisioning import Progress


@click.command("provision")
@click.argument("spec", type=SPEC)
@approvals_option
@supply_option
@json_option
def command(spec: Path, approvals_file: Path | None, supplies: tuple[str, ...], as_json: bool) -> None:
    """Mint every credential that SPEC asks for, verify each, and sign the manifest; or leave none behind.

    The spec's MCP servers are started once, to pin what each granted tool is; what is another tool by the time the
    agent runs is withdrawn. Prints the handoff's id. No secret is printed, here or anywhere.
    """
    from agent_token_injector.provisioning import provision

    loaded, approvals = load_spec(spec), load_approvals(spec, approvals_file)
    given = read_supplies(supplies)
    with open_context() as ctx:
        manifest = provision(loaded, ctx, approvals=approvals, supplied=given, progress=reporter())
        show_result(manifest, ctx.clock.now(), as_json=as_json)


def show_result(manifest: ProvisionManifest, now: Any, *, as_json: bool) -> None:
    """The handoff's id (or its manifest) on stdout, and how long it lives in prose."""
    from agent_token_injector.lease import describe_limit

    if as_json:
        emit(manifest.to_dict())
    else:
        write(manifest.handoff_id)
    limit = describe_limit(manifest.expires_at, manifest.requested_until, manifest.limited_by, now)
    say(f"provisioned: {limit}")


def reporter() -> Progress:
    """Progress in prose, a line a step."""
    from rich.markup import escape

    console = prose()

    def report(step: str, surface: str, detail: Mapping[str, Any]) -> None:
        if step == "minting":
            console.print(f"[cyan]…[/] {surface}: {escape(str(detail['identity']))} ({detail['kind']})")
        elif step == "minted":
            lease = detail["lease"]
            console.print(f"[green]✓[/] {surface}: read back as asked, {lease.describe_lifetime()}")
        elif step == "listing":
            console.print(f"[cyan]…[/] {surface}: asking {escape(', '.join(detail['servers']))} what the tools are")
        elif step == "listed":
            count = len(detail["tools"])
            console.print(f"[green]✓[/] {surface}: {count} tool{'' if count == 1 else 's'} pinned")
        elif step == "undoing":
            console.print("[red]✗[/] undoing what was minted")

    return report
