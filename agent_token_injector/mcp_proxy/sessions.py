"""Handshake-era sessions, and the calls in flight. Both belong to this handoff's one bearer token."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

MAX_SESSIONS: Final = 64
MAX_CALLS: Final = 64
CANCELLED: Final = "cancelled"


@dataclass(slots=True)
class Session:
    """One client of the handshake era. Ids are its own: `7` and `"7"` count as one, because some peers think so."""

    calls: dict[str, asyncio.Future[str]] = field(default_factory=dict)


class Sessions:
    """Every session of the handoff; the one unused for longest makes room when there are too many."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self) -> str:
        """A new session's id. Raises Refused when every session has calls in flight."""
        if len(self._sessions) >= MAX_SESSIONS:
            idle = next((key for key, session in self._sessions.items() if not session.calls), None)
            if idle is None:
                raise Refused(wire.INTERNAL_ERROR, "Too many sessions", reason=Reason.BUSY, status=503)
            del self._sessions[idle]
        key = secrets.token_urlsafe(24)
        self._sessions[key] = Session()
        return key

    def get(self, key: str | None) -> Session:
        """The session. Raises Refused: 400 without an id, 404 for an unknown one, as the specification has it."""
        if key is None:
            raise Refused(
                wire.INVALID_REQUEST, "Bad Request: Mcp-Session-Id is missing", reason=Reason.SESSION, status=400
            )
        session = self._sessions.get(key)
        if session is None:
            raise Refused(wire.INVALID_REQUEST, "Session not found", reason=Reason.SESSION, status=404)
        self._sessions.move_to_end(key)
        return session

    def close(self, key: str | None) -> None:
        """End a session and the calls in it. Raises Refused as `get` does."""
        session = self.get(key)
        for stop in session.calls.values():
            settle(stop, CANCELLED)
        if key is not None:
            del self._sessions[key]


class Calls:
    """The calls in flight. Each has a future that ends it early when a reason is put into it."""

    def __init__(self) -> None:
        self._stops: set[asyncio.Future[str]] = set()

    def __bool__(self) -> bool:
        return bool(self._stops)

    @contextmanager
    def one(self, session: Session | None, message_id: wire.MessageId) -> Iterator[asyncio.Future[str]]:
        """Count a call for as long as the block runs. Raises Refused: too many, or a second one with its id."""
        key = str(message_id)
        if len(self._stops) >= MAX_CALLS:
            raise Refused(wire.INTERNAL_ERROR, "Too many calls in flight", reason=Reason.BUSY)
        if session is not None and key in session.calls:
            raise Refused(
                wire.INVALID_REQUEST, "Invalid Request: this id is in flight", reason=Reason.DUPLICATE_ID, status=400
            )
        stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stops.add(stop)
        if session is not None:
            session.calls[key] = stop
        try:
            yield stop
        finally:
            self._stops.discard(stop)
            if session is not None:
                del session.calls[key]

    def cut(self, reason: str) -> None:
        """End every call now."""
        for stop in self._stops:
            settle(stop, reason)


def settle(stop: asyncio.Future[str], reason: str) -> None:
    """Put a reason into a call's future; the first one stays."""
    if not stop.done():
        stop.set_result(reason)
