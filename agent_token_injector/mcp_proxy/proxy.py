"""The proxy as spawn.py holds it: start, where to find it, cut off, close. Everything async happens on its one thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.http_face import PATH, HttpFace
from agent_token_injector.mcp_proxy.known_secrets import KnownSecrets
from agent_token_injector.mcp_proxy.ledger import Event, Ledger, printable
from agent_token_injector.mcp_proxy.relay import Relay
from agent_token_injector.mcp_proxy.servers import Server, StdioServer
from agent_token_injector.mcp_proxy.tool_policy import Reason, ToolPolicy
from agent_token_injector.mcp_proxy.upstream import (
    BuiltinUpstream,
    StdioUpstream,
    Upstream,
    UpstreamError,
    UpstreamFailed,
)

if TYPE_CHECKING:
    from agent_token_injector.audit import AuditLog
    from agent_token_injector.clock import Clock
    from agent_token_injector.masking import Redactor
    from agent_token_injector.names import HandoffId
    from agent_token_injector.spec import ToolGrant

START_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 0.25
"""How often calls in flight are held against the handoff's standing."""
MAX_CONNECTIONS: Final = 256
TARGET_LENGTH: Final = 300
"""How much of a built-in server's target an audit event holds, in characters: a path and a name fit."""


class McpProxy:
    """One handoff's MCP endpoint on loopback, in front of its servers.

    Args:
        handoff: whose it is; every audit event names it.
        grants: the spec's `mcp_tools`. None means that nothing is allowed.
        excluded: the spec's `mcp_tools_excluded`; it wins over every grant.
        servers: what stands behind it; their names are those that grants refer to.
        token: the bearer token, made for this handoff alone.
        audit: gets one event per access, before it happens.
        redactor: knows every secret of the handoff; results are masked by it, and by each value that the built-in vault
            server has handed out since.
        check: None while the handoff may go on, else a reason code. Called per request from a worker thread, and while
            calls are in flight; the caller caches it.
        expires_at: aware, UTC; nothing is allowed from then on.
        clock: tells that time.
        start_seconds: how long the servers may take to start and list their tools.
    """

    def __init__(
        self,
        *,
        handoff: HandoffId,
        grants: Sequence[ToolGrant],
        excluded: Sequence[str],
        servers: Sequence[Server],
        token: SecretStr,
        audit: AuditLog,
        redactor: Redactor,
        check: Callable[[], str | None],
        expires_at: datetime,
        clock: Clock,
        start_seconds: float = START_SECONDS,
    ) -> None:
        if len({server.name for server in servers}) != len(servers):
            raise SpawnRefused("two MCP servers have one name", hint="name each server in mcp_servers once")
        if not token.get_secret_value():
            raise SpawnRefused("the MCP proxy has no bearer token")
        self._grants = tuple(grants)
        self._excluded = tuple(excluded)
        self._servers = tuple(servers)
        self._token = token
        self._secrets = KnownSecrets(redactor, audit)
        self._start_seconds = start_seconds
        self._ledger = Ledger(handoff=handoff, audit=audit, check=check, expires_at=expires_at, clock=clock)
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread: threading.Thread | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._relay: Relay | None = None
        self._url = ""
        self._tools: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT/mcp`, once started."""
        return self._url

    @property
    def tools(self) -> tuple[str, ...]:
        """The allowlist as it was matched with what the servers offer, once started."""
        return self._tools

    def start(self) -> None:
        """Start the servers, match the allowlist with their tools, and serve.

        Raises SpawnRefused when a server does not start or a grant cannot be honoured; then nothing is left running.
        """
        if self._thread is not None:
            raise SpawnRefused("the MCP proxy was started before", hint="make a new one")
        self._thread = threading.Thread(target=self._run, name="mcp-proxy", daemon=True)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def cut_off(self, reason: str) -> None:
        """End the calls in flight with an error and refuse all that follow, for good. Safe from any thread."""
        self._ledger.end(reason)
        if self._relay is not None:
            self._on_loop(self._relay.cut_off, reason)

    def close(self) -> None:
        """Cut calls in flight, end every server with all that it started, and leave no thread. Safe to call twice."""
        with self._closing:
            self._closed = True
            self.cut_off(Reason.CLOSED)
            if self._stop is not None:
                self._on_loop(self._stop.set)
            if self._thread is not None:
                self._thread.join()
            self._ledger.close()

    def _on_loop(self, act: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None:
            # The loop may have ended by itself after a failed start: then there is nothing left to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(act, *arguments)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - this thread's only caller is whoever waits for _ready
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._closed:
            self._stop.set()
        async with self._started() as upstreams:
            policy = await self._resolved(upstreams, self._stop)
            relay = Relay(
                policy=policy,
                upstreams=upstreams,
                ledger=self._ledger,
                secrets=self._secrets,
                server_info=_server_info(),
            )
            async with _listening(relay, self._token) as url:
                self._relay, self._url, self._tools = relay, url, policy.tools
                self._ready.set_result(None)
                watching = asyncio.create_task(self._watch(relay))
                await self._stop.wait()
                watching.cancel()
                relay.cut_off(Reason.CLOSED)

    async def _resolved(self, upstreams: Mapping[str, Upstream], stop: asyncio.Event) -> ToolPolicy:
        """Start the servers and compile the policy. Gives up when the proxy is closed meanwhile."""
        listing = asyncio.create_task(self._list_all(upstreams))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({listing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)
            raise SpawnRefused("the MCP proxy was closed while it started")
        return ToolPolicy.resolve(self._grants, self._excluded, listing.result())

    @asynccontextmanager
    async def _started(self) -> AsyncIterator[dict[str, Upstream]]:
        upstreams: dict[str, Upstream] = {server.name: self._upstream(server) for server in self._servers}
        try:
            yield upstreams
        finally:
            await asyncio.gather(*(upstream.stop() for upstream in upstreams.values()))

    def _upstream(self, server: Server) -> Upstream:
        if isinstance(server, StdioServer):
            return StdioUpstream(server, _server_info())
        return BuiltinUpstream(server, self._record, self._secrets.learn)

    def _record(self, event: str, *, decision: Decision, target: str, reason: str = "") -> None:
        shown = printable(target, self._secrets.redactor, TARGET_LENGTH)
        self._ledger.write(Event(event, decision, shown, reason))

    async def _list_all(self, upstreams: Mapping[str, Upstream]) -> dict[str, list[dict[str, Any]]]:
        try:
            async with asyncio.TaskGroup() as group:
                listing = {name: group.create_task(self._list_one(name, one)) for name, one in upstreams.items()}
        except ExceptionGroup as problems:
            # One server that cannot be used is reason enough; the others were given up because of it.
            raise problems.exceptions[0] from None
        return {name: task.result() for name, task in listing.items()}

    async def _list_one(self, name: str, upstream: Upstream) -> list[dict[str, Any]]:
        try:
            async with asyncio.timeout(self._start_seconds):
                return await upstream.start()
        except TimeoutError:
            cause = f"it did not list its tools within {self._start_seconds:g} s"
        except UpstreamFailed as error:
            cause = str(error)
        except UpstreamError as error:
            cause = f"it answered with an error: {self._secrets.redactor.text(error.message)}"
        words = self._secrets.redactor.text(upstream.last_words())
        raise SpawnRefused(
            f"MCP server {name!r} is not usable",
            cause=f"{cause}; it said: {words[-1000:]}" if words else cause,
            hint="run its command by hand with the same environment",
        )

    async def _watch(self, relay: Relay) -> None:
        """End calls in flight when the handoff ends under them, and keep the count of strangers up to date."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self._ledger.settle_strangers()
            if relay.busy and (reason := await self._ledger.standing()) is not None:
                relay.cut_calls(reason)


def _server_info() -> dict[str, str]:
    return {"name": "agent-token-injector", "version": version("agent-token-injector")}


@asynccontextmanager
async def _listening(relay: Relay, token: SecretStr) -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1; yields the address."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        HttpFace(relay, token, port),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        if serving.done():
            raise SpawnRefused("the MCP proxy cannot listen on 127.0.0.1")
        yield f"http://127.0.0.1:{port}{PATH}"
    finally:
        server.should_exit = True
        await serving
        listener.close()
