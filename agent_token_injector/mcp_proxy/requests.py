"""Every request that is not a tool call: answered here, collected from several servers, or forwarded to the one it is for.

Lists are collected and filtered, so that what is not granted is not seen. What a request names must be granted by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent_token_injector.audit.event import Decision, Draft
from agent_token_injector.mcp_proxy import envelope, methods, results, wire
from agent_token_injector.mcp_proxy.calls import Ask, Call, Client
from agent_token_injector.mcp_proxy.desk import BUSY_REFUSED, CANCELLED, Desk
from agent_token_injector.mcp_proxy.eras import CALL_ENDED, NAMED, Era, Refused
from agent_token_injector.mcp_proxy.ledger import SURFACE, printable
from agent_token_injector.mcp_proxy.links import RequestHead, UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.exchange import Exchange
    from agent_token_injector.mcp_proxy.sessions import Sessions
    from agent_token_injector.mcp_proxy.streams import Streams

MAX_PAGES: Final = 100
MAX_URI: Final = 8192
MAX_SUBSCRIPTIONS: Final = 1000
MAX_ITEMS: Final = 5000

_Work: TypeAlias = Callable[[Call, Ask], Coroutine[Any, Any, dict[str, Any]]]


class OtherRequests:
    """Answers what is not a tool call.

    Args:
        desk: the relay's state.
        sessions: where `initialize` opens one.
        streams: where subscriptions live.
    """

    def __init__(self, desk: Desk, sessions: Sessions, streams: Streams) -> None:
        self._desk = desk
        self._sessions = sessions
        self._streams = streams
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: Mapping[str, Callable[[Ask], None]] = {
            "ping": self._ping,
            "server/discover": self._discover,
            "tools/list": self._list_tools,
            "resources/list": self._list,
            "resources/templates/list": self._list,
            "prompts/list": self._list,
            "resources/read": self._resource,
            "resources/subscribe": self._resource,
            "resources/unsubscribe": self._resource,
            "prompts/get": self._prompt,
            "completion/complete": self._complete,
            "logging/setLevel": self._set_level,
            "subscriptions/listen": self._streams.subscribe,
        }

    def check_served(self, method: str, era: Era) -> None:
        """Return when a method of that era is known here at all. Raises Refused."""
        if method in methods.CLIENT_REQUESTS[era] or self._custom(method) is not None:
            return
        if method not in methods.TASK_METHODS[era] or not self._desk.tasks:
            raise Refused(wire.METHOD_NOT_FOUND, "Method not found", reason=Reason.METHOD)

    def initialize(self, request: wire.Request, exchange: Exchange, client: Client | None) -> None:
        """Open a session; over stdio the connection is the session. Raises Refused."""
        declared = request.params.get("capabilities")
        who = client if client is not None else Client(self._desk.allow)
        who.declared = declared if isinstance(declared, dict) else {}
        if client is None:
            self._sessions.open(who)
        value = results.initialize_result(
            request.params.get("protocolVersion"), self._desk.capabilities(Era.HANDSHAKE), self._desk.info
        )
        who.version = value["protocolVersion"]
        exchange.reply(wire.result(request.id, value), session=None if client is not None else who.key)

    def answer(self, asked: Ask) -> None:
        """Answer one request whose method is served. Raises Refused."""
        method, era = asked.request.method, asked.era
        field = methods.CLIENT_REQUESTS[era].get(method)
        if field is None:
            self._answer_other(asked)
            return
        if field != methods.ALWAYS and not any(self._desk.allows(server, field) for server in self._desk.upstreams):
            raise Refused(wire.METHOD_NOT_FOUND, "Method not found", reason=Reason.METHOD)
        if method != "ping":
            members = methods.PARAMS.get(method, frozenset())
            if era is Era.STATELESS and method in methods.INPUT_REQUIRED:
                members |= methods.RETRY_PARAMS
            asked.meta = envelope.check_members(asked.request.params, members)
        self._handlers[method](asked)

    # Answered here

    def _ping(self, asked: Ask) -> None:
        asked.exchange.reply(wire.result(asked.request.id, {}))

    def _discover(self, asked: Ask) -> None:
        self._reply(asked, results.discover_result(self._desk.capabilities(asked.era)))

    def _list_tools(self, asked: Ask) -> None:
        tools = self._desk.definitions()
        draft = Draft("tool.listed", Decision.ALLOWED, SURFACE, "tools/list", "", {"tools": len(tools)})
        self._desk.ledger.stage(draft, self._listed, asked, tools)

    def _listed(self, recorded: bool, asked: Ask, tools: list[Any]) -> None:
        if recorded:
            self._reply(asked, {"tools": tools})
        else:
            self._desk.unaudited(asked.request.id, asked.exchange)

    def _reply(self, asked: Ask, value: dict[str, Any]) -> None:
        ttl = self._desk.ledger.remaining_ms()
        shaped = results.in_era(asked.era, asked.request.method, value, self._desk.info, ttl_ms=ttl)
        asked.exchange.reply(wire.result(asked.request.id, shaped))

    # Forwarded to one server

    def forward(self, call: Call, server: str, members: bytes, head: RequestHead, draft: Draft | bytes) -> None:
        """Send a call to a server; `members` are its params, encoded, without braces and without `_meta`."""
        desk, meta = self._desk, call.meta
        link = desk.upstreams[server].link(None if call.client.key == "" else call.client, call.era)
        call.minted = minted = link.mint()
        version = link.version if link.era is Era.STATELESS else None
        if desk.tracing is not None:
            meta = desk.tracing.began(call, meta)
        if meta or version is not None:
            call.progress = envelope.progress_token(meta)
            sent = envelope.forwarded_meta(
                meta, minted=minted, version=version, info=desk.info, allow=desk.allow.get(server)
            )
            if sent:
                members += (b"," if members else b"") + b'"_meta":' + wire.encode(sent)
        message = b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":{%b}}' % (minted, wire.encode(call.method), members)
        self._watch(call)
        desk.forward(call, link, message, head, draft)

    def _watch(self, call: Call) -> None:
        if call.era is Era.STATELESS and not call.client.stdio:
            # In the stateless era the end of the connection is how a client cancels.
            call.exchange.gone = lambda: self._desk.stop(call, CANCELLED)

    def _pass_on(self, asked: Ask, server: str, name: str = "") -> None:
        if self._desk.full:
            raise BUSY_REFUSED
        request = asked.request
        call = self._call(asked, server, name)
        members = b",".join(
            b"%b:%b" % (wire.encode(key), wire.encode(value)) for key, value in request.params.items() if key != "_meta"
        )
        head = RequestHead(request.method, name if request.method in NAMED else None)
        self.forward(call, server, members, head, self._draft(call, len(members)))

    def _call(self, asked: Ask, server: str, name: str) -> Call:
        method, redactor = asked.request.method, self._desk.redactor
        call = Call(asked, method, self._desk.monotonic())
        call.target = "/".join(part for part in (server, printable(method, redactor)) if part)
        if name:
            call.subject = printable(name, redactor, 300)
            call.target += f" {call.subject}"
        return call

    def _draft(self, call: Call, size: int) -> Draft:
        return Draft(
            "mcp.call", Decision.ALLOWED, SURFACE, call.target, "", {"method": call.name, "request_bytes": size}
        )

    def _resource(self, asked: Ask) -> None:
        request, client = asked.request, asked.client
        uri = request.params.get("uri")
        if not isinstance(uri, str):
            raise envelope.invalid_params()
        if len(uri) > MAX_URI:
            raise envelope.invalid_params()
        server = self._desk.reader(uri, methods.CLIENT_REQUESTS[asked.era][request.method])
        if server is None:
            code = methods.RESOURCE_NOT_FOUND if asked.era is Era.HANDSHAKE else wire.INVALID_PARAMS
            raise Refused(code, "Resource not found", reason=Reason.NOT_LISTED, data={"uri": uri})
        if request.method == "resources/subscribe":
            if len(client.subscriptions) >= MAX_SUBSCRIPTIONS and uri not in client.subscriptions:
                raise BUSY_REFUSED
            client.subscriptions[uri] = server
        elif request.method == "resources/unsubscribe":
            client.subscriptions.pop(uri, None)
        self._pass_on(asked, server, uri)

    def _prompt(self, asked: Ask) -> None:
        params = asked.request.params
        name = params.get("name")
        if not isinstance(name, str) or not isinstance(params.get("arguments", {}), dict):
            raise envelope.invalid_params()
        server = self._desk.prompter(name)
        if server is None:
            raise Refused(wire.INVALID_PARAMS, f"Unknown prompt: {name[:256]}", reason=Reason.NOT_LISTED)
        self._pass_on(asked, server, name)

    def _complete(self, asked: Ask) -> None:
        ref = asked.request.params.get("ref")
        kind = ref.get("type") if isinstance(ref, dict) else None
        name = ref.get("name" if kind == "ref/prompt" else "uri") if isinstance(ref, dict) else None
        if kind not in ("ref/prompt", "ref/resource") or not isinstance(name, str):
            raise envelope.invalid_params()
        server = self._desk.prompter(name) if kind == "ref/prompt" else self._desk.templater(name)
        if server is None or not self._desk.allows(server, "completion"):
            raise Refused(wire.INVALID_PARAMS, "Nothing to complete", reason=Reason.NOT_LISTED)
        self._pass_on(asked, server, name)

    def _custom(self, method: str) -> str | None:
        for server, allow in self._desk.allow.items():
            if method in allow.methods and server in self._desk.upstreams:
                return server
        return None

    def _answer_other(self, asked: Ask) -> None:
        method = asked.request.method
        if method in methods.TASK_METHODS[asked.era]:
            asked.meta = envelope.check_members(asked.request.params, methods.PARAMS[method])
            task = asked.request.params.get("taskId")
            began = self._desk.tasks.get((asked.client.key, task)) if isinstance(task, str) else None
            if began is None or began.link is None:
                raise Refused(wire.INVALID_PARAMS, "Unknown task", reason=Reason.NOT_LISTED)
            self._pass_on(asked, began.link.server)
            return
        server = self._custom(method)
        meta = asked.request.params.get("_meta", {})
        if server is None:
            raise Refused(wire.METHOD_NOT_FOUND, "Method not found", reason=Reason.METHOD)
        if not isinstance(meta, dict):
            raise envelope.invalid_params()
        asked.meta = meta
        self._pass_on(asked, server)

    # Collected from every server that is granted

    def _set_level(self, asked: Ask) -> None:
        if asked.request.params.get("level") not in envelope.LOG_LEVELS:
            raise envelope.invalid_params()
        self._collect(asked, self._set_levels)

    async def _set_levels(self, call: Call, asked: Ask) -> dict[str, Any]:
        for server in self._servers("logging"):
            await self._ask(call, server, asked.request.params, asked.meta)
        return {}

    def _list(self, asked: Ask) -> None:
        self._collect(asked, self._list_all)

    async def _list_all(self, call: Call, asked: Ask) -> dict[str, Any]:
        member = methods.LISTS[call.method]
        field = methods.CLIENT_REQUESTS[call.era][call.method]
        found: list[Any] = []
        ttl = results.MAX_TTL_MS
        for server in self._servers(field):
            cursor: str | None = None
            for _ in range(MAX_PAGES):
                page = await self._ask(call, server, {} if cursor is None else {"cursor": cursor}, asked.meta)
                items = page.get(member) if isinstance(page, dict) else None
                if not isinstance(items, list):
                    raise UpstreamFailed(f"its {call.method} is no list")
                found.extend(item for item in items if self._desk.shows(server, call.method, item))
                ttl = min(ttl, results.upstream_ttl(page))
                cursor = page.get("nextCursor")
                if not isinstance(cursor, str) or len(found) > MAX_ITEMS:
                    break
        return {member: found[:MAX_ITEMS], "ttlMs": ttl}

    def _servers(self, field: str) -> list[str]:
        return [name for name in self._desk.upstreams if self._desk.allows(name, field)]

    async def _ask(self, call: Call, server: str, params: Mapping[str, Any], meta: dict[str, Any]) -> Any:
        desk = self._desk
        link = desk.upstreams[server].link(None if call.client.key == "" else call.client, call.era)
        sent = {key: value for key, value in params.items() if key != "_meta"}
        version = link.version if link.era is Era.STATELESS else None
        extra = envelope.forwarded_meta(
            {key: value for key, value in meta.items() if key != envelope.PROGRESS},
            minted=0,
            version=version,
            info=desk.info,
            allow=desk.allow.get(server),
        )
        if extra:
            sent["_meta"] = extra
        return await link.ask(call.method, sent, RequestHead(call.method))

    def _collect(self, asked: Ask, work: _Work) -> None:
        if self._desk.full:
            raise BUSY_REFUSED
        call = self._call(asked, "", "")
        if self._desk.tracing is not None:
            asked.meta = self._desk.tracing.began(call, asked.meta)
        self._desk.begin(call)
        self._watch(call)
        self._desk.ledger.stage(self._draft(call, 0), self._start, call, asked, work)

    def _start(self, recorded: bool, call: Call, asked: Ask, work: _Work) -> None:
        if call.ended:
            return
        if not recorded:
            self._desk.unrecorded(call)
            return
        task = asyncio.get_running_loop().create_task(self._run(call, work(call, asked)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: Call, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        desk = self._desk
        try:
            value, masked = desk.redactor.json_counted(await work)
        except UpstreamError as error:
            text, data = desk.redactor.text(error.message), desk.redactor.json(error.data)
            desk.fail(call, error.code, text, "upstream-error", data)
        except UpstreamFailed as error:
            desk.fail(call, CALL_ENDED, f"An MCP server failed: {error}", "upstream-failed")
        else:
            ttl = min(value.pop("ttlMs", 0), desk.ledger.remaining_ms())
            body = wire.result(call.id, results.in_era(call.era, call.method, value, desk.info, ttl_ms=ttl))
            desk.finish(call, body, masked=masked)
