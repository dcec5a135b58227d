"""One client on stdin and stdout: lines in, lines out, bounded both ways.

What cannot be written at once is kept, and meanwhile nothing more is read; who takes nothing for too long is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING, Final, Protocol

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.attention import Patience
from agent_token_injector.mcp_proxy.eras import Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent_token_injector.mcp_proxy.backlog import Backlog
    from agent_token_injector.mcp_proxy.calls import Client
    from agent_token_injector.mcp_proxy.descriptors import Descriptor
    from agent_token_injector.mcp_proxy.exchange import Exchange

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

    def turn(self, read: Callable[[], object]) -> None: ...


class StdioConnection:
    """One client on stdin and stdout; also the exchange of each of its requests."""

    def __init__(
        self,
        relay: Desk,
        control: socket.socket,
        streams: tuple[Descriptor, Descriptor],
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
        self._rest = bytearray()
        self._lines: list[bytes] = []
        self._queue: list[bytes] = []
        self._unsent = bytearray()
        self._waiting_since = 0.0
        self._reading = False
        self._ended = False
        self._eof = False
        self._unwatch = backlog.watch(self._on_backlog)
        self.patience = Patience()

    @property
    def gone(self) -> Callable[[], None] | None:
        """Always None: the end of the connection ends everything of its client's at once."""
        return None

    @gone.setter
    def gone(self, value: Callable[[], None] | None) -> None:
        del value

    def start(self) -> None:
        """Serve it."""
        self._client = self._relay.connected(self)
        self._client.source = self
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
        if not (self._reading or self._ended or self._eof or self._lines or self._unsent or self._backlog.full):
            self._reading = True
            self._loop.add_reader(self._in.fd, self._relay.turn, self._on_readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._in.fd)

    def looked_for(self) -> bytes | None:
        """What the client has sent by now; its end is left to be read in its turn."""
        if not self._reading:
            return None
        try:
            return self._in.read(READ) or None
        except OSError:
            return None

    def _on_readable(self) -> None:
        try:
            data = self._in.read(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.heard(data)

    def heard(self, data: bytes) -> None:
        """Take what was read."""
        if not data:
            self._pause()
            self._eof = True
            # What was asked is still answered; handoff-mcp ends the connection when its client is gone.
            if not self._client_busy():
                self.close()
            return
        if self._rest and b"\n" in data:
            # Joined once a line is whole, so that the cost of a long one does not depend on the pieces it comes in.
            data = bytes(self._rest) + data
            self._rest.clear()
        *lines, rest = data.split(b"\n")
        self._rest += rest
        if lines:
            self._lines.extend(lines)
            self._take_lines()
        if len(self._rest) > wire.MAX_BYTES:
            refused = Refused(
                wire.INVALID_REQUEST, "Invalid Request: a line that does not end", reason=Reason.MALFORMED
            )
            self._relay.refuse(refused, target="message", exchange=self)
            self._rest.clear()
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
        # Not from within the call whose end made room.
        self._loop.call_soon(self._go_on_taking)

    def _go_on_taking(self) -> None:
        if not self._ended:
            self._take_lines()
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
            done = self._out.write(data)
        except BlockingIOError:
            done = 0
        except OSError:
            self.close()
            return
        if done < len(data):
            self._waiting_since = self._monotonic()
            self._loop.add_writer(self._out.fd, self._on_writable)
            self._pause()
            self._keep(data[done:])
        elif self._eof and not self._client_busy():
            self.close()

    def _last_words(self) -> None:
        with contextlib.suppress(OSError):
            if self._queue and not self._unsent:
                self._out.write(b"\n".join(self._queue) + b"\n")
        self._queue.clear()

    def _keep(self, data: bytes) -> None:
        self._unsent += data
        self._backlog.add(len(data))
        if len(self._unsent) > MAX_UNSENT + wire.MAX_BYTES:
            self.close()

    def _on_writable(self) -> None:
        try:
            done = self._out.write(self._unsent[:READ])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._unsent[:done]
        self._backlog.done(done)
        self._waiting_since = self._monotonic()
        if not self._unsent:
            self._loop.remove_writer(self._out.fd)
            if self._eof and not self._client_busy():
                self.close()
            else:
                self._resume()

    def check_stall(self) -> None:
        """Close it when it has taken nothing for too long, or when its client is gone and all is answered."""
        stalled = self._unsent and self._monotonic() - self._waiting_since > STALL_SECONDS
        if stalled or (self._eof and not self._client_busy()) or (not self._reading and self._hung_up()):
            self.close()

    def _hung_up(self) -> bool:
        """Whether the client is gone altogether, which no read tells while nothing is read."""
        look = select.poll()
        look.register(self._control, 0)
        return bool(look.poll(0))

    def close(self) -> None:
        """End it, and what its client asked for. Safe to call twice."""
        if self._ended:
            return
        self._last_words()
        self._ended = True
        self._unwatch()
        self._pause()
        if self._unsent:
            self._loop.remove_writer(self._out.fd)
            self._backlog.done(len(self._unsent))
            self._unsent.clear()
        if self.watch_end:
            self._loop.remove_reader(self._control)
        self.closed(self)
        if self._client is not None:
            self._relay.disconnected(self._client)
        self._in.close()
        self._out.close()
        self._control.close()
