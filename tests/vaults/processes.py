"""Vault users in processes of their own, started together and told when to go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DEADLINE = 60.0

PREAMBLE = """
import os, sys
from pathlib import Path
from pydantic import SecretStr
from agent_token_injector.clock import SystemClock
from agent_token_injector.errors import AlreadyExists, HandoffError, SecretNotFound, VaultUnreachable
from agent_token_injector.names import VaultPath
from agent_token_injector.vaults.embedded import EmbeddedVault

DIRECTORY, NUMBER = Path(sys.argv[1]), int(sys.argv[2])

def opened():
    return EmbeddedVault(DIRECTORY, clock=SystemClock())

def say(text):
    print(text, flush=True)

def wait_for_go():
    say("ready")
    assert sys.stdin.readline() == "go\\n"
"""


@contextmanager
def started(script: str, directory: Path, number: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs PREAMBLE and `script`; killed when the block is left."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PREAMBLE + script, str(directory), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> list[str]:
    """What a process still said, once it ended well."""
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, out
    return out.splitlines()


def race(script: str, directory: Path, runners: int) -> list[list[str]]:
    """Run `script` in several processes that leave `wait_for_go()` together; what each of them said after it."""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(script, directory, number)) for number in range(runners)]
        for process in processes:
            assert line_of(process) == "ready"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [finish(process) for process in processes]


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process says; pytest's timeout bounds the wait."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")
