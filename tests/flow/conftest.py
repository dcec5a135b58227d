from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_token_injector.clock import ManualClock
from agent_token_injector.context import HandoffContext
from tests.flow.rig import START
from tests.world import World, make_world


@pytest.fixture
def clock() -> ManualClock:
    """Stands still at a fixed morning, so that no test meets midnight."""
    return ManualClock(START)


@pytest.fixture
def world(tmp_path: Path, clock: ManualClock) -> Iterator[World]:
    with make_world(tmp_path, clock) as made:
        yield made
        failures = [*made.sandbox.github.failures, *made.sandbox.stripe.failures]
        assert failures == [], "an emulated vendor failed by itself"


@pytest.fixture
def ctx(world: World) -> Iterator[HandoffContext]:
    with world.open() as opened:
        world.furnish(opened)
        yield opened
