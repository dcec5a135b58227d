"""Floods, huge results and clients that do not read: bounded memory, back-pressure, and everybody else still served."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import McpProxy, StdioServer
from agent_token_injector.mcp_proxy import wire
from tests.mcp_proxy.harness import HANDOFF, Rig, wait_until
from tests.mcp_proxy.load import HttpLine, StdioLine, document, rss_mib
from tests.requirements import requirement

LOADED = str(Path(__file__).with_name("servers") / "loaded.py")
BOUND_MIB = 160
"""What the engine may take under any load: the backlog's 32 MiB, one message more from each side, and their copies."""
MIB = 2**20


def loaded(name: str = "loaded") -> StdioServer:
    return StdioServer(name, (sys.executable, LOADED))


def start(rig: Rig, *wanted: str | dict[str, Any], **more: Any) -> McpProxy:
    """A proxy before a server that misbehaves on request, and another one that never does."""
    quiet = {"name": "quiet_echo", "server": "quiet", "tool": "echo"}
    own = [{"name": one, "server": "loaded", "tool": one} if isinstance(one, str) else one for one in wanted]
    proxy = rig.start([*own, quiet], servers=[loaded(), loaded("quiet")], **more)
    with HttpLine(proxy) as line:
        line.initialize()
        still_serves(line)
    return proxy


def still_serves(line: HttpLine, seconds: float = 5.0) -> None:
    """The other server's tool answers, soon, in a session or without one."""
    began = time.monotonic()
    status, answer = line.call("quiet_echo", {"text": "still here"}, stateless=line.session is None)
    assert (status, answer["result"]["content"][0]["text"]) == (200, "still here")
    assert time.monotonic() - began < seconds


@contextmanager
def peak_of(proxy: McpProxy) -> Iterator[Callable[[], float]]:
    """The most memory that the engine had within, in MiB."""
    Path(f"/proc/{proxy.pid}/clear_refs")
    peak, over = [rss_mib(proxy)], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(OSError):
                peak[0] = max(peak[0], rss_mib(proxy))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        over.set()
        thread.join()
