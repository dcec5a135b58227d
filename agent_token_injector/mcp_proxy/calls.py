"""A request of a client on its way to a server, and the client it came from."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.mcp_proxy.methods import SERVER_CAPABILITIES

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from agent_token_injector.mcp_proxy.attention import Source
    from agent_token_injector.mcp_proxy.eras import Era
    from agent_token_injector.mcp_proxy.exchange import Exchange
    from agent_token_injector.mcp_proxy.grants import ServerAllow
    from agent_token_injector.mcp_proxy.links import Link
    from agent_token_injector.mcp_proxy.tool_policy import Allowed
    from agent_token_injector.mcp_proxy.wire import MessageId, Request

MAX_ASKED: Final = 64
"""Questions of servers that one client may owe an answer to."""
MAX_EVENT_IDS: Final = 1024
"""How many of the latest event ids a client may go on from."""


class Call:
    """One request that was allowed. It ends once: answered, refused, cancelled or cut.

    Attributes:
        link: the one server's conversation it goes to; None when several are asked, or none.
        name: what was asked for: a tool, a prompt, a URI; else the method.
        subject: the prompt or URI that it is about, fit for an audit line.
        target: what the audit calls it.
        progress: the client's own progress token.
        task: the task that the server made of it.
        timed: whether it ends when it has taken too long; a subscription does not.
        span: its span, where somebody traces.
        sent: whether the server has been asked.
        granted: whether all of the answer is what the agent asked for and may have, a secret included.
        on_end: is told when it ends, however it ends.
    """

    __slots__ = (
        "allowed",
        "began",
        "client",
        "ended",
        "era",
        "exchange",
        "granted",
        "id",
        "link",
        "meta",
        "method",
        "minted",
        "name",
        "on_end",
        "progress",
        "sent",
        "span",
        "subject",
        "target",
        "task",
        "timed",
    )

    def __init__(self, ask: Ask, name: str, began: float) -> None:
        self.id = ask.request.id
        self.method = ask.request.method
        self.name = name
        self.era = ask.era
        self.client = ask.client
        self.exchange = ask.exchange
        self.meta = ask.meta
        self.began = began
        self.link: Link | None = None
        self.minted = 0
        self.subject = ""
        self.target = ""
        self.allowed: Allowed | None = None
        self.progress: MessageId | None = None
        self.task: str | None = None
        self.span: Span | None = None
        self.timed = True
        self.granted = False
        self.on_end: Callable[[Call], None] | None = None
        self.sent = False
        self.ended = False


@dataclass(slots=True)
class Ask:
    """One request as it is answered: by whom, in which era, and where the answer goes. `meta` once its members are checked."""

    request: Request
    era: Era
    client: Client
    exchange: Exchange
    meta: dict[str, Any] = field(default_factory=dict)


class Asked:
    """A server's question that a client was handed."""

    __slots__ = ("id", "link", "method")

    def __init__(self, link: Link, id: MessageId, method: str) -> None:  # noqa: A002 - JSON-RPC's word
        self.link = link
        self.id = id
        self.method = method


class Listening:
    """A client's stream for what belongs to no request: the GET stream of a session, or a stdio connection."""

    __slots__ = ("client", "exchange", "links")

    def __init__(self, client: Client, exchange: Exchange) -> None:
        self.client = client
        self.exchange = exchange
        self.links: list[Link] = []


class Client:
    """One client of this handoff: an HTTP session, a stdio connection, or all stateless HTTP requests together.

    Attributes:
        key: tells clients apart; over HTTP it is the session id that we minted.
        calls: what is in flight, by id as text: `7` and `"7"` count as one, because some peers think so. Stateless HTTP
            requests are not in it: each has a connection of its own.
        asked: questions of servers that it was handed, by the id that we minted for it.
        declared: the capabilities that it declared at `initialize`.
        version: the protocol version that was agreed at `initialize`.
        listening: where unsolicited messages go.
        event_ids: those that it was handed, the latest of them, oldest first.
        subscriptions: resources it subscribed to, with the server.
        stdio: whether it has one connection for everything.
        source: what its next message can be looked for in, where it has one connection.
    """

    __slots__ = (
        "_asked_ids",
        "allow",
        "asked",
        "calls",
        "declared",
        "event_ids",
        "key",
        "listening",
        "source",
        "stdio",
        "subscriptions",
        "unique_ids",
        "version",
    )

    def __init__(
        self, allow: Mapping[str, ServerAllow], *, key: str | None = None, unique_ids: bool = True, stdio: bool = False
    ) -> None:
        self.key = key if key is not None else secrets.token_urlsafe(24)
        self.allow = allow
        self.unique_ids = unique_ids
        self.stdio = stdio
        self.source: Source | None = None
        self.calls: dict[str, Call] = {}
        self.asked: dict[int, Asked] = {}
        self.declared: Mapping[str, Any] = {}
        self.version = ""
        self.listening: list[Listening] = []
        self.event_ids: dict[str, None] = {}
        self.subscriptions: dict[str, str] = {}
        self._asked_ids = 0

    def capabilities_for(self, server: str) -> dict[str, Any]:
        """What this client's own conversation with `server` may declare: what it can do and the spec grants."""
        return granted_capabilities(self.declared, self.allow.get(server))

    def saw(self, event_id: str) -> None:
        """Note an event id that it is handed."""
        self.event_ids[event_id] = None
        if len(self.event_ids) > MAX_EVENT_IDS:
            del self.event_ids[next(iter(self.event_ids))]

    def hand(self, asked: Asked) -> int | None:
        """Note a server's question; returns the id that the client sees, None when it owes too many answers."""
        if len(self.asked) >= MAX_ASKED:
            return None
        self._asked_ids += 1
        self.asked[self._asked_ids] = asked
        return self._asked_ids


def granted_capabilities(declared: Mapping[str, Any], allow: ServerAllow | None) -> dict[str, Any]:
    """The client capabilities among `declared` that a server may be told of; extensions and the rest are not."""
    if allow is None:
        return {}
    return {
        name: declared[name]
        for name, field in SERVER_CAPABILITIES.items()
        if getattr(allow, field) and isinstance(declared.get(name), dict)
    }
