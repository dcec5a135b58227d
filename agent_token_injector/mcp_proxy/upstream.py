"""An MCP server as the relay sees it: a list of tools, and calls to them. Ids, processes and framing stay in here.

A server over stdio is spoken to in the handshake era (2025-11-25), which every published server knows. It can answer
what it was asked and nothing else: its requests are refused, its notifications are dropped, an answer to an id that is
not waiting is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import SecretStr

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.child import Child
from agent_token_injector.mcp_proxy.eras import HANDSHAKE_VERSIONS
from agent_token_injector.mcp_proxy.servers import BuiltinAnswer, BuiltinServer, Recorder, StdioServer

MAX_PAGES: Final = 100
MAX_TOOLS: Final = 2000
WRITE_STALL_SECONDS: Final = 10.0


class UpstreamFailed(Exception):
    """The server is gone, or broke the protocol. The text is ours, and names no secret."""


class UpstreamError(Exception):
    """The server answered with a JSON-RPC error, which may hold anything: mask it."""

    def __init__(self, code: int, message: str, data: Any) -> None:
        super().__init__("the server answered with an error")
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, slots=True)
class Answer:
    """A tool's result, unmasked. `granted` says that all of it is what the agent asked for and may have."""

    value: Any
    granted: bool = False


class Upstream(Protocol):
    """One server behind the proxy. Every method is called on the proxy's event loop."""

    async def start(self) -> list[dict[str, Any]]:
        """Start the server and list its tools, all pages. Raises UpstreamFailed, UpstreamError."""
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Answer:
        """Call a tool. Cancelling tells the server. Raises UpstreamFailed, UpstreamError."""
        ...

    def last_words(self) -> str:
        """The end of what the server said on stderr, unmasked; empty when it said nothing."""
        ...

    async def stop(self) -> None:
        """End the server and every process that it started. Safe to call twice, and before `start`."""
        ...


class StdioUpstream:
    """A server that is our child."""

    def __init__(self, server: StdioServer, client_info: Mapping[str, Any]) -> None:
        self._server = server
        self._client_info = dict(client_info)
        self._child: Child | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._failed: str | None = None

    async def start(self) -> list[dict[str, Any]]:
        try:
            self._child = Child(self._server)
            await self._child.connect()
        except OSError as error:
            raise UpstreamFailed(f"it could not be started: {error.strerror}") from None
        self._reading = asyncio.create_task(self._read())
        hello = await self._ask(
            "initialize",
            {"protocolVersion": HANDSHAKE_VERSIONS[-1], "capabilities": {}, "clientInfo": self._client_info},
        )
        if not isinstance(hello, dict) or hello.get("protocolVersion") not in HANDSHAKE_VERSIONS:
            raise UpstreamFailed("it speaks no protocol version that the proxy knows")
        await self._send(wire.notification("notifications/initialized"))
        return await self._list_tools()

    async def _list_tools(self) -> list[dict[str, Any]]:
        tools: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self._ask("tools/list", {} if cursor is None else {"cursor": cursor})
            found = page.get("tools") if isinstance(page, dict) else None
            if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
                raise UpstreamFailed("its tools/list is not a list of tools")
            tools.extend(found)
            cursor = page.get("nextCursor")
            if cursor is None:
                return tools
            if not isinstance(cursor, str) or len(tools) > MAX_TOOLS:
                break
        raise UpstreamFailed("its tools/list does not end")

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Answer:
        return Answer(await self._ask("tools/call", {"name": tool, "arguments": dict(arguments)}))

    async def _ask(self, method: str, params: dict[str, Any]) -> Any:
        if self._failed is not None:
            raise UpstreamFailed(self._failed)
        minted = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[minted] = answer
        try:
            await self._send(wire.request(minted, method, params))
            return await answer
        except asyncio.CancelledError:
            if minted in self._waiting and self._child is not None:
                # Not awaited: a server that does not read must not hold up whoever cancels.
                self._child.write(
                    wire.notification("notifications/cancelled", {"requestId": minted, "reason": "cancelled"})
                )
            raise
        finally:
            self._waiting.pop(minted, None)

    async def _send(self, line: bytes) -> None:
        child = self._child
        if child is None or self._failed is not None:
            raise UpstreamFailed(self._failed or "it is not running")
        child.write(line)
        try:
            async with asyncio.timeout(WRITE_STALL_SECONDS):
                await child.drain()
        except TimeoutError:
            self._fail("it stopped reading")
        except OSError:
            self._fail("it closed its input")

    async def _read(self) -> None:
        child = self._child
        assert child is not None  # noqa: S101 - start() sets it before it creates this task
        try:
            while (line := await child.read_line()) is not None:
                await self._take(line)
            self._fail("it ended")
        except asyncio.LimitOverrunError:
            self._fail(f"it sent a message of more than {wire.MAX_BYTES // 1024 // 1024} MiB")
        except UpstreamFailed:
            return

    async def _take(self, line: bytes) -> None:
        try:
            message = wire.parse(line, exact_integers=False)
        except wire.WireError as error:
            self._give_up_on(line, str(error))
            return
        if isinstance(message, wire.Request):
            if message.method == "ping":
                await self._send(wire.result(message.id, {}))
            else:
                await self._send(wire.error(message.id, wire.METHOD_NOT_FOUND, "Method not found"))
        elif isinstance(message, wire.Response):
            # Our ids are integers; "7" is not 7, and a server that thinks so answers nobody.
            waiting = self._waiting.get(message.id) if isinstance(message.id, int) else None
            if waiting is not None and not waiting.done():
                if message.error is None:
                    waiting.set_result(message.result)
                else:
                    waiting.set_exception(_as_error(message.error))

    def _give_up_on(self, line: bytes, why: str) -> None:
        """An answer that cannot be read safely fails the call it belongs to; what is no answer of ours is noise."""
        with contextlib.suppress(ValueError, RecursionError):
            loose = json.loads(line)
            found = loose.get("id") if isinstance(loose, dict) else None
            waiting = self._waiting.get(found) if type(found) is int else None
            if waiting is not None and not waiting.done():
                waiting.set_exception(UpstreamFailed(f"its answer cannot be read safely ({why})"))

    def _fail(self, why: str) -> None:
        self._failed = self._failed or why
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(UpstreamFailed(self._failed))

    def last_words(self) -> str:
        return "" if self._child is None else self._child.last_words()

    async def stop(self) -> None:
        self._fail("it was stopped")
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._child is not None:
            await self._child.stop()


