"""`handoff demo`: a whole handoff on this machine, with emulated vendors, a real MCP server and a real agent process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_token_injector.cli.common import SPEC, json_option, load_spec
from agent_token_injector.cli.terminal import emit
from agent_token_injector.errors import ExitCode

if TYPE_CHECKING:
    from agent_token_injector.cli.demo_scene import Stage
    from agent_token_injector.spec import HandoffSpec


@click.command("demo")
@click.argument("spec", type=SPEC, required=False)
@json_option
def command(spec: Path | None, as_json: bool) -> int:
    """Take SPEC (default: the ADR's founders checkout, §8.2) through its whole life, here and now.

    Nothing leaves this machine: the vendors are emulated on loopback and enforce scopes, expiry and revocation; the
    vault is the embedded one. The MCP server, the MCP proxy and the agent are real processes. All of it, keys included,
    is in a temporary directory that is removed at the end.
    """
    from agent_token_injector.spec import HandoffSpec

    loaded = load_spec(spec) if spec is not None else HandoffSpec.parse(founders_checkout())
    with _stage(loaded, quiet=as_json) as stage:
        code = _play(stage)
    if as_json:
        emit({"ok": code is ExitCode.OK, **stage.record})
    return code


def founders_checkout() -> str:
    """The ADR's §8.2 as a spec, shipped with the package (the same file as examples/founders_checkout)."""
    from importlib.resources import files

    return files("agent_token_injector.sandbox").joinpath("founders_checkout.json").read_text("utf-8")


@contextmanager
def _stage(spec: HandoffSpec, *, quiet: bool) -> Iterator[Stage]:
    from agent_token_injector.cli.demo_scene import Stage

    home = Path(tempfile.mkdtemp(prefix="handoff-demo-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        yield Stage.build(spec, home, stack, quiet=quiet)


def _play(stage: Stage) -> ExitCode:
    """The life of a handoff, scene by scene. FAILED_CLEAN when one of them did not go as it must."""
    if not stage.gate():
        return ExitCode.GATE_REFUSED
    stage.refuse_dispatch_without_manifest()
    manifest = stage.provision()
    stage.verify(manifest)
    stage.run_agent(manifest)
    stage.audit(manifest)
    stage.kill_switch(manifest)
    stage.nothing_left(manifest)
    return ExitCode.OK if stage.finish() else ExitCode.FAILED_CLEAN
