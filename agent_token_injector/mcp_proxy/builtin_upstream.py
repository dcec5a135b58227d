"""A server of ours on the control side, such as the vault's: the engine asks it over the channel.

What it discloses is learnt here before the agent is told, so that it is masked everywhere else from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.calls import Call
from agent_token_injector.mcp_proxy.channel import NoAnswer
from agent_token_injector.mcp_proxy.eras import HANDSHAKE_VERSIONS, Era
from agent_token_injector.mcp_proxy.links import Link, LinkEvents, RequestHead

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.channel import Channel
    from agent_token_injector.mcp_proxy.upstream import SessionLike


class Keeper(Protocol):
    """What a server of ours needs of the relay's state."""

    def learn(self, secrets: Iterable[str]) -> None: ...

    def let_go(self) -> None: ...


class BuiltinUpstream:
    """A server without a process of its own.

    Args:
        name: its name in the spec.
        definitions: its tools.
        channel: reaches the control side.
        events: the relay.
        keeper: is told every secret that a tool discloses, before the agent is.
    """

    def __init__(
        self,
        name: str,
        definitions: Iterable[Mapping[str, Any]],
        channel: Channel,
        events: LinkEvents,
        keeper: Keeper,
    ) -> None:
        self.name = name
        self.speaks = frozenset({Era.HANDSHAKE})
        self.house: Link = _BuiltinLink(name, channel, events, keeper)
        self._definitions = [dict(one) for one in definitions]

    async def start(self) -> None:
        self.house.ready = True

    async def definitions(self) -> list[dict[str, Any]]:
        return self._definitions

    def link(self, session: SessionLike | None, era: Era) -> Link:
        del session, era
        return self.house

    def drop(self, session: SessionLike) -> None:
        del session

    def last_words(self) -> str:
        return ""

    async def stop(self) -> None:
        self.house.lose("it was stopped")


class _BuiltinLink(Link):
    def __init__(self, server: str, channel: Channel, events: LinkEvents, keeper: Keeper) -> None:
        super().__init__(server, events)
        self.version = HANDSHAKE_VERSIONS[-1]
        self.capabilities = {"tools": {}}
        self._channel = channel
        self._keeper = keeper
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, minted: int, message: bytes, head: RequestHead) -> None:
        if self.lost is not None or head.method != "tools/call":
            self.fail(minted, self.lost or "it has tools and nothing else")
            return
        # Our own bytes: what was judged is read back from them.
        request = wire.parse(message)
        params = request.params if isinstance(request, wire.Request) else {}
        task = asyncio.get_running_loop().create_task(self._call(minted, params["name"], params["arguments"]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, minted: int, tool: str, arguments: Mapping[str, Any]) -> None:
        # The control side puts its own access on record, in the same chain.
        self._keeper.let_go()
        try:
            answer = await self._channel.ask("builtin", server=self.server, tool=tool, arguments=arguments)
        except NoAnswer as error:
            waiting = self.pending.get(minted)
            if error.audit and isinstance(waiting, Call):
                self._deliver(minted, {"error": {"code": wire.INTERNAL_ERROR, "message": UNAUDITED}})
            else:
                self.fail(minted, str(error))
            return
        learnt = answer.get("learn", [])
        if learnt:
            self._keeper.learn(learnt)
        waiting = self.pending.get(minted)
        if isinstance(waiting, Call):
            waiting.granted = answer.get("granted") is True
        content = [{"type": "text", "text": answer.get("text", "")}]
        self._deliver(minted, {"result": {"content": content, "isError": answer.get("is_error") is True}})

    def _deliver(self, minted: int, body: dict[str, Any]) -> None:
        self.events.arrived(self, {"jsonrpc": "2.0", "id": minted, **body}, None, None)

    def say(self, message: bytes) -> None:
        """Nothing: a call on the control side runs to its end, which the vault's own timeout bounds."""

    def flush(self) -> None:
        """Nothing: what is sent is under way at once."""

    def forget(self, minted: int) -> None:
        """Nothing: an answer that nobody waits for is dropped when it comes."""

    def listen(self, last_event_id: str | None, listen: object) -> None:
        del last_event_id
        self.events.ended(self, listen, "it has no stream of its own")

    def unlisten(self, listen: object) -> None:
        """Nothing: there is none."""

    def pause(self) -> None:
        """Nothing: it says only what it was asked."""

    def resume(self) -> None:
        """Nothing."""


UNAUDITED = "Audit unavailable: nothing was done"
