"""Our own streams to servers: a server that says there that its tools are others now is looked at again.

A server of the stateless era needs a subscription for it; one of the handshake era says so unasked, over HTTP on a GET
stream. Without one, or while it is broken, a change shows at the next start and at the next restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.mcp_proxy import envelope, wire
from agent_token_injector.mcp_proxy.eras import Era
from agent_token_injector.mcp_proxy.links import Link, RequestHead, UpstreamFailed

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.upstream import Upstream

AGAIN_SECONDS: Final = 5.0
SUBSCRIBE: Final = "subscriptions/listen"


class Watch:
    """One of our own streams: what is in a link's `pending`, or the object that it listens for."""

    __slots__ = ("upstream",)

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream


class Watches:
    """Keeps a stream open to each server that can tell of changes.

    Args:
        info: how the proxy calls itself.
        later: calls something after so many seconds.
    """

    def __init__(self, info: Mapping[str, Any], later: Callable[[float, Callable[[], None]], object]) -> None:
        self._info = info
        self._later = later
        self._closed = False
        self._open: set[str] = set()

    def open(self, upstream: Upstream) -> None:
        """Watch a server, where it says that it tells of changes and needs a stream for it."""
        try:
            link = upstream.house
        except UpstreamFailed:
            return
        tools = link.capabilities.get("tools")
        tells = isinstance(tools, dict) and tools.get("listChanged") is True
        if self._closed or not link.ready or not tells or upstream.name in self._open:
            return
        if link.era is Era.HANDSHAKE and not link.http:
            return
        watch = Watch(upstream)
        self._open.add(upstream.name)
        if link.era is Era.HANDSHAKE:
            link.listen(None, watch)
            return
        minted = link.mint()
        link.pending[minted] = watch
        meta = envelope.forwarded_meta({}, minted=minted, version=link.version, info=self._info, allow=None)
        params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
        link.send(minted, wire.request(minted, SUBSCRIBE, params), RequestHead(SUBSCRIBE))
        link.flush()

    def over(self, link: Link, watch: Watch | int) -> None:
        """A stream is over; it is opened again after a while."""
        found = link.pending.pop(watch, None) if isinstance(watch, int) else watch
        if isinstance(found, Watch) and not self._closed:
            self._open.discard(found.upstream.name)
            self._later(AGAIN_SECONDS, lambda: self.open(found.upstream))

    def close(self) -> None:
        """Open none any more."""
        self._closed = True
