"""The `handoff` command: one short file a subcommand, each loaded when it is called.

Conventions: data on stdout, prose and progress on stderr; `--json` on every command; no prompt without a terminal; exit
codes are errors.ExitCode. An error a user can cause is a message with a next step, never a traceback.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Final

import click

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "demo": "Show a whole handoff, on this machine, with emulated vendors.",
        "init": "Write a spec to start from.",
        "check": "Hold a spec against the provisioning gate.",
        "approve": "Sign that a spec may use a live or production surface.",
        "supply": "Store a credential that only a person can make.",
        "provision": "Mint every credential of a spec, or none.",
        "spawn": "Start an agent with exactly its handoff.",
        "proxy": "Serve a handoff's MCP tools, and start no agent.",
        "exec": "Provision, run a job, and revoke when it ends.",
        "list": "List the handoffs in the vault.",
        "show": "Show one handoff's manifest.",
        "revoke": "End every credential of a handoff and prove it.",
        "audit": "Show or verify the audit trail of a handoff.",
    }
)
"""Name -> one line of help, so that `handoff --help` loads no command."""


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}_").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `handoff demo`. Exit codes: 0 ok, 2 usage or bad spec, 3 gate refused, 4 failed and clean, "
    "5 residue remains, 6 manifest missing or invalid, 7 audit unavailable, 8 vault unreachable.",
)
@click.version_option(package_name="agent-token-injector", prog_name="handoff")
def group() -> None:
    """Give every unattended agent run its own minted, least-privilege, time-bound, revocable identity.

    A spec says what one task needs. The gate checks it, `provision` mints exactly that, `spawn` starts the agent with
    nothing else, and `revoke` ends it all and proves it.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(group, args, name="handoff"))


def run(command: click.Command, args: list[str] | None = None, *, name: str) -> int:
    """Run one click command; return its exit code, with every error a user can cause told in prose (or JSON)."""
    from agent_token_injector.cli.interruption import interruptible
    from agent_token_injector.cli.terminal import open_standard_streams
    from agent_token_injector.errors import HandoffError

    open_standard_streams()
    given = sys.argv[1:] if args is None else args
    try:
        with interruptible():
            result: Any = command.main(args=list(given), prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except (HandoffError, click.ClickException, click.Abort, KeyboardInterrupt, OSError, SystemExit) as error:
        code, document, text = _explain(error)
        # What stands behind -- is the agent's command, and its --json is not ours.
        _tell(document, text, as_json="--json" in takewhile(lambda argument: argument != "--", given))
        return code
    return result if isinstance(result, int) else 0


def _explain(error: BaseException) -> tuple[int, Mapping[str, object], str]:
    """An error as exit code, as JSON and as text; both are empty where there is nobody left to tell."""
    from agent_token_injector.cli.interruption import Interrupted
    from agent_token_injector.errors import HandoffError, SettingsError

    match error:
        case SettingsError(hint=None):
            error.hint = 'the variables and files are in the README under "Set it up"'
            return int(error.exit_code), error.to_dict(), error.diagnostics()
        case HandoffError():
            return int(error.exit_code), error.to_dict(), error.diagnostics()
        case click.ClickException():
            return _explain_usage(error)
        case click.Abort() | KeyboardInterrupt():
            first = error if isinstance(error, Interrupted) else error.__cause__
            number = first.number if isinstance(first, Interrupted) else signal.SIGINT
            return 128 + number, _document("interrupted", "interrupted", None), "interrupted"
        case BrokenPipeError() | SystemExit():
            # Whoever read our output has gone; click tells that by ending the process.
            return 128 + signal.SIGPIPE, {}, ""
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    reason = error.strerror if isinstance(error, OSError) else None
    own = HandoffError(f"{where}{reason or type(error).__name__}", hint="check that it is what it should be")
    return int(own.exit_code), own.to_dict(), own.diagnostics()


def _explain_usage(error: click.ClickException) -> tuple[int, Mapping[str, object], str]:
    """A usage error in our form. What was typed is quoted, but for what looks like a credential."""
    from agent_token_injector.cli.terminal import hide_credentials, looks_like_credential

    message = error.format_message().rstrip(".")
    what = hide_credentials(message[:1].lower() + message[1:])
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = "`handoff --help`" if context is None else f"`{context.command_path} --help`"
    if looks_like_credential(message):
        hint = "a command line is read by every user of the machine and kept in the history: make that credential anew"
    return error.exit_code, _document("usage", what, hint), f"{what}\n  next: {hint}"


def _document(code: str, what: str, hint: str | None) -> Mapping[str, object]:
    return {"error": code, "what": what, "cause": None, "hint": hint}


def _tell(document: Mapping[str, object], text: str, *, as_json: bool) -> None:
    from agent_token_injector.cli.terminal import say, write
    from agent_token_injector.errors import HandoffError

    if as_json and document:
        with suppress(BrokenPipeError, HandoffError):
            write(json.dumps(document, ensure_ascii=False))
    if text:
        say(f"handoff: {text}")
