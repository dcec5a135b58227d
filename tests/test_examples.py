"""The examples run as they stand, and their specs pass the gate."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent_token_injector import HandoffSpec, provision, spawn_handoff
from tests.cli.support import run
from tests.requirements import requirement
from tests.world import EXAMPLES, World, make_world

SPECS = sorted(EXAMPLES.glob("*/handoff-spec.json"))
MINIMAL = EXAMPLES / "minimal" / "handoff-spec.json"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
def orchestrator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("orchestrator", EXAMPLES / "orchestrator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@requirement("docs.spec-examples")
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.parent.name)
def test_every_example_spec_passes_handoff_check(world: World, path: Path) -> None:
    done = run(world, ["check", str(path), "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]


def orchestrate(world: World, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "orchestrator.py"), *argv],
        env=world.environment,
        cwd=world.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@requirement("docs.orchestrator")
def test_the_orchestrator_runs_an_agent_with_its_handoff_and_leaves_nothing(world: World) -> None:
    done = orchestrate(world, str(MINIMAL), "--", "sh", "-c", "env; exit 3")
    assert done.returncode == 3, done.stderr
    assert "HANDOFF_TASK_SLUG=nightly-report" in done.stdout.splitlines()
    assert run(world, ["list", "--json"]).stdout == "[]\n"


@requirement("docs.orchestrator")
def test_the_orchestrator_tells_what_went_wrong_in_words(world: World) -> None:
    for argv in ([str(MINIMAL), "--", "no-such-agent"], ["missing.json", "--", "env"], [], [str(MINIMAL)]):
        done = orchestrate(world, *argv)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()


@requirement("docs.orchestrator")
def test_a_spawn_call_of_ones_own_gets_the_adrs_document(world: World, orchestrator: ModuleType) -> None:
    given: list[Any] = []

    def cloud(document: Any) -> str:
        given.append(document)
        return "started"

    with world.open() as ctx:
        manifest = provision(HandoffSpec.load(MINIMAL), ctx)
        assert orchestrator.wrap_your_own(manifest.handoff_id, cloud, ctx=ctx) == "started"
    document = json.loads(given[0]) if isinstance(given[0], str) else given[0]
    assert set(document) >= {"env", "mcp_tools", "mcp_tools_excluded"}
    assert document["env"]["HANDOFF_TASK_SLUG"] == "nightly-report"


@requirement("docs.orchestrator")
def test_a_launcher_that_is_any_callable_is_waited_for(
    world: World, orchestrator: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    with world.open() as ctx:
        manifest = provision(HandoffSpec.load(MINIMAL), ctx)
        with spawn_handoff(manifest.handoff_id, orchestrator.by_subprocess, ctx=ctx, revoke_on_exit=True) as handoff:
            assert handoff.wait() == 0
    assert handoff.receipt is not None
    assert handoff.receipt.revocation is not None
    assert handoff.receipt.revocation.ok
    assert "HANDOFF_TASK_SLUG=nightly-report" in capfd.readouterr().out


@requirement("docs.scheduled-job")
def test_the_scheduled_job_runs_with_its_own_identity_which_ends_with_it(world: World) -> None:
    commands = world.home / "bin"
    commands.mkdir()
    handoff = commands / "handoff"
    handoff.write_text(f"#!{sys.executable}\nfrom agent_token_injector.cli import main\nmain()\n")
    handoff.chmod(0o755)
    done = subprocess.run(
        ["sh", str(EXAMPLES / "scheduled_job" / "run.sh")],
        env={**world.environment, "PATH": f"{commands}:{world.environment['PATH']}", "PYTHON": sys.executable},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("task nightly-report, until ")
    assert "format text" in done.stdout
    assert "gone, no residue" in done.stderr
    assert run(world, ["list", "--json"]).stdout == "[]\n"
