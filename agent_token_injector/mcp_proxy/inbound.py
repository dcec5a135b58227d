"""From a server's message to a client: found by our own id, judged by policy, masked, put on record, passed on (D8).

A server can answer what it was asked, and say and ask what the spec grants it. Everything else is dropped or refused, and
what it never had reason to say is on record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_token_injector.mcp_proxy import results, wire
from agent_token_injector.mcp_proxy.calls import Call, Client, Listening
from agent_token_injector.mcp_proxy.desk import Desk
from agent_token_injector.mcp_proxy.envelope import META_LOG_LEVEL
from agent_token_injector.mcp_proxy.eras import CALL_ENDED, Era
from agent_token_injector.mcp_proxy.links import Link, as_error
from agent_token_injector.mcp_proxy.methods import INPUT_REQUIRED, RESOURCE_NOT_FOUND, SERVER_REQUESTS
from agent_token_injector.mcp_proxy.streams import ACKNOWLEDGED, META_SUBSCRIPTION, Part, Streams, event_id
from agent_token_injector.mcp_proxy.watches import Watch, Watches

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_token_injector.mcp_proxy.exchange import Exchange
    from agent_token_injector.mcp_proxy.sse import SseEvent
    from agent_token_injector.mcp_proxy.upstream import Upstream

_PLAIN_RESULT = {"content", "structuredContent", "isError"}
"""The members of nearly every tool's result: neither a task nor a question, and nothing to leave out."""
_TO_SUBSCRIBERS = {
    "notifications/resources/updated": "subscribe",
    "notifications/resources/list_changed": "resources",
    "notifications/prompts/list_changed": "prompts",
    "notifications/message": "logging",
}
"""A server's notification, and the field of `allow` that lets it through outside of a call."""


