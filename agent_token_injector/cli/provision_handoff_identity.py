"""`provision_handoff_identity`: the ADR's own command (ADR §6.3, §9), the same engine under its flags."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent_token_injector.cli import run
from agent_token_injector.cli.common import SPEC, json_option, open_context, supply_option
from agent_token_injector.cli.terminal import emit, hide_credentials, say
from agent_token_injector.errors import ExitCode, SpecError


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
    from agent_token_injector.cli.revoke_ import revoke_aloud
    from agent_token_injector.names import HandoffId, TaskSlug

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
        for name in ctx.vault.list_folders(ctx.layout.handoffs):
            try:
                ours = HandoffId.parse(name).slug == slug
            except ValueError:
                continue
            if ours:
                receipts.append(revoke_aloud(name, ctx, f"revoked by slug {slug}"))
    if as_json:
        emit([receipt.to_dict() for receipt in receipts])
    if not receipts:
        say(f"{slug}: there is nothing to revoke")
    return ExitCode.OK if all(receipt.ok for receipt in receipts) else ExitCode.RESIDUE


def main() -> None:
    """Run the command and exit with its code."""
    sys.exit(run(command, name="provision_handoff_identity"))
