"""Real programs that some tests need and this project does not install: absent, they skip and say how to get them."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(command: str, how: str) -> None:
    """Go on where `command` is there. Else skip; where HANDOFF_REQUIRE_PEERS is set, as in .ci/run, fail."""
    if shutil.which(command) is not None:
        return
    message = f"{command} is not installed: {how}"
    if os.environ.get("HANDOFF_REQUIRE_PEERS"):
        pytest.fail(message)
    pytest.skip(message)