class Inbound:
    """Takes what every link brings.

    Args:
        desk: the relay's state.
        streams: clients' streams.
        watches: our own streams for what servers say of their tools.
        tools_changed: is told the name of a server that says its tools are others now.
    """

    def __init__(self, desk: Desk, streams: Streams, watches: Watches, tools_changed: Callable[[str], None]) -> None:
        self._desk = desk
        self._streams = streams
        self._watches = watches
        self._tools_changed = tools_changed

    # LinkEvents

    def arrived(self, link: Link, message: dict[str, Any], route: object, event: SseEvent | None) -> None:
        """A message that answers no question of our own."""
        method = message.get("method")
        if method is None:
            self._answer(link, message, route, event)
        elif "id" in message:
            self._question(link, message, method, route)
        else:
            params = message.get("params", {})
            self._notification(link, method, params if isinstance(params, dict) else {}, route, event)

    def turn(self, read: Callable[[], object]) -> None:
        """Take what a server has sent, and let what follows from it happen at once."""
        self._desk.turn(read)

    def primed(self, link: Link, route: object, event: SseEvent) -> None:
        """An event with an id and no message: the client can go on from there."""
        waiting = self._waiting(link, route)
        if waiting is not None and not isinstance(waiting, Part):
            waiting.exchange.event(
                b"", event_id=event_id(waiting.client, link, event, self._desk.redactor), retry=event.retry
            )

    def paused(self, link: Link, route: object) -> None:
        """The server closed a stream before its answer: so do we, and the client goes on with another one."""
        if type(route) is int and isinstance(link.pending.get(route), Watch):
            self._watches.over(link, route)
            return
        waiting = self._waiting(link, route)
        if isinstance(waiting, Part):
            self._streams.part_ended(waiting, "it closed the stream")
        elif waiting is not None:
            waiting.exchange.end()

    def broke(self, link: Link, minted: int, why: str) -> None:
        """A question gets no answer."""
        waiting = link.pending.get(minted)
        if isinstance(waiting, Part):
            self._streams.part_ended(waiting, why)
        elif isinstance(waiting, Call):
            self._desk.server_failed(waiting, why)
        elif isinstance(waiting, Watch):
            self._watches.over(link, minted)

    def unread(self, link: Link, minted: int, why: str) -> None:
        """An answer cannot be read safely."""
        self.broke(link, minted, why)

    def ended(self, link: Link, listen: object, why: str) -> None:
        """A stream that a client listens to is over."""
        del why
        if isinstance(listen, Listening):
            self._streams.ended(listen, link)
        elif isinstance(listen, Watch):
            self._watches.over(link, listen)

    def restarted(self, upstream: Upstream) -> None:
        """A server began anew: what it lists may differ, so none of it is served before it was looked at."""
        self._desk.unseen.add(upstream.name)
        self._tools_changed(upstream.name)

    # Answers

    def _waiting(self, link: Link, route: object) -> Call | Part | Listening | None:
        found = link.pending.get(route) if type(route) is int else route
        return found if isinstance(found, Call | Part | Listening) else None

    def _answer(self, link: Link, message: dict[str, Any], route: object, event: SseEvent | None) -> None:
        minted = message.get("id")
        # Our ids are integers; "7" is not 7, and a server that thinks so answers nobody. Nor may the stream of one
        # request carry the answer to another.
        if type(minted) is not int or (type(route) is int and route != minted):
            return
        waiting = link.pending.get(minted)
        if type(waiting) is Part:
            self._streams.part_ended(waiting, None)
        elif type(waiting) is Watch:
            self._watches.over(link, minted)
        elif type(waiting) is Call:
            if isinstance(route, Listening):
                # It was asked on a stream that is over: the answer goes where its client listens now.
                waiting.exchange = _Resumed(route, event_id(route.client, link, event, self._desk.redactor))
            self._finish(link, waiting, message)

    def _finish(self, link: Link, call: Call, message: dict[str, Any]) -> None:
        desk = self._desk
        if "error" in message:
            error = as_error(message["error"])
            text, data = desk.redactor.text(error.message), desk.redactor.json(error.data)
            code = error.code
            if desk.redactor.text_counted(str(code))[1]:
                code = wire.INTERNAL_ERROR
            if code == RESOURCE_NOT_FOUND and call.era is Era.STATELESS:
                code = wire.INVALID_PARAMS
            desk.fail(call, code, text, "upstream-error", data)
            return
        shaped = self._shaped(link, call, message["result"])
        if shaped is None:
            return
        value, kind, ttl = shaped
        masked = 0
        body = self._spelled(call, value, kind, ttl)
        if not call.granted and self._may_hold_a_secret(body):
            value, masked = desk.redactor.json_counted(value)
            if masked:
                body = self._spelled(call, value, kind, ttl)
        desk.finish(call, body, masked=masked, is_error=value.get("isError") is True)

    def _spelled(self, call: Call, value: dict[str, Any], kind: str, ttl: int) -> bytes:
        if call.era is Era.STATELESS:
            value = results.in_era(call.era, call.method, value, self._desk.info, ttl_ms=ttl, kind=kind)
        return wire.result(call.id, value)

    def _may_hold_a_secret(self, body: bytes) -> bool:
        # Where JSON escapes nothing, every text stands in it as it is.
        return b"\\" in body or self._desk.redactor.bytes_counted(body)[1] > 0

    def _shaped(self, link: Link, call: Call, result: Any) -> tuple[dict[str, Any], str, int] | None:
        """A result's own members, its type, and how long it may be kept; None when the call was failed instead."""
        desk = self._desk
        value: dict[str, Any] | None
        if call.method == "tools/call" and _is_plain(result):
            return result, "complete", 0
        kind = results.result_type(result) if type(result) is dict else ""
        ttl = 0
        if type(result) is dict and _task_of(result, kind) is not None and call.allowed is not None:
            value = self._task(call, result, kind)
        elif kind == "input_required":
            value = None
            granted = call.allowed is None or call.allowed.input_required
            if granted and call.era is Era.STATELESS and call.method in INPUT_REQUIRED:
                value = results.input_required(result, desk.allow.get(link.server))
            if value is None:
                desk.fail(
                    call, CALL_ENDED, "The server asked for input that this handoff does not grant", "input-refused"
                )
                return None
        elif kind == "complete":
            value = results.complete(call.method, result)
            ttl = min(results.upstream_ttl(result), desk.ledger.remaining_ms()) if value is not None else 0
        else:
            value = None
        if value is None:
            desk.server_failed(call, "its answer is not a result of what it was asked")
            return None
        return value, kind, ttl

    def _task(self, call: Call, result: dict[str, Any], kind: str) -> dict[str, Any] | None:
        """A result that is a task, when the tool was granted with `tasks`; bound to the client that called it."""
        task = _task_of(result, kind)
        if call.allowed is None or not call.allowed.tasks or task is None or not self._desk.remember(call, task):
            return None
        return {key: item for key, item in result.items() if key != "resultType"}

    # Questions

    def _question(self, link: Link, message: dict[str, Any], method: str, route: object) -> None:
        if method == "ping":
            if _is_id(message["id"]):
                link.say(wire.result(message["id"], {}))
                self._desk.mark(link)
            return
        field = SERVER_REQUESTS.get(method)
        found = self._asker(link, route) if field is not None and self._desk.allows(link.server, field) else None
        if found is None or not _is_id(message["id"]) or not self._streams.hand(*found, link, message):
            self._refuse(link, message["id"])

    def _refuse(self, link: Link, message_id: Any) -> None:
        if _is_id(message_id):
            link.say(wire.error(message_id, wire.METHOD_NOT_FOUND, "Method not found"))
            self._desk.mark(link)

    def _asker(self, link: Link, route: object) -> tuple[Client, Exchange] | None:
        """Whom a server's question is for, when that can be told: the client of the one call that it belongs to."""
        waiting = self._waiting(link, route)
        if isinstance(waiting, Call | Part):
            call = waiting if isinstance(waiting, Call) else waiting.call
            return (call.client, call.exchange) if call.era is Era.HANDSHAKE else None
        if isinstance(waiting, Listening):
            return waiting.client, waiting.exchange
        asking = {call.client: call for call in link.pending.values() if isinstance(call, Call)}
        if len(asking) != 1:
            return None
        client, call = asking.popitem()
        if call.era is not Era.HANDSHAKE:
            return None
        return client, client.listening[0].exchange if client.stdio and client.listening else call.exchange

    # Notifications

    def _notification(
        self, link: Link, method: str, params: dict[str, Any], route: object, event: SseEvent | None
    ) -> None:
        if method == "notifications/progress":
            self._progress(link, params, event)
            return
        if method == "notifications/tools/list_changed":
            self._tools_changed(link.server)
            return
        waiting = self._waiting(link, _subscription(params) if route is None else route)
        if isinstance(waiting, Part):
            if method != ACKNOWLEDGED:
                self._streams.told(waiting, method, params)
            return
        if not self._lets(link.server, method) or _unwanted(waiting, method):
            return
        shown = self._desk.redactor.json(params)
        if isinstance(waiting, Call):
            retry = None if event is None else event.retry
            last = event_id(waiting.client, link, event, self._desk.redactor)
            waiting.exchange.event(wire.notification(method, shown), event_id=last, retry=retry)
        elif isinstance(waiting, Listening):
            self._streams.send(waiting, link, wire.notification(method, shown), event)
        else:
            self._streams.broadcast(link.server, method, shown)

    def _lets(self, server: str, method: str) -> bool:
        field = _TO_SUBSCRIBERS.get(method)
        if field is not None:
            return self._desk.allows(server, field)
        if method == "notifications/elicitation/complete":
            return self._desk.allows(server, "elicitation")
        allow = self._desk.allow.get(server)
        return allow is not None and method in allow.notifications

    def _progress(self, link: Link, params: dict[str, Any], event: SseEvent | None) -> None:
        """Progress of a call whose client asked for it, under the client's own token."""
        token = params.get("progressToken")
        call = link.pending.get(token) if type(token) is int else None
        if not isinstance(call, Call) or call.progress is None:
            return
        kept = {key: params[key] for key in ("progress", "total", "message") if key in params}
        shown = self._desk.redactor.json(kept)
        body = wire.notification("notifications/progress", {"progressToken": call.progress, **shown})
        call.exchange.event(body, event_id=event_id(call.client, link, event, self._desk.redactor))


