"""`provision_handoff_identity`: the ADR's own command (ADR §6.3, §9), the same engine under its flags."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_token_injector.cli import run
from agent_token_injector.cli.common import SPEC, json_option, open_context, supply_option
from agent_token_injector.cli.terminal import emit, hide_credentials, prose, say
from agent_token_injector.errors import ExitCode, SpecError

if TYPE_CHECKING:
    from agent_token_injector.context import HandoffContext
    from agent_token_injector.names import HandoffId, TaskSlug


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--spec", type=SPEC, help="The handoff spec to provision.")
@click.option("--revoke", "do_revoke", is_flag=True, help="Revoke instead.")
@click.option("--slug", help="With --revoke: the task whose handoffs, of every day, are revoked.")
@supply_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    spec: Path | None,
    do_revoke: bool,
    slug: str | None,
    supplies: tuple[str, ...],
    as_json: bool,
) -> int:
    """Provision a handoff (--spec FILE), or revoke a task's handoffs (--revoke --slug SLUG)."""
    if do_revoke:
        if slug is None or spec is not None:
            raise click.UsageError("--revoke takes --slug, and no --spec")
        return _revoke(slug, as_json=as_json)
    if spec is None or slug is not None:
        raise click.UsageError("give --spec FILE, or --revoke --slug SLUG")
    from agent_token_injector.cli.provision_ import command as provision_command

    context.invoke(provision_command, spec=spec, approvals_file=None, supplies=supplies, as_json=as_json)
    return ExitCode.OK


def _revoke(text: str, *, as_json: bool) -> int:
    from agent_token_injector.cli.revoke_ import print_receipt
    from agent_token_injector.names import TaskSlug
    from agent_token_injector.revocation import revoke

    try:
        slug = TaskSlug(text)
    except ValueError as error:
        raise SpecError(
            "nothing was revoked",
            path="slug",
            cause=hide_credentials(str(error)),
            hint="the slug is the spec's task_slug; `handoff list` shows the ids, which begin with it",
        ) from None
    receipts = []
    with open_context() as ctx:
        for handoff in _handoffs_of(slug, ctx):
            receipt = revoke(str(handoff), ctx, reason=f"revoked by slug {slug}")
            if receipt.found != "nothing" or receipt.outcomes:
                print_receipt(receipt, prose())
                receipts.append(receipt)
    if as_json:
        emit([receipt.to_dict() for receipt in receipts])
    if not receipts:
        say(f"{slug}: there is nothing to revoke")
    return ExitCode.OK if all(receipt.ok for receipt in receipts) else ExitCode.RESIDUE


def _handoffs_of(slug: TaskSlug, ctx: HandoffContext) -> list[HandoffId]:
    """The task's handoffs that have a path, and those of today and yesterday: an identity may have outlived its path."""
    from agent_token_injector.names import HandoffId

    today = ctx.clock.now().date()
    found = {HandoffId(slug, today), HandoffId(slug, today - timedelta(days=1))}
    for name in ctx.vault.list_folders(ctx.layout.handoffs):
        with suppress(ValueError):  # What is not named as ours is not ours.
            found.add(HandoffId.parse(name))
    return sorted(handoff for handoff in found if handoff.slug == slug)


def main() -> None:
    """Run the command and exit with its code."""
    sys.exit(run(command, name="provision_handoff_identity"))
