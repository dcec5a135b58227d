"""Dispatch: what the agent gets, from what, and that nobody else sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.launchers.base import BASE_ENV, MCP_CONFIG, RUN_FOLDERS, RUN_ID
from agent_token_injector.launchers.process import ProcessLauncher
from agent_token_injector.provisioning import provision
from agent_token_injector.session_context import SessionContext, admit
from agent_token_injector.spawn import spawn_handoff
from tests.flow.rig import HANDOFF, ID, PATH, Recorder, actions, agent, events, provisioned, vault_only
from tests.mcp_proxy.harness import RawClient
from tests.requirements import requirement
from tests.world import World

BLOCK = {
    "INFISICAL_CLIENT_ID",
    "INFISICAL_CLIENT_SECRET",
    "INFISICAL_SECRET_PATH",
    "GH_TOKEN",
    "STRIPE_KEY",
    "HANDOFF_TASK_SLUG",
    "HANDOFF_EXPIRES_AT",
}
"""The names of the ADR's §4.5."""
MCP_BLOCK = {"HANDOFF_MCP_URL", "HANDOFF_MCP_TOKEN", "HANDOFF_MCP_SOCKET"}
"""Where the agent's tools are."""
PRINT_ENV = "import json, os; print(json.dumps(dict(os.environ)))"


@contextmanager
def parent_environment(**more: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@requirement("D7.session-context")
def test_a_callable_gets_exactly_the_document_of_the_adr(world: World, ctx: HandoffContext) -> None:
    manifest = provisioned(world, ctx, "github", "stripe")
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx):
        (given,) = launcher.given
        document = given.to_json()
    assert list(document) == ["env", "mcp_tools", "mcp_tools_excluded"]
    assert set(document["env"]) == BLOCK | MCP_BLOCK
    held = ctx.vault.read_folder(PATH)
    assert document["env"]["GH_TOKEN"] == held["GH_HANDOFF_TOKEN"].get_secret_value()
    assert document["env"]["STRIPE_KEY"] == held["STRIPE_RESTRICTED_KEY"].get_secret_value()
    assert document["env"]["INFISICAL_CLIENT_SECRET"] == held["INFISICAL_CLIENT_SECRET"].get_secret_value()
    assert document["env"]["INFISICAL_SECRET_PATH"] == f"{PATH}/"
    assert document["env"]["HANDOFF_TASK_SLUG"] == "founders-checkout"
    assert document["env"]["HANDOFF_EXPIRES_AT"] == "2026-06-20T10:00:00Z"
    assert document["mcp_tools"] == ["infisical_get_secret"]
    assert document["mcp_tools_excluded"] == list(world.spec.mcp_tools_excluded)
    assert (given.handoff, given.expires_at) == (manifest.handoff, manifest.expires_at)
    json.dumps(document)


@requirement("D7.env-from-nothing")
def test_a_real_agents_environment_is_exactly_the_base_and_the_block(world: World, ctx: HandoffContext) -> None:
    provision(vault_only(world, env={"CHECKOUT_PLAN": "founders"}), ctx)
    with (
        parent_environment(AWS_SECRET_ACCESS_KEY="the-operators-own", MY_OWN="value", LD_PRELOAD_X="y"),
        spawn_handoff(HANDOFF, agent(world, PRINT_ENV, stdout=subprocess.PIPE), ctx=ctx) as handoff,
        handoff.result.stdout as stream,
    ):
        seen: dict[str, str] = json.loads(stream.read())
    expected = {"INFISICAL_CLIENT_ID", "INFISICAL_CLIENT_SECRET", "INFISICAL_SECRET_PATH"}
    expected |= {"HANDOFF_TASK_SLUG", "HANDOFF_EXPIRES_AT", "CHECKOUT_PLAN"} | MCP_BLOCK
    base = {*BASE_ENV, *RUN_FOLDERS, "TERM", RUN_ID, MCP_CONFIG}
    # CPython sets LC_CTYPE for itself where the locale is C.
    assert set(seen) - {"LC_CTYPE"} == expected | base
    assert "the-operators-own" not in seen.values()
    assert seen["CHECKOUT_PLAN"] == "founders"


@requirement("D8.bearer", "H6.no-values")
def test_the_clients_configuration_file_names_the_bearers_variable_and_does_not_hold_it(
    world: World, ctx: HandoffContext
) -> None:
    provisioned(world, ctx)
    code = (
        "import json, os\n"
        "text = open(os.environ['HANDOFF_MCP_CONFIG']).read()\n"
        "print(json.dumps([text, os.environ['HANDOFF_MCP_TOKEN'], os.environ['HANDOFF_MCP_URL']]))"
    )
    with (
        spawn_handoff(HANDOFF, agent(world, code, stdout=subprocess.PIPE), ctx=ctx) as handoff,
        handoff.result.stdout as stream,
    ):
        text, token, url = json.loads(stream.read())
    assert token not in text
    server = json.loads(text)["mcpServers"]["handoff"]
    assert (server["url"], server["headers"]) == (url, {"Authorization": "Bearer ${HANDOFF_MCP_TOKEN}"})


@requirement("H6.no-values")
def test_no_repr_or_str_of_anything_holds_a_secret(world: World, ctx: HandoffContext) -> None:
    manifest = provisioned(world, ctx, "github", "stripe")
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx) as handoff:
        given = launcher.given[0]
        secrets = [secret.get_secret_value() for secret in given.secrets()]
        assert len(secrets) == 5
        receipt = handoff.stop()
        things = [given, handoff, ctx, manifest, manifest.leases, receipt, admit(ID, ctx), handoff.__dict__]
        shown = "".join(f"{thing!r} {thing!s}" for thing in things) + json.dumps(given.masked())
    assert [secret for secret in secrets if secret in shown] == []


