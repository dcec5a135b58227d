"""`handoff audit show|verify`: who did what under which handoff, and whether the trail is whole (H5)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from agent_token_injector.cli.common import json_option, open_context, parse_handoff
from agent_token_injector.cli.terminal import emit, paper, say, write
from agent_token_injector.errors import ExitCode

if TYPE_CHECKING:
    from agent_token_injector.audit import ChainHead, Verification
    from agent_token_injector.context import HandoffContext
    from agent_token_injector.names import HandoffId


@click.group("audit")
def command() -> None:
    """Show or verify the audit trail of a handoff."""


@command.command("show")
@click.argument("handoff_id")
@json_option
def show(handoff_id: str, as_json: bool) -> None:
    """Print every event of HANDOFF_ID, oldest first. No event holds a secret."""
    with open_context() as ctx:
        events = list(ctx.audit.events(_parse(handoff_id)))
    if as_json:
        emit([event.to_dict() for event in events])
        return
    from rich.markup import escape

    console = paper()
    for event in events:
        style = {"refused": "bold red", "failed": "bold red", "done": "green"}.get(event.decision, "cyan")
        what = " ".join(part for part in (event.surface, event.target) if part)
        reason = f" ({event.reason})" if event.reason else ""
        console.print(
            f"{event.seq:>4} {event.at} [{style}]{event.decision:<7}[/] {event.action:<20} {escape(what + reason)}"
        )
    if not events:
        say(f"there is no event of {handoff_id}")


@command.command("verify")
@click.argument("handoff_ids", nargs=-1)
@json_option
def verify(handoff_ids: tuple[str, ...], as_json: bool) -> int:
    """Check that no event of the HANDOFF_IDS (default: all) was altered, removed, reordered or cut off.

    Where the handoff's manifest is still in the vault, its signed head shows a trail that was cut short. Exit 7 when a
    trail is not whole, or when there is none of a HANDOFF_ID that was asked for.
    """
    with open_context() as ctx:
        ids = handoff_ids or ctx.audit.handoffs()
        results = {name: _verify(name, ctx) for name in ids}
    if as_json:
        emit({name: dataclasses.asdict(result) for name, result in results.items()})
    else:
        for name, result in results.items():
            if result.ok:
                write(f"{name}: whole, {result.events} events")
            else:
                write(f"{name}: NOT whole at event {result.at_seq}: {result.problem}")
    return ExitCode.OK if all(result.ok for result in results.values()) else ExitCode.AUDIT_UNAVAILABLE


def _parse(text: str) -> HandoffId:
    return parse_handoff(text, "there is no such trail")


def _verify(name: str, ctx: HandoffContext) -> Verification:
    from agent_token_injector.errors import ManifestError

    handoff = _parse(name)
    try:
        checkpoints = _checkpoints(handoff, ctx)
    except ManifestError as error:
        # The head that the provisioner signed is not to be had, and without it a trail that was cut would pass for whole.
        result = ctx.audit.verify(handoff)
        problem = result.problem or f"its manifest cannot vouch for its length: {error}"
        return dataclasses.replace(result, ok=False, problem=problem, at_seq=result.at_seq or result.events)
    result = ctx.audit.verify(handoff, checkpoints=checkpoints)
    if result.ok and not result.events:
        # Whoever asks for a trail by its name expects one: a file that was deleted must not pass for whole.
        return dataclasses.replace(result, ok=False, problem="there is no trail", at_seq=0)
    return result


def _checkpoints(handoff: HandoffId, ctx: HandoffContext) -> list[ChainHead]:
    """The head that the provisioner signed; none when the manifest is gone. Raises ManifestError when it was altered."""
    from agent_token_injector.audit import ChainHead
    from agent_token_injector.manifest import PROVISION_MANIFEST, ProvisionManifest, read_record

    manifest = read_record(ctx.read_folder(handoff) or {}, PROVISION_MANIFEST, ProvisionManifest)
    if manifest is None:
        return []
    manifest.verify(handoff, ctx.trusted)
    return [ChainHead(seq=manifest.audit_head.seq, digest=manifest.audit_head.digest)]
