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
from typing import TYPE_CHECKING, Final, Protocol

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.backlog import Backlog
    from agent_token_injector.mcp_proxy.calls import Client
    from agent_token_injector.mcp_proxy.exchange import Exchange

GREETING: Final = b"HANDOFF-MCP/1"
MAX_HELLO: Final = 512
HELLO_SECONDS: Final = 5.0
MAX_CONNECTIONS: Final = 32
READ: Final = 256 * 1024
MAX_UNSENT: Final = 16 * 1024 * 1024
STALL_SECONDS: Final = 30.0
_SPLITTERS: Final = (b"\r", b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xc2\x85")
"""What some readers take for the end of a line (CR, U+2028, U+2029, U+0085)."""


class Desk(Protocol):
    """What the front needs of the relay."""

    @property
    def full(self) -> bool: ...

    def message(self, body: bytes, headers: None, exchange: Exchange, client: Client | None) -> None: ...

    def refuse(self, refused: Refused, *, target: str, exchange: Exchange) -> None: ...

    def refuse_stranger(self, refused: Refused) -> None: ...

    def connected(self, exchange: Exchange) -> Client: ...

    def disconnected(self, client: Client) -> None: ...

    def when_there_is_room(self, go_on: Callable[[], None]) -> None: ...

    def mark(self, one: StdioConnection) -> None: ...


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
        self._greeting: dict[socket.socket, asyncio.TimerHandle] = {}
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
            self._greeting[connection] = timer
            loop.add_reader(connection, self._greet, connection)

    def _greet(self, connection: socket.socket) -> None:
        try:
            # Looked at first: what follows the greeting is the client's own, and stays in the socket. Without room for
            # descriptors none is made.
            line, newline, _ = connection.recv(MAX_HELLO, socket.MSG_PEEK).partition(b"\n")
        except BlockingIOError:
            return
        except OSError:
            self._turn_away(connection, b"")
            return
        if not newline:
            if not line or len(line) >= MAX_HELLO:
                self._turn_away(connection, b"NO that is no greeting\n")
            return
        _, ancillary, _, _ = connection.recvmsg(len(line) + 1, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        fds = [fd for _, _, payload in ancillary for fd in array.array("i", payload[: len(payload) // 4 * 4])]
        if not self._serve(connection, line, fds):
            for fd in fds:
                os.close(fd)

    def _serve(self, connection: socket.socket, line: bytes, fds: list[int]) -> bool:
        greeting, _, rest = line.partition(b" ")
        mode, _, token = rest.partition(b" ")
        if greeting != GREETING or mode not in (b"fds", b"bytes"):
            return self._turn_away(connection, b"NO that is no greeting\n")
        if not hmac.compare_digest(token, self._token):
            refused = Refused(wire.INVALID_REQUEST, "not this handoff's token", reason=Reason.UNAUTHENTICATED)
            self._relay.refuse_stranger(refused)
            return self._turn_away(connection, b"NO the bearer token is not this handoff's\n")
        if (mode == b"fds") != (len(fds) == 2) or not all(map(_can_wait, fds)):
            return self._turn_away(connection, b"NO stdin and stdout cannot be served\n")
        self._greeting.pop(connection).cancel()
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection)
        connection.setblocking(True)
        connection.sendall(b"OK\n")
        connection.setblocking(False)
        streams = (fds[0], fds[1]) if fds else (os.dup(connection.fileno()), os.dup(connection.fileno()))
        one = StdioConnection(self._relay, connection, streams, self._backlog, self._monotonic)
        one.watch_end = bool(fds)
        self._connections.add(one)
        one.closed = self._connections.discard
        one.start()
        return True

    def _turn_away(self, connection: socket.socket, why: bytes) -> bool:
        self._greeting.pop(connection).cancel()
        asyncio.get_running_loop().remove_reader(connection)
        with contextlib.suppress(OSError):
            connection.send(why)
        connection.close()
        return False


def _can_wait(fd: int) -> bool:
    """Whether it is a pipe or a socket: those alone can be read without ever blocking."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class StdioConnection:
    """One client on stdin and stdout; also the exchange of each of its requests."""

    def __init__(
        self,
        relay: Desk,
        control: socket.socket,
        streams: tuple[int, int],
        backlog: Backlog,
        monotonic: Callable[[], float],
    ) -> None:
        self.closed: Callable[[StdioConnection], None] = lambda _: None
        self.watch_end = True
        self._relay = relay
        self._control = control
        self._in, self._out = streams
        self._backlog = backlog
        self._monotonic = monotonic
        self._client: Client | None = None
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._lines: list[bytes] = []
        self._queue: list[bytes] = []
        self._unsent = b""
        self._waiting_since = 0.0
        self._reading = False
        self._ended = False
        self._eof = False
        self._unwatch = backlog.watch(self._on_backlog)

    @property
    def gone(self) -> Callable[[], None] | None:
        """Always None: the end of the connection ends everything of its client's at once."""
        return None

    @gone.setter
    def gone(self, value: Callable[[], None] | None) -> None:
        del value

    def start(self) -> None:
        """Serve it."""
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._client = self._relay.connected(self)
        if self.watch_end:
            self._loop.add_reader(self._control, self._on_control)
        self._resume()

    # Exchange

    def reply(self, body: bytes, *, status: int = 200, session: str | None = None) -> None:
        del status, session
        self.event(body)

    def event(self, body: bytes, *, event_id: str | None = None, retry: int | None = None) -> None:
        del event_id, retry
        if body and not self._ended:
            self._queue.append(body)
            self._relay.mark(self)

    def end(self) -> None:
        """Nothing: the stream is the connection's, and stays."""

    # Reading

    def _on_control(self) -> None:
        # `handoff-mcp` says nothing after its greeting: this is its end.
        self.close()

    def _on_backlog(self, full: bool) -> None:
        if full:
            self._pause()
        else:
            self._resume()

    def _resume(self) -> None:
        if not (self._reading or self._ended or self._eof or self._unsent or self._backlog.full):
            self._reading = True
            self._loop.add_reader(self._in, self._on_readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._in)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._in, READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._pause()
            self._eof = True
            # What was asked is still answered; handoff-mcp ends the connection when its client is gone.
            if not self._client_busy():
                self.close()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self._lines.extend(lines)
            self._take_lines()
        if len(self._rest) > wire.MAX_BYTES:
            refused = Refused(
                wire.INVALID_REQUEST, "Invalid Request: a line that does not end", reason=Reason.MALFORMED
            )
            self._relay.refuse(refused, target="message", exchange=self)
            self._rest = b""
            self._pause()
            self._eof = True

    def _client_busy(self) -> bool:
        return bool(self._lines or self._queue or self._unsent or (self._client is not None and self._client.calls))

    def _take_lines(self) -> None:
        lines, self._lines = self._lines, []
        for number, line in enumerate(lines):
            if self._relay.full:
                self._lines = lines[number:]
                self._pause()
                self._relay.when_there_is_room(self._go_on)
                return
            self._take(line[:-1] if line.endswith(b"\r") else line)

    def _go_on(self) -> None:
        if not self._ended:
            # Not from within the call whose end made room.
            self._loop.call_soon(self._take_lines)
            self._resume()

    def _take(self, line: bytes) -> None:
        if not line or self._ended:
            return
        if any(splitter in line for splitter in _SPLITTERS):
            refused = Refused(
                wire.PARSE_ERROR,
                "Parse error: a character that some read as the end of a line",
                reason=Reason.MALFORMED,
            )
            self._relay.refuse(refused, target="message", exchange=self)
            return
        self._relay.message(line, None, self, self._client)

    # Writing

    def flush(self) -> None:
        """Write what is queued, in one write."""
        if not self._queue or self._ended:
            return
        data = b"\n".join(self._queue) + b"\n"
        self._queue.clear()
        if self._unsent:
            self._keep(data)
            return
        try:
            done = os.write(self._out, data)
        except BlockingIOError:
            done = 0
        except OSError:
            self.close()
            return
        if done < len(data):
            self._waiting_since = self._monotonic()
            self._loop.add_writer(self._out, self._on_writable)
            self._pause()
            self._keep(data[done:])
        elif self._eof and not self._client_busy():
            self.close()

    def _last_words(self) -> None:
        with contextlib.suppress(OSError):
            if self._queue and not self._unsent:
                os.write(self._out, b"\n".join(self._queue) + b"\n")
        self._queue.clear()

    def _keep(self, data: bytes) -> None:
        self._unsent += data
        self._backlog.add(len(data))
        if len(self._unsent) > MAX_UNSENT + wire.MAX_BYTES:
            self.close()

    def _on_writable(self) -> None:
        try:
            done = os.write(self._out, self._unsent[: 1 << 20])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[done:]
        self._backlog.done(done)
        self._waiting_since = self._monotonic()
        if not self._unsent:
            self._loop.remove_writer(self._out)
            if self._eof and not self._client_busy():
                self.close()
            else:
                self._resume()

    def check_stall(self) -> None:
        """Close it when it has taken nothing for too long, or when its client is gone and all is answered."""
        stalled = self._unsent and self._monotonic() - self._waiting_since > STALL_SECONDS
        if stalled or (self._eof and not self._client_busy()):
            self.close()

    def close(self) -> None:
        """End it, and what its client asked for. Safe to call twice."""
        if self._ended:
            return
        self._last_words()
        self._ended = True
        self._unwatch()
        self._pause()
        if self._unsent:
            self._loop.remove_writer(self._out)
            self._backlog.done(len(self._unsent))
            self._unsent = b""
        if self.watch_end:
            self._loop.remove_reader(self._control)
        self.closed(self)
        if self._client is not None:
            self._relay.disconnected(self._client)
        os.close(self._in)
        os.close(self._out)
        self._control.close()
