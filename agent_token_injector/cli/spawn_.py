"""`handoff spawn`: start an agent with exactly its handoff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_token_injector.cli.common import AgentCommand, json_option, open_context, parse_handoff
from agent_token_injector.cli.terminal import emit, prose, say
from agent_token_injector.errors import ExitCode

if TYPE_CHECKING:
    from agent_token_injector.launchers.process import ProcessLauncher
    from agent_token_injector.spawn import SpawnReceipt


@click.command("spawn", cls=AgentCommand)
@click.argument("handoff_id")
@click.option("--cwd", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Where the agent starts.")
@click.option("--revoke-on-exit", is_flag=True, help="Revoke the handoff when the agent ends.")
@json_option
def command(handoff_id: str, argv: tuple[str, ...], cwd: Path | None, revoke_on_exit: bool, as_json: bool) -> int:
    """Start COMMAND as the agent of HANDOFF_ID, with its scoped credentials and MCP tools and nothing else.

    Nothing starts unless the manifest is there, signed, unexpired, and the vault holds exactly what was signed. Exits
    with the agent's own code, or 128 and the signal that ended it; 4 when the handoff's end ended it. SIGINT, SIGTERM
    and SIGHUP are passed on to the agent; a second one of a kind ends it. With --json the agent's output goes to stderr.
    """
    from agent_token_injector.cli.interruption import AgentSignals
    from agent_token_injector.spawn import spawn_handoff

    handoff_id = str(parse_handoff(handoff_id, "nothing was launched"))
    with open_context() as ctx, AgentSignals() as signals:
        launcher = signals.launching(make_launcher(argv, cwd, as_json=as_json))
        with spawn_handoff(
            handoff_id, launcher, ctx=ctx, revoke_on_exit=revoke_on_exit, worktree=cwd or Path.cwd()
        ) as handoff:
            signals.wait(handoff)
        receipt = handoff.stop()
    return finish(receipt, as_json=as_json)


def make_launcher(argv: tuple[str, ...], cwd: Path | None, *, as_json: bool) -> ProcessLauncher:
    """The agent with our own streams; its output makes way where stdout is for our JSON."""
    from agent_token_injector.launchers.process import ProcessLauncher

    return ProcessLauncher(list(argv), cwd=cwd, stdin=0, stdout=2 if as_json else None)


def finish(receipt: SpawnReceipt, *, as_json: bool) -> int:
    """Tell how a run ended, and give the exit code: the agent's own, else what went wrong."""
    from agent_token_injector.cli.revoke_ import print_receipt
    from agent_token_injector.spawn import describe_end

    if as_json:
        emit(receipt.to_dict())
    say(describe_end(receipt))
    for problem in receipt.problems:
        say(f"  {problem}")
    residue = receipt.revocation.residue if receipt.revocation is not None else ()
    if receipt.revocation is not None:
        print_receipt(receipt.revocation, prose())
    code = receipt.agent.exit_code if receipt.agent is not None else None
    if receipt.reason in {"expired", "revoked", "vault-unreachable", "mcp-proxy-failed"} or code is None:
        return ExitCode.RESIDUE if residue else ExitCode.FAILED_CLEAN
    if code == 0 and residue:
        return ExitCode.RESIDUE
    # A shell's convention for a process that a signal ended.
    return 128 - code if code < 0 else code
