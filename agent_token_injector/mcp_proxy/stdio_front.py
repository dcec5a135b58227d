"""Clients that speak stdio: `handoff-mcp` brings them to a socket that only this user can reach.

It shows the handoff's bearer token and passes its own stdin and stdout along (SCM_RIGHTS), so that from then on the client's
bytes come here without a hop between. Where they cannot be passed (a terminal, a file) the socket itself carries them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import hmac
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.descriptors import Descriptor
from agent_token_injector.mcp_proxy.eras import Refused
from agent_token_injector.mcp_proxy.stdio_connection import Desk, StdioConnection
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.backlog import Backlog

GREETING: Final = b"HANDOFF-MCP/1"
MAX_HELLO: Final = 512
HELLO_SECONDS: Final = 5.0
MAX_CONNECTIONS: Final = 32


class _Greeting:
    """What a connection has said so far, and passed along."""

    __slots__ = ("fds", "line", "timer")

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.line = b""
        self.fds: list[int] = []
        self.timer = timer


class StdioFront:
    """Listens on a Unix socket and serves every client that has the token.

    Args:
        relay: answers.
        token: what a client must present.
        backlog: counts what waits to be sent.
        monotonic: real seconds.
    """

    def __init__(self, relay: Desk, token: str, backlog: Backlog, monotonic: Callable[[], float]) -> None:
        self._relay = relay
        self._token = token.encode()
        self._backlog = backlog
        self._monotonic = monotonic
        self._listener: socket.socket | None = None
        self._greeting: dict[socket.socket, _Greeting] = {}
        self._connections: set[StdioConnection] = set()

    def start(self, path: str) -> None:
        """Listen at `path`, in a directory that only this user can enter. Raises OSError."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(MAX_CONNECTIONS)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """End every connection and listen no more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for connection in tuple(self._greeting):
            self._turn_away(connection, b"")
        for one in tuple(self._connections):
            one.close()

    def tick(self) -> None:
        """Cut clients that have taken nothing for too long."""
        for one in tuple(self._connections):
            one.check_stall()

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if len(self._connections) + len(self._greeting) >= MAX_CONNECTIONS:
                connection.close()
                return
            loop = asyncio.get_running_loop()
            timer = loop.call_later(HELLO_SECONDS, self._turn_away, connection, b"NO the greeting took too long\n")
            self._greeting[connection] = _Greeting(timer)
            loop.add_reader(connection, self._greet, connection)

    def _greet(self, connection: socket.socket) -> None:
        greeting = self._greeting[connection]
        try:
            # Looked at first: what follows the greeting is the client's own, and stays in the socket. Without room for
            # descriptors none is made.
            seen = connection.recv(MAX_HELLO - len(greeting.line), socket.MSG_PEEK)
            size = seen.find(b"\n") + 1 or len(seen)
            part, ancillary, flags, _ = connection.recvmsg(size, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._turn_away(connection, b"")
            return
        for _, _, payload in ancillary:
            greeting.fds.extend(array.array("i", payload[: len(payload) // 4 * 4]))
        greeting.line += part
        whole = greeting.line.endswith(b"\n")
        why = self._unwanted(greeting) if whole else None
        # Descriptors that there was no room for are gone: whatever came is not what was meant.
        if flags & socket.MSG_CTRUNC or not part or (not whole and len(greeting.line) >= MAX_HELLO):
            why = b"NO that is no greeting\n"
        if why is not None:
            self._turn_away(connection, why)
        elif whole:
            self._serve(connection, greeting)

    def _unwanted(self, greeting: _Greeting) -> bytes | None:
        """Why the one who greets so is not served; None for a client of this handoff."""
        name, _, rest = greeting.line[:-1].partition(b" ")
        mode, _, token = rest.partition(b" ")
        if name != GREETING or mode not in (b"fds", b"bytes"):
            return b"NO that is no greeting\n"
        if not hmac.compare_digest(token, self._token):
            refused = Refused(wire.INVALID_REQUEST, "not this handoff's token", reason=Reason.UNAUTHENTICATED)
            self._relay.refuse_stranger(refused)
            return b"NO the bearer token is not this handoff's\n"
        fds = greeting.fds
        if (mode == b"fds") != (len(fds) == 2) or not all(map(_can_wait, fds)):
            return b"NO stdin and stdout cannot be served\n"
        return None

    def _serve(self, connection: socket.socket, greeting: _Greeting) -> None:
        # Taken out one by one: what is left in the list is closed by `_turn_away`.
        fds = greeting.fds
        one_socket = not fds
        if one_socket:
            fds.extend((os.dup(connection.fileno()), os.dup(connection.fileno())))
        streams: list[Descriptor] = []
        try:
            streams.append(Descriptor(fds.pop(0), writing=False))
            streams.append(Descriptor(fds.pop(0), writing=True))
            connection.send(b"OK\n")
        except OSError:
            for stream in streams:
                stream.close()
            self._turn_away(connection, b"NO stdin and stdout cannot be served\n")
            return
        del self._greeting[connection]
        greeting.timer.cancel()
        asyncio.get_running_loop().remove_reader(connection)
        both = (streams[0], streams[1])
        one = StdioConnection(self._relay, connection, both, self._backlog, self._monotonic)
        one.watch_end = not one_socket
        self._connections.add(one)
        one.closed = self._connections.discard
        one.start()

    def _turn_away(self, connection: socket.socket, why: bytes) -> None:
        greeting = self._greeting.pop(connection)
        greeting.timer.cancel()
        asyncio.get_running_loop().remove_reader(connection)
        for fd in greeting.fds:
            os.close(fd)
        with contextlib.suppress(OSError):
            connection.send(why)
        connection.close()


def _can_wait(fd: int) -> bool:
    """Whether it is a pipe or a socket: those alone can be read without ever blocking."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
