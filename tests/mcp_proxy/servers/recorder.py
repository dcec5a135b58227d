"""The relay's side of a conversation with a server, for tests: it asks, and keeps all that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.links import Link, RequestHead
from agent_token_injector.mcp_proxy.sse import SseEvent
from agent_token_injector.mcp_proxy.upstream import Upstream

T = TypeVar("T")
CLIENT_INFO = {"name": "handoff", "version": "test"}
DEADLINE = 20.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on the event loop that the engine uses, and no longer than DEADLINE."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE):
            return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


@dataclass
class Recorder:
    """Does with what comes what the relay does: an answer ends its question."""

    answers: dict[tuple[Link, int], dict[str, Any]] = field(default_factory=dict)
    others: list[tuple[dict[str, Any], object, SseEvent | None]] = field(default_factory=list)
    primes: list[tuple[object, SseEvent]] = field(default_factory=list)
    pauses: list[object] = field(default_factory=list)
    failures: dict[tuple[Link, int], str] = field(default_factory=dict)
    unreadable: dict[tuple[Link, int], str] = field(default_factory=dict)
    ends: list[tuple[object, str]] = field(default_factory=list)
    restarts: list[Upstream] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def turn(self, read: Callable[[], object]) -> None:
        read()

    def arrived(self, link: Link, message: dict[str, Any], route: object, event: SseEvent | None) -> None:
        minted = message.get("id")
        if "method" in message or type(minted) is not int or minted not in link.pending:
            self.others.append((message, route, event))
        else:
            self._settle(link, minted)
            self.answers[link, minted] = message
        self._changed.set()

    def primed(self, link: Link, route: object, event: SseEvent) -> None:  # noqa: ARG002 - the interface's
        self.primes.append((route, event))
        self._changed.set()

    def paused(self, link: Link, route: object) -> None:  # noqa: ARG002 - the interface's
        self.pauses.append(route)
        self._changed.set()

    def broke(self, link: Link, minted: int, why: str) -> None:
        self._settle(link, minted)
        self.failures[link, minted] = why
        self._changed.set()

    def unread(self, link: Link, minted: int, why: str) -> None:
        self._settle(link, minted)
        self.unreadable[link, minted] = why
        self._changed.set()

    def ended(self, link: Link, listen: object, why: str) -> None:  # noqa: ARG002 - the interface's
        self.ends.append((listen, why))
        self._changed.set()

    def restarted(self, upstream: Upstream) -> None:
        self.restarts.append(upstream)
        self._changed.set()

    def said(self, line: str) -> None:
        self.stderr.append(line)
        self._changed.set()

    def _settle(self, link: Link, minted: int) -> None:
        del link.pending[minted]
        link.forget(minted)

    async def until(self, true: Callable[[], object]) -> None:
        """Return as soon as `true()` is, looking whenever something has come; `run` bounds it."""
        while not true():
            self._changed.clear()
            await self._changed.wait()

    # Asking

    def ask(self, link: Link, method: str, params: dict[str, Any], head: RequestHead | None = None) -> int:
        """Queue a request; it leaves at the link's flush."""
        minted = link.mint()
        link.pending[minted] = self
        link.send(minted, wire.request(minted, method, params), head or RequestHead(method, params.get("name")))
        return minted

    def call(self, link: Link, tool: str, **arguments: Any) -> int:
        """Call a tool now."""
        minted = self.ask(link, "tools/call", {"name": tool, "arguments": arguments})
        link.flush()
        return minted

    async def answer(self, link: Link, minted: int) -> dict[str, Any]:
        await self.until(lambda: self.over(link, minted))
        assert (link, minted) in self.answers, self.failures or self.unreadable
        return self.answers[link, minted]

    async def failure(self, link: Link, minted: int) -> str:
        await self.until(lambda: self.over(link, minted))
        assert (link, minted) in self.failures, self.answers or self.unreadable
        return self.failures[link, minted]

    async def text(self, link: Link, tool: str, **arguments: Any) -> str:
        """A tool's answer."""
        answer = await self.answer(link, self.call(link, tool, **arguments))
        return str(answer["result"]["content"][0]["text"])

    def over(self, link: Link, minted: int) -> bool:
        return any((link, minted) in found for found in (self.answers, self.failures, self.unreadable))
