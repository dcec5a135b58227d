"""`handoff supply`: store an operator's credential in the vault, for a surface whose vendor has no API to mint one."""

from __future__ import annotations

from pathlib import Path

import click
from pydantic import SecretStr

from agent_token_injector.cli.common import SPEC, json_option, load_spec, open_context
from agent_token_injector.cli.terminal import at_terminal, emit, hide_credentials, read_line, say
from agent_token_injector.errors import AlreadyExists, SpecError


@click.command("supply")
@click.argument("spec", type=SPEC)
@click.option("--surface", required=True, help="The surface, such as stripe.")
@click.option("--replace", is_flag=True, help="Replace a value that is already there.")
@json_option
def command(spec: Path, surface: str, replace: bool, as_json: bool) -> None:
    """Store a credential for SPEC's task, read from stdin, or asked for without echo at a terminal.

    `handoff provision` takes it from there, verifies it with the vendor, and hands it over only if it can do what the
    spec asks for and nothing more.
    """
    from agent_token_injector.audit import Decision
    from agent_token_injector.lease import MintKind
    from agent_token_injector.names import IdentityName

    loaded = load_spec(spec)
    with open_context() as ctx:
        if surface not in ctx.surfaces:
            raise SpecError(
                f"there is no surface {hide_credentials(repr(surface))}",
                path="surface",
                hint=f"this version provisions {', '.join(ctx.surfaces)}",
            )
        if ctx.surfaces[surface].facts.kind is not MintKind.OPERATOR_SUPPLIED:
            raise SpecError(
                f"{surface} takes no supplied credential", hint="its credential is minted by `handoff provision`"
            )
        request = getattr(loaded.surfaces, surface)
        if request is None:
            raise SpecError(f"the spec does not ask for {surface}", hint="supply only what a spec asks for")
        facts = ctx.surfaces[surface].facts
        handoff = loaded.handoff_id(ctx.clock.now())
        hint = ctx.surfaces[surface].supply_hint(IdentityName(facts.identity_prefix, handoff), request)
        value = _read(hint)
        name = next(iter(facts.secrets))
        folder = ctx.layout.supplied_for(loaded.slug)
        ctx.audit.record(
            handoff, "secret.supplied", decision=Decision.ALLOWED, surface=surface, target=f"{folder}/{name}"
        )
        if not ctx.vault.folder_exists(folder):
            ctx.vault.create_folder(folder)
        if replace:
            ctx.vault.delete_secret(folder, name)
        try:
            ctx.vault.create_secret(folder, name, value)
        except AlreadyExists as error:
            raise AlreadyExists(
                error.what, cause=error.cause, hint="pass --replace to put this one in its place"
            ) from None
    if as_json:
        emit({"surface": surface, "stored": f"{folder}/{name}"})
    say(f"stored for {loaded.task_slug}; `handoff provision {spec}` verifies and uses it")


def _read(hint: str) -> SecretStr:
    if at_terminal():
        say(hint)
        value = click.prompt("Credential", hide_input=True, err=True).strip()
    else:
        value = read_line()
    if not value:
        raise SpecError("no credential came on stdin", hint=hint)
    if any(character.isspace() for character in value):
        raise SpecError("what came on stdin is not one credential", cause="there is a blank in it", hint=hint)
    return SecretStr(value)
