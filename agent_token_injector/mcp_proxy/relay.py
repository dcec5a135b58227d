"""From a request's bytes to a reply's: parse, decide, put on record, forward, mask.

The order is the promise (D8). Nothing reaches a server before the policy allowed it, the handoff was found alive and the
audit event was written; nothing reaches the agent that was not parsed and masked. What a server is sent is built here
from the decision: a minted id, the server's own name for the tool, the arguments as judged, and nothing else of the
request, its `_meta` included.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent_token_injector.audit import Decision
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.mcp_proxy import eras, wire
from agent_token_injector.mcp_proxy.eras import Era, McpHeaders, Refused
from agent_token_injector.mcp_proxy.ledger import Event, Ledger, over, printable, unaudited
from agent_token_injector.mcp_proxy.sessions import CANCELLED, Calls, Session, Sessions, settle
from agent_token_injector.mcp_proxy.tool_policy import Allowed, Reason, ToolPolicy
from agent_token_injector.mcp_proxy.upstream import Answer, Upstream, UpstreamError, UpstreamFailed

if TYPE_CHECKING:
    from agent_token_injector.masking import Redactor
    from agent_token_injector.mcp_proxy.known_secrets import KnownSecrets

CALL_SECONDS: Final = 600.0
"""How long a server may take for one call."""
LIST_TTL_MS: Final = 300_000
MAX_TOOL_NAME: Final = 256

_CALL_PARAMS: Final = frozenset({"name", "arguments", "_meta"})
_LIST_PARAMS: Final = frozenset({"_meta"})


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back over HTTP; `session` is the id of a session just opened."""

    status: int
    body: bytes = b""
    session: str | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """How a forwarded call ended: the reply, and what the audit is told. No `reason` when it was answered."""

    body: bytes
    reason: str = ""
    masked: int = 0
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """A call that was allowed and is on record."""

    id: wire.MessageId
    era: Era
    allowed: Allowed
    arguments: Mapping[str, Any]

    def failed(self, code: int, message: str, reason: str, data: Any = None) -> _End:
        return _End(wire.error(self.id, code, message, data), reason, is_error=True)

    def stopped(self, reason: str) -> _End:
        if reason == CANCELLED:
            return self.failed(eras.CALL_ENDED, "Request cancelled", reason)
        refused = over(reason)
        return self.failed(refused.code, refused.message, reason)


Gone: TypeAlias = Callable[[], Awaitable[None]]
"""Returns when the client has closed its connection."""


