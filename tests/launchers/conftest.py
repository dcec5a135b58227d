from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_token_injector.launchers.supervisor import descendants, processes


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the folders of this test's runs are made; when the test is over, no run and no process of one is left."""
    import os

    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.glob("handoff-*")) == []
    assert list(descendants({os.getpid()}, processes())) == []