def _as_error(problem: Mapping[str, Any]) -> UpstreamError:
    code, message = problem.get("code"), problem.get("message")
    return UpstreamError(
        code if type(code) is int else wire.INTERNAL_ERROR,
        message if isinstance(message, str) else "the server answered with an error",
        problem.get("data"),
    )


class BuiltinUpstream:
    """A server of ours, in a worker thread.

    Args:
        server: its tools.
        recorder: what they write their own audit events with.
        learn: is told every secret that a tool discloses, before the agent is.
    """

    def __init__(self, server: BuiltinServer, recorder: Recorder, learn: Callable[[SecretStr], None]) -> None:
        self._tools = {tool.definition["name"]: tool.run for tool in server.tools}
        self._recorder = recorder
        self._learn = learn
        self._definitions = [dict(tool.definition) for tool in server.tools]
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"mcp-{server.name}")

    async def start(self) -> list[dict[str, Any]]:
        return self._definitions

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Answer:
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._worker, self._run, tool, dict(arguments))
        granted = isinstance(answer.text, SecretStr)
        text = answer.text.get_secret_value() if isinstance(answer.text, SecretStr) else answer.text
        return Answer({"content": [{"type": "text", "text": text}], "isError": answer.is_error}, granted=granted)

    def _run(self, tool: str, arguments: Mapping[str, Any]) -> BuiltinAnswer:
        answer = self._tools[tool](arguments, self._recorder)
        if isinstance(answer.text, SecretStr):
            try:
                self._learn(answer.text)
            except Exception:  # noqa: BLE001 - whatever keeps a value from being masked, it is not disclosed then
                raise UpstreamFailed("the value could not be kept out of the records; it was not disclosed") from None
        return answer

    def last_words(self) -> str:
        return ""

    async def stop(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)
        # The thread ends with the call it is in, which the vault's own timeout bounds.
        await asyncio.get_running_loop().run_in_executor(None, self._worker.shutdown)