@requirement("D7.session-context")
def test_the_environment_that_a_launcher_was_given_cannot_be_changed(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx), pytest.raises(TypeError):
        launcher.given[0].env["MORE"] = "x"  # type: ignore[index]


class Job:
    """What a caller's own launcher may return: something that can be waited for and stopped."""

    def __init__(self) -> None:
        self.waited: list[float | None] = []
        self.stopped: list[str] = []

    def wait(self, timeout: float | None = None) -> int:
        self.waited.append(timeout)
        return 7

    def stop(self, reason: str) -> None:
        self.stopped.append(reason)


@requirement("spawn.callable")
def test_what_a_callable_returns_is_waited_for_and_stopped(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    job = Job()
    with spawn_handoff(HANDOFF, Recorder(result=job), ctx=ctx) as handoff:
        assert handoff.result is job
        assert handoff.wait(timeout=3) == 7
        assert job.stopped == []
    assert (job.waited, job.stopped) == ([3], ["left"])
    assert handoff.receipt is not None
    assert (handoff.receipt.reason, handoff.receipt.agent, handoff.receipt.problems) == ("left", None, ())


@requirement("spawn.callable")
def test_a_popen_that_a_callable_returns_is_waited_for_and_terminated(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)

    def start(context: SessionContext) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=context.reveal_env())

    with spawn_handoff(HANDOFF, start, ctx=ctx) as handoff:
        assert handoff.result.poll() is None
    assert handoff.result.wait(timeout=20) == -15
    handoff.result.stdin.close()


@requirement("spawn.callable")
def test_a_callable_that_returns_nothing_is_over_at_once(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    with spawn_handoff(HANDOFF, lambda _: None, ctx=ctx) as handoff:
        assert handoff.wait() is None


@requirement("spawn.callable")
def test_what_a_launcher_raises_is_passed_on_after_everything_is_down(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    given: list[SessionContext] = []

    def fails(context: SessionContext) -> None:
        given.append(context)
        raise OSError("the cloud is closed")

    with pytest.raises(OSError, match="the cloud is closed"):
        spawn_handoff(HANDOFF, fails, ctx=ctx)
    assert unreachable(given[0])
    assert [action for action in actions(ctx) if action.startswith("spawn.")][-3:] == [
        "spawn.started",
        "spawn.refused",
        "spawn.ended",
    ]


def unreachable(context: SessionContext) -> bool:
    block = context.reveal_env()
    client = RawClient(block["HANDOFF_MCP_URL"], SecretStr(block["HANDOFF_MCP_TOKEN"]))
    try:
        client.initialize()
    except ConnectionRefusedError:
        return True
    return False


@requirement("D8.bearer")
def test_while_it_runs_the_proxy_answers_its_own_bearer_and_no_other(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx):
        block = launcher.given[0].reveal_env()
        good = RawClient(block["HANDOFF_MCP_URL"], SecretStr(block["HANDOFF_MCP_TOKEN"]))
        assert good.initialize().status == 200
        found = good.call(
            "infisical_get_secret", {"path": "/MooseQuest/queue/staging", "name": "STRIPE_WEBHOOK_SECRET"}
        )
        assert found.text == "value-of-stripe_webhook_secret"
        assert RawClient(block["HANDOFF_MCP_URL"], SecretStr("not-" + "x" * 40)).initialize().status == 401
    assert unreachable(launcher.given[0])


@requirement("D8.bearer")
def test_every_run_has_a_bearer_of_its_own(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    launcher = Recorder()
    for _ in range(2):
        with spawn_handoff(HANDOFF, launcher, ctx=ctx):
            pass
    first, second = (context.reveal_env()["HANDOFF_MCP_TOKEN"] for context in launcher.given)
    assert first != second
    assert len(first) >= 43


@requirement("H5.spawn-audited", "H6.no-values")
def test_a_dispatch_is_audited_by_names_before_it_happens(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    seen: list[list[str]] = []
    with spawn_handoff(HANDOFF, lambda _: seen.append(actions(ctx)), ctx=ctx):
        pass
    assert seen[0][-2:] == ["spawn.requested", "spawn.started"]
    started = next(event for event in events(ctx) if event.action == "spawn.started")
    detail: Mapping[str, Any] = started.detail
    assert "INFISICAL_CLIENT_SECRET" in detail["env"]
    assert detail["tools"] == ["infisical_get_secret"]
    assert actions(ctx)[-1] == "spawn.ended"


@requirement("D6.public-key-only")
def test_dispatching_needs_no_vendors_admin_key_and_no_signing_key(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx, "github")
    trusted = Path(world.environment["HANDOFF_CONFIG_DIR"]) / "trusted_provisioners.json"
    trusted.parent.mkdir(exist_ok=True)
    trusted.write_text(json.dumps([str(key) for key in ctx.trusted]))
    keys = Path(world.environment["HANDOFF_STATE_DIR"]) / "keys" / "provisioner.key"
    keys.unlink()
    world.sandbox.key_file.unlink()
    launcher = Recorder()
    with world.open() as elsewhere, spawn_handoff(HANDOFF, launcher, ctx=elsewhere):
        assert launcher.launches == 1
    assert not keys.exists()


@requirement("D7.no-secret-in-argv")
def test_a_command_line_that_holds_a_secret_is_refused(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    secret = ctx.vault.read_secret(PATH, "INFISICAL_CLIENT_SECRET").get_secret_value()
    with pytest.raises(SpawnRefused, match="holds a secret") as caught:
        spawn_handoff(HANDOFF, ProcessLauncher(["/bin/echo", f"--key={secret}"], clock=world.clock), ctx=ctx)
    assert secret not in caught.value.diagnostics()
