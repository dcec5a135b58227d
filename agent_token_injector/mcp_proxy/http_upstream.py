"""Servers over streamable HTTP, in whichever era they speak, with credentials of their own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from agent_token_injector.mcp_proxy.eras import STATELESS_VERSIONS, Era
from agent_token_injector.mcp_proxy.http_client import IDLE_SECONDS, STALL_SECONDS, HttpClient
from agent_token_injector.mcp_proxy.http_link import HttpLink, describe
from agent_token_injector.mcp_proxy.links import Link, UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.upstream import HttpServerConfig, SessionLike, UpstreamEvents, list_definitions

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from agent_token_injector.mcp_proxy.backlog import Backlog

FAREWELL_SECONDS: Final = 1.0
BEARER_SECONDS: Final = 30.0
OUR_HEADERS: Final = frozenset(
    {
        "host",
        "connection",
        "keep-alive",
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "accept",
        "accept-encoding",
        "cookie",
        "last-event-id",
    }
)
"""Headers that a server's configuration cannot set, beside all that begin with `mcp-`."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_TARGET: Final = re.compile(r"/[\x21-\x7e]*")
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")


class Bearer(Protocol):
    """Gets an OAuth token; another one than `refused`, where that is given. Raises UpstreamFailed."""

    def __call__(self, refused: str | None, /) -> Awaitable[str]: ...


class Origin:
    """Where a server is, and what every link to it shares: connections and credentials.

    Args:
        bearer: gets an OAuth token, where one is needed.
        restarted: called when the server has lost a session, which it does when it is started anew.
    """

    def __init__(
        self,
        config: HttpServerConfig,
        *,
        client_info: Mapping[str, Any],
        backlog: Backlog,
        bearer: Bearer | None,
        tls: ssl.SSLContext | None,
        restarted: Callable[[], None],
        stall: float,
        idle: float,
    ) -> None:
        self.name = config.name
        self.client_info = dict(client_info)
        self.bearer = bearer
        self.restarted = restarted
        secure, host, port, authority, self.target = _parts(config.url)
        self._static = b"Host: " + authority + b"\r\n" + _static(config.headers, oauth=bearer is not None)
        self.token: str | None = None
        self._refused: str | None = None
        self._getting: asyncio.Task[None] | None = None
        self._waiting: list[HttpLink] = []
        if secure and tls is None:
            tls = _verifying()
        self.client = HttpClient(host, port, backlog=backlog, tls=tls if secure else None, stall=stall, idle=idle)

    def headers(self) -> bytes:
        """The host and the credentials, as header lines."""
        if self.token is None:
            return self._static
        return b"%bAuthorization: Bearer %b\r\n" % (self._static, self.token.encode("ascii"))

    def may_send(self, link: HttpLink) -> bool:
        """Whether there is a bearer, or none is needed. If not, the link is told as soon as there is."""
        if self.bearer is None or self.token is not None:
            return True
        if link not in self._waiting:
            self._waiting.append(link)
        if self._getting is None:
            self._getting = asyncio.get_running_loop().create_task(self._get())
        return False

    def renew(self, refused: str | None) -> None:
        """That bearer was refused."""
        if self.token == refused:
            self._refused, self.token = refused, None

    async def _get(self) -> None:
        why = "no OAuth token could be got for it"
        try:
            assert self.bearer is not None  # noqa: S101 - may_send has looked
            async with asyncio.timeout(BEARER_SECONDS):
                token = await self.bearer(self._refused)
            self.token = token if _BEARER.fullmatch(token) else None
        except UpstreamFailed as error:
            why = f"{why}: {error}"
        except TimeoutError:
            why = f"{why} in time"
        except Exception as error:  # noqa: BLE001 - whatever keeps the token away, what waits for it must not wait on
            why = f"{why} ({type(error).__name__})"
        self._getting = None
        waiting, self._waiting = self._waiting, []
        for link in waiting:
            if self.token is None:
                link.credentials_failed(why)
            else:
                link.credentials_changed()

    async def close(self) -> None:
        if self._getting is not None:
            self._getting.cancel()
            await asyncio.wait([self._getting])
        await self.client.close()


