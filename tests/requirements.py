"""What must be true, as data; tests are bound to it both ways (tests/test_requirements.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

F = TypeVar("F", bound=Callable[..., object])


def requirement(*ids: str) -> Callable[[F], F]:
    """Tag a test with the requirements that it shows to hold."""

    def tag(test: F) -> F:
        for one in ids:
            test = pytest.mark.requirement(one)(test)
        return test

    return tag
