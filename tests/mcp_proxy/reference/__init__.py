"""Servers of our own on each line of the official SDKs, as tests start them.

`sdk_server` starts a server that counts the tool calls which reach it; `reference` the one that passes the official
conformance suite. Both over stdio (then the proxy starts it: take `argv` and `env`) or over HTTP (then it runs: `url`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from tests import peers

Line = Literal["py-1.30", "py-2.3", "ts", "ts-2"]
Transport = Literal["stdio", "http"]

LINES: Final[tuple[Line, ...]] = ("py-1.30", "py-2.3", "ts", "ts-2")
"""Python's 1.30, which knows only the handshake era, and 2.3, which knows both; TypeScript's 1.32 and 2.x, the same."""
TRANSPORTS: Final[tuple[Transport, ...]] = ("stdio", "http")
HERE: Final = Path(__file__).parent
FIXTURE: Final[Mapping[str, Any]] = json.loads((HERE / "fixture.json").read_text(encoding="utf-8"))
START_SECONDS: Final = 30.0


_NPM: Final = {
    "ts": ("@modelcontextprotocol/sdk", "counting_ts.mjs"),
    "ts-2": ("@modelcontextprotocol/server", "counting_ts2.mjs"),
}


@dataclass(frozen=True)
class SdkServer:
    """A server to put behind the proxy, and what reached it.

    Attributes:
        transport: "stdio" or "http".
        argv: what starts it; for "stdio" the proxy does.
        env: what it needs in its environment, beside PATH.
        url: where it serves, for "http"; else empty.
        log: the file in which it writes what reached it.
    """

    transport: Transport
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    url: str
    log: Path

    def received(self) -> list[dict[str, Any]]:
        """What reached it, oldest first."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def names(self) -> list[str]:
        """The tools that were called, of a counting server."""
        return [one["name"] for one in self.received()]


@contextmanager
def sdk_server(line: Line, transport: Transport, log: Path) -> Iterator[SdkServer]:
    """A server on that line of an SDK, with the tools `echo` and `forbidden`; it counts each call in `log`.

    Skips, or fails where peers are required, when that line is not installed.
    """
    env = {"COUNTING_LOG": str(log)}
    if line in _NPM:
        package, script = _NPM[line]
        peers.npm_peer(package)
        env["PEERS"] = str(peers.peers_dir())
        program = (peers.node(), str(HERE / script))
    elif line == "py-1.30":
        program = (peers.python_130(), str(HERE / "counting_py130.py"))
    else:
        program = (sys.executable, str(HERE / "counting_py23.py"))
    with _served((*program, transport), env, transport, log) as server:
        yield server


@contextmanager
def reference(transport: Transport, log: Path) -> Iterator[SdkServer]:
    """The reference server, on the 2.3 line of the Python SDK; it writes each message that reaches it to `log`."""
    argv = (sys.executable, str(HERE / "server.py"), transport)
    with _served(argv, {"REFERENCE_LOG": str(log)}, transport, log) as server:
        yield server


@contextmanager
def _served(argv: tuple[str, ...], env: Mapping[str, str], transport: Transport, log: Path) -> Iterator[SdkServer]:
    log.touch()
    if transport == "stdio":
        yield SdkServer(transport, argv, env, "", log)
        return
    complaints = log.with_name(log.name + ".stderr")
    with (
        complaints.open("wb") as stderr,
        subprocess.Popen(
            argv,
            env={"PATH": os.environ["PATH"], **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        late = threading.Timer(START_SECONDS, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            late.cancel()
            assert said, f"{argv[1:]} did not start: {complaints.read_text()[-1000:]}"
            yield SdkServer(transport, argv, env, f"http://127.0.0.1:{json.loads(said)['port']}/mcp", log)
        finally:
            late.cancel()
            # It holds nothing worth an orderly end, which would wait for its open streams.
            process.kill()
