"""How a run ends: always wholly, whoever ends it, and with the truth in its report."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.launchers.process import AgentProcess, ProcessLauncher
from tests.launchers.agents import (
    PATIENCE,
    TREE,
    WAIT,
    alive,
    context,
    eventually,
    line,
    open_descriptors,
    output,
    pids,
    python,
    run_folders,
)
from tests.requirements import requirement

ROOT = Path(__file__).parents[2]
ORDINARY_UID = 64_321
SHORT = timedelta(seconds=0.1)


def launch(code: str, *, seconds: float = 3600, grace: timedelta = SHORT) -> AgentProcess:
    return ProcessLauncher(python(code), stdout=subprocess.PIPE, grace=grace)(context(seconds=seconds))


@contextmanager
def driver(job: dict[str, Any], runs: Path, *, interpreter: str = sys.executable) -> Iterator[subprocess.Popen[bytes]]:
    """A launching process of its own; it is killed at the end."""
    block = {"PATH": os.environ["PATH"], "TMPDIR": str(runs), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [interpreter, "-m", "tests.launchers.driver", json.dumps(job)], stdout=subprocess.PIPE, env=block, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@requirement("spawn.exit-status")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os; os._exit(127)", 127),
    ],
)
def test_the_exit_status_is_the_agents_own(code: str, expected: int) -> None:
    agent = launch(code)
    assert agent.wait(PATIENCE) == agent.poll() == expected
    assert output(agent) == ""
    assert agent.report is not None
    assert (agent.report.reason, agent.report.exit_code, agent.report.survivors) == ("exited", expected, 0)
    assert agent.report.clean


@requirement("spawn.signals")
def test_a_signal_reaches_the_agents_group_and_a_wait_can_time_out() -> None:
    agent = launch(
        "import signal\n"
        "def end(number, frame): raise SystemExit(40 + number)\n"
        "signal.signal(signal.SIGINT, end); print('ready', flush=True)\n" + WAIT
    )
    assert line(agent.stdout) == "ready"
    assert agent.poll() is None
    assert agent.report is None
    with pytest.raises(TimeoutError):
        agent.wait(0.01)
    with pytest.raises(ValueError, match="not a valid"):
        agent.send_signal(4711)
    agent.send_signal(signal.SIGINT)
    assert agent.wait(PATIENCE) == 42
    agent.send_signal(signal.SIGINT)
    assert output(agent) == ""


@requirement("spawn.whole-tree", "H8.measured-kill")
def test_stop_ends_a_tree_with_a_daemon_that_ignores_sigterm_and_says_how_long_it_took() -> None:
    agent = launch(TREE + WAIT)
    tree = pids(agent.stdout)
    assert tree[0] == agent.pid
    report = agent.stop("revoked")
    assert not any(alive(pid) for pid in [*tree, agent.supervisor_pid])
    assert (report.reason, report.survivors, report.exit_code, report.not_done) == ("revoked", 0, -9, ())
    assert 100 <= report.milliseconds < PATIENCE * 1000
    assert report == agent.stop("again") == agent.report
    assert report.to_dict()["milliseconds"] == report.milliseconds
    assert output(agent) == ""


@requirement("spawn.whole-tree")
def test_an_agent_that_ends_in_its_grace_keeps_its_own_exit_status() -> None:
    agent = launch(
        "import signal\n"
        "def end(number, frame): raise SystemExit(3)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True)\n" + WAIT,
        grace=timedelta(seconds=PATIENCE),
    )
    assert line(agent.stdout) == "ready"
    report = agent.stop("left the block")
    assert (report.reason, report.exit_code, report.clean) == ("left the block", 3, True)
    assert output(agent) == ""


@requirement("spawn.whole-tree")
def test_what_an_agent_leaves_behind_when_it_exits_is_ended_too() -> None:
    agent = launch(TREE + "raise SystemExit(5)")
    tree = pids(agent.stdout)
    assert agent.wait(PATIENCE) == 5
    assert not any(alive(pid) for pid in tree)
    assert agent.stop("revoked").reason == "exited"
    assert output(agent) == ""


@requirement("spawn.whole-tree")
def test_a_process_that_moves_by_forking_all_the_time_is_caught() -> None:
    agent = launch(TREE + "while True:\n    if os.fork(): os._exit(0)\n    os.setsid()\n")
    tree = pids(agent.stdout)
    agent.wait(PATIENCE)
    report = agent.stop("revoked")
    assert report.survivors == 0
    assert not any(alive(pid) for pid in tree)
    assert output(agent) == ""


@requirement("spawn.whole-tree")
def test_stop_from_many_threads_is_one_stop() -> None:
    agent = launch(TREE + WAIT)
    pids(agent.stdout)
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(agent.stop, [f"reason {number}" for number in range(8)]))
    assert len(set(reports)) == 1
    assert reports[0].survivors == 0
    assert output(agent) == ""


@requirement("H3.ends-at-expiry")
def test_the_run_ends_at_its_deadline_while_the_parent_does_nothing() -> None:
    agent = launch(TREE + WAIT, seconds=0.7)
    tree = pids(agent.stdout)
    eventually(lambda: agent.report is not None, "the end of the run")
    assert agent.report is not None
    assert (agent.report.reason, agent.report.survivors) == ("expired", 0)
    assert not any(alive(pid) for pid in tree)
    assert output(agent) == ""


@requirement("H3.ends-at-expiry")
def test_the_run_ends_at_its_deadline_while_the_parent_is_stopped(runs: Path) -> None:
    with driver({"code": TREE + WAIT, "seconds": 1.5}, runs) as parent:
        tree = json.loads(line(parent.stdout))["tree"]
        os.kill(parent.pid, signal.SIGSTOP)
        eventually(lambda: not any(alive(pid) for pid in tree), "the end of the tree")
        eventually(lambda: run_folders(runs) == [], "the removal of the run's folder")


@requirement("spawn.dies-with-parent")
@pytest.mark.parametrize("fork", [False, True], ids=["alone", "with a fork that holds its descriptors"])
def test_the_tree_dies_with_its_parent_even_by_sigkill(runs: Path, fork: bool) -> None:
    with driver({"code": TREE + WAIT, "fork": fork, "grace": 3600}, runs) as parent:
        facts = json.loads(line(parent.stdout))
        try:
            parent.kill()
            eventually(lambda: not any(map(alive, [*facts["tree"], facts["supervisor"]])), "the end of the tree")
            eventually(lambda: run_folders(runs) == [], "the removal of the run's folder")
        finally:
            if fork:
                os.kill(facts["fork"], signal.SIGKILL)


@requirement("spawn.supervisor-killed")
def test_when_the_agent_kills_its_supervisor_it_dies_and_what_carries_the_runs_mark_dies(runs: Path) -> None:
    agent = launch(TREE + "os.kill(os.getppid(), signal.SIGKILL)\n" + WAIT)
    tree = pids(agent.stdout)
    assert agent.wait(PATIENCE) == -9
    assert agent.report is not None
    assert (agent.report.reason, agent.report.exit_code, agent.report.survivors) == ("supervisor-died", None, 0)
    assert agent.report.not_done
    assert not any(alive(pid) for pid in tree)
    assert run_folders(runs) == []
    assert output(agent) == ""


@requirement("spawn.supervisor-killed")
def test_when_the_supervisor_is_stopped_the_run_can_still_be() -> None:
    agent = launch(TREE + "os.kill(os.getppid(), signal.SIGSTOP)\nprint('stopped', flush=True)\n" + WAIT)
    tree = pids(agent.stdout)
    assert line(agent.stdout) == "stopped"
    report = agent.stop("revoked")
    assert (report.reason, report.survivors) == ("revoked", 0)
    assert not any(alive(pid) for pid in tree)
    assert output(agent) == ""


@requirement("spawn.supervisor-killed")
def test_a_polite_signal_to_the_supervisor_ends_the_run() -> None:
    agent = launch(TREE + WAIT)
    tree = pids(agent.stdout)
    os.kill(agent.supervisor_pid, signal.SIGTERM)
    agent.wait(PATIENCE)
    assert agent.report is not None
    assert (agent.report.reason, agent.report.survivors) == ("signalled", 0)
    assert not any(alive(pid) for pid in tree)
    assert output(agent) == ""


@requirement("spawn.folder-removed")
def test_the_runs_folder_is_removed_whatever_the_agent_made_of_it_and_nothing_else_is(
    tmp_path: Path, runs: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    outside.chmod(0o750)
    agent = launch(
        f"""