class HttpUpstream:
    """A server that is reached over streamable HTTP.

    Args:
        config: the server.
        events: the relay.
        client_info: who we say we are.
        backlog: counts what the server does not read.
        bearer: gets an OAuth token; needed where `config.oauth` is set.
        tls: for https alone; by default one that verifies against the system's certificates.

    Raises UpstreamFailed when the configuration cannot be used, naming no value of it.
    """

    def __init__(
        self,
        config: HttpServerConfig,
        events: UpstreamEvents,
        *,
        client_info: Mapping[str, Any],
        backlog: Backlog,
        bearer: Bearer | None = None,
        tls: ssl.SSLContext | None = None,
        stall: float = STALL_SECONDS,
        idle: float = IDLE_SECONDS,
    ) -> None:
        if config.oauth and bearer is None:
            raise UpstreamFailed("it needs OAuth, and nobody gets tokens for it")
        self.name = config.name
        self.speaks: frozenset[Era] = frozenset()
        self._config = config
        self._events = events
        self._origin = Origin(
            config,
            client_info=client_info,
            backlog=backlog,
            bearer=bearer if config.oauth else None,
            tls=tls,
            restarted=lambda: events.restarted(self),
            stall=stall,
            idle=idle,
        )
        self._shared: HttpLink | None = None
        self._own: dict[str, HttpLink] = {}

    @property
    def house(self) -> HttpLink:
        """Our own conversation; in the server's newest era. Raises UpstreamFailed before `start`."""
        if self._shared is None:
            raise UpstreamFailed("it was not reached yet")
        return self._shared

    async def start(self) -> None:
        failures: list[str] = []
        reached: dict[Era, HttpLink] = {}
        for era in self._eras():
            link = HttpLink(self._origin, self._events, era, self._config.declare)
            try:
                await link.begin()
                reached[era] = link
            except (UpstreamFailed, UpstreamError) as error:
                link.lose("it does not speak this protocol version")
                failures.append(describe(error))
        if not reached:
            raise UpstreamFailed("; ".join(dict.fromkeys(failures)))
        self.speaks = frozenset(reached)
        self._shared = reached.get(Era.STATELESS) or reached[Era.HANDSHAKE]
        if len(reached) > 1:
            # Sessions are the clients' own there; this one has shown that there are some.
            reached[Era.HANDSHAKE].end_session()

    def _eras(self) -> tuple[Era, ...]:
        if self._config.protocol == "auto":
            return (Era.STATELESS, Era.HANDSHAKE)
        return (Era.STATELESS,) if self._config.protocol in STATELESS_VERSIONS else (Era.HANDSHAKE,)

    async def definitions(self) -> list[dict[str, Any]]:
        return await list_definitions(self.house)

    def link(self, session: SessionLike | None, era: Era) -> Link:
        if era is not Era.HANDSHAKE or session is None or era not in self.speaks:
            return self.house
        link = self._own.get(session.key)
        if link is None:
            declare = session.capabilities_for(self.name)
            link = self._own[session.key] = HttpLink(self._origin, self._events, era, declare)
        return link

    def drop(self, session: SessionLike) -> None:
        link = self._own.pop(session.key, None)
        if link is not None:
            link.end_session()

    def last_words(self) -> str:
        """A server that is not our child says nothing to us beside its answers."""
        return ""

    async def stop(self) -> None:
        links = [*self._own.values(), *([] if self._shared is None else [self._shared])]
        self._own.clear()
        told = [asyncio.ensure_future(link.end_session().wait()) for link in links]
        if told:
            await asyncio.wait(told, timeout=FAREWELL_SECONDS)
        for one in told:
            one.cancel()
        await self._origin.close()


def _parts(url: str) -> tuple[bool, str, int, bytes, bytes]:
    """TLS or not, host, port, Host header, request target. Raises UpstreamFailed, quoting nothing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UpstreamFailed("its url cannot be read") from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host) or not _TARGET.fullmatch(target):
        raise UpstreamFailed("its url is not http(s)://host[:port]/path in ASCII")
    if "@" in parts.netloc or parts.fragment:
        raise UpstreamFailed("its url has a user name or a fragment; credentials belong into its headers")
    shown = f"[{host}]" if ":" in host else host
    default = 443 if parts.scheme == "https" else 80
    authority = shown if port in {None, default} else f"{shown}:{port}"
    return parts.scheme == "https", host, port or default, authority.encode("ascii"), target.encode("ascii")


def _static(headers: Mapping[str, str], *, oauth: bool) -> bytes:
    """The configured headers as lines. Raises UpstreamFailed, naming a header and never its value."""
    lines = []
    for name, value in headers.items():
        low = name.lower()
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise UpstreamFailed(f"its header {name!r} cannot be sent: a name or value that HTTP does not have")
        if low in OUR_HEADERS or low.startswith("mcp-") or (oauth and low == "authorization"):
            raise UpstreamFailed(f"its header {name!r} is the proxy's own")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("ascii")


def _verifying() -> ssl.SSLContext:
    # Most engines reach no server over TLS; reading the system's certificates takes memory and start-up time.
    import ssl

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
