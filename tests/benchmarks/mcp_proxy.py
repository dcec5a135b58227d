"""The MCP proxy against a bare upstream and its peers, in one run: `python tests/benchmarks/mcp_proxy.py BENCH [--peers DIR]`.

BENCH is the folder of the bench (bench.py, upstream.py, tcp_relay.py, relay_line.py, fast_proxy.py). DIR is where the
peers live, each in a virtual environment of its own; `--install` makes them there first. Only ratios of one run count.

The proxy runs as it does behind `spawn_handoff`: policy with an argument schema, ten secrets to mask, minted ids, chained
audit on disk, expiry and standing checked for every call.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_token_injector.audit import AuditLog
from agent_token_injector.clock import SystemClock
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy import HttpServer, McpProxy, StdioServer, handoff_mcp
from agent_token_injector.names import HandoffId
from agent_token_injector.spec import ToolGrant

TOKEN = SecretStr("bench-token-of-one-handoff-0123456789")
SECRETS = [SecretStr(f"secret-number-{number:02d}-of-the-bench-handoff") for number in range(10)]
GRANT = {
    "name": "echo",
    "arguments": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 1000000}}},
}
ALLOWED_RUNS = 3
PEERS = {"fastmcp": "fastmcp==4.1.2", "mcp-proxy": "mcp-proxy==0.13.0", "mcp-pin": "mcp-pin==0.1.8"}
WIDTH = 30


@contextmanager
def our_proxy(servers: list[Any]) -> Iterator[McpProxy]:
    """A proxy in front of servers, with everything on."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        audit = AuditLog(Path(folder) / "audit", clock=clock, actor="bench", redactor=Redactor([*SECRETS, TOKEN]))
        proxy = McpProxy(
            handoff=HandoffId.parse("bench-20260620"),
            grants=[ToolGrant.model_validate(GRANT)],
            excluded=("forbidden",),
            servers=servers,
            token=TOKEN,
            audit=audit,
            redactor=Redactor([*SECRETS, TOKEN]),
            check=lambda: None,
            expires_at=clock.now() + timedelta(hours=1),
            clock=clock,
        )
        try:
            proxy.start()
            yield proxy
        finally:
            proxy.close()
            audit.close()


def bench(folder: Path, *options: str) -> dict[str, Any]:
    """One run of the load client."""
    argv = [sys.executable, str(folder / "bench.py"), "--n", "3000", "--nconc", "12000", *options]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def memory(pid: int) -> float:
    """The resident memory of a process and all below it, in MB, the upstream left out."""
    total, todo = 0.0, [pid]
    while todo:
        one = todo.pop()
        for task in Path(f"/proc/{one}/task").iterdir():
            todo += [int(child) for child in (task / "children").read_text().split()]
        if "upstream.py" not in Path(f"/proc/{one}/cmdline").read_text():
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return total


