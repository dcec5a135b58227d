"""`handoff approve`: an operator's signature under one exact spec (H7)."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import click

from agent_token_injector.cli.common import SPEC, json_option, load_approvals, load_spec
from agent_token_injector.cli.terminal import emit, say, write
from agent_token_injector.errors import ApprovalError


@click.command("approve")
@click.argument("spec", type=SPEC)
@click.option("--surface", required=True, help="stripe, alpaca or apple_iap.")
@click.option("--mode", required=True, help="live (stripe, alpaca) or production (apple_iap).")
@click.option("--operator", help="Who approves. Default: the spec's operator.")
@click.option(
    "--key", "key_file", type=SPEC, help="The operator's key file. Default: operator.key in the configuration."
)
@click.option("--valid-hours", type=click.IntRange(1, 24), default=4, show_default=True, help="How long it holds.")
@click.option("--out", type=SPEC, help="Where to add it. Default: SPEC with .approvals.json.")
@json_option
def command(
    spec: Path,
    surface: str,
    mode: str,
    operator: str | None,
    key_file: Path | None,
    valid_hours: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Sign that SPEC, exactly as it is now, may use a live or production surface.

    The approval is added to a file beside the spec. It counts only where operators.json of the configuration lists the
    operator with this key, only for this very spec, and only until it expires. A first call makes the key.
    """
    from agent_token_injector.approval import approvals_path, sign_approval
    from agent_token_injector.clock import SystemClock, iso
    from agent_token_injector.settings import Settings, load_or_create_key, read_key

    settings = Settings.load()
    loaded = load_spec(spec)
    key = read_key(key_file) if key_file else load_or_create_key(settings.config_dir / "operator.key")
    approval = sign_approval(
        loaded,
        surface=surface,
        mode=mode,
        operator=operator or loaded.operator,
        key=key,
        now=SystemClock().now(),
        valid_for=timedelta(hours=valid_hours),
    )
    path = out or approvals_path(spec)
    kept = load_approvals(spec, path) if path.exists() else ()
    _write(path, [*(item.to_dict() for item in kept), approval.to_dict()])
    listed = str(key.public) in settings.operators().get(approval.operator, ())
    if as_json:
        emit({"path": str(path), "listed": listed, "approval": approval.to_dict()})
    else:
        write(str(path))
    say(f"approved: {surface} {mode} for {loaded.task_slug} until {iso(approval.expires_at)}")
    if not listed:
        say(
            f"note: the gate will not accept it before {settings.config_dir / 'operators.json'} lists this key:\n"
            f"  {json.dumps({approval.operator: [str(key.public)]})}"
        )


def _write(path: Path, documents: list[dict[str, object]]) -> None:
    # A name that nobody can guess, made by us or not at all: a link that was planted in its place is not followed.
    scratch = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        try:
            with scratch.open("x", encoding="utf-8") as file:
                file.write(json.dumps(documents, indent=2) + "\n")
            scratch.replace(path)
        except BaseException:
            # A signal included: no half-written file stays.
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ApprovalError(
            f"{path} cannot be written", cause=error.strerror, hint="name a file with --out in a directory of your own"
        ) from None
