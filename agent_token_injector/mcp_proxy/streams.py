"""Clients' streams for what belongs to no request: a session's GET stream, a stdio connection, a subscription.

What a server says there is passed on only where the spec grants it; its questions are handed on under ids of ours, and an
answer reaches only the server that asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent_token_injector.audit.event import Decision, Draft
from agent_token_injector.mcp_proxy import envelope, wire
from agent_token_injector.mcp_proxy.calls import Ask, Asked, Call, Client, Listening
from agent_token_injector.mcp_proxy.desk import BUSY_REFUSED, CANCELLED, Desk
from agent_token_injector.mcp_proxy.eras import CALL_ENDED, Era
from agent_token_injector.mcp_proxy.ledger import SURFACE, printable
from agent_token_injector.mcp_proxy.links import Link, RequestHead

if TYPE_CHECKING:
    from agent_token_injector.masking import Redactor
    from agent_token_injector.mcp_proxy.exchange import Exchange
    from agent_token_injector.mcp_proxy.sse import SseEvent

META_SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
TOOLS_CHANGED: Final = "notifications/tools/list_changed"
MAX_URIS: Final = 1000
MAX_EVENT_ID: Final = 1024

_Shares: TypeAlias = dict[str, dict[str, Any]]
_BY_NOTIFICATION: Final = {
    "notifications/resources/list_changed": ("resourcesListChanged", "resources"),
    "notifications/prompts/list_changed": ("promptsListChanged", "prompts"),
    "notifications/resources/updated": ("resourceSubscriptions", "subscribe"),
}
"""A server's notification -> what a subscriber asks for it with, and the field of `allow` that lets it."""


class Part:
    """One server's share of a client's subscription."""

    __slots__ = ("call", "link", "minted", "wanted")

    def __init__(self, call: Call, link: Link, wanted: dict[str, Any]) -> None:
        self.call = call
        self.link = link
        self.wanted = wanted
        self.minted = link.mint()


