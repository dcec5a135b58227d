"""`handoff revoke`: the kill-switch (H8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent_token_injector.cli.common import json_option, open_context, parse_handoff
from agent_token_injector.cli.terminal import emit, prose
from agent_token_injector.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from agent_token_injector.context import HandoffContext
    from agent_token_injector.leftovers import SurfaceOutcome
    from agent_token_injector.revocation import RevocationReceipt


@click.command("revoke")
@click.argument("handoff_id")
@click.option("--reason", default="asked for", show_default=True, help="For the audit.")
@json_option
def command(handoff_id: str, reason: str, as_json: bool) -> int:
    """End every credential of HANDOFF_ID, see each one dead, then delete its vault path.

    Safe to repeat. Exit 5 when something could not be ended: it is listed with what ends it.
    """
    handoff = parse_handoff(handoff_id, "nothing was revoked")
    with open_context() as ctx:
        receipt = revoke_aloud(str(handoff), ctx, reason)
    if as_json:
        emit(receipt.to_dict())
    return ExitCode.OK if receipt.ok else ExitCode.RESIDUE


def revoke_aloud(handoff_id: str, ctx: HandoffContext, reason: str) -> RevocationReceipt:
    """Revoke, and tell of each surface as soon as it is done."""
    from agent_token_injector.revocation import revoke

    console, told = prose(), []

    def tell(outcome: SurfaceOutcome) -> None:
        told.append(outcome)
        print_outcome(outcome, console)

    receipt = revoke(handoff_id, ctx, reason=reason, progress=tell)
    print_receipt(receipt, console, told=told)
    return receipt


def print_receipt(receipt: RevocationReceipt, console: Console, *, told: Sequence[SurfaceOutcome] = ()) -> None:
    """Every outcome that was not told yet, and what is left, in one line."""
    for outcome in receipt.outcomes:
        if outcome not in told:
            print_outcome(outcome, console)
    _print_end(receipt, console)


def print_outcome(outcome: SurfaceOutcome, console: Console) -> None:
    """One surface: how it was seen dead and how fast, or why it was not."""
    from rich.markup import escape

    if outcome.proof is not None:
        how = escape(outcome.proof.how)
        console.print(f"[green]✓[/] {outcome.surface}: dead in {outcome.milliseconds:.0f} ms: {how}")
    elif outcome.residue is None:
        console.print(f"[green]✓[/] {outcome.surface}: no agent was given it; it is still the operator's own")
    else:
        console.print(f"[bold red]✗[/] {escape(str(outcome.residue))}")


def _print_end(receipt: RevocationReceipt, console: Console) -> None:
    """What is left, in one line, and what could not be known."""
    from rich.markup import escape

    for note in receipt.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    if receipt.audit_degraded:
        console.print("[yellow]note[/] the audit could not be written; its events are kept until it can")
    if not receipt.ok:
        console.print(f"[bold red]{receipt.handoff_id}: residue remains on {len(receipt.residue)} surface(s)[/]")
    elif receipt.found == "nothing" and not receipt.outcomes:
        console.print(f"{receipt.handoff_id}: there is nothing to revoke")
    else:
        console.print(f"[bold green]{receipt.handoff_id}: gone, no residue[/]")
