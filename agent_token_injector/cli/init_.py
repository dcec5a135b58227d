"""`handoff init`: a small spec that passes the gate, to edit from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from agent_token_injector.cli.common import SPEC, json_option
from agent_token_injector.cli.terminal import emit, say, write
from agent_token_injector.errors import SpecError


@click.command("init")
@click.argument("path", type=SPEC, default="handoff-spec.json")
@click.option("--task-slug", default="my-task", show_default=True, help="The card's slug.")
@click.option("--card", default="#1", show_default=True, help="The card that the task comes from.")
@click.option("--operator", default="operator@example.com", show_default=True, help="Who answers for it.")
@click.option("--repository", help="A GitHub repository, owner/name, to ask for as well.")
@json_option
def command(path: Path, task_slug: str, card: str, operator: str, repository: str | None, as_json: bool) -> None:
    """Write a spec to PATH (default handoff-spec.json). An existing file is never overwritten."""
    spec = starter(task_slug, card, operator, repository)
    _must_pass(spec)
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(spec, file, indent=2)
            file.write("\n")
    except FileExistsError:
        raise SpecError(f"{path} exists", hint="name another file, or move that one away") from None
    except OSError as error:
        raise SpecError(
            f"{path} cannot be written", cause=error.strerror, hint="name a file in a directory of your own"
        ) from None
    if as_json:
        emit({"path": str(path), "spec": spec})
    else:
        write(str(path))
    say(f"next: edit {path}, then `handoff check {path}`")


def _must_pass(document: dict[str, object]) -> None:
    """A spec to start from passes the gate as it is. Raises SpecError naming what in it does not."""
    from agent_token_injector.clock import SystemClock
    from agent_token_injector.gate import check
    from agent_token_injector.policy import Policy
    from agent_token_injector.spec import HandoffSpec

    try:
        spec = HandoffSpec.parse(json.dumps(document))
    except SpecError as error:
        raise SpecError(
            "no spec was written", path=error.path, cause=error.cause, hint="see `handoff init --help`"
        ) from None
    for finding in check(spec, Policy(), SystemClock().now()).refusals:
        raise SpecError("no spec was written", cause=str(finding), hint=finding.mend)


def starter(task_slug: str, card: str, operator: str, repository: str | None) -> dict[str, object]:
    """A spec of half an hour: read its own vault path, and one repository where it is asked for."""
    surfaces: dict[str, object] = {}
    if repository is not None:
        surfaces["github"] = {"repository": repository, "permissions": {"contents": "write", "pull_requests": "write"}}
    return {
        "task_slug": task_slug,
        "card": card,
        "operator": operator,
        "expected_runtime": "PT20M",
        "expires_in": "PT30M",
        "surfaces": surfaces,
        "mcp_servers": {"infisical": {"builtin": "vault"}},
        "mcp_tools": ["infisical_get_secret"],
        "mcp_tools_excluded": ["shell_exec"],
    }
