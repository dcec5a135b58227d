from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mcp_proxy.harness import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Rig]:
    """A rig whose writers of the audit wait for each other hardly at all."""
    made = Rig(tmp_path, audit_deadline=0.2)
    yield made
    made.close()
