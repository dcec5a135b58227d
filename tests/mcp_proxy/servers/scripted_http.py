"""An MCP server over HTTP for tests of what stands behind the proxy: it keeps every request, and answers as it is told.

Plain asyncio streams on the loopback, so that nothing between it and the socket could mend what it sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

VERSION = "2026-07-28"
SERVER_INFO = {"io.modelcontextprotocol/serverInfo": {"name": "scripted", "version": "2"}}


@dataclass
class Seen:
    """A request as it came. `connection` counts the connections; `twice` names headers that came more than once."""

    connection: int
    verb: str
    target: str
    headers: dict[str, str]
    body: Any
    twice: list[str]

    @property
    def method(self) -> str | None:
        return self.body.get("method") if isinstance(self.body, dict) else None

    @property
    def tool(self) -> str | None:
        return self.body["params"]["name"] if self.method == "tools/call" else None


@dataclass
class Reply:
    """Writes one answer."""

    writer: asyncio.StreamWriter
    request: Seen

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def json(self, document: Any, status: int = 200, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.raw(f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body)

    async def result(self, value: Any, **headers: str) -> None:
        await self.json({"jsonrpc": "2.0", "id": self.request.body["id"], "result": value}, **headers)

    async def text(self, text: str) -> None:
        await self.result({"content": [{"type": "text", "text": text}]})

    async def error(self, status: int, code: int, message: str = "", *, own_id: bool = True) -> None:
        found = self.request.body["id"] if own_id else None
        await self.json({"jsonrpc": "2.0", "id": found, "error": {"code": code, "message": message}}, status)

    async def empty(self, status: int, **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.raw(f"HTTP/1.1 {status} Said\r\n{lines}Content-Length: 0\r\n\r\n".encode())

    async def stream(self) -> None:
        await self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n")
        await self.raw(b"Transfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, document: Any, event_id: str | None = None) -> None:
        head = "" if event_id is None else f"id: {event_id}\r\n"
        await self.chunk(f"{head}event: message\r\ndata: {json.dumps(document)}\r\n\r\n".encode())

    async def answer_event(self, text: str, event_id: str | None = None) -> None:
        value = {"content": [{"type": "text", "text": text}]}
        await self.event({"jsonrpc": "2.0", "id": self.request.body["id"], "result": value}, event_id)

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        reader = self.writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            await reader.read()


Act = Callable[[Reply], Awaitable[None]]


@dataclass
class ScriptedHttp:
    """The server's state. `tools`, `get` and `before` are what a test changes."""

    speaks: frozenset[str] = frozenset({"handshake", "stateless"})
    tools: dict[str, Act] = field(default_factory=dict)
    get: Act | None = None
    before: Callable[[Reply], Awaitable[bool]] | None = None
    requests: list[Seen] = field(default_factory=list)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    port: int = 0
    _connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp?of=tests"

    @property
    def open_connections(self) -> int:
        return len(self._writers)

    def calls(self, tool: str) -> list[Seen]:
        return [request for request in self.requests if request.tool == tool]

    async def until(self, true: Callable[[], object]) -> None:
        """Return as soon as `true()` is, looking at every request and every end of a connection."""
        while not true():
            self._changed.clear()
            await self._changed.wait()

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedHttp]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls, limit=2**25)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            for task in tuple(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await server.wait_closed()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._connections += 1
        number = self._connections
        self._writers.add(writer)
        try:
            while (request := await _read(reader, number)) is not None:
                self.requests.append(request)
                self._changed.set()
                reply = Reply(writer, request)
                if self.before is None or not await self.before(reply):
                    await self.answer(reply)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._changed.set()
            writer.transport.abort()

    async def answer(self, reply: Reply) -> None:
        """What a well-behaved server answers."""
        request = reply.request
        session = request.headers.get("mcp-session-id")
        if request.verb == "GET":
            await (self.get(reply) if self.get is not None else reply.empty(405))
        elif request.verb == "DELETE":
            self.deleted.append(session or "")
            self.sessions.pop(session or "", None)
            self._changed.set()
            await reply.empty(200)
        elif request.headers.get("mcp-protocol-version") == VERSION:
            await self._stateless(reply)
        elif request.method == "initialize":
            await self._initialize(reply)
        elif session not in self.sessions:
            await reply.error(404, -32600, "Session not found", own_id=False)
        elif "id" not in request.body or request.method is None:
            await reply.empty(202)
        else:
            await self._method(reply)

    async def _stateless(self, reply: Reply) -> None:
        if "stateless" not in self.speaks:
            await reply.error(400, -32000, "Bad Request: no session", own_id=False)
        elif reply.request.method == "server/discover":
            await reply.result({"supportedVersions": [VERSION], "capabilities": {"tools": {}}, "_meta": SERVER_INFO})
        else:
            await self._method(reply)

    async def _initialize(self, reply: Reply) -> None:
        if "handshake" not in self.speaks:
            await reply.error(400, -32022, "Unsupported protocol version")
            return
        session = f"session-{len(self.sessions) + len(self.deleted) + 1}"
        self.sessions[session] = reply.request.body["params"]
        info = {"name": "scripted", "version": "1"}
        says = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
        await reply.result(says, Mcp_Session_Id=session)

    async def _method(self, reply: Reply) -> None:
        tool = reply.request.tool
        if reply.request.method == "tools/list":
            await reply.result({"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]})
        elif tool in self.tools:
            await self.tools[tool](reply)
        elif tool is not None:
            await reply.text(json.dumps(reply.request.body["params"]["arguments"]))
        else:
            await reply.error(404, -32601, "Method not found")


async def _read(reader: asyncio.StreamReader, connection: int) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    verb, target, _ = first.split(" ")
    headers: dict[str, str] = {}
    twice = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() in headers:
            twice.append(name)
        headers[name.lower()] = value.strip()
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(connection, verb, target, headers, json.loads(raw) if raw else None, twice)
