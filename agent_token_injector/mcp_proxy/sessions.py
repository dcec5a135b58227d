"""Handshake-era sessions over HTTP. All belong to this handoff's one bearer token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.calls import Client
from agent_token_injector.mcp_proxy.eras import Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

MAX_SESSIONS: Final = 64


class Sessions:
    """Every session of the handoff; the one unused for longest makes room when there are too many.

    Args:
        dropped: is told of each session that ends.
    """

    def __init__(self, dropped: Callable[[Client], None]) -> None:
        self._sessions: OrderedDict[str, Client] = OrderedDict()
        self._dropped = dropped

    def clients(self) -> tuple[Client, ...]:
        """Those that live."""
        return tuple(self._sessions.values())

    def open(self, client: Client) -> None:
        """Keep a new session. Raises Refused when every session has calls in flight."""
        if len(self._sessions) >= MAX_SESSIONS:
            idle = next((key for key, one in self._sessions.items() if not one.calls), None)
            if idle is None:
                raise Refused(wire.INTERNAL_ERROR, "Too many sessions", reason=Reason.BUSY, status=503)
            self._dropped(self._sessions.pop(idle))
        self._sessions[client.key] = client

    def get(self, key: str | None) -> Client:
        """The session. Raises Refused: 400 without an id, 404 for an unknown one, as the specification has it."""
        if key is None:
            raise Refused(
                wire.INVALID_REQUEST, "Bad Request: Mcp-Session-Id is missing", reason=Reason.SESSION, status=400
            )
        client = self._sessions.get(key)
        if client is None:
            raise Refused(wire.INVALID_REQUEST, "Session not found", reason=Reason.SESSION, status=404)
        self._sessions.move_to_end(key)
        return client

    def close(self, key: str | None) -> None:
        """End a session and the calls in it. Raises Refused as `get` does."""
        client = self.get(key)
        del self._sessions[client.key]
        self._dropped(client)
