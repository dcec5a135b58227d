"""`kill -9` of a provisioning at every point leaves nothing alive after the next revoke, or the next provision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.provisioning import provision
from agent_token_injector.revocation import revoke
from agent_token_injector.spec import HandoffSpec
from tests.flow.rig import runs
from tests.requirements import requirement
from tests.world import ROOT, World, eventually, make_world


class Driver:
    """The process that forks one doomed provisioner a job."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def send(self, world: World, key: SecretStr, point: int) -> None:
        job = {
            "environment": world.environment,
            "supplied": {"stripe": key.get_secret_value()},
            "spec": world.spec.to_dict(),
            "point": point,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def run(self, world: World, key: SecretStr, point: int) -> dict[str, Any]:
        self.send(world, key, point)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def driving() -> Iterator[Driver]:
    driver = Driver()
    try:
        yield driver
    finally:
        driver.close()


@contextmanager
def world_with_a_light_server(home: Path) -> Iterator[World]:
    """A world whose MCP server starts at once: it is started at nearly every point."""
    with make_world(home) as world:
        (diary := home / "diary").mkdir(parents=True)
        (tools := home / "tools.json").write_text('[{"name": "read_file", "inputSchema": {"type": "object"}}]')
        server = {
            "command": [sys.executable, str(ROOT / "tests" / "flow" / "tool_server.py")],
            "env": {"GRANTED": "GH_TOKEN"},
            "plain_env": {"TOOLS_FILE": str(tools), "DIARY": str(diary)},
        }
        document = {**world.spec.to_dict(), "mcp_servers": {"files": server}, "mcp_tools": ["files_read_file"]}
        world.spec = HandoffSpec.parse(json.dumps(document))
        yield world
        assert eventually(lambda: not any(runs(page.name) for page in diary.iterdir())), "a server was left running"


def elsewhere(world: World, name: str) -> World:
    """The same vendors, a vault and state of its own."""
    home = world.home / name
    home.mkdir()
    return World(home, world.sandbox, world.clock, world.spec)


def revoke_leaves_nothing(world: World) -> None:
    with world.open() as ctx:
        handoff = str(world.spec.handoff_id(ctx.clock.now()))
        receipt = revoke(handoff, ctx)
        if receipt.found in {"provisioned", "revoking"}:
            world.delete_stripe_keys()
            receipt = revoke(handoff, ctx)
        assert receipt.ok, receipt.residue
        assert eventually(lambda: not world.live_minted()), "GitHub would still accept a token"
        assert ctx.vault.find_identities(f"infisical-handoff-{handoff}") == ()
        assert ctx.vault.list_folders(ctx.layout.handoffs) == ()


def provision_again_then_revoke(world: World, key: SecretStr) -> None:
    with world.open() as ctx:
        manifest = provision(world.spec, ctx, supplied={"stripe": key})
        assert eventually(lambda: len(world.live_minted()) == 1), "a token beside the new handoff's own is alive"
        assert len(ctx.vault.find_identities(f"infisical-handoff-{manifest.handoff_id}")) == 1
    revoke_leaves_nothing(world)


WORKERS = 2
"""Points are shared out, since each waits more than it works; every worker has vendors of its own to look at."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("then", ["revoke", "provision"])
@requirement("D2.crash-points", "D4.all-or-nothing")
def test_a_provisioner_killed_between_any_two_of_its_own_calls_leaves_nothing(tmp_path: Path, then: str) -> None:
    def some(worker: int) -> int:
        with world_with_a_light_server(tmp_path / str(worker)) as world, driving() as driver:
            whole = elsewhere(world, "whole")
            told = driver.run(whole, whole.stripe_key(), 0)
            assert "calls" in told, told
            revoke_leaves_nothing(whole)
            for point in range(1 + worker, told["calls"] + 2, WORKERS):
                here = elsewhere(world, str(point))
                key = here.stripe_key()
                at = f"before call {point}, {(*told['names'], 'the end')[point - 1]}"
                assert driver.run(here, key, point)["signal"] == 9, at
                try:
                    end(here, key, then)
                except BaseException as error:
                    error.add_note(at)
                    raise
            return int(told["calls"])

    with ThreadPoolExecutor(WORKERS) as pool:
        assert min(pool.map(some, range(WORKERS))) >= 30, "the points are no longer counted"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("at", ["before", "after"])
@requirement("D2.crash-points", "D3.keeper")
def test_a_provisioner_killed_while_github_is_at_any_request_leaves_nothing(tmp_path: Path, at: Any) -> None:
    with world_with_a_light_server(tmp_path) as world, driving() as driver:
        vendor = world.sandbox.github
        for number in range(count_requests(world, driver, vendor)):
            for then in ("revoke", "provision") if vendor.log[number].method == "POST" else ("revoke",):
                killed_during_request(
                    driver, elsewhere(world, f"{number}-{then}"), vendor, number=number, at=at, then=then
                )


@pytest.mark.timeout(300)
@requirement("D2.crash-points")
def test_a_provisioner_killed_at_the_first_or_last_probe_of_stripe_leaves_nothing(tmp_path: Path) -> None:
    with world_with_a_light_server(tmp_path) as world, driving() as driver:
        vendor = world.sandbox.stripe
        for number in (0, count_requests(world, driver, vendor) - 1):
            killed_during_request(
                driver, elsewhere(world, str(number)), vendor, number=number, at="after", then="revoke"
            )


def count_requests(world: World, driver: Driver, vendor: Any) -> int:
    """How many requests of a whole provisioning reach a vendor."""
    whole = elsewhere(world, "whole")
    assert "calls" in driver.run(whole, whole.stripe_key(), 0)
    count = len(vendor.log)
    revoke_leaves_nothing(whole)
    assert count >= 4, "the requests are no longer counted"
    return count


def end(world: World, key: SecretStr, then: str) -> None:
    if then == "revoke":
        revoke_leaves_nothing(world)
    else:
        provision_again_then_revoke(world, key)


def killed_during_request(driver: Driver, world: World, vendor: Any, *, number: int, at: Any, then: str) -> None:
    """Hold the vendor at its `number`-th request, kill the provisioner there, let the vendor go on."""
    seen = 0

    def nth(_request: Any) -> bool:
        nonlocal seen
        seen += 1
        return seen == number + 1

    key = world.stripe_key()
    hold = vendor.hold(nth, at=at)
    driver.send(world, key, 0)
    hold.wait_reached()
    kill_child_of(driver)
    hold.release()
    assert driver.answer()["signal"] == 9
    end(world, key, then)


def kill_child_of(driver: Driver) -> None:
    """End the one forked child of our own driver process."""
    pid = driver._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1, children
    os.kill(int(children[0]), signal.SIGKILL)