class Table:
    """Medians of alternating runs, printed as ratios to the direct line of the same run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.rows.setdefault(name, []).append(result)

    def value(self, name: str, key: str) -> float | None:
        found = [one[key] for one in self.rows[name] if one.get(key) is not None]
        return statistics.median(found) if found else None

    def print(self) -> None:
        print(f"\n| {self.title} | p50 us | x direct | calls/s at 1 | at 16 | at 64 | memory MB | errors | denied |")
        print("|---|---|---|---|---|---|---|---|---|")
        floor = self.value("direct", "p50_us") or 1.0
        for name, runs in self.rows.items():
            failed = next((one["failed"] for one in runs if "failed" in one), None)
            if failed is not None:
                print(f"| {name} | failed: {failed} | | | | | | | |")
                continue
            p50 = self.value(name, "p50_us") or 0.0
            cells = [f"{p50:.0f}", f"{p50 / floor:.1f}"]
            for key in ("rps_1", "rps_16", "rps_64", "proxy_rss_mb"):
                number = self.value(name, key)
                cells.append("" if number is None else f"{number:,.0f}".replace(",", " "))
            cells += [str(sum(one["errors"] for one in runs)), str(runs[-1].get("deny", ""))]
            print(f"| {name} | {' | '.join(cells)} |")


def measure_stdio(folder: Path, peers: Path | None, era: str, rounds: int) -> Table:
    upstream = [sys.executable, str(folder / "upstream.py"), "stdio"]
    table = Table(f"stdio, {era}")
    others = {"bare relay (not safe)": [sys.executable, str(folder / "relay_line.py"), "echo", *upstream]}
    if peers is not None:
        others["fastmcp 4.1.2"] = [python_of(peers, "fastmcp"), str(folder / "fast_proxy.py"), "stdio", *upstream]
        others["mcp-pin 0.1.8"] = pin_command(peers, upstream)
    with our_proxy([StdioServer("bench", tuple(upstream))]) as proxy:
        os.environ |= {"HANDOFF_MCP_SOCKET": str(proxy.socket_path), "HANDOFF_MCP_TOKEN": TOKEN.get_secret_value()}
        ours = [sys.executable, "-I", "-S", handoff_mcp.__file__]
        for _ in range(rounds):
            table.add("direct", bench(folder, "--era", era, "--stdio", shlex.join(upstream)))
            result = bench(folder, "--era", era, "--deny", "forbidden", "--stdio", shlex.join(ours))
            result["proxy_rss_mb"] = memory(proxy.pid or 0)
            table.add("handoff (stdio in, stdio out)", result)
            for name, argv in others.items():
                options = ("--n", "400", "--nconc", "800", "--maxsec", "6") if "relay" not in name else ()
                table.add(
                    name, bench(folder, "--era", era, "--deny", "forbidden", "--stdio", shlex.join(argv), *options)
                )
    return table


def measure_http(folder: Path, peers: Path | None, era: str, rounds: int) -> Table:
    table = Table(f"HTTP, {era}")
    upstream = [sys.executable, str(folder / "upstream.py")]
    with (
        serving([*upstream, "http", "9100"], 9100),
        serving([sys.executable, str(folder / "tcp_relay.py"), "9101", "9100"], 9101),
        our_proxy([HttpServer("bench", "http://127.0.0.1:9100/mcp")]) as to_http,
        our_proxy([StdioServer("bench", (*upstream, "stdio"))]) as to_stdio,
    ):
        header = f"Authorization: Bearer {TOKEN.get_secret_value()}"
        for _ in range(rounds):
            table.add("direct", bench(folder, "--era", era, "--http", "http://127.0.0.1:9100/mcp"))
            table.add("TCP relay (no parse)", bench(folder, "--era", era, "--http", "http://127.0.0.1:9101/mcp"))
            for name, proxy in (("handoff (HTTP to HTTP)", to_http), ("handoff (HTTP to stdio)", to_stdio)):
                options = ("--era", era, "--deny", "forbidden", "--header", header)
                result = bench(folder, *options, "--http", proxy.url)
                result["proxy_rss_mb"] = memory(proxy.pid or 0)
                table.add(name, result)
            if peers is not None:
                few = ("--n", "400", "--nconc", "800", "--maxsec", "6", "--era", era, "--deny", "forbidden")
                command = [bin_of(peers, "mcp-proxy", "mcp-proxy"), "--port", "9102", "--", *upstream, "stdio"]
                result = bench(folder, *few, "--http", "http://127.0.0.1:9102/mcp", "--spawn", shlex.join(command))
                table.add("mcp-proxy 0.13.0 (HTTP to stdio)", result)
                command = [python_of(peers, "fastmcp"), str(folder / "fast_proxy.py"), "http:9103", *upstream, "stdio"]
                result = bench(folder, *few, "--http", "http://127.0.0.1:9103/mcp", "--spawn", shlex.join(command))
                table.add("fastmcp 4.1.2 (HTTP to stdio)", result)
    return table


@contextmanager
def serving(argv: list[str], port: int) -> Iterator[None]:
    import socket

    process = subprocess.Popen(argv)
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


def first_list(folder: Path, rounds: int) -> None:
    """How much later a proxy's first tools/list is answered than the upstream's own, from the start of either."""
    upstream = [sys.executable, str(folder / "upstream.py"), "stdio"]
    alone, behind = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with subprocess.Popen(upstream, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            ask(process)
            alone.append(time.perf_counter() - began)
            process.kill()
        began = time.perf_counter()
        with our_proxy([StdioServer("bench", tuple(upstream))]) as proxy:
            env = {"HANDOFF_MCP_SOCKET": str(proxy.socket_path), "HANDOFF_MCP_TOKEN": TOKEN.get_secret_value()}
            argv = [sys.executable, "-I", "-S", handoff_mcp.__file__]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env) as process:
                ask(process)
                behind.append(time.perf_counter() - began)
                process.kill()
    own, through = statistics.median(alone) * 1000, statistics.median(behind) * 1000
    print(
        f"\nfirst tools/list: upstream {own:.0f} ms, through the proxy {through:.0f} ms, {through - own:.0f} ms later"
    )


def ask(process: subprocess.Popen[bytes]) -> None:
    """Initialize and list tools."""
    assert process.stdin is not None
    assert process.stdout is not None
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    for document in (
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    ):
        process.stdin.write(json.dumps(document).encode() + b"\n")
    told = b""
    while told.count(b"\n") < 2:
        data = process.stdout.read(65536)
        assert data, "it ended"
        told += data


def bin_of(peers: Path, peer: str, command: str) -> str:
    return str(peers / peer / "bin" / command)


def python_of(peers: Path, peer: str) -> str:
    return bin_of(peers, peer, "python")


def pin_command(peers: Path, upstream: list[str]) -> list[str]:
    """mcp-pin in front of the upstream: as fast as it gets, with nothing pinned and unknown tools let through."""
    lock = peers / "mcp-pin" / "bench.lock"
    lock.write_text("{}")
    tool = bin_of(peers, "mcp-pin", "mcp-pin")
    return [tool, "guard", "--quiet", "--policy", "warn", "--allow-unapproved", "--lock", str(lock), "--", *upstream]


def install(peers: Path) -> None:
    """Make the peers' virtual environments."""
    for name, requirement in PEERS.items():
        if not (peers / name).exists():
            subprocess.run([sys.executable, "-m", "venv", str(peers / name)], check=True)
            subprocess.run([python_of(peers, name), "-m", "pip", "install", "--quiet", requirement], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--rounds", type=int, default=ALLOWED_RUNS)
    parser.add_argument("--only", choices=["stdio", "http", "start"])
    chosen = parser.parse_args()
    if chosen.install and chosen.peers is not None:
        install(chosen.peers)
    if chosen.only in (None, "stdio"):
        for era in ("legacy", "modern"):
            measure_stdio(chosen.bench, chosen.peers, era, chosen.rounds).print()
    if chosen.only in (None, "http"):
        for era in ("legacy", "modern"):
            measure_http(chosen.bench, chosen.peers, era, chosen.rounds).print()
    if chosen.only in (None, "start"):
        first_list(chosen.bench, 5 * chosen.rounds)


if __name__ == "__main__":
    main()
