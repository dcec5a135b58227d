"""From a client's message to a server: parse, decide, put on record, forward. inbound.py is the way back.

The order is the promise (D8). Nothing reaches a server before the policy allowed it, the handoff was found alive and the
audit event was written. What a server is sent is built here from the decision: a minted id, the server's own name for
the tool, the arguments as judged, and of `_meta` what envelope.py lists; nothing else of the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.audit.event import Decision, Draft
from agent_token_injector.mcp_proxy import envelope, eras, methods, wire
from agent_token_injector.mcp_proxy.calls import Ask, Call, Client
from agent_token_injector.mcp_proxy.desk import BUSY_REFUSED, CANCELLED, Desk, Flushable
from agent_token_injector.mcp_proxy.eras import Era, McpHeaders, Refused
from agent_token_injector.mcp_proxy.ledger import SURFACE, over, printable
from agent_token_injector.mcp_proxy.links import RequestHead
from agent_token_injector.mcp_proxy.requests import OtherRequests
from agent_token_injector.mcp_proxy.sessions import Sessions
from agent_token_injector.mcp_proxy.streams import Streams
from agent_token_injector.mcp_proxy.tool_policy import Allowed, Reason

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.exchange import Exchange

CALL_SECONDS: Final = 600.0
"""How long a server may take for one call."""
HOLD_SECONDS: Final = 10.0
"""How long a message waits to hear that the handoff may still act."""
MAX_HELD: Final = 1024
MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""Of messages that wait so; the last one may be as large as a message is."""
MAX_TOOL_NAME: Final = 256
MAX_LOGGED: Final = 512

_PLAIN_CALL: Final = {"name", "arguments"}


