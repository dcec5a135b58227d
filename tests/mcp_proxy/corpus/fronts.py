"""A client that can say anything over stdio: `handoff-mcp` as a process, its lines as they come."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent_token_injector.mcp_proxy import handoff_mcp
from tests.mcp_proxy.harness import META, TOKEN

SECONDS = 10.0


class StdioClient:
    """One conversation through `handoff-mcp`."""

    def __init__(self, socket_path: Path | None, token: str = TOKEN.get_secret_value()) -> None:
        command = (sys.executable, "-I", "-S", str(handoff_mcp.__file__))
        env = {"HANDOFF_MCP_SOCKET": str(socket_path), "HANDOFF_MCP_TOKEN": token}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def say(self, raw: bytes) -> None:
        """Write bytes as they are."""
        assert self.process.stdin is not None
        self.process.stdin.write(raw)
        self.process.stdin.flush()

    def line(self, seconds: float = SECONDS) -> bytes:
        """The next line, with its end; empty at the end of the conversation."""
        return self.lines.get(timeout=seconds)

    def until(self, message_id: object) -> list[dict[str, Any]]:
        """Every message up to the answer to `message_id`, which is the last one."""
        found = []
        while True:
            line = self.line()
            assert line, f"the conversation ended before the answer to {message_id!r}: {found}"
            found.append(canonical(line))
            if "method" not in found[-1] and found[-1]["id"] == message_id:
                return found

    def ask(
        self, method: str, params: Mapping[str, Any] | None = None, *, message_id: Any = 1, era: str = "handshake"
    ) -> Any:
        """Ask, and return the answer; nothing else may come before it."""
        self.say(request(method, params, message_id=message_id, era=era) + b"\n")
        (answer,) = self.until(message_id)
        return answer

    def initialize(self) -> None:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        assert "result" in self.ask("initialize", params, message_id="hello")

    def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, message_id: Any = 1, era: str = "handshake"
    ) -> Any:
        return self.ask("tools/call", {"name": tool, "arguments": arguments or {}}, message_id=message_id, era=era)

    def finish(self) -> list[bytes]:
        """Say no more, and return what still comes."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        rest = []
        while line := self.line():
            rest.append(line)
        return rest

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


@contextmanager
def stdio_client(socket_path: Path | None, token: str = TOKEN.get_secret_value()) -> Iterator[StdioClient]:
    made = StdioClient(socket_path, token)
    try:
        yield made
    finally:
        made.close()


def request(
    method: str, params: Mapping[str, Any] | None = None, *, message_id: Any = 1, era: str = "handshake"
) -> bytes:
    """One request of an era, as a line without its end."""
    meta = {"_meta": META} if era == "stateless" else {}
    return json.dumps(
        {"jsonrpc": "2.0", "id": message_id, "method": method, "params": {**meta, **(params or {})}}
    ).encode()


def canonical(line: bytes) -> dict[str, Any]:
    """One line as a message. Fails where it is anything but one line of ASCII JSON-RPC."""
    assert line.isascii(), line
    assert line.endswith(b"\n"), line
    text = line[:-1].decode("ascii")
    assert text.splitlines() == [text], line
    message = json.loads(text)
    assert isinstance(message, dict), line
    assert message["jsonrpc"] == "2.0", line
    assert ("method" in message) or (("result" in message) is not ("error" in message)), line
    return message
