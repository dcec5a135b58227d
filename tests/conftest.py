"""What every test shares: tags are checked when they are collected, and absent peers are told how to get."""

from __future__ import annotations

import pytest

from tests.requirements import REQUIREMENTS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("requirement"):
            for name in marker.args:
                if name not in REQUIREMENTS:
                    raise pytest.UsageError(
                        f"{item.nodeid} is tagged {name!r}, which tests/requirements.py does not have"
                    )
