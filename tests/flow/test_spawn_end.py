"""How a run ends: by itself, by its time, by revocation, by silence of the vault; wholly, and with a true receipt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ManifestMissing, VaultUnreachable
from agent_token_injector.launchers.process import AgentProcess
from agent_token_injector.launchers.supervisor import descendants, processes
from agent_token_injector.names import VaultPath
from agent_token_injector.revocation import revoke
from agent_token_injector.session_context import SessionContext
from agent_token_injector.spawn import Handoff, SpawnReceipt, spawn_handoff
from tests.flow.rig import (
    HANDOFF,
    PATH,
    Passing,
    Recorder,
    agent,
    events,
    nothing_left,
    provisioned,
    rewired,
)
from tests.launchers.agents import TREE, open_descriptors, pids
from tests.launchers.agents import alive as runs
from tests.mcp_proxy.harness import RawClient, children_of
from tests.requirements import requirement
from tests.world import World, eventually

FOREVER = "import signal\nwhile True: signal.pause()\n"
TREE_FOREVER = TREE + "while True:\n    signal.pause()\n"


@dataclass
class Watched:
    """A running agent of ours, started with a vault that a test can take away."""

    handoff: Handoff
    context: SessionContext
    began: float = field(default_factory=time.monotonic)

    def ended(self) -> SpawnReceipt:
        self.handoff.wait(timeout=30)
        return self.handoff.stop()

    @property
    def agent(self) -> AgentProcess:
        found = self.handoff.result
        assert isinstance(found, AgentProcess)
        return found

    def answers(self) -> bool:
        return answers(self.context)


def answers(context: SessionContext) -> bool:
    """Whether the run's MCP endpoint still lets its bearer do anything."""
    block = context.reveal_env()
    try:
        client = RawClient(block["HANDOFF_MCP_URL"], SecretStr(block["HANDOFF_MCP_TOKEN"]))
        return client.initialize().status == 200
    except OSError:
        return False


def started(world: World, ctx: HandoffContext, code: str = FOREVER, **more: Any) -> Watched:
    given: list[SessionContext] = []
    launcher = agent(world, code, stdout=subprocess.PIPE)

    def launch(context: SessionContext) -> AgentProcess:
        given.append(context)
        return launcher(context)

    return Watched(spawn_handoff(HANDOFF, launch, ctx=ctx, **more), given[0])


def audit_of_the_end(ctx: HandoffContext) -> Any:
    return [event for event in events(ctx) if event.action == "spawn.ended"][-1]


