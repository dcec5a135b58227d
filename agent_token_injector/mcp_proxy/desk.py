"""What the two halves of the relay share: the calls in flight, how each ends, and what goes on record of it.

A call ends once. What a server says of it afterwards is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent_token_injector.audit.event import Decision, DetailValue, Draft
from agent_token_injector.mcp_proxy import eras, wire
from agent_token_injector.mcp_proxy.attention import ROUND_SECONDS, look
from agent_token_injector.mcp_proxy.call_rows import CallRows
from agent_token_injector.mcp_proxy.eras import Era, Refused
from agent_token_injector.mcp_proxy.ledger import SURFACE, Ledger, over, unaudited
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.audit.log import AuditLog
    from agent_token_injector.masking import Redactor
    from agent_token_injector.mcp_proxy.attention import Source
    from agent_token_injector.mcp_proxy.budgets import Budgets
    from agent_token_injector.mcp_proxy.calls import Call, Client
    from agent_token_injector.mcp_proxy.exchange import Exchange
    from agent_token_injector.mcp_proxy.grants import ServerAllow
    from agent_token_injector.mcp_proxy.links import Link, RequestHead
    from agent_token_injector.mcp_proxy.tool_policy import Allowed, ToolPolicy
    from agent_token_injector.mcp_proxy.tracing import Tracing
    from agent_token_injector.mcp_proxy.upstream import Upstream

MAX_CALLS: Final = 1024
"""Calls in flight for one handoff. Over stdio nothing more is read meanwhile; over HTTP more are refused."""
MAX_TASKS: Final = 128
"""Tasks of one server."""
CANCELLED: Final = "cancelled"


class Flushable(Protocol):
    """Something that keeps bytes until it is told to write them."""

    def flush(self) -> None: ...


class Desk:
    """The state of one handoff's relay. Lives on one event loop.

    Args:
        policy: what tools may be called; replaced when a tool is withdrawn.
        upstreams: the servers, by name, started.
        allow: what else each server may be asked for and may ask.
        ledger: standing and audit.
        audit: is told of each secret that is learnt.
        redactor: knows every secret; replaced when one is learnt.
        budgets: how often tools may still be called.
        info: how the proxy calls itself.
        monotonic: real seconds.
        tracing: makes a span of each call; None where nobody traces.
    """

    def __init__(
        self,
        *,
        policy: ToolPolicy,
        upstreams: Mapping[str, Upstream],
        allow: Mapping[str, ServerAllow],
        ledger: Ledger,
        audit: AuditLog,
        redactor: Redactor,
        budgets: Budgets,
        info: Mapping[str, Any],
        monotonic: Callable[[], float],
        tracing: Tracing | None = None,
    ) -> None:
        self.policy = policy
        self.upstreams = upstreams
        self.allow = allow
        self.ledger = ledger
        self.redactor = redactor
        self.budgets = budgets
        self.info = info
        self.monotonic = monotonic
        self.tracing = tracing
        self.calls: set[Call] = set()
        self.tasks: dict[tuple[str, str], Call] = {}
        self._audit = audit
        self._rows: dict[str, CallRows] = {}
        self.answered: Source | None = None
        self.unseen: set[str] = set()
        """Servers that began anew and whose tools were not looked at yet."""
        self._shown: tuple[ToolPolicy, Redactor, list[dict[str, Any]]] | None = None
        self._dirty: dict[Flushable, None] = {}
        self._flushing = False
        self._waiting_for_room: list[Callable[[], None]] = []

    def learn(self, secrets: Iterable[str]) -> None:
        """From now on these stand in no audit event and no masked answer. Call it before anybody is told."""
        known = tuple(secrets)
        self._audit.add_secrets(known)
        self.redactor = self.redactor.with_secrets(known)

    def let_go(self) -> None:
        """Let the control side write to the audit chain."""
        self.ledger.let_go()

    def allows(self, server: str, field: str) -> bool:
        """Whether the spec grants that server this, beyond tools."""
        allow = self.allow.get(server)
        return allow is not None and bool(getattr(allow, field))

    def remember(self, call: Call, task: str) -> bool:
        """Bind a task to the call that began it, for its client alone; False when another server has one of that id.

        A server that begins more than MAX_TASKS loses its oldest ones.
        """
        server = "" if call.link is None else call.link.server
        known = self.tasks.get((call.client.key, task))
        if known is not None and (known.link is None or known.link.server != server):
            return False
        mine = [key for key, one in self.tasks.items() if one.link is not None and one.link.server == server]
        if len(mine) >= MAX_TASKS:
            del self.tasks[mine[0]]
        call.task = task
        self.tasks[call.client.key, task] = call
        return True

    # Room

    @property
    def full(self) -> bool:
        """Whether no more calls should be read."""
        return len(self.calls) >= MAX_CALLS

    def when_there_is_room(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` once, when calls have ended."""
        self._waiting_for_room.append(go_on)

    def tell_of_room(self) -> None:
        """Let those go on who wait for room, where there is any."""
        if self._waiting_for_room and not self.full:
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for go_on in waiting:
                go_on()

    # Writing

    def mark(self, one: Flushable) -> None:
        """Flush it when this turn's effects have happened."""
        self._dirty[one] = None
        if not self._flushing:
            # An answer that needs no event must not wait for one.
            self.ledger.schedule()

    def turn(self, work: Callable[[], object]) -> None:
        """Do some work, and let what it stages happen at its end instead of the loop's next turn."""
        if self._flushing:
            work()
            return
        # While this is set nothing is scheduled.
        self._flushing = self.ledger.held_back = True
        try:
            work()
        finally:
            self.flush()
        if len(self.calls) <= 1:
            self._attend()

    def _attend(self) -> None:
        until = self.monotonic() + ROUND_SECONDS
        while (source := self._awaited()) is not None and (data := look(source)) is not None:
            self._flushing = self.ledger.held_back = True
            try:
                source.heard(data)
            finally:
                self.flush()
            if self.monotonic() >= until:
                return

    def _awaited(self) -> Source | None:
        """Who is about to say something: the server of the one call in flight, or else the client that was answered last."""
        if not self.calls:
            return self.answered
        if len(self.calls) > 1:
            return None
        (call,) = self.calls
        return call.link.source if call.sent and call.link is not None else None

    def flush(self) -> None:
        """Put on record what is staged, let it happen, and write what that queued."""
        self._flushing = self.ledger.held_back = True
        self.ledger.begin_turn()
        try:
            self.ledger.flush()
            while self._dirty:
                dirty, self._dirty = self._dirty, {}
                for one in dirty:
                    one.flush()
                self.ledger.flush()
        finally:
            self._flushing = self.ledger.held_back = False

    # A call's way

    def begin(self, call: Call) -> None:
        """Count a call; its id is in flight from here on."""
        self.calls.add(call)
        if call.client.unique_ids:
            call.client.calls[str(call.id)] = call

    def rows(self, allowed: Allowed) -> CallRows:
        """What the audit holds of calls to a granted tool."""
        rows = self._rows.get(allowed.name)
        if rows is None or rows.redactor is not self.redactor or rows.allowed is not allowed:
            rows = self._rows[allowed.name] = CallRows(allowed, self.redactor)
        return rows

    def forward(self, call: Call, link: Link, message: bytes, head: RequestHead, draft: Draft | bytes) -> None:
        """Send a call to its server, once it is on record. Its minted id is in `message` already."""
        call.link = link
        link.pending[call.minted] = call
        self.begin(call)
        self.ledger.stage(draft, self._leave, call, message, head)

    def _leave(self, recorded: bool, call: Call, message: bytes, head: RequestHead) -> None:
        # A call that was ended while it was put on record never leaves.
        if call.ended or call.link is None:
            return
        if not recorded:
            self.unrecorded(call)
        elif (reason := self.ledger.standing_now) is not None:
            # The audit may have been waited for, past the end of the handoff.
            self.stop(call, reason)
        else:
            call.sent = True
            call.link.send(call.minted, message, head)
            self.mark(call.link)

    def unrecorded(self, call: Call) -> None:
        """End a call that was not carried out, because that could not be put on record."""
        self.settle(call)
        if self.tracing is not None:
            self.tracing.unrecorded(call)
        self.unaudited(call.id, call.exchange)

    def settle(self, call: Call) -> None:
        """Count it no more: whatever its server says from here on is dropped."""
        call.ended = True
        self.calls.discard(call)
        if call.client.unique_ids:
            call.client.calls.pop(str(call.id), None)
        link = call.link
        if link is not None and link.pending.pop(call.minted, None) is not None and call.sent:
            link.forget(call.minted)
        if call.on_end is not None:
            call.on_end(call)
        self.tell_of_room()

    def finish(
        self,
        call: Call,
        body: bytes,
        *,
        reason: str = "",
        masked: int = 0,
        is_error: bool = False,
        problem: tuple[int, str] | None = None,
    ) -> None:
        """Answer a call, once its outcome is on record. No `reason` when the server answered it.

        `problem` is the code and the message of the JSON-RPC error that `body` is.
        """
        if call.ended:
            return
        if not reason and (over_now := self.ledger.standing_now) is not None:
            self.stop(call, over_now)
            return
        self.settle(call)
        ms = (self.monotonic() - call.began) * 1000
        draft: Draft | bytes
        if call.allowed is not None and not reason:
            draft = self.rows(call.allowed).result(len(body), ms, masked=masked, is_error=is_error)
        else:
            draft = _outcome(call, len(body), round(ms, 1), reason=reason, masked=masked, is_error=is_error)
        traced = None
        if self.tracing is not None:
            traced = self.tracing.ended(call, reason=reason, masked=masked, is_error=is_error, problem=problem)
        status = 200 if problem is None else eras.status_of(problem[0], call.era)
        self.ledger.stage(draft, self._deliver, call, body, status, traced)

    def _deliver(
        self, recorded: bool, call: Call, body: bytes, status: int, traced: Callable[[bool], None] | None
    ) -> None:
        if traced is not None:
            traced(recorded)
        if recorded:
            call.exchange.reply(body, status=status)
            self.answered = call.client.source
        else:
            self.unaudited(call.id, call.exchange)

    def fail(self, call: Call, code: int, message: str, reason: str, data: Any = None) -> None:
        """End a call with an error of ours, or with a server's, masked."""
        if not call.ended:
            body = wire.error(call.id, code, message, data)
            self.finish(call, body, reason=reason, is_error=True, problem=(code, message))

    def server_failed(self, call: Call, why: str) -> None:
        """End a call whose server is gone, or broke the protocol."""
        message = f"MCP server {'' if call.link is None else call.link.server!r} failed: {why}"
        self.fail(call, eras.CALL_ENDED, message, "upstream-failed")

    def stop(self, call: Call, reason: str) -> None:
        """End a call from our side, and tell its server."""
        if call.ended:
            return
        self._tell_server(call)
        if reason == CANCELLED:
            self.fail(call, eras.CALL_ENDED, "Request cancelled", reason)
        elif reason == "timeout":
            self.fail(call, eras.CALL_ENDED, "The tool did not answer in time", reason)
        else:
            refused = over(reason)
            self.fail(call, refused.code, refused.message, reason)

    def _tell_server(self, call: Call) -> None:
        link = call.link
        # A stateless HTTP server is told by the end of the connection, which `settle` closes.
        if link is not None and call.sent and not (link.http and link.era is Era.STATELESS):
            link.say(wire.notification("notifications/cancelled", {"requestId": call.minted, "reason": CANCELLED}))
            self.mark(link)

    def stop_all(self, reason: str) -> None:
        """End every call in flight."""
        for call in tuple(self.calls):
            self.stop(call, reason)

    def drop(self, client: Client) -> None:
        """A client is gone: end its calls and streams, and its conversations with servers."""
        if self.answered is client.source:
            self.answered = None
        for call in tuple(client.calls.values()):
            self.stop(call, CANCELLED)
        for listening in client.listening:
            for link in listening.links:
                link.unlisten(listening)
            listening.exchange.end()
        client.listening.clear()
        client.asked.clear()
        for key in [key for key in self.tasks if key[0] == client.key]:
            del self.tasks[key]
        for upstream in self.upstreams.values():
            upstream.drop(client)

    # What the spec grants

    def capabilities(self, era: Era) -> dict[str, Any]:
        """What may be declared to a client: what is granted, and a server has."""
        found: dict[str, Any] = {"tools": {"listChanged": True}} if self.policy.tools else {}
        for name, allow in self.allow.items():
            upstream = self.upstreams.get(name)
            has = {} if upstream is None else upstream.house.capabilities
            for field in ("resources", "prompts"):
                if getattr(allow, field) and isinstance(has.get(field), dict):
                    declared = found.setdefault(field, {})
                    if has[field].get("listChanged") is True:
                        declared["listChanged"] = True
                    if field == "resources" and allow.subscribe and has[field].get("subscribe") is True:
                        declared["subscribe"] = True
            if allow.completion and "completions" in has:
                found["completions"] = {}
            if allow.logging and "logging" in has and era is Era.HANDSHAKE:
                found["logging"] = {}
        return found

    def definitions(self) -> list[dict[str, Any]]:
        """The granted tools as their servers define them, masked."""
        if self._shown is None or self._shown[0] is not self.policy or self._shown[1] is not self.redactor:
            masked = self.redactor.json(self.policy.definitions())
            self._shown = (self.policy, self.redactor, masked)
        return self._shown[2]

    def reader(self, uri: str, field: str) -> str | None:
        """The server whose resource that is, where the spec grants it and `field` there."""
        for name, allow in self.allow.items():
            if name in self.upstreams and getattr(allow, field) and allow.may_read(uri):
                return name
        return None

    def prompter(self, name: str) -> str | None:
        """The server whose prompt that is, where the spec grants it."""
        return next((one for one, allow in self.allow.items() if one in self.upstreams and name in allow.prompts), None)

    def templater(self, template: str) -> str | None:
        """The server whose resource template that is, where the spec grants it."""
        return next(
            (one for one, allow in self.allow.items() if one in self.upstreams and allow.shows_template(template)), None
        )

    def shows(self, server: str, method: str, item: object) -> bool:
        """Whether an item of a server's list is granted."""
        allow = self.allow.get(server)
        if allow is None or not isinstance(item, dict):
            return False
        if method == "prompts/list":
            return item.get("name") in allow.prompts
        if method == "resources/list":
            return isinstance(item.get("uri"), str) and allow.may_read(item["uri"])
        return isinstance(item.get("uriTemplate"), str) and allow.shows_template(item["uriTemplate"])

    def unaudited(self, id: wire.MessageId, exchange: Exchange) -> None:  # noqa: A002 - JSON-RPC's word
        """Refuse what cannot be put on record."""
        refused = unaudited()
        exchange.reply(wire.error(id, refused.code, refused.message), status=503)

    def denied(self, refused: Refused, *, target: str, era: Era | None) -> Draft:
        """The audit event of a refusal."""
        detail = {"code": refused.code, "era": era or ""}
        return Draft("tool.denied", Decision.REFUSED, SURFACE, target, refused.reason, detail)


def _outcome(call: Call, size: int, ms: float, *, reason: str, masked: int, is_error: bool) -> Draft:
    kind, name = ("tool", "tool") if call.allowed is not None else ("mcp", "method")
    decision = Decision.FAILED if reason else Decision.DONE
    detail: dict[str, DetailValue] = {
        name: call.name,
        "ms": ms,
        "result_bytes": size,
        "masked": masked,
        "is_error": is_error,
    }
    return Draft(f"{kind}.result", decision, SURFACE, call.target, reason, detail)


BUSY_REFUSED: Final = Refused(wire.INTERNAL_ERROR, "Too many calls in flight", reason=Reason.BUSY)
