"""A fresh embedded vault and the clock that it goes by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent_token_injector.clock import ManualClock
from agent_token_injector.vaults.embedded import EmbeddedVault
from tests.vaults.helpers import START


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "vault"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def vault(directory: Path, clock: ManualClock) -> Iterator[EmbeddedVault]:
    with closing(EmbeddedVault(directory, clock=clock)) as opened:
        yield opened
