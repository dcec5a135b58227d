"""A server behind the proxy: what it is, how it is kept alive, and what the relay may ask of it.

Servers come as plain data from the control side. How bytes move is the business of `stdio_upstream` and `http_upstream`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from agent_token_injector.mcp_proxy.eras import (
    HANDSHAKE_VERSIONS,
    META_CAPABILITIES,
    META_CLIENT_INFO,
    META_SERVER_INFO,
    META_VERSION,
    STATELESS_VERSIONS,
    Era,
)
from agent_token_injector.mcp_proxy.links import Link, LinkEvents, UpstreamError, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "Backoff",
    "HttpServerConfig",
    "ServerConfig",
    "SessionLike",
    "StdioServerConfig",
    "Upstream",
    "UpstreamError",
    "UpstreamEvents",
    "UpstreamFailed",
    "server_config",
]

MAX_PAGES: Final = 100
MAX_TOOLS: Final = 2000
PROTOCOLS: Final = ("auto", HANDSHAKE_VERSIONS[-1], *STATELESS_VERSIONS)


@dataclass(frozen=True, slots=True)
class StdioServerConfig:
    """A server that is started as a child process.

    `argv[0]` is a path, or a name found on the child's PATH. `env` is added to PATH, HOME, TMPDIR and LANG; there is
    nothing else in the child's environment (D7). `cwd` defaults to the child's own empty HOME. `protocol` is one of
    PROTOCOLS. `declare` is what the proxy declares as its client capabilities.
    """

    name: str
    argv: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    protocol: str = "auto"
    declare: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpServerConfig:
    """A server that is reached over streamable HTTP. `headers` are added to every request; `oauth` asks for a bearer."""

    name: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    oauth: bool = False
    protocol: str = "auto"
    declare: Mapping[str, Any] = field(default_factory=dict)


ServerConfig: TypeAlias = StdioServerConfig | HttpServerConfig


def server_config(plain: Mapping[str, Any]) -> ServerConfig:
    """One server of the engine's configuration. Raises UpstreamFailed, naming the field and never its value."""
    kind, name = plain.get("kind"), plain.get("name")
    protocol, declare = plain.get("protocol", "auto"), plain.get("declare", {})
    if not isinstance(name, str) or not name:
        raise UpstreamFailed("its name is missing")
    if protocol not in PROTOCOLS:
        raise UpstreamFailed(f"its protocol is none of {', '.join(PROTOCOLS)}")
    if not isinstance(declare, dict):
        raise UpstreamFailed("its declare is not an object")
    if kind == "stdio":
        argv, cwd = plain.get("argv"), plain.get("cwd")
        if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
            raise UpstreamFailed("its argv is not a list of strings")
        if cwd is not None and not isinstance(cwd, str):
            raise UpstreamFailed("its cwd is not a string")
        return StdioServerConfig(name, tuple(argv), _texts(plain, "env"), cwd, protocol, declare)
    if kind == "http":
        url, oauth = plain.get("url"), plain.get("oauth", False)
        if not isinstance(url, str):
            raise UpstreamFailed("its url is not a string")
        if not isinstance(oauth, bool):
            raise UpstreamFailed("its oauth is not a boolean")
        return HttpServerConfig(name, url, _texts(plain, "headers"), oauth, protocol, declare)
    raise UpstreamFailed("its kind is neither stdio nor http")


def _texts(plain: Mapping[str, Any], key: str) -> dict[str, str]:
    found = plain.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UpstreamFailed(f"its {key} is not an object of strings")
    return dict(found)


class SessionLike(Protocol):
    """A client's session, as far as a server's link needs it."""

    key: str

    def capabilities_for(self, server: str) -> dict[str, Any]:
        """The client capabilities that may be declared to that server."""
        ...


class UpstreamEvents(LinkEvents, Protocol):
    """What a server tells the relay, beside what its links do."""

    def restarted(self, upstream: Upstream) -> None:
        """The server, or our conversation with it, began anew: what it lists may differ. Never raises."""
        ...


class Upstream(Protocol):
    """One server behind the proxy. Every method is called on the engine's event loop."""

    name: str
    speaks: frozenset[Era]

    @property
    def house(self) -> Link:
        """Our own conversation: list tools, ping. After a restart it is another one. Raises UpstreamFailed before."""
        ...

    async def start(self) -> None:
        """Start or reach the server, and shake hands. Raises UpstreamFailed, UpstreamError."""
        ...

    async def definitions(self) -> list[dict[str, Any]]:
        """Every tool it lists, all pages. Raises UpstreamFailed, UpstreamError."""
        ...

    def link(self, session: SessionLike | None, era: Era) -> Link:
        """The conversation for a client of that era and session; the server's own era where it has but one."""
        ...

    def drop(self, session: SessionLike) -> None:
        """The client's session is over."""
        ...

    def last_words(self) -> str:
        """The end of what the server said on stderr, unmasked; empty when it said nothing."""
        ...

    async def stop(self) -> None:
        """End the server, or the conversations with it. Safe to call twice, and before `start`."""
        ...


