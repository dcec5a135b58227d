"""`handoff exec`: provision, run a job, revoke when it ends, whatever the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_token_injector.cli.common import (
    SPEC,
    AgentCommand,
    approvals_option,
    json_option,
    load_approvals,
    load_spec,
    open_context,
    read_supplies,
    supply_option,
)
from agent_token_injector.cli.provision_ import reporter
from agent_token_injector.cli.spawn_ import finish, make_launcher

if TYPE_CHECKING:
    from agent_token_injector.context import HandoffContext
    from agent_token_injector.manifest import ProvisionManifest
    from agent_token_injector.spec import HandoffSpec


@click.command("exec", cls=AgentCommand)
@click.argument("spec", type=SPEC)
@click.option("--cwd", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Where the job starts.")
@click.option("--keep", is_flag=True, help="Do not revoke when the job ends; the handoff lives until it expires.")
@approvals_option
@supply_option
@json_option
def command(
    spec: Path,
    argv: tuple[str, ...],
    cwd: Path | None,
    keep: bool,
    approvals_file: Path | None,
    supplies: tuple[str, ...],
    as_json: bool,
) -> int:
    """Provision SPEC, run COMMAND with it, and revoke it when COMMAND ends: the wrapper for a scheduled job.

    Exits with the job's own code, or 128 and the signal that ended it; 5 when the job succeeded and something of the
    handoff is still alive. Every run has a handoff of its own: one that is provisioned already is left alone. With
    --json the job's output goes to stderr.
    """
    from agent_token_injector.cli.interruption import AgentSignals
    from agent_token_injector.cli.revoke_ import revoke_aloud
    from agent_token_injector.spawn import spawn_handoff

    loaded, approvals = load_spec(spec), load_approvals(spec, approvals_file)
    given = read_supplies(supplies)
    manifest: ProvisionManifest | None = None
    with open_context() as ctx, AgentSignals() as signals:
        try:
            manifest = _provision(loaded, ctx, approvals=approvals, supplied=given)
            launcher = signals.launching(make_launcher(argv, cwd, as_json=as_json))
            with spawn_handoff(
                manifest.handoff_id, launcher, ctx=ctx, revoke_on_exit=not keep, worktree=cwd or Path.cwd()
            ) as handoff:
                signals.wait(handoff)
            receipt = handoff.stop()
        except BaseException:
            # A signal included: what was provisioned for this job is not left alive.
            if manifest is not None and not keep:
                revoke_aloud(manifest.handoff_id, ctx, "the job could not be started")
            raise
    return finish(receipt, as_json=as_json)


def _provision(spec: HandoffSpec, ctx: HandoffContext, **given: Any) -> ProvisionManifest:
    """A handoff made now and by us. Raises SpawnRefused for one that was there: another run may be using it."""
    from agent_token_injector.errors import SpawnRefused
    from agent_token_injector.provisioning import provision

    report, ours = reporter(), False

    def watch(step: str, surface: str, detail: Mapping[str, Any]) -> None:
        nonlocal ours
        ours = ours or step == "committed"
        report(step, surface, detail)

    manifest = provision(spec, ctx, progress=watch, **given)
    if not ours:
        raise SpawnRefused(
            f"{manifest.handoff_id} is provisioned already",
            cause="another run may be using it, and every run has a handoff of its own",
            hint=f"`handoff spawn {manifest.handoff_id} -- COMMAND` runs in it, `handoff revoke {manifest.handoff_id}` ends it",
        )
    return manifest
