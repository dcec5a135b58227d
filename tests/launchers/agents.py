"""Agents to launch, and eyes on them: real processes, looked into only when a test started them."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.launchers.process import AgentProcess
from agent_token_injector.launchers.supervisor import look_up
from agent_token_injector.names import HandoffId
from agent_token_injector.session_context import SessionContext

HANDOFF = HandoffId.parse("founders-checkout-20260620")
PATIENCE = 30.0
"""Seconds for something that takes milliseconds on an idle machine."""

TREE = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
hear, say = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(say, b"%d " % os.getpid())
        while True:
            signal.pause()
    os._exit(0)
child = os.fork()
if child == 0:
    while True:
        signal.pause()
os.wait()
daemon = os.read(hear, 32).decode()
print(os.getpid(), child, daemon, flush=True)
"""
"""A child, and a daemon that forked twice into its own session; all ignore SIGTERM. Prints the three pids."""
WAIT = "while True: signal.pause()\n"


def python(code: str, *, executable: str = sys.executable) -> list[str]:
    """The command of an agent that is a Python program, quick to start."""
    return [executable, "-I", "-S", "-B", "-c", code]


def context(env: Mapping[str, str | SecretStr] | None = None, *, seconds: float = 3600, **more: Any) -> SessionContext:
    """A handoff which an agent may use for `seconds`."""
    expires_at = datetime.now(UTC) + LOCAL_EARLY + timedelta(seconds=seconds)
    return SessionContext(HANDOFF, expires_at, env or {}, **more)


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until `holds`, and fail saying `what` did not come to be."""
    limit = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < limit, f"not within {PATIENCE} s: {what}"
        select.select([], [], [], 0.005)


def alive(pid: int) -> bool:
    """Whether the process still runs; one that is dead and not yet collected does not."""
    process = look_up(pid)
    return process is not None and process.alive


def line(stream: Any) -> str:
    """The next line that a process of ours prints; read past the buffer, in which select() cannot see a second one."""
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], PATIENCE)
        assert ready, f"no line within {PATIENCE} s"
        byte = os.read(stream.fileno(), 1)
        assert byte, f"the end of the stream after {text!r}"
        text += byte
    return text.decode().strip()


def pids(stream: Any) -> list[int]:
    return [int(pid) for pid in line(stream).split()]


def output(agent: AgentProcess) -> str:
    """All that an agent printed and nobody has read yet, after its end."""
    assert agent.stdout is not None
    with agent.stdout as stream:
        text = bytes(stream.read()).decode()
    agent.wait(PATIENCE)
    return text


def told(agent: AgentProcess) -> Any:
    return json.loads(output(agent))


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@contextmanager
def parent_environment(block: Mapping[str, str]) -> Iterator[None]:
    """This process's own environment, for a while."""
    before = dict(os.environ)
    os.environ.update(block)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_folders(folder: Path) -> list[Path]:
    return list(folder.glob("handoff-*"))
