"""One conversation with one server, as the relay sees it: minted ids out, parsed messages in.

A server can answer what it was asked and nothing else. Its ids are ours; what answers no question of ours is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import Era

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.attention import Source
    from agent_token_injector.mcp_proxy.sse import SseEvent

MAX_PENDING: Final = 4096
"""Questions that may wait for one server."""


class UpstreamFailed(Exception):
    """The server is gone, or broke the protocol. The text is ours, and names no secret."""


class UpstreamError(Exception):
    """The server answered with a JSON-RPC error, which may hold anything: mask it."""

    def __init__(self, code: int, message: str, data: Any) -> None:
        super().__init__("the server answered with an error")
        self.code = code
        self.message = message
        self.data = data


class RequestHead:
    """What streamable HTTP repeats of a request in headers, made from the judged body; stdio has no use for it."""

    __slots__ = ("method", "name", "params")

    def __init__(self, method: str, name: str | None = None, params: Mapping[str, str] | None = None) -> None:
        self.method = method
        self.name = name
        self.params = params


class LinkEvents(Protocol):
    """What a link tells the relay. Called on the event loop, never raises."""

    def arrived(self, link: Link, message: dict[str, Any], route: object, event: SseEvent | None) -> None:
        """A parsed message that is no answer to the link's own questions.

        `route` is the minted id (int) of the request on whose HTTP stream it came, the `listen` object given to
        `Link.listen`, or None over stdio.
        """
        ...

    def turn(self, read: Callable[[], object]) -> None:
        """Call `read`, which takes what a server has sent, and let all that follows from it happen at once."""
        ...

    def primed(self, link: Link, route: object, event: SseEvent) -> None:
        """An SSE event that has an id or a retry and no message."""
        ...

    def paused(self, link: Link, route: object) -> None:
        """The server closed that HTTP stream before its answer, after it gave an event id to go on from."""
        ...

    def broke(self, link: Link, minted: int, why: str) -> None:
        """This question gets no answer."""
        ...

    def unread(self, link: Link, minted: int, why: str) -> None:
        """The answer to this question came, and cannot be read safely."""
        ...

    def ended(self, link: Link, listen: object, why: str) -> None:
        """That `listen` stream is over (an HTTP status, or the server closed it)."""
        ...


class Link:
    """Base of every conversation. Subclasses move bytes; this mints ids, asks our own questions and sorts what comes.

    Attributes:
        server: the server's name in the spec.
        era, version: what was agreed, once `ready`.
        capabilities, instructions, info: what the server said of itself, once `ready`.
        pending: who waits for an answer, by minted id: the relay's calls, or a future of `ask`.
        ready: whether `send` goes out at once. Before that it is queued, bounded.
        lost: why the conversation is over; None while it is not.
        source: what its next bytes can be looked for in; None where they come by themselves alone.
        http: whether each request has a stream of its own, whose end cancels it in the stateless era.
    """

    def __init__(self, server: str, events: LinkEvents) -> None:
        self.server = server
        self.events = events
        self.era = Era.HANDSHAKE
        self.version = ""
        self.capabilities: dict[str, Any] = {}
        self.instructions: str | None = None
        self.info: dict[str, Any] = {}
        self.pending: dict[int, Any] = {}
        self.ready = False
        self.lost: str | None = None
        self.http = False
        self.source: Source | None = None
        self._minted = 0

    def mint(self) -> int:
        """An id that this conversation has not had."""
        self._minted += 1
        return self._minted

    def send(self, minted: int, message: bytes, head: RequestHead) -> None:
        """Queue one request, which is in `pending` already. It leaves at `flush`; a failure comes as `events.broke`."""
        raise NotImplementedError

    def say(self, message: bytes) -> None:
        """Queue a notification, or an answer to the server's own request. It leaves at `flush`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what is queued, in one write where that is possible."""
        raise NotImplementedError

    def forget(self, minted: int) -> None:
        """Nobody waits for this answer any more. The entry in `pending` is gone already; HTTP closes its stream."""
        raise NotImplementedError

    def listen(self, last_event_id: str | None, listen: object) -> None:
        """Open the server's own stream (HTTP GET), or go on with one; what comes is routed to `listen`."""
        raise NotImplementedError

    def unlisten(self, listen: object) -> None:
        """Close that stream."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stop reading from the server until `resume`."""
        raise NotImplementedError

    def resume(self) -> None:
        """Read again."""
        raise NotImplementedError

    async def ask(self, method: str, params: Mapping[str, Any], head: RequestHead | None = None) -> Any:
        """Ask a question of our own; returns the result. Raises UpstreamError, UpstreamFailed."""
        if self.lost is not None:
            raise UpstreamFailed(self.lost)
        minted = self.mint()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.pending[minted] = answer
        try:
            self.send(minted, wire.request(minted, method, dict(params)), head or RequestHead(method))
            self.flush()
            return await answer
        finally:
            if self.pending.pop(minted, None) is not None:
                self.forget(minted)

    def take(self, raw: bytes, route: object = None, event: SseEvent | None = None) -> None:
        """Sort one message of the server: an answer to our own question stays here, the rest is the relay's."""
        try:
            message = wire.read_reply(raw)
        except wire.WireError as error:
            self._give_up_on(raw, route, str(error))
            return
        if "method" not in message:
            found = message.get("id")
            waiting = self.pending.get(found) if type(found) is int else None
            if isinstance(waiting, asyncio.Future):
                self._settle(waiting, message)
                return
        self.events.arrived(self, message, route, event)

    def fail(self, minted: int, why: str) -> None:
        """This question gets no answer: tell whoever waits."""
        waiting = self.pending.get(minted)
        if isinstance(waiting, asyncio.Future):
            if not waiting.done():
                waiting.set_exception(UpstreamFailed(why))
        elif waiting is not None:
            self.events.broke(self, minted, why)

    def lose(self, why: str) -> None:
        """The conversation is over: everybody who waits is told. The first reason stays."""
        if self.lost is None:
            self.lost = why
            self.ready = False
        for minted in tuple(self.pending):
            self.fail(minted, self.lost)

    def _settle(self, waiting: asyncio.Future[Any], message: Mapping[str, Any]) -> None:
        if waiting.done():
            return
        if "error" in message:
            waiting.set_exception(as_error(message["error"]))
        else:
            waiting.set_result(message["result"])

    def _give_up_on(self, raw: bytes, route: object, why: str) -> None:
        """An answer that cannot be read safely fails the question it belongs to; anything else is noise."""
        minted = route if type(route) is int else wire.loose_id(raw)
        waiting = self.pending.get(minted) if type(minted) is int else None
        why = f"its answer cannot be read safely ({why})"
        if isinstance(waiting, asyncio.Future):
            if not waiting.done():
                waiting.set_exception(UpstreamFailed(why))
        elif waiting is not None and type(minted) is int:
            self.events.unread(self, minted, why)


def as_error(problem: Any) -> UpstreamError:
    """A server's JSON-RPC error as ours, whatever it put there."""
    body = problem if isinstance(problem, dict) else {}
    code, message = body.get("code"), body.get("message")
    return UpstreamError(
        code if type(code) is int and abs(code) < 2**31 else wire.INTERNAL_ERROR,
        message if isinstance(message, str) else "the server answered with an error",
        body.get("data"),
    )
