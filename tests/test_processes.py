"""Who a process is: told from a later one of the same number, from another boot's, and from another container's."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_token_injector.processes import ProcessId
from tests.requirements import requirement
from tests.world import ROOT, eventually

TELL = """
import dataclasses, json, sys
from agent_token_injector.processes import ProcessId
print(json.dumps(dataclasses.asdict(ProcessId.current())), flush=True)
sys.stdin.readline()
"""


@contextmanager
def started(*before: str) -> Iterator[tuple[subprocess.Popen[str], ProcessId]]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield process, ProcessId(**json.loads(process.stdout.readline()))
    finally:
        if not process.stdin.closed:  # type: ignore[union-attr]
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=20)


@requirement("D2.holder")
def test_this_process_is_alive() -> None:
    me = ProcessId.current()
    assert me.pid == os.getpid()
    assert me.is_alive() is True
    assert ProcessId.current() == me


@requirement("D2.holder")
def test_another_process_is_alive_until_it_has_ended() -> None:
    with started() as (process, other):
        assert other.pid == process.pid
        assert other.is_alive() is True
        end(process)
    assert other.is_alive() is False


@requirement("D2.holder")
def test_a_process_that_has_ended_and_is_not_collected_yet_is_not_alive() -> None:
    with started() as (process, other):
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        stat = Path(f"/proc/{process.pid}/stat")
        assert eventually(lambda: ") Z " in stat.read_text())
        assert other.is_alive() is False


@requirement("D2.holder")
def test_a_later_process_of_the_same_number_is_another() -> None:
    me = ProcessId.current()
    assert dataclasses.replace(me, started=me.started - 1).is_alive() is False


@requirement("D2.holder")
def test_of_a_process_of_another_boot_or_machine_nothing_is_known() -> None:
    me = ProcessId.current()
    assert dataclasses.replace(me, boot="00000000-0000-0000-0000-000000000000").is_alive() is None


@requirement("D2.holder")
def test_of_a_process_whose_numbers_are_not_ours_nothing_is_known() -> None:
    """Two containers on one machine share its boot id, and each has a pid 1 of its own."""
    unshare = shutil.which("unshare")
    probe = [unshare or "", "--fork", "--pid", "--mount-proc", "true"]
    if unshare is None or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody make a pid namespace")
    with started(*probe[:-1]) as (process, other):
        assert other.pid != process.pid
        assert other.is_alive() is None


@requirement("D2.holder")
def test_a_name_with_blanks_and_parentheses_does_not_confuse_it(tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to(sys.executable)
    process = subprocess.Popen([str(odd), "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    me = ProcessId.current()
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    assert dataclasses.replace(me, pid=process.pid, started=int(started)).is_alive() is True
    process.communicate(b"\n", timeout=20)
    assert dataclasses.replace(me, pid=process.pid, started=int(started)).is_alive() is False