class Streams:
    """Every stream of one handoff's clients.

    Args:
        desk: the relay's state.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._stdio: dict[Client, None] = {}
        self._listeners: dict[Listening, None] = {}
        self._parts: dict[Call, list[Part]] = {}
        self._tool_watchers: dict[Call, None] = {}

    # A session's own stream

    def connected(self, exchange: Exchange) -> Client:
        """A new stdio connection: one client, and one stream for everything."""
        client = Client(self._desk.allow, stdio=True)
        self._stdio[client] = None
        self._listen(client, exchange)
        return client

    def disconnected(self, client: Client) -> None:
        """A stdio connection is over."""
        self._stdio.pop(client, None)
        for listening in client.listening:
            self._listeners.pop(listening, None)
        self._desk.drop(client)

    def open(self, client: Client, exchange: Exchange, last_event_id: str | None) -> None:
        """A session's GET: its servers' streams, or the one that `last_event_id` (server and its own id) goes on with."""
        listening = self._listen(client, exchange)
        exchange.gone = lambda: self._close(listening)
        if last_event_id is not None:
            server, colon, own = last_event_id.partition(":")
            upstream = self._desk.upstreams.get(server)
            # A server may keep the events of all its sessions in one place: a client goes on from its own alone.
            if upstream is None or not colon or last_event_id not in client.event_ids:
                self._close(listening)
                exchange.end()
                return
            self._attach(listening, upstream.link(client, Era.HANDSHAKE), own)
            return
        # Opens the stream now: a client waits for the status.
        exchange.event(b"")
        for name, upstream in self._desk.upstreams.items():
            allow = self._desk.allow.get(name)
            if allow is not None and (
                allow.logging
                or allow.subscribe
                or allow.sampling
                or allow.elicitation
                or allow.roots
                or allow.notifications
            ):
                self._attach(listening, upstream.link(client, Era.HANDSHAKE), None)

    def _listen(self, client: Client, exchange: Exchange) -> Listening:
        listening = Listening(client, exchange)
        client.listening.append(listening)
        self._listeners[listening] = None
        return listening

    def _attach(self, listening: Listening, link: Link, last_event_id: str | None) -> None:
        if link.http and link.era is Era.HANDSHAKE:
            listening.links.append(link)
            link.listen(last_event_id, listening)

    def _close(self, listening: Listening) -> None:
        self._listeners.pop(listening, None)
        if listening in listening.client.listening:
            listening.client.listening.remove(listening)
        for link in listening.links:
            link.unlisten(listening)
        listening.links.clear()

    def ended(self, listening: Listening, link: Link) -> None:
        """A server closed the stream; the client's ends with the last of them, when it was there to go on with one."""
        if link in listening.links:
            listening.links.remove(link)
            if not listening.links and not listening.client.stdio:
                self._close(listening)
                listening.exchange.end()

    def end_all(self, sessions: Iterable[Client]) -> None:
        """End every stream: the handoff is over."""
        for client in sessions:
            for listening in tuple(client.listening):
                self._close(listening)
                listening.exchange.end()

    # A server's questions

    def hand(self, client: Client, exchange: Exchange, link: Link, message: dict[str, Any]) -> bool:
        """Hand a server's question to a client, masked, under an id of ours; False when it owes too many answers."""
        minted = client.hand(Asked(link, message["id"], message["method"]))
        if minted is None:
            return False
        params, masked = self._desk.redactor.json_counted(message.get("params", {}))
        draft = self._draft("mcp.asked", link, message["method"], {"masked": masked})
        body = wire.request(minted, message["method"], params if isinstance(params, dict) else {})
        self._desk.ledger.stage(draft, self._handed, client, exchange, minted, body)
        return True

    def _handed(self, recorded: bool, client: Client, exchange: Exchange, minted: int, body: bytes) -> None:
        if recorded:
            exchange.event(body)
        elif (asked := client.asked.pop(minted, None)) is not None:
            asked.link.say(wire.error(asked.id, wire.INTERNAL_ERROR, "The client cannot be asked"))
            self._desk.mark(asked.link)

    def answered(self, client: Client, response: wire.Response) -> bool:
        """Pass a client's answer to the server that asked; False when nobody did."""
        asked = client.asked.pop(response.id, None) if type(response.id) is int else None
        if asked is None:
            return False
        if response.error is None:
            body = wire.result(asked.id, response.result)
        else:
            body = wire.encode({"jsonrpc": "2.0", "id": asked.id, "error": response.error})
        detail = {"bytes": len(body), "is_error": response.error is not None}
        draft = self._draft("mcp.answered", asked.link, asked.method, detail)
        self._desk.ledger.stage(draft, self._say, asked.link, body)
        return True

    def _say(self, recorded: bool, link: Link, body: bytes) -> None:
        if recorded:
            link.say(body)
            self._desk.mark(link)

    def _draft(self, action: str, link: Link, method: str, detail: dict[str, Any]) -> Draft:
        target = f"{link.server}/{printable(method, self._desk.redactor)}"
        return Draft(action, Decision.ALLOWED, SURFACE, target, "", detail)

    def roots_changed(self, client: Client) -> None:
        """Tell the servers that may ask for roots."""
        for name, upstream in self._desk.upstreams.items():
            if self._desk.allows(name, "roots"):
                link = upstream.link(client, Era.HANDSHAKE)
                link.say(wire.notification("notifications/roots/list_changed"))
                self._desk.mark(link)

    # Unsolicited notifications

    def broadcast(self, server: str, method: str, params: dict[str, Any]) -> None:
        """A notification of a server that several clients share, to each client that has a stream for it."""
        uri = params.get("uri")
        body = wire.notification(method, params)
        for listening in self._unasked():
            if method == "notifications/resources/updated" and listening.client.subscriptions.get(str(uri)) != server:
                continue
            listening.exchange.event(body)

    def _unasked(self) -> list[Listening]:
        """The streams that take what nobody asked for: those of the handshake era. Others subscribe (2026-07-28)."""
        return [one for one in self._listeners if one.client.version]

    def send(self, listening: Listening, link: Link, body: bytes, event: SseEvent | None) -> None:
        """A message on the stream that it came for, under an event id that says whose it is."""
        listening.exchange.event(
            body,
            event_id=event_id(listening.client, link, event, self._desk.redactor),
            retry=None if event is None else event.retry,
        )

    def tools_changed(self) -> None:
        """Tell every client that asked for it that its list of tools is another one."""
        body = wire.notification(TOOLS_CHANGED)
        for listening in self._unasked():
            listening.exchange.event(body)
        for call in tuple(self._tool_watchers):
            params = {"_meta": {META_SUBSCRIPTION: call.id}}
            call.exchange.event(wire.notification(TOOLS_CHANGED, params))

    # Subscriptions of the stateless era

    def subscribe(self, asked: Ask) -> None:
        """Answer `subscriptions/listen`: acknowledge what is granted, and pass that on until either side ends it."""
        request, exchange = asked.request, asked.exchange
        wanted = request.params.get("notifications")
        if not isinstance(wanted, dict):
            raise envelope.invalid_params()
        if self._desk.full:
            raise BUSY_REFUSED
        call = Call(asked, request.method, self._desk.monotonic())
        call.target = request.method
        call.timed = False
        shares = {name: share for name in self._desk.upstreams if (share := self._share(name, wanted))}
        honoured: dict[str, Any] = {"toolsListChanged": True} if wanted.get("toolsListChanged") is True else {}
        for share in shares.values():
            for key, value in share.items():
                honoured[key] = [*honoured.get(key, []), *value] if isinstance(value, list) else value
        if self._desk.tracing is not None:
            asked.meta = self._desk.tracing.began(call, asked.meta)
        self._desk.begin(call)
        call.on_end = self._forget
        exchange.gone = lambda: self._desk.stop(call, CANCELLED)
        draft = Draft("mcp.call", Decision.ALLOWED, SURFACE, call.target, "", {"method": request.method})
        self._desk.ledger.stage(draft, self._subscribed, call, asked.meta, honoured, shares)

    def _share(self, server: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """What of a subscription is for one server: what the spec grants there, where it speaks that era."""
        allow = self._desk.allow.get(server)
        if allow is None or Era.STATELESS not in self._desk.upstreams[server].speaks:
            return {}
        share: dict[str, Any] = {}
        for key, field in (("resourcesListChanged", "resources"), ("promptsListChanged", "prompts")):
            if wanted.get(key) is True and getattr(allow, field):
                share[key] = True
        uris = wanted.get("resourceSubscriptions")
        if allow.subscribe and isinstance(uris, list):
            granted = [uri for uri in uris[:MAX_URIS] if isinstance(uri, str) and allow.may_read(uri)]
            if granted:
                share["resourceSubscriptions"] = granted
        return share

    def _subscribed(
        self, recorded: bool, call: Call, meta: dict[str, Any], honoured: dict[str, Any], shares: _Shares
    ) -> None:
        if call.ended:
            return
        if not recorded:
            self._desk.unrecorded(call)
            return
        params = {"notifications": honoured, "_meta": {META_SUBSCRIPTION: call.id}}
        call.exchange.event(wire.notification(ACKNOWLEDGED, params))
        if "toolsListChanged" in honoured:
            self._tool_watchers[call] = None
        parts = self._parts[call] = []
        for server, share in shares.items():
            part = Part(call, self._desk.upstreams[server].link(None, Era.STATELESS), share)
            parts.append(part)
            part.link.pending[part.minted] = part
            sent = envelope.forwarded_meta(
                meta,
                minted=part.minted,
                version=part.link.version,
                info=self._desk.info,
                allow=self._desk.allow.get(server),
            )
            message = wire.request(part.minted, call.method, {"notifications": share, "_meta": sent})
            part.link.send(part.minted, message, RequestHead(call.method))
            self._desk.mark(part.link)

    def told(self, part: Part, method: str, params: dict[str, Any]) -> None:
        """A notification on a subscription's stream: passed on when it was asked for there and is granted."""
        key, field = _BY_NOTIFICATION.get(method, ("", ""))
        wanted = part.wanted.get(key)
        uri_fits = not isinstance(wanted, list) or params.get("uri") in wanted
        if wanted and uri_fits and self._desk.allows(part.link.server, field):
            shown = {**params, "_meta": {META_SUBSCRIPTION: part.call.id}}
            part.call.exchange.event(wire.notification(method, self._desk.redactor.json(shown)))

    def part_ended(self, part: Part, why: str | None) -> None:
        """A server's share is over; the subscription is over with the last of them."""
        part.link.pending.pop(part.minted, None)
        parts = self._parts.get(part.call, [])
        if part in parts:
            parts.remove(part)
        if parts or part.call in self._tool_watchers or part.call.ended:
            return
        if why is None:
            self._desk.finish(part.call, wire.result(part.call.id, self._end_of(part.call)))
        else:
            self._desk.fail(part.call, CALL_ENDED, f"An MCP server failed: {why}", "upstream-failed")

    def _end_of(self, call: Call) -> dict[str, Any]:
        return {"resultType": "complete", "_meta": {META_SUBSCRIPTION: call.id}}

    def _forget(self, call: Call) -> None:
        self._tool_watchers.pop(call, None)
        for part in self._parts.pop(call, []):
            if part.link.pending.pop(part.minted, None) is not None:
                part.link.forget(part.minted)


def event_id(client: Client, link: Link, event: SseEvent | None, redactor: Redactor) -> str | None:
    """A server's event id as a client sees it: with the server's name, so that it finds its way back, and noted."""
    if event is None or event.id is None:
        return None
    shown = f"{link.server}:{event.id}"
    if len(shown) > MAX_EVENT_ID or redactor.text_counted(shown)[1]:
        # Nobody can go on from there: that, or a secret in a header.
        return None
    client.saw(shown)
    return shown