async def list_definitions(link: Link) -> list[dict[str, Any]]:
    """tools/list, all pages, bounded by MAX_PAGES and MAX_TOOLS. Raises UpstreamFailed, UpstreamError."""
    tools: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await link.ask("tools/list", {} if cursor is None else {"cursor": cursor})
        found = page.get("tools") if isinstance(page, dict) else None
        if not isinstance(found, list) or not all(map(_is_tool, found)):
            raise UpstreamFailed("its tools/list is not a list of tools")
        tools.extend(found)
        following = page.get("nextCursor")
        if len(tools) > MAX_TOOLS or not isinstance(following, str | None):
            break
        if following is None:
            return tools
        cursor = following
    raise UpstreamFailed("its tools/list does not end")


def _is_tool(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("name"), str)


async def shake_hands(link: Link, era: Era, client_info: Mapping[str, Any], declare: Mapping[str, Any]) -> None:
    """Begin the conversation in that era: what the server said of itself is on the link afterwards.

    The link's own `ask` adds what every stateless request carries. Raises UpstreamFailed, UpstreamError.
    """
    version: Any
    if era is Era.STATELESS:
        hello = await link.ask("server/discover", {})
        versions = hello.get("supportedVersions") if isinstance(hello, dict) else None
        if not isinstance(versions, list) or STATELESS_VERSIONS[-1] not in versions:
            raise UpstreamFailed("it speaks no protocol version that the proxy knows")
        version, info = STATELESS_VERSIONS[-1], _object(_object(hello.get("_meta")).get(META_SERVER_INFO))
    else:
        hello = await link.ask(
            "initialize",
            {
                "protocolVersion": HANDSHAKE_VERSIONS[-1],
                "capabilities": dict(declare),
                "clientInfo": dict(client_info),
            },
        )
        version = hello.get("protocolVersion") if isinstance(hello, dict) else None
        if not isinstance(version, str) or version not in HANDSHAKE_VERSIONS:
            raise UpstreamFailed("it speaks no protocol version that the proxy knows")
        info = _object(hello.get("serverInfo"))
    instructions = hello.get("instructions")
    link.era, link.version, link.info = era, version, info
    link.capabilities = _object(hello.get("capabilities"))
    link.instructions = instructions if isinstance(instructions, str) else None


def _object(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def stateless_params(
    params: Mapping[str, Any], client_info: Mapping[str, Any], declare: Mapping[str, Any]
) -> dict[str, Any]:
    """`params` with what a request of 2026-07-28 says of its sender in `_meta`."""
    meta = {
        META_VERSION: STATELESS_VERSIONS[-1],
        META_CAPABILITIES: dict(declare),
        META_CLIENT_INFO: dict(client_info),
    }
    return {**params, "_meta": {**_object(params.get("_meta")), **meta}}


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a server is started again, in seconds: `first`, doubling to `limit`, a tenth of it random.

    A life of `settled` seconds begins the series anew.
    """

    first: float = 0.1
    limit: float = 10.0
    settled: float = 30.0

    def delay(self, failures: int) -> float:
        """The wait after that many failures in a row, one or more."""
        seconds = min(self.limit, self.first * 2.0 ** min(failures - 1, 32))
        return seconds * random.uniform(0.9, 1.0)  # noqa: S311 - spreads restarts; nothing is kept secret by it


class Restarter:
    """Starts a server again and again until it lives, with pauses that grow.

    Args:
        launch: starts the server and shakes hands; raises UpstreamFailed, UpstreamError.
        limit: seconds that one launch may take.
    """

    def __init__(self, launch: Callable[[], Awaitable[None]], backoff: Backoff, *, limit: float) -> None:
        self._launch = launch
        self._backoff = backoff
        self._limit = limit
        self._failures = 0
        self._born = 0.0
        self._task: asyncio.Task[None] | None = None

    def born(self) -> None:
        """The server lives from now on."""
        self._born = asyncio.get_running_loop().time()

    def died(self, then: Callable[[], None]) -> None:
        """Begin to start it again; `then` is called when it lives."""
        if self._task is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._born >= self._backoff.settled:
            self._failures = 0
        self._task = loop.create_task(self._again(then))

    async def _again(self, then: Callable[[], None]) -> None:
        while True:
            self._failures += 1
            await asyncio.sleep(self._backoff.delay(self._failures))
            try:
                async with asyncio.timeout(self._limit):
                    await self._launch()
            except (UpstreamFailed, UpstreamError, TimeoutError):
                continue
            break
        self._task = None
        self.born()
        then()

    async def stop(self) -> None:
        """Start nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