class Relay:
    """Answers the messages of one handoff. Lives on one event loop.

    Args:
        policy: what may be called.
        upstreams: the servers behind it, by name, started.
        ledger: the handoff's standing and its audit.
        secrets: what is masked.
        server_info: how the proxy calls itself.
    """

    def __init__(
        self,
        *,
        policy: ToolPolicy,
        upstreams: Mapping[str, Upstream],
        ledger: Ledger,
        secrets: KnownSecrets,
        server_info: Mapping[str, Any],
    ) -> None:
        self._policy = policy
        self._upstreams = upstreams
        self._ledger = ledger
        self._secrets = secrets
        self._server_info = server_info
        self._definitions = secrets.redactor.json(policy.definitions())
        self._sessions = Sessions()
        self._calls = Calls()

    @property
    def busy(self) -> bool:
        """Whether calls are in flight."""
        return bool(self._calls)

    def cut_off(self, reason: str) -> None:
        """End every call in flight and refuse all that follow."""
        self._ledger.end(reason)
        self.cut_calls(reason)

    def cut_calls(self, reason: str) -> None:
        """End every call in flight."""
        self._calls.cut(reason)

    async def end_session(self, session: str | None) -> Reply:
        """Answer a DELETE."""
        try:
            self._sessions.close(session)
        except Refused as refused:
            return await self.refuse(refused, target="session")
        return Reply(200)

    async def handle(self, raw: bytes, headers: McpHeaders, gone: Gone) -> Reply:
        """Answer one message. Never raises for anything a client can send."""
        try:
            message = wire.parse(raw)
        except wire.WireError as error:
            malformed = Refused(error.code, error.message, reason=Reason.MALFORMED, status=400)
            return await self.refuse(malformed, target="message", message_id=error.id)
        if isinstance(message, wire.Response):
            uninvited = Refused(
                wire.INVALID_REQUEST, "Invalid Request: nothing was asked", reason=Reason.MALFORMED, status=400
            )
            return await self.refuse(uninvited, target="response")
        message_id = message.id if isinstance(message, wire.Request) else None
        era: Era | None = None
        try:
            era = eras.era_of(message, headers)
            if isinstance(message, wire.Notification):
                return self._notified(message, era, headers)
            return await self._answer(message, era, headers, gone)
        except Refused as refused:
            target = _target(message, self._secrets.redactor)
            return await self.refuse(refused, target=target, message_id=message_id, era=era)

    async def refuse(
        self, refused: Refused, *, target: str, message_id: wire.MessageId | None = None, era: Era | None = None
    ) -> Reply:
        """Put a refusal on record and answer it. It stays a refusal when it cannot be recorded."""
        await self._ledger.note(
            Event("tool.denied", Decision.REFUSED, target, refused.reason, {"code": refused.code, "era": era or ""})
        )
        return Reply(refused.http_status(era), wire.error(message_id, refused.code, refused.message, refused.data))

    async def refuse_stranger(self, refused: Refused) -> None:
        """Put on record that somebody without the token was refused; many at once share an event."""
        await self._ledger.note_stranger(
            Event("tool.denied", Decision.REFUSED, "http", refused.reason, {"code": refused.code, "era": ""})
        )

    def _notified(self, note: wire.Notification, era: Era, headers: McpHeaders) -> Reply:
        if note.method not in eras.NOTIFICATIONS:
            raise Refused(wire.METHOD_NOT_FOUND, "Method not found", reason=Reason.METHOD, status=400)
        if era is Era.HANDSHAKE:
            session = self._sessions.get(headers.session)
            if note.method == "notifications/cancelled":
                stop = session.calls.get(str(note.params.get("requestId")))
                if stop is not None:
                    settle(stop, CANCELLED)
        # In the stateless era a client cancels by closing its connection; an id says nothing there.
        return Reply(202)

    async def _answer(self, request: wire.Request, era: Era, headers: McpHeaders, gone: Gone) -> Reply:
        if request.method not in eras.METHODS[era]:
            raise Refused(wire.METHOD_NOT_FOUND, "Method not found", reason=Reason.METHOD)
        if request.method == "initialize":
            return await self._initialize(request)
        session = self._sessions.get(headers.session) if era is Era.HANDSHAKE else None
        if request.method == "tools/call":
            return await self._call(request, era, session, gone)
        if session is not None and str(request.id) in session.calls:
            raise Refused(
                wire.INVALID_REQUEST, "Invalid Request: this id is in flight", reason=Reason.DUPLICATE_ID, status=400
            )
        if request.method == "tools/list":
            return await self._list(request, era)
        await self._alive()
        if request.method == "server/discover":
            value = eras.discover_result(self._ttl(), self._server_info)
            return Reply(200, wire.result(request.id, value))
        return Reply(200, wire.result(request.id, {}))

    async def _alive(self) -> None:
        if (reason := await self._ledger.standing()) is not None:
            raise over(reason)

    async def _initialize(self, request: wire.Request) -> Reply:
        await self._alive()
        value = eras.initialize_result(request.params.get("protocolVersion"), self._server_info)
        return Reply(200, wire.result(request.id, value), session=self._sessions.open())

    async def _list(self, request: wire.Request, era: Era) -> Reply:
        if not request.params.keys() <= _LIST_PARAMS:
            # A cursor included: there is one page, so none was ever given out.
            raise Refused(wire.INVALID_PARAMS, "Invalid params", reason=Reason.MALFORMED)
        count = len(self._definitions)
        await self._ledger.permit(Event("tool.listed", Decision.ALLOWED, "tools/list", detail={"tools": count}))
        value: dict[str, Any] = {"tools": self._definitions}
        if era is Era.STATELESS:
            value = eras.stateless_result(value, self._server_info, ttl_ms=self._ttl())
        return Reply(200, wire.result(request.id, value))

    def _ttl(self) -> int:
        return min(LIST_TTL_MS, self._ledger.remaining_ms())

    async def _call(self, request: wire.Request, era: Era, session: Session | None, gone: Gone) -> Reply:
        name, arguments = _call_params(request.params)
        with self._calls.one(session, request.id) as stop:
            verdict = self._policy.decide(name, arguments)
            if not isinstance(verdict, Allowed):
                raise _denied(verdict.reason, name)
            sent = wire.encode(arguments)
            what = {
                "tool": name,
                "arguments_sha256": hashlib.sha256(sent).hexdigest(),
                "request_bytes": len(sent),
            }
            target = f"{verdict.server}/{verdict.tool}"
            await self._ledger.permit(Event("tool.call", Decision.ALLOWED, target, detail=what))
            began = time.perf_counter()
            question = _Question(request.id, era, verdict, arguments)
            # A call that was ended while it was put on record never leaves.
            end = question.stopped(stop.result()) if stop.done() else await self._forward(question, stop, gone)
        detail = {
            "tool": name,
            "ms": round((time.perf_counter() - began) * 1000, 1),
            "result_bytes": len(end.body),
            "masked": end.masked,
            "is_error": end.is_error,
        }
        decision = Decision.FAILED if end.reason else Decision.DONE
        if not await self._ledger.note(Event("tool.result", decision, target, end.reason, detail)):
            raise unaudited()
        return Reply(200, end.body)

    async def _forward(self, question: _Question, stop: asyncio.Future[str], gone: Gone) -> _End:
        """Call the server and make the reply. What a server answers once the call was ended is dropped."""
        upstream = self._upstreams[question.allowed.server]
        work = asyncio.ensure_future(upstream.call(question.allowed.tool, question.arguments))
        watch = asyncio.ensure_future(gone())
        watched: set[asyncio.Future[Any]] = {work, stop}
        if question.era is Era.STATELESS:
            watched.add(watch)
        try:
            done, _ = await asyncio.wait(watched, timeout=CALL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return question.stopped(stop.result())
            if not work.done():
                reason = "disconnected" if done else "timeout"
                return question.failed(eras.CALL_ENDED, "The tool did not answer in time", reason)
            return self._finished(question, work.result())
        except UpstreamError as error:
            redactor = self._secrets.redactor
            text, data = redactor.text(error.message), redactor.json(error.data)
            return question.failed(error.code, text, "upstream-error", data)
        except UpstreamFailed as error:
            message = f"MCP server {question.allowed.server!r} failed: {error}"
            return question.failed(eras.CALL_ENDED, message, "upstream-failed")
        except AuditUnavailable:
            # A built-in server could not put its own access on record, and so disclosed nothing.
            refused = unaudited()
            return question.failed(refused.code, refused.message, refused.reason)
        finally:
            work.cancel()
            watch.cancel()
            # Collected, so that a failure that nobody waits for any more is not reported as forgotten.
            await asyncio.gather(work, watch, return_exceptions=True)

    def _finished(self, question: _Question, answer: Answer) -> _End:
        value = eras.tool_result(answer.value)
        if value is None:
            raise UpstreamFailed("its answer is not a tool's result")
        masked = 0
        if not answer.granted:
            value, masked = self._secrets.redactor.json_counted(value)
        if question.era is Era.STATELESS:
            value = eras.stateless_result(value, self._server_info)
        return _End(wire.result(question.id, value), masked=masked, is_error=value.get("isError") is True)


def _call_params(params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tool's name and its arguments. Raises Refused for any other parameter: `task`, `Name`, `inputResponses`."""
    name, arguments = params.get("name"), params.get("arguments", {})
    if (
        not params.keys() <= _CALL_PARAMS
        or not isinstance(params.get("_meta", {}), dict)
        or not isinstance(name, str)
        or not isinstance(arguments, dict)
    ):
        raise Refused(wire.INVALID_PARAMS, "Invalid params", reason=Reason.MALFORMED)
    return name, arguments


def _denied(reason: Reason, name: str) -> Refused:
    """The refusal of a call. A tool that is not granted is answered as one that does not exist, word for word."""
    if reason in (Reason.ARGUMENTS, Reason.TOOL_SCHEMA):
        message = "Arguments are not allowed for this handoff"
        if reason is Reason.TOOL_SCHEMA:
            message = "Arguments do not fit the tool's inputSchema"
        return Refused(wire.INVALID_PARAMS, f"{message}: {name}", reason=reason)
    return Refused(wire.INVALID_PARAMS, f"Unknown tool: {name[:MAX_TOOL_NAME]}", reason=reason)


def _target(message: wire.Request | wire.Notification, redactor: Redactor) -> str:
    if message.method == "tools/call":
        return f"tools/call {printable(message.params.get('name'), redactor)}"
    return printable(message.method, redactor)