@requirement("spawn.receipt")
def test_a_run_that_ends_by_itself_says_so_with_its_exit_code(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    with started(world, ctx, "raise SystemExit(3)").handoff as handoff:
        assert handoff.wait(timeout=30) == 3
        handoff.result.stdout.close()
    receipt = handoff.receipt
    assert receipt is not None
    assert receipt.agent is not None
    assert (receipt.reason, receipt.agent.exit_code, receipt.agent.survivors) == ("exited", 3, 0)
    assert (receipt.problems, receipt.revocation) == ((), None)
    assert receipt.to_dict()["agent"]["milliseconds"] >= 0
    assert audit_of_the_end(ctx).reason == "exited"


@requirement("spawn.block")
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_leaving_the_block_however_stops_the_agent_and_closes_its_endpoint(
    world: World, ctx: HandoffContext, error: type[BaseException] | None
) -> None:
    provisioned(world, ctx)
    run = started(world, ctx)
    with pytest.raises(error) if error is not None else nullcontext(), run.handoff:
        assert runs(run.agent.pid)
        assert run.answers()
        if error is not None:
            raise error
    assert not runs(run.agent.pid)
    assert not run.answers()
    receipt = run.handoff.stop()
    assert (receipt.reason, receipt.agent.survivors) == ("left", 0)  # type: ignore[union-attr]
    run.agent.stdout.close()  # type: ignore[union-attr]


@requirement("H3.expiry", "spawn.whole-tree")
def test_at_its_expiry_the_agent_ends_with_its_whole_process_tree(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    manifest = provisioned(world, ctx)
    run = started(world, ctx, TREE_FOREVER)
    with run.agent.stdout as stream:  # type: ignore[union-attr]
        tree = pids(stream)
    assert len(tree) == 3
    assert all(runs(pid) for pid in tree)
    clock.advance(manifest.expires_at - clock.now() - timedelta(seconds=29))
    receipt = run.ended()
    assert receipt.reason == "expired"
    assert receipt.agent is not None
    assert receipt.agent.clean
    assert not [pid for pid in tree if runs(pid)]
    assert not run.answers()
    assert audit_of_the_end(ctx).reason == "expired"


@requirement("H3.expiry", "D8.recheck")
def test_from_the_expiry_on_the_endpoint_refuses_within_two_seconds_and_asks_nobody(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    manifest = provisioned(world, ctx)
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx):
        block = launcher.given[0].reveal_env()
        client = RawClient(block["HANDOFF_MCP_URL"], SecretStr(block["HANDOFF_MCP_TOKEN"]))
        client.initialize()
        clock.advance(manifest.expires_at - clock.now() - timedelta(seconds=29))
        assert eventually(lambda: not _accepts(client), seconds=2)


@requirement("mcp.engine-dies", "spawn.watched")
def test_an_agent_whose_mcp_proxy_died_is_stopped_and_the_receipt_says_why(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    run = started(world, ctx)
    (engine,) = children_of([os.getpid()], b"mcp_proxy.engine")
    os.kill(engine, signal.SIGKILL)
    receipt = run.ended()
    assert (receipt.reason, receipt.agent.survivors) == ("mcp-proxy-failed", 0)  # type: ignore[union-attr]
    assert receipt.problems == ("the MCP proxy failed: it ended by itself (signal 9)",)
    assert audit_of_the_end(ctx).reason == "mcp-proxy-failed"
    run.agent.stdout.close()  # type: ignore[union-attr]


@requirement("H8.kill-switch", "spawn.watched")
@pytest.mark.parametrize("how", ["revoked", "only marked", "the path is gone"])
def test_a_revocation_from_another_context_ends_the_agent_within_seconds(
    world: World, ctx: HandoffContext, how: str
) -> None:
    provisioned(world, ctx)
    run = started(world, ctx)
    before = time.monotonic()
    with world.open() as elsewhere:
        if how == "revoked":
            assert revoke(HANDOFF, elsewhere).ok
        elif how == "only marked":
            elsewhere.vault.create_secret(PATH, "REVOCATION_MARK", SecretStr("{}"))
        else:
            elsewhere.vault.delete_folder(PATH)
    receipt = run.ended()
    assert time.monotonic() - before < 8
    assert (receipt.reason, receipt.agent.survivors) == ("revoked", 0)  # type: ignore[union-attr]
    assert not run.answers()
    run.agent.stdout.close()  # type: ignore[union-attr]


class Reachable:
    """A vault that a test can take away, and that counts how often the handoff's path was looked at."""

    def __init__(self, ctx: HandoffContext) -> None:
        self.gone, self.looks = False, 0
        self.ctx = rewired(ctx, vault=Passing(ctx.vault, self._around))

    def _around(self, name: str, call: Callable[[], Any]) -> Any:
        if name == "read_folder":
            self.looks += 1
        if self.gone:
            raise VaultUnreachable("no answer")
        return call()

    def looked_again(self) -> bool:
        seen = self.looks
        return eventually(lambda: self.looks >= seen + 2)


@requirement("spawn.blind-bound")
def test_a_vault_that_is_silent_for_a_while_is_borne_and_for_too_long_ends_the_agent(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    provisioned(world, ctx)
    vault = Reachable(ctx)
    run = started(world, vault.ctx)
    vault.gone = True
    clock.advance(timedelta(seconds=59))
    assert vault.looked_again()
    assert run.answers()
    vault.gone = False
    assert vault.looked_again()
    vault.gone = True
    clock.advance(timedelta(seconds=59))
    assert vault.looked_again()
    assert run.answers(), "the bound counts from the last answer"
    clock.advance(timedelta(seconds=2))
    receipt = run.ended()
    assert (receipt.reason, receipt.agent.survivors) == ("vault-unreachable", 0)  # type: ignore[union-attr]
    run.agent.stdout.close()  # type: ignore[union-attr]


@requirement("spawn.watched", "spawn.callable")
def test_a_callable_that_runs_its_agent_to_the_end_before_it_returns_is_watched_too(
    world: World, ctx: HandoffContext, clock: ManualClock
) -> None:
    provisioned(world, ctx)
    vault = Reachable(ctx)
    seen: list[tuple[int, int]] = []

    def run_to_the_end(context: SessionContext) -> None:
        block = context.reveal_env()
        client = RawClient(block["HANDOFF_MCP_URL"], SecretStr(block["HANDOFF_MCP_TOKEN"]))
        client.initialize()
        for _ in range(2):
            clock.advance(timedelta(seconds=40))
            assert vault.looked_again()
        alive = client.call("infisical_get_secret", {"name": "INFISICAL_CLIENT_ID"}).status
        revoke(HANDOFF, ctx)
        assert eventually(lambda: not _accepts(client), seconds=8)
        seen.append((alive, 0))

    with spawn_handoff(HANDOFF, run_to_the_end, ctx=vault.ctx) as handoff:
        pass
    assert seen == [(200, 0)]
    assert handoff.receipt is not None
    assert handoff.receipt.reason == "revoked"


def _accepts(client: RawClient) -> bool:
    try:
        return client.call("infisical_get_secret", {"name": "INFISICAL_CLIENT_ID"}).status == 200
    except OSError:
        return False


@requirement("spawn.watched")
def test_an_agent_whose_handoff_was_revoked_while_it_was_being_started_is_stopped(
    world: World, ctx: HandoffContext
) -> None:
    provisioned(world, ctx)
    launcher = agent(world, FOREVER, stdout=subprocess.DEVNULL)

    def slow_start(context: SessionContext) -> AgentProcess:
        running = launcher(context)
        revoke(HANDOFF, ctx)
        assert eventually(lambda: not answers(context), seconds=8)
        return running

    with spawn_handoff(HANDOFF, slow_start, ctx=ctx) as handoff:
        handoff.wait(timeout=20)
        assert handoff.result.poll() is not None
    assert handoff.receipt is not None
    assert handoff.receipt.reason == "revoked"
    assert handoff.receipt.agent is not None
    assert handoff.receipt.agent.survivors == 0


@requirement("spawn.revoke-on-exit", "H8.kill-switch")
def test_with_revoke_on_exit_leaving_the_block_revokes(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx, "github")
    with spawn_handoff(HANDOFF, Recorder(), ctx=ctx, revoke_on_exit=True) as handoff:
        pass
    receipt = handoff.receipt
    assert receipt is not None
    assert receipt.revocation is not None
    assert receipt.revocation.ok
    assert receipt.to_dict()["revocation"]["ok"] is True
    assert nothing_left(world, ctx)
    with pytest.raises(ManifestMissing):
        spawn_handoff(HANDOFF, Recorder(), ctx=ctx)


@requirement("spawn.revoke-on-exit")
def test_without_it_the_handoff_stays_for_the_next_run(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    for _ in range(2):
        with spawn_handoff(HANDOFF, Recorder(), ctx=ctx) as handoff:
            pass
        assert handoff.receipt is not None
        assert handoff.receipt.revocation is None


@requirement("spawn.receipt")
def test_stopping_twice_gives_one_receipt_and_one_event(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    handoff = spawn_handoff(HANDOFF, Recorder(), ctx=ctx)
    assert handoff.stop("enough") is handoff.stop("again")
    assert handoff.stop().reason == "enough"
    assert [event.action for event in events(ctx)].count("spawn.ended") == 1


@requirement("spawn.receipt")
def test_a_launcher_whose_stop_fails_is_a_problem_in_the_receipt_and_the_rest_is_still_taken_down(
    world: World, ctx: HandoffContext
) -> None:
    class Stubborn:
        def stop(self, _reason: str) -> None:
            raise RuntimeError("the cloud does not answer")

    provisioned(world, ctx)
    launcher = Recorder(result=Stubborn())
    with spawn_handoff(HANDOFF, launcher, ctx=ctx, revoke_on_exit=True) as handoff:
        pass
    assert handoff.receipt is not None
    assert handoff.receipt.problems == ("stopping the agent failed: RuntimeError",)
    assert not answers(launcher.given[0])
    assert nothing_left(world, ctx)


@requirement("spawn.nothing-left")
def test_a_run_leaves_no_thread_no_process_no_descriptor_and_no_folder(
    world: World, ctx: HandoffContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    server = {"command": [sys.executable, "-m", "agent_token_injector.sandbox.github_mcp_server"]}
    provisioned(
        world,
        ctx,
        "github",
        mcp_servers={
            "github": {
                **server,
                "env": {"GITHUB_PERSONAL_ACCESS_TOKEN": "GH_TOKEN"},
                "plain_env": {"GITHUB_API_URL": world.sandbox.github.url},
            },
            "infisical": {"builtin": "vault"},
        },
        mcp_tools=["list_pull_requests", "infisical_get_secret"],
    )

    def once() -> None:
        with started(world, ctx, "print('done')").handoff as handoff:
            assert handoff.wait(timeout=30) == 0
            handoff.result.stdout.close()

    once()  # Whatever is made once for the whole process is made now.
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    before = {process.pid for process in descendants({os.getpid()}, processes())}
    once()
    assert eventually(lambda: set(threading.enumerate()) <= threads), threading.enumerate()
    assert eventually(lambda: len(open_descriptors()) <= len(descriptors))
    assert {process.pid for process in descendants({os.getpid()}, processes())} <= before
    assert list(folder.iterdir()) == []


def test_the_path_that_the_agent_is_told_is_its_own(world: World, ctx: HandoffContext) -> None:
    provisioned(world, ctx)
    launcher = Recorder()
    with spawn_handoff(HANDOFF, launcher, ctx=ctx):
        told = launcher.given[0].reveal_env()["INFISICAL_SECRET_PATH"]
    assert VaultPath(told.removesuffix("/")) == PATH