class _Resumed:
    """The exchange of a call whose answer comes on a stream that its client opened later."""

    def __init__(self, listening: Listening, last: str | None) -> None:
        self.gone: Callable[[], None] | None = None
        self._listening = listening
        self._last = last

    def reply(self, body: bytes, *, status: int = 200, session: str | None = None) -> None:
        del status, session
        self._listening.exchange.event(body, event_id=self._last)

    def event(self, body: bytes, *, event_id: str | None = None, retry: int | None = None) -> None:
        self._listening.exchange.event(body, event_id=event_id, retry=retry)

    def end(self) -> None:
        self._listening.exchange.end()


def _task_of(result: dict[str, Any], kind: str) -> str | None:
    """The id of the task that a result is: `resultType: task` (2026-07-28), or a member `task` (2025-11-25)."""
    inner = result.get("task") if kind == "complete" and "content" not in result else result
    if kind not in ("task", "complete") or not isinstance(inner, dict):
        return None
    task = inner.get("taskId") or (inner.get("task", {}).get("taskId") if isinstance(inner.get("task"), dict) else None)
    return (
        task
        if isinstance(task, str) and 0 < len(task) <= wire.MAX_ID and (kind == "task" or "task" in result)
        else None
    )


def _subscription(params: dict[str, Any]) -> object:
    """The subscription that a notification over stdio belongs to, by the id that we minted for it."""
    meta = params.get("_meta")
    return meta.get(META_SUBSCRIPTION) if isinstance(meta, dict) else None


def _unwanted(waiting: Call | Listening | None, method: str) -> bool:
    """Whether it is a log message of a call whose client has not asked for any (2026-07-28)."""
    if not isinstance(waiting, Call) or waiting.era is not Era.STATELESS:
        return False
    return method == "notifications/message" and META_LOG_LEVEL not in waiting.meta


def _is_plain(result: Any) -> bool:
    return type(result) is dict and result.keys() <= _PLAIN_RESULT and type(result.get("content")) is list


def _is_id(message_id: object) -> bool:
    """Whether it is an id that is sent back: as short as our own clients' have to be."""
    if isinstance(message_id, str):
        return len(message_id) <= wire.MAX_ID
    return type(message_id) is int and abs(message_id) <= wire.MAX_EXACT_INT
