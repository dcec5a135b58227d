"""The provisioner's key: made once, closed to others, the same for all who come first at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent_token_injector.errors import SettingsError
from agent_token_injector.settings import load_or_create_key, read_key
from tests.requirements import requirement
from tests.world import ROOT


@requirement("settings.keys")
def test_a_key_is_made_once_closed_to_others_and_read_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys" / "provisioner.key"
    first = load_or_create_key(path)
    assert load_or_create_key(path).key_id == first.key_id
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [entry.name for entry in path.parent.iterdir()] == ["provisioner.key"]


RACE = """
import sys
from pathlib import Path
from agent_token_injector.settings import load_or_create_key
import cryptography.hazmat.primitives.asymmetric.ed25519
print("ready", flush=True)
sys.stdin.readline()
print(load_or_create_key(Path(sys.argv[1])).key_id, flush=True)
"""


@requirement("settings.keys")
def test_processes_that_come_first_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "provisioner.key"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found = {racer.communicate(timeout=30)[0].strip() for racer in racers}
    assert found == {read_key(path).key_id}


@requirement("settings.keys")
def test_a_key_file_that_holds_no_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "provisioner.key"
    path.write_text("not a key")
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="does not hold a signing key"):
        load_or_create_key(path)
    assert path.read_text() == "not a key"
