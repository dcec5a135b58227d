"""What the tests under load share: a stdio client, a raw HTTP connection, and what the engine's process uses."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from agent_token_injector.mcp_proxy import McpProxy
from tests.mcp_proxy.harness import META, STATELESS, TOKEN

HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "load", "version": "1"}}
PAGE_MIB = 4096 / 2**20


def rss_mib(proxy: McpProxy) -> float:
    """The engine's resident memory."""
    return int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[1]) * PAGE_MIB


def peak_mib(proxy: McpProxy) -> float:
    """The most resident memory that the engine has had (proc(5), VmHWM)."""
    lines = Path(f"/proc/{proxy.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def descriptors(proxy: McpProxy) -> list[str]:
    """What the engine's open descriptors are, without the numbers that differ from one socket to the next."""
    folder, found = Path(f"/proc/{proxy.pid}/fd"), []
    try:
        for entry in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()).partition(":[")[0])
    except PermissionError:
        # The engine keeps them from all but root. How many there are is no secret (proc(5), Linux 6.2 and later).
        return ["?"] * folder.stat().st_size
    return sorted(found)


def document(method: str, params: Any, message_id: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": message_id, "method": method, "params": params}).encode()


class StdioLine:
    """A client of the stdio front, on its Unix socket."""

    def __init__(self, proxy: McpProxy, *, seconds: float = 30.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self._reader = self.socket.makefile("rb")
        self._ids = 1000
        try:
            self.socket.connect(str(proxy.socket_path))
            self.socket.sendall(f"HANDOFF-MCP/1 bytes {TOKEN.get_secret_value()}\n".encode())
            assert self._reader.readline() == b"OK\n"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self.socket.close()

    def initialize(self) -> None:
        self.socket.sendall(document("initialize", HELLO, 0) + b"\n")
        assert self.answer()["id"] == 0

    def begin(self, name: str, arguments: Any = None, message_id: object = 1, *, stateless: bool = False) -> None:
        params = {"name": name, "arguments": arguments or {}} | ({"_meta": META} if stateless else {})
        self.socket.sendall(document("tools/call", params, message_id) + b"\n")

    def answer(self) -> Any:
        """The next answer; what belongs to no request is passed over."""
        while "id" not in (message := self.message()):
            pass
        return message

    def message(self) -> Any:
        return json.loads(self._reader.readline())

    def call(self, name: str, arguments: Any = None, message_id: object = 1, **more: Any) -> Any:
        self.begin(name, arguments, message_id, **more)
        return self.answer()

    def calls(self, name: str, arguments: Sequence[Any], *, stateless: bool = False) -> list[Any]:
        """Many calls sent ahead while their answers are read; the answers, in the order in which they came."""
        lines = []
        for one in arguments:
            self._ids += 1
            params = {"name": name, "arguments": one} | ({"_meta": META} if stateless else {})
            lines.append(document("tools/call", params, self._ids))
        # Whoever sends without reading is read no further at some point.
        writer = threading.Thread(target=self.socket.sendall, args=(b"\n".join(lines) + b"\n",))
        writer.start()
        answers = [self.answer() for _ in lines]
        writer.join()
        return answers

    def cancel(self, message_id: object) -> None:
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": message_id}}
        self.socket.sendall(json.dumps(note).encode() + b"\n")


class HttpLine:
    """One HTTP connection, kept alive; `send` and `receive` apart, so that a client can leave in between."""

    def __init__(self, proxy: McpProxy, *, seconds: float = 30.0, receive_bytes: int | None = None) -> None:
        host, _, port = proxy.url.removeprefix("http://").partition("/")[0].partition(":")
        self.address = (host, int(port))
        self.socket = socket.socket()
        self.socket.settimeout(seconds)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._reader = self.socket.makefile("rb")
        self.session: str | None = None
        try:
            self.socket.connect(self.address)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self.socket.close()

    def send(self, method: str, params: Any, message_id: object = 1, *, stateless: bool = False) -> None:
        """Send a request, in the connection's session or without one."""
        if not stateless:
            self._post(document(method, params, message_id), ())
            return
        more = [f"MCP-Protocol-Version: {STATELESS}", f"Mcp-Method: {method}"]
        if "name" in params:
            more.append(f"Mcp-Name: {params['name']}")
        self._post(document(method, {**params, "_meta": META}, message_id), more)

    def _post(self, body: bytes, more: Sequence[str], verb: str = "POST") -> None:
        head = [
            f"{verb} /mcp HTTP/1.1",
            f"Host: {self.address[0]}:{self.address[1]}",
            f"Authorization: Bearer {TOKEN.get_secret_value()}",
            "Content-Type: application/json",
            "Accept: application/json, text/event-stream",
            f"Content-Length: {len(body)}",
            *more,
        ]
        if self.session is not None and not more:
            head.append(f"Mcp-Session-Id: {self.session}")
        self.socket.sendall("\r\n".join([*head, "", ""]).encode() + body)

    def receive(self) -> tuple[int, Any]:
        """The status, and the document; None for no body. Raises ConnectionError when the connection is over."""
        status = self._reader.readline()
        if not status:
            raise ConnectionError("it was closed")
        length = 0
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "content-length":
                length = int(value)
            elif name.lower() == "mcp-session-id":
                self.session = value.strip()
        body = self._reader.read(length)
        return int(status.split()[1]), json.loads(body) if body else None

    def ask(self, method: str, params: Any, message_id: object = 1, **more: Any) -> tuple[int, Any]:
        self.send(method, params, message_id, **more)
        return self.receive()

    def initialize(self) -> None:
        status, _ = self.ask("initialize", HELLO, 0)
        assert status == 200

    def notify(self, method: str, params: Any) -> int:
        """Send a notification; the status."""
        self._post(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode(), ())
        return self.receive()[0]

    def answered(self) -> bool:
        """Whether an answer has begun to come."""
        return bool(select.select([self.socket], [], [], 0.001)[0])

    def end_session(self) -> None:
        self._post(b"", (), "DELETE")
        assert self.receive()[0] == 200
        self.session = None

    def call(self, name: str, arguments: Any = None, message_id: object = 1, **more: Any) -> tuple[int, Any]:
        return self.ask("tools/call", {"name": name, "arguments": arguments or {}}, message_id, **more)
