"""`handoff-mcp`, as the process that a client starts, against a socket that answers as the proxy does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_token_injector.mcp_proxy import McpProxy, handoff_mcp
from tests.mcp_proxy.harness import TOKEN as PROXY_TOKEN
from tests.mcp_proxy.harness import Rig, wait_until
from tests.requirements import requirement

TOKEN = "bearer-of-this-handoff-alone-7f3a"
COMMAND = (sys.executable, "-I", "-S", str(handoff_mcp.__file__))
MIB = 1024 * 1024


class Front:
    """What a proxy's end of the socket saw of one conversation, and how it goes on."""

    def __init__(self, path: Path, then: Callable[[Front], None], answer: bytes) -> None:
        self.path = path
        self.greeting = b""
        self.handed: list[int] = []
        self._then = then
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self.line, _ = self._listener.accept()
        with self.line:
            self.greeting, self.handed, _, _ = socket.recv_fds(self.line, 4096, 2)
            self.line.sendall(self._answer)
            self._then(self)
            for descriptor in self.handed:
                os.close(descriptor)

    def close(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listener.close()


@contextmanager
def front(tmp_path: Path, then: Callable[[Front], None] = lambda _: None, answer: bytes = b"OK\n") -> Iterator[Front]:
    made = Front(tmp_path / "s", then, answer)
    yield made
    made.close()


def start(path: Path | None, *, token: str = TOKEN, **streams: Any) -> subprocess.Popen[bytes]:
    env = {"HANDOFF_MCP_TOKEN": token} | ({} if path is None else {"HANDOFF_MCP_SOCKET": str(path)})
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(COMMAND, env=env, **given)


def read_all(descriptor: int) -> bytes:
    found = b""
    while part := os.read(descriptor, MIB):
        found += part
    return found


@requirement("mcp.handoff-mcp")
def test_pipes_are_handed_over_and_each_end_of_a_client_shows_at_once(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def talk(front: Front) -> None:
        source, sink = front.handed
        os.write(sink, b'{"hello":1}\n')
        heard.append(read_all(source))

    with front(tmp_path, talk) as made, start(made.path) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == b'{"hello":1}\n'
        client.stdin.write(b"words")
        client.stdin.close()
        assert client.stdout.read() == b""
        assert client.wait(20) == 0
        assert client.stderr is not None
        assert client.stderr.read() == b""
    assert heard == [b"words"]
    assert made.greeting == f"HANDOFF-MCP/1 fds {TOKEN}\n".encode()


@requirement("mcp.handoff-mcp")
def test_sockets_are_handed_over_as_well(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()

    def talk(front: Front) -> None:
        source, sink = front.handed
        os.write(sink, os.read(source, 100).upper())

    with ours, front(tmp_path, talk) as made:
        with theirs:
            client = start(made.path, stdin=theirs, stdout=theirs)
        with client:
            ours.sendall(b"words")
            assert ours.recv(100) == b"WORDS"
            assert client.wait(20) == 0
            assert ours.recv(100) == b""
    assert b" fds " in made.greeting


@requirement("mcp.handoff-mcp")
def test_a_file_is_copied_in_both_directions_at_once_and_its_end_is_passed_on(tmp_path: Path) -> None:
    body = os.urandom(3 * MIB)
    (tmp_path / "in").write_bytes(body)
    heard: list[bytes] = []

    def talk(front: Front) -> None:
        saying = threading.Thread(target=front.line.sendall, args=(body,))
        saying.start()
        heard.append(read_all(front.line.fileno()))
        saying.join()

    with front(tmp_path, talk, answer=b"OK\nearly ") as made, (tmp_path / "in").open("rb") as file:
        with start(made.path, stdin=file) as client:
            out, err = client.communicate(timeout=30)
        assert (client.returncode, err) == (0, b"")
    assert made.greeting == f"HANDOFF-MCP/1 bytes {TOKEN}\n".encode()
    assert made.handed == []
    assert heard == [body]
    assert out == b"early " + body


@requirement("mcp.handoff-mcp")
def test_a_copied_conversation_that_the_proxy_ends_is_over_though_the_client_is_silent(tmp_path: Path) -> None:
    reading, writing = os.openpty()
    try:
        with front(tmp_path) as made, start(made.path, stdin=writing) as client:
            assert client.wait(20) == 0
        assert b" bytes " in made.greeting
    finally:
        os.close(reading)
        os.close(writing)


@requirement("mcp.handoff-mcp")
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"NO not this handoff's token\n", 'the MCP proxy says "NO not this handoff\'s token"'),
        (b"", "the MCP proxy did not answer"),
        (b"x" * 5000, "does not speak this language"),
        (b"NO \xff\x1b[31m\n", r"the MCP proxy says 'NO \ufffd\x1b[31m'"),
    ],
)
def test_what_the_proxy_does_not_want_is_one_line_on_stderr_without_the_token(
    tmp_path: Path, answer: bytes, said: str
) -> None:
    with front(tmp_path, answer=answer) as made, start(made.path) as client:
        out, err = client.communicate(timeout=20)
    assert (client.returncode, out) == (1, b"")
    assert err.startswith(b"handoff-mcp: ")
    assert err.count(b"\n") == 1
    assert said in err.decode()
    assert TOKEN not in err.decode()


