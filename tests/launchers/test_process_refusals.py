"""What cannot be started is refused with a reason, and leaves nothing: no process, no folder, no descriptor, no thread."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.launchers.base import OWN_NAMES
from agent_token_injector.launchers.process import ProcessLauncher
from agent_token_injector.launchers.supervisor import descendants, processes
from agent_token_injector.session_context import SessionContext
from tests.launchers.agents import (
    HANDOFF,
    PATIENCE,
    context,
    open_descriptors,
    parent_environment,
    run_folders,
)
from tests.requirements import requirement

TOKEN = "ghs_0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_is_left(runs: Path) -> Iterator[None]:
    descriptors, threads = open_descriptors(), set(threading.enumerate())
    yield
    assert run_folders(runs) == []
    assert list(descendants({os.getpid()}, processes())) == []
    assert open_descriptors() == descriptors
    assert set(threading.enumerate()) == threads


def refused(launcher: ProcessLauncher, given: SessionContext | None = None) -> SpawnRefused:
    with pytest.raises(SpawnRefused) as caught:
        launcher(given or context({"GH_TOKEN": SecretStr(TOKEN)}))
    assert TOKEN not in caught.value.diagnostics()
    assert TOKEN not in repr(caught.value)
    return caught.value


@requirement("spawn.refused-clean")
def test_a_name_is_looked_up_on_the_base_path_and_never_on_the_parents(tmp_path: Path) -> None:
    tool = tmp_path / "my-agent-of-this-test"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    with parent_environment({"PATH": f"{tmp_path}:{os.environ['PATH']}"}):
        error = refused(ProcessLauncher([tool.name]))
    assert "base PATH" in error.diagnostics()
    assert "full path" in error.diagnostics()
    assert ProcessLauncher([str(tool)])(context()).wait(PATIENCE) == 0


@requirement("spawn.refused-clean")
def test_a_program_that_cannot_be_executed_is_an_error_and_not_an_exit_code(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program\n")
    assert refused(ProcessLauncher([str(text)])).cause == "Permission denied"
    text.chmod(0o755)
    assert refused(ProcessLauncher([str(text)])).cause == "Exec format error"
    text.write_text("#!/nowhere/interpreter\n")
    assert refused(ProcessLauncher([str(text)])).cause == "No such file or directory"
    missing = refused(ProcessLauncher([str(tmp_path / "missing")], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert missing.cause == "No such file or directory"
    assert missing.hint


@requirement("spawn.refused-clean")
def test_a_folder_that_cannot_be_entered_is_named(tmp_path: Path) -> None:
    error = refused(ProcessLauncher(["true"], cwd=tmp_path / "missing"))
    assert str(tmp_path / "missing") in error.what
    assert error.cause == "No such file or directory"
    (tmp_path / "file").touch()
    assert refused(ProcessLauncher(["true"], cwd=tmp_path / "file")).cause == "Not a directory"
    assert refused(ProcessLauncher(["true"], cwd=Path("nul\0"))).cause == "that is not a path"


@requirement("spawn.refused-clean")
@pytest.mark.parametrize("argv", [[], [""], ["true", "a\0b"], ["tr\0ue"], ["/bin/\0"], ["true", "\ud800"]])
def test_a_command_that_cannot_be_passed_is_refused(argv: list[str]) -> None:
    refused(ProcessLauncher(argv))


@requirement("spawn.refused-clean")
def test_a_block_too_large_for_the_kernel_is_refused() -> None:
    error = refused(ProcessLauncher(["true"]), context({"PLAIN": "x" * 300_000}))
    assert error.cause == "Argument list too long"


@requirement("H6.no-secret-in-argv")
def test_a_command_that_holds_a_secret_is_refused_without_repeating_it() -> None:
    error = refused(ProcessLauncher(["true", "--card=3206", f"--token={TOKEN}"]))
    assert "argument 2" in error.what


@requirement("D7.base-is-ours")
@pytest.mark.parametrize("name", sorted(OWN_NAMES))
def test_a_block_cannot_set_what_the_launcher_sets(name: str) -> None:
    error = refused(ProcessLauncher(["true"]), context({name: SecretStr(TOKEN)}))
    assert name in error.what


@requirement("D7.base-is-ours")
@pytest.mark.parametrize("block", [{"A=B": "x"}, {"": "x"}, {"A-B": "x"}, {"PLAIN": f"{TOKEN}\0"}])
def test_a_variable_that_no_environment_can_hold_is_refused(block: dict[str, str]) -> None:
    refused(ProcessLauncher(["true"]), context(block))


@requirement("H3.no-start-after-expiry")
def test_nothing_starts_in_the_last_half_minute_of_a_handoff() -> None:
    now = datetime(2026, 6, 20, 12, tzinfo=UTC)
    launcher = ProcessLauncher(["true"], clock=ManualClock(now))
    assert "no time left" in refused(launcher, SessionContext(HANDOFF, now + timedelta(seconds=30), {})).what
    assert launcher(SessionContext(HANDOFF, now + timedelta(minutes=5), {})).wait(PATIENCE) == 0


@requirement("spawn.refused-clean")
def test_no_room_for_the_runs_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert refused(ProcessLauncher(["true"])).hint


@requirement("spawn.refused-clean")
def test_a_stream_that_does_not_exist_and_a_configuration_that_is_no_json_leave_nothing() -> None:
    with pytest.raises((SpawnRefused, ValueError)):
        ProcessLauncher(["true"], stdout=9_999)(context())
    with pytest.raises(TypeError, match="MCP configuration"):
        ProcessLauncher(["true"])(context(mcp_config={"mcpServers": {1, 2}}))


def test_a_launcher_made_wrongly_says_so_at_once() -> None:
    with pytest.raises(TypeError, match="list of arguments"):
        ProcessLauncher("true --all")
    with pytest.raises(ValueError, match="negative"):
        ProcessLauncher(["true"], grace=timedelta(seconds=-1))