import os
os.chdir(os.environ["HOME"])
os.symlink({str(outside)!r}, "link"); os.symlink({str(outside / "precious")!r}, "file-link"); os.mkfifo("fifo")
os.makedirs("locked/inner/more"); open("locked/inner/file", "w").close()
os.chmod("locked/inner", 0o500); os.chmod("locked", 0)
for _ in range(1500):
    os.mkdir("d" * 40); os.chdir("d" * 40)
os.chmod(os.path.dirname(os.environ["HOME"]), 0o100)
"""
    )
    assert agent.wait(PATIENCE) == 0
    assert agent.report is not None
    assert agent.report.not_done == ()
    assert run_folders(runs) == []
    assert (outside / "precious").read_text() == "kept"
    assert outside.stat().st_mode & 0o777 == 0o750
    assert output(agent) == ""


@requirement("spawn.folder-removed")
def test_what_an_agent_puts_in_the_place_of_the_runs_folder_is_left_alone_and_said(tmp_path: Path, runs: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    agent = launch(
        f"""
import os
root = os.path.dirname(os.environ["HOME"])
os.rename(root, root + ".moved"); os.symlink({str(outside)!r}, root)
"""
    )
    assert agent.wait(PATIENCE) == 0
    assert agent.report is not None
    assert not agent.report.clean
    assert "by hand" in agent.report.not_done[0]
    assert (outside / "precious").read_text() == "kept"
    assert output(agent) == ""
    for left in run_folders(runs):
        subprocess.run(["rm", "-rf", str(left)], check=True)


@requirement("spawn.folder-removed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_is_mounted_in_the_runs_folder_is_not_removed(tmp_path: Path, runs: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    agent = ProcessLauncher(
        ["sh", "-c", f'mkdir -p "$HOME/a/b" && pwd -P >"$HOME/a/file" && mount --bind {outside} "$HOME/a/b"']
    )(context())
    status = agent.wait(PATIENCE)
    if status != 0:
        pytest.skip("this machine does not let root mount")
    mounted = [entry.split()[4] for entry in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in [point for point in mounted if point.startswith(str(runs))]:
        subprocess.run(["umount", point], check=True)
    assert (outside / "precious").read_text() == "kept"
    assert agent.report is not None
    assert "by hand" in agent.report.not_done[0]
    for left in run_folders(runs):
        subprocess.run(["rm", "-rf", str(left)], check=True)


def interpreter_for_everyone() -> str | None:
    """A Python of this version that another user can execute; the one of the tests may be in a private folder."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = [path, "-I", "-S", "-c", "import ctypes"]
        try:
            subprocess.run(
                command, check=True, capture_output=True, user=ORDINARY_UID, group=ORDINARY_UID, extra_groups=()
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return path
    return None


@requirement("spawn.any-user")
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all of these tests as one")
@pytest.mark.parametrize("ending", ["stop", "kill the parent", "kill the supervisor"])
def test_an_ordinary_user_gets_the_same(ending: str) -> None:
    interpreter = interpreter_for_everyone()
    if interpreter is None:
        pytest.skip("no interpreter of this version that another user can execute")
    # The code under test is executed as that user: it must be readable on the way there.
    runs = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        os.chown(runs, ORDINARY_UID, ORDINARY_UID)
        code = TREE + ("os.kill(os.getppid(), signal.SIGKILL)\n" if ending == "kill the supervisor" else "")
        code += "os.chmod(os.environ['HOME'], 0)\n" + WAIT
        job = {"code": code, "uid": ORDINARY_UID, "stop": ending != "kill the parent"}
        with driver(job, runs, interpreter=interpreter) as parent:
            facts = json.loads(line(parent.stdout))
            assert Path("/proc", str(facts["tree"][1])).stat().st_uid == ORDINARY_UID or not alive(facts["tree"][1])
            if job["stop"]:
                report = json.loads(line(parent.stdout))
                assert report["survivors"] == 0
            else:
                parent.kill()
            eventually(lambda: not any(map(alive, [*facts["tree"], facts["supervisor"]])), "the end of the tree")
            eventually(lambda: run_folders(runs) == [], "the removal of the run's folder")
    finally:
        shutil.rmtree(runs)


@requirement("spawn.no-leak")
def test_twenty_launches_from_threads_are_twenty_runs_and_leave_nothing() -> None:
    before, threads = open_descriptors(), set(threading.enumerate())

    def one(number: int) -> tuple[str, int]:
        agent = ProcessLauncher(["sh", "-c", f'printf %s "$MINE$HOME"; exit {number}'], stdout=subprocess.PIPE)(
            context({"MINE": f"{number}:"})
        )
        return output(agent), agent.wait(PATIENCE)

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(20)))
    assert [code for _, code in results] == list(range(20))
    assert [text.partition(":")[0] for text, _ in results] == [str(number) for number in range(20)]
    assert len({text.partition(":")[2] for text, _ in results}) == 20
    assert open_descriptors() == before
    eventually(lambda: set(threading.enumerate()) == threads, "the end of the watching threads")


@requirement("spawn.no-leak")
def test_fifty_runs_leave_no_descriptor_no_zombie_and_no_thread() -> None:
    before, threads = open_descriptors(), set(threading.enumerate())
    launcher = ProcessLauncher(["true"])
    assert [launcher(context()).wait(PATIENCE) for _ in range(50)] == [0] * 50
    assert open_descriptors() == before
    eventually(lambda: set(threading.enumerate()) == threads, "the end of the watching threads")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@requirement("H6.no-core-dump")
def test_the_parents_own_limits_are_left_as_they_were() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    agent = launch("")
    assert agent.wait(PATIENCE) == 0
    assert resource.getrlimit(resource.RLIMIT_CORE) == before
    assert output(agent) == ""