@requirement("mcp.handoff-mcp")
def test_a_conversation_that_the_proxy_breaks_off_says_why(tmp_path: Path) -> None:
    with front(tmp_path, lambda front: front.line.sendall(b"NO the handoff expired\n")) as made:
        with start(made.path) as client:
            _, err = client.communicate(timeout=20)
        assert client.returncode == 1
    assert err == b"handoff-mcp: the MCP proxy ended it: NO the handoff expired\n"


@requirement("mcp.handoff-mcp")
@pytest.mark.parametrize(
    ("path", "token", "said"),
    [
        (None, TOKEN, "HANDOFF_MCP_SOCKET is not set"),
        ("/nowhere/mcp.sock", "", "HANDOFF_MCP_TOKEN is not set"),
        ("/nowhere/mcp.sock", TOKEN, "the MCP proxy is not there: No such file or directory"),
        ("/" + "x" * 200, TOKEN, "the MCP proxy is not there: AF_UNIX path too long"),
    ],
)
def test_without_a_proxy_it_says_so(path: str | None, token: str, said: str) -> None:
    with start(None if path is None else Path(path), token=token) as client:
        _, err = client.communicate(timeout=20)
    assert client.returncode == 1
    assert said in err.decode()
    assert TOKEN not in err.decode()


@requirement("mcp.handoff-mcp", "mcp.light-imports")
def test_it_needs_nothing_beyond_the_standard_library() -> None:
    probe = (
        "import runpy, sys\n"
        f"runpy.run_path({str(handoff_mcp.__file__)!r})\n"
        "print([name for name in sys.modules if 'agent_token' in name or 'site-packages' in str(sys.modules[name])])\n"
        "print([name for name in ('typing', 'asyncio', 'threading', 're', 'json', 'pathlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[]"


class Joined:
    """A client's end of a `handoff-mcp` that is joined to a real proxy."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def ask(self, number: int, method: str, params: Any) -> Any:
        self.say({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        return self.hear()

    def say(self, document: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def greet(self) -> Any:
        client = {"name": "joined", "version": "1"}
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
        return self.ask(0, "initialize", params)


@contextmanager
def joined(proxy: McpProxy, *, token: str = PROXY_TOKEN.get_secret_value(), **streams: Any) -> Iterator[Joined]:
    with start(proxy.socket_path, token=token, **streams) as process:
        try:
            yield Joined(process)
        finally:
            process.kill()


@requirement("mcp.handoff-mcp", "mcp.allowlist-exact")
def test_a_client_is_joined_to_its_proxy_and_gets_the_allowlist_and_no_more(rig: Rig) -> None:
    with joined(rig.start(["echo"])) as client:
        assert client.greet()["result"]["protocolVersion"] == "2025-11-25"
        client.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        tools = client.ask(1, "tools/list", {})["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["echo"]
        answer = client.ask(2, "tools/call", {"name": "echo", "arguments": {"text": "x"}})
        assert answer["result"]["content"][0]["text"] == '{"text": "x"}'
        refused = client.ask(3, "tools/call", {"name": "forbidden", "arguments": {}})
        assert refused["error"] == {"code": -32602, "message": "Unknown tool: forbidden"}
        assert rig.calls_received() == ["echo"]
        assert client.process.stdin is not None
        client.process.stdin.close()
        assert client.process.wait(20) == 0


@requirement("mcp.handoff-mcp", "mcp.token-required")
def test_without_this_handoffs_token_the_proxy_joins_nobody(rig: Rig) -> None:
    with joined(rig.start(["echo"]), token="x" * 40) as client:
        _, err = client.process.communicate(timeout=20)
    assert client.process.returncode == 1
    assert err.startswith(b'handoff-mcp: the MCP proxy says "NO')
    assert rig.events("tool.denied")[-1].reason == "unauthenticated"


@requirement("mcp.handoff-mcp", "D8.cut-off")
def test_closing_the_proxy_ends_the_client_and_cutting_it_off_refuses_its_calls(rig: Rig) -> None:
    proxy = rig.start(["wait", "echo"])
    with joined(proxy) as client:
        client.greet()
        client.say({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "wait", "arguments": {}}})
        wait_until(lambda: rig.calls_received() == ["wait"], "the call arrives")
        proxy.cut_off("revoked")
        assert client.hear()["error"]["message"].endswith("revoked")
        refused = client.ask(2, "tools/call", {"name": "echo", "arguments": {"text": "x"}})
        assert refused["error"]["message"].endswith("revoked")
        proxy.close()
        assert client.process.wait(20) in {0, 1}
    assert rig.calls_received() == ["wait"]


@requirement("mcp.handoff-mcp")
def test_a_client_whose_relay_was_killed_is_cut(rig: Rig) -> None:
    with joined(rig.start(["echo"])) as client:
        client.greet()
        client.process.kill()
        client.process.wait()
        assert client.process.stdout is not None
        assert client.process.stdout.read() == b""
