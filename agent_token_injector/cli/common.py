"""What the commands share: their options, opening the context, reading specs, approvals and supplied credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent_token_injector.cli.terminal import hide_credentials, looks_like_credential, read_line

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.approval import Approval
    from agent_token_injector.context import HandoffContext
    from agent_token_injector.names import HandoffId
    from agent_token_injector.spec import HandoffSpec

F = TypeVar("F", bound=Callable[..., Any])

SPEC = click.Path(dir_okay=False, path_type=Path)


def json_option(function: F) -> F:
    """Add `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(function)


def approvals_option(function: F) -> F:
    """Add `--approvals` to a command."""
    return click.option(
        "--approvals",
        "approvals_file",
        type=SPEC,
        help="The spec's approvals. Default: SPEC with .approvals.json, where there is one.",
    )(function)


def supply_option(function: F) -> F:
    """Add `--supply` to a command."""
    return click.option(
        "--supply",
        "supplies",
        multiple=True,
        metavar="SURFACE=FILE",
        help="An operator's credential for a surface, from a file closed to others (- for stdin). "
        "Without it the vault's supplied path is read (`handoff supply`).",
    )(function)


class AgentCommand(click.Command):
    """A command that ends in `-- COMMAND...`: nothing behind the -- is ours, and nothing before it is the agent's.

    The callback gets COMMAND as `argv`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours, dashes, theirs = _split(args)
        rest = super().parse_args(ctx, ours)
        if not theirs:
            raise click.UsageError("write -- and then the command to run" if not dashes else "-- has no command", ctx)
        ctx.params["argv"] = tuple(theirs)
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


def _split(args: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in args:
        return args, False, []
    at = args.index("--")
    return args[:at], True, args[at + 1 :]


@contextmanager
def open_context() -> Iterator[HandoffContext]:
    """The context of the operator's configuration, closed afterwards."""
    from agent_token_injector.context import HandoffContext

    with HandoffContext.from_settings() as ctx:
        yield ctx


def load_spec(path: Path) -> HandoffSpec:
    """The spec in a file. Raises SpecError that names the file and a next step."""
    from agent_token_injector.errors import SpecError
    from agent_token_injector.spec import HandoffSpec

    try:
        return HandoffSpec.load(path)
    except SpecError as error:
        named = error.what if str(path) in error.what else f"{path}: {error.what}"
        hint = error.hint or "mend it, or start from what `handoff init` writes"
        raise SpecError(named, path=error.path, cause=error.cause, hint=hint) from None


def parse_handoff(text: str, what: str) -> HandoffId:
    """A handoff id as it was typed. Raises SpecError, saying `what` did not happen."""
    from agent_token_injector.errors import SpecError
    from agent_token_injector.names import HandoffId

    try:
        return HandoffId.parse(text)
    except ValueError as error:
        raise SpecError(
            what, path="handoff_id", cause=hide_credentials(str(error)), hint="`handoff list` shows the ids"
        ) from None


def load_approvals(spec_path: Path, given: Path | None) -> tuple[Approval, ...]:
    """The approvals beside a spec, or those in the file given. Raises SpecError."""
    from agent_token_injector.approval import approvals_path
    from agent_token_injector.approval import load_approvals as load
    from agent_token_injector.errors import ApprovalError, SpecError

    path = given or approvals_path(spec_path)
    if given is None and not path.exists():
        return ()
    try:
        return load(path)
    except SpecError as error:
        raise ApprovalError(
            error.what if str(path) in error.what else f"{path}: {error.what}",
            path=error.path,
            cause=error.cause,
            hint=error.hint or "move it away and approve again: `handoff approve`",
        ) from None


def read_supplies(items: tuple[str, ...]) -> Mapping[str, SecretStr]:
    """`--supply SURFACE=FILE` as values by surface; a value never stands in argv. Raises SettingsError, UsageError."""
    found: dict[str, SecretStr] = {}
    for item in items:
        surface, equals, source = item.partition("=")
        if not equals or not source or looks_like_credential(surface):
            raise click.UsageError(f"--supply {surface}: write SURFACE=FILE, or SURFACE=- for stdin; never the value")
        if looks_like_credential(source) and not Path(source).exists():
            raise click.UsageError(
                f"--supply {surface}={source}: write a file's name, or - for stdin; never the value itself"
            )
        if surface in found:
            raise click.UsageError(f"--supply {surface} is given twice")
        found[surface] = _supply(surface, source)
    return found


def _supply(surface: str, source: str) -> SecretStr:
    from pydantic import SecretStr

    from agent_token_injector.errors import SettingsError
    from agent_token_injector.settings import read_secret_file

    if source == "-":
        value = SecretStr(read_line())
    else:
        try:
            value = read_secret_file(Path(source))
        except OSError as error:
            raise SettingsError(f"{source} cannot be read", cause=error.strerror, hint="name a file") from None
    if not value.get_secret_value():
        where = "stdin" if source == "-" else source
        raise SettingsError(f"there is no credential for {surface} in {where}", hint="put it on the first line")
    return value
