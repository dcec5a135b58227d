from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_token_injector.context import HandoffContext
from tests.world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


@pytest.fixture
def ctx(world: World) -> Iterator[HandoffContext]:
    with world.open() as opened:
        world.furnish(opened)
        yield opened