class Relay:
    """Answers the messages of one handoff's clients. Lives on one event loop; nothing in it waits.

    Args:
        desk: the state that it shares with the way back.
        streams: clients' streams for what belongs to no request.
    """

    def __init__(self, desk: Desk, streams: Streams) -> None:
        self._desk = desk
        self._streams = streams
        self._sessions = Sessions(desk.drop)
        self._others = OtherRequests(desk, self._sessions, streams)
        # Stateless requests over HTTP belong to nobody but themselves.
        self._stateless = Client(desk.allow, key="", unique_ids=False)
        self._held: list[tuple[float, Callable[[], None]]] = []
        self._held_bytes = 0

    @property
    def full(self) -> bool:
        """Whether no more should be read from a client that has one connection for everything."""
        return self._desk.full or self._holds_enough

    @property
    def _holds_enough(self) -> bool:
        return len(self._held) >= MAX_HELD or self._held_bytes >= MAX_HELD_BYTES

    # What fronts call

    def message(self, body: bytes, headers: McpHeaders | None, exchange: Exchange, client: Client | None) -> None:
        """Answer one message: a POST's body, or one line of the stdio connection `client`. Never raises."""
        if not self._desk.ledger.fresh:
            self._hold(lambda: self.message(body, headers, exchange, client), exchange, len(body))
            return
        try:
            message = wire.parse(body)
        except wire.WireError as error:
            malformed = Refused(error.code, error.message, reason=Reason.MALFORMED, status=400)
            self.refuse(malformed, target="message", exchange=exchange, id=error.id)
            return
        if isinstance(message, wire.Request):
            self._request(message, headers, exchange, client)
            return
        try:
            if isinstance(message, wire.Notification):
                self._notification(message, headers, exchange, client)
            else:
                self._response(message, headers, exchange, client)
        except Refused as refused:
            target = "response" if isinstance(message, wire.Response) else self._target(message)
            self.refuse(refused, target=target, exchange=exchange)

    def listen(self, headers: McpHeaders, exchange: Exchange, last_event_id: str | None) -> None:
        """Open a session's own stream, or go on with one."""
        try:
            client = self._sessions.get(headers.session)
            self._check_standing()
        except Refused as refused:
            self.refuse(refused, target="stream", exchange=exchange)
            return
        self._streams.open(client, exchange, last_event_id)

    def end_session(self, headers: McpHeaders, exchange: Exchange) -> None:
        """Answer a DELETE."""
        try:
            self._sessions.close(headers.session)
        except Refused as refused:
            self.refuse(refused, target="session", exchange=exchange)
            return
        exchange.reply(b"")

    def refuse(
        self,
        refused: Refused,
        *,
        target: str,
        exchange: Exchange,
        id: wire.MessageId | None = None,  # noqa: A002 - JSON-RPC's word
        era: Era | None = None,
    ) -> None:
        """Put a refusal on record and answer it. It stays a refusal when it cannot be recorded."""
        body = wire.error(id, refused.code, refused.message, refused.data)
        draft = self._desk.denied(refused, target=target, era=era)
        self._desk.ledger.stage(draft, _answer, exchange, body, refused.http_status(era))

    def refuse_stranger(self, refused: Refused) -> None:
        """Put on record that somebody without the token was refused; many at once share an event."""
        self._desk.ledger.stranger(refused.reason, refused.code)

    def connected(self, exchange: Exchange) -> Client:
        """A new stdio connection's client; `exchange` takes what belongs to no request."""
        return self._streams.connected(exchange)

    def disconnected(self, client: Client) -> None:
        """A stdio connection is over: so are its calls."""
        self._streams.disconnected(client)

    def when_there_is_room(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` once, when it is no longer `full`."""
        self._desk.when_there_is_room(go_on)

    def turn(self, read: Callable[[], object]) -> None:
        """Call `read`, which takes what a client has sent, and let all that follows from it happen at once."""
        self._desk.turn(read)

    def mark(self, one: Flushable) -> None:
        """Flush it at the end of this turn."""
        self._desk.mark(one)

    # What the engine calls

    def beat(self, reason: str | None, now: str) -> None:
        """The handoff's standing, as the control side has it."""
        self._desk.ledger.beat(reason, now)
        self._end_what_outlived_it()
        self._go_on()

    def tick(self) -> None:
        """Several times a second: end what has taken too long, and what outlived its handoff."""
        now = self._desk.monotonic()
        self._end_what_outlived_it()
        for call in [call for call in self._desk.calls if call.timed and now - call.began > CALL_SECONDS]:
            self._desk.stop(call, "timeout")
        if self._held and now - self._held[0][0] > HOLD_SECONDS:
            self._desk.ledger.end("unchecked")
            self._go_on()
        self._desk.ledger.settle_strangers()

    def cut_off(self, reason: str) -> None:
        """End every call in flight and every stream, and refuse all that follows, for good."""
        self._desk.ledger.end(reason)
        self._end_what_outlived_it()
        self._go_on()
        self._desk.flush()

    def _end_what_outlived_it(self) -> None:
        if (reason := self._desk.ledger.standing) is not None:
            self._desk.stop_all(reason)
            self._streams.end_all(self._sessions.clients())

    def _go_on(self) -> None:
        held, self._held = self._held, []
        self._held_bytes = 0
        for _, go_on in held:
            go_on()
        # Whoever was made to wait by what was held may be waiting for no call.
        self._desk.tell_of_room()

    def _hold(self, go_on: Callable[[], None], exchange: Exchange, size: int) -> None:
        if self._holds_enough:
            self.refuse(over("unchecked"), target="message", exchange=exchange)
            return
        self._held_bytes += size
        self._held.append((self._desk.monotonic(), go_on))

    def _check_standing(self) -> None:
        if (reason := self._desk.ledger.standing) is not None:
            raise over(reason)

    # Messages

    def _request(
        self, request: wire.Request, headers: McpHeaders | None, exchange: Exchange, client: Client | None
    ) -> None:
        era: Era | None = None
        try:
            era = eras.era_of(request, headers)
            if request.method == "initialize" and era is Era.HANDSHAKE:
                if client is not None:
                    _check_id(request, client)
                self._check_standing()
                self._others.initialize(request, exchange, client)
                return
            asked = Ask(request, era, self._client(era, headers, client), exchange)
            _check_id(request, asked.client)
            if request.method == "tools/call":
                self._tool_call(asked, headers)
            else:
                self._others.check_served(request.method, era)
                self._check_standing()
                self._others.answer(asked)
        except Refused as refused:
            if self._desk.tracing is not None:
                self._desk.tracing.refused(request, refused, era, client)
            self.refuse(refused, target=self._target(request), exchange=exchange, id=request.id, era=era)

    def _client(self, era: Era, headers: McpHeaders | None, client: Client | None) -> Client:
        if client is not None:
            return client
        return self._sessions.get(headers.session) if era is Era.HANDSHAKE and headers is not None else self._stateless

    def _tool_call(self, asked: Ask, headers: McpHeaders | None) -> None:
        desk = self._desk
        allowed, arguments, more = self._judged(asked)
        head = _head(allowed, arguments, headers if asked.era is Era.STATELESS else None)
        self._check_standing()
        if desk.full:
            raise BUSY_REFUSED
        if allowed.server in desk.unseen:
            raise Refused(
                eras.CALL_ENDED, f"MCP server {allowed.server!r} failed: it began anew", reason="upstream-failed"
            )
        if allowed.limits is not None:
            self._count(allowed)
        sent = wire.encode(arguments)
        call = Call(asked, allowed.name, desk.monotonic())
        call.allowed = allowed
        call.target = allowed.target
        draft = self._record_of(allowed, arguments, sent)
        members = b'"name":%b,"arguments":%b' % (allowed.tool_json, sent)
        for member, value in more.items():
            members += b',"%b":%b' % (member.encode("ascii"), wire.encode(value))
        self._others.forward(call, allowed.server, members, head, draft)

    def _record_of(self, allowed: Allowed, arguments: dict[str, Any], sent: bytes) -> Draft | bytes:
        digest, desk = hashlib.sha256(sent).hexdigest(), self._desk
        if not allowed.log_arguments:
            return desk.rows(allowed).call(digest, len(sent))
        detail: dict[str, Any] = {"tool": allowed.name, "arguments_sha256": digest, "request_bytes": len(sent)}
        for logged in allowed.log_arguments:
            if logged in arguments:
                # Masked before it is cut: no redactor knows half a secret.
                shown = desk.redactor.bytes(wire.encode(arguments[logged]))
                detail[f"argument.{logged}"] = shown[:MAX_LOGGED].decode("ascii")
        return Draft("tool.call", Decision.ALLOWED, SURFACE, allowed.target, "", detail)

    def _judged(self, asked: Ask) -> tuple[Allowed, dict[str, Any], dict[str, Any]]:
        """The tool that a call may have, its arguments, and what else of its members may go on. Raises Refused."""
        params = asked.request.params
        name, arguments = params.get("name"), params.get("arguments", {})
        if type(name) is not str or type(arguments) is not dict:
            raise envelope.invalid_params()
        verdict = self._desk.policy.decide(name, arguments)
        more: dict[str, Any] = {}
        if params.keys() != _PLAIN_CALL:
            more = _more_members(params, asked.era, verdict if isinstance(verdict, Allowed) else None)
            asked.meta = envelope.check_members(params, _PLAIN_CALL | more.keys())
        if not isinstance(verdict, Allowed):
            raise _denied(verdict.reason, name)
        return verdict, arguments, more

    def _count(self, allowed: Allowed) -> None:
        reason = self._desk.budgets.take(allowed.name, self._desk.ledger.seconds())
        if reason is not None:
            raise Refused(
                eras.CALL_ENDED, f"The budget of this tool is used up: {allowed.name}", reason=reason, status=429
            )

    def _notification(
        self, note: wire.Notification, headers: McpHeaders | None, exchange: Exchange, client: Client | None
    ) -> None:
        era = eras.era_of(note, headers)
        if note.method not in methods.CLIENT_NOTIFICATIONS:
            raise Refused(wire.METHOD_NOT_FOUND, "Method not found", reason=Reason.METHOD, status=400)
        who = client
        if who is None and era is Era.HANDSHAKE and headers is not None:
            who = self._sessions.get(headers.session)
        if who is not None:
            if note.method == "notifications/cancelled":
                self._cancel(who, note.params.get("requestId"))
            elif note.method == "notifications/roots/list_changed":
                self._streams.roots_changed(who)
        # Over stateless HTTP a client cancels by closing its connection; an id says nothing there.
        exchange.reply(b"", status=202)

    def _cancel(self, client: Client, message_id: object) -> None:
        call = client.calls.get(str(message_id))
        if call is None:
            return
        if client.stdio:
            # Nobody waits for an answer there: the client has said that it will ignore it.
            call.exchange = SILENCE
        self._desk.stop(call, CANCELLED)

    def _response(
        self, response: wire.Response, headers: McpHeaders | None, exchange: Exchange, client: Client | None
    ) -> None:
        who = client
        if who is None and headers is not None and headers.session is not None:
            who = self._sessions.get(headers.session)
        if who is None or type(response.id) is not int or not self._streams.answered(who, response):
            raise Refused(
                wire.INVALID_REQUEST, "Invalid Request: nothing was asked", reason=Reason.MALFORMED, status=400
            )
        exchange.reply(b"", status=202)

    def _target(self, message: wire.Request | wire.Notification) -> str:
        redactor = self._desk.redactor
        if message.method == "tools/call":
            return f"tools/call {printable(message.params.get('name'), redactor)}"
        return printable(message.method, redactor)


class Silence:
    """An exchange whose client waits for nothing any more."""

    gone: Callable[[], None] | None = None

    def reply(self, body: bytes, *, status: int = 200, session: str | None = None) -> None: ...

    def event(self, body: bytes, *, event_id: str | None = None, retry: int | None = None) -> None: ...

    def end(self) -> None: ...


SILENCE: Final = Silence()


def _answer(recorded: bool, exchange: Exchange, body: bytes, status: int) -> None:  # noqa: ARG001 - a refusal stays one
    exchange.reply(body, status=status)


def _head(allowed: Allowed, arguments: dict[str, Any], headers: McpHeaders | None) -> RequestHead:
    """What a server over HTTP is told in headers; `headers` are those of the client, to be held against the arguments."""
    if allowed.param_headers is None:
        return RequestHead("tools/call", allowed.tool)
    if headers is not None:
        wrong = allowed.param_headers.disagreeing(arguments, headers.params)
        if wrong is not None:
            raise eras.mismatch(wrong)
    return RequestHead("tools/call", allowed.tool, allowed.param_headers.values(arguments))


def _check_id(request: wire.Request, client: Client) -> None:
    if client.unique_ids and str(request.id) in client.calls:
        raise Refused(
            wire.INVALID_REQUEST, "Invalid Request: this id is in flight", reason=Reason.DUPLICATE_ID, status=400
        )


def _more_members(params: dict[str, Any], era: Era, allowed: Allowed | None) -> dict[str, Any]:
    """The members of a call beside name and arguments that may go on: a task's, or those of a retry with more input.

    For a tool that is not granted they are those that any tool could have, so that its refusal tells nothing.
    """
    names: set[str] = set()
    if era is Era.STATELESS and (allowed is None or allowed.input_required):
        names |= methods.RETRY_PARAMS
    if era is Era.HANDSHAKE and allowed is not None and allowed.tasks:
        names.add("task")
    return {key: params[key] for key in params if key in names}


def _denied(reason: Reason, name: str) -> Refused:
    """The refusal of a call. A tool that is not granted is answered as one that does not exist, word for word."""
    if reason in (Reason.ARGUMENTS, Reason.TOOL_SCHEMA):
        message = "Arguments are not allowed for this handoff"
        if reason is Reason.TOOL_SCHEMA:
            message = "Arguments do not fit the tool's inputSchema"
        return Refused(wire.INVALID_PARAMS, f"{message}: {name}", reason=reason)
    return Refused(wire.INVALID_PARAMS, f"Unknown tool: {name[:MAX_TOOL_NAME]}", reason=reason)
