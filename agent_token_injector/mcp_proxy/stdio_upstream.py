"""Servers over stdio: a child process, one message a line, raw descriptors on the event loop.

The hot path has no task, no stream and no queue between the pipe and the relay: a readable pipe is read once, its lines
go to the relay, and what the relay sends of them leaves in one write.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.attention import Patience
from agent_token_injector.mcp_proxy.child import Child
from agent_token_injector.mcp_proxy.eras import STATELESS_VERSIONS, Era
from agent_token_injector.mcp_proxy.links import Link, RequestHead, UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.upstream import (
    Backoff,
    Restarter,
    SessionLike,
    StdioServerConfig,
    UpstreamEvents,
    list_definitions,
    shake_hands,
    stateless_params,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_token_injector.mcp_proxy.backlog import Backlog

WRITE_STALL_SECONDS: Final = 10.0
READ_BYTES: Final = 256 * 1024
ENOUGH_TAKEN: Final = 1024 * 1024
"""A server that does not take so much within the stall limit, and not all there is, does not read."""
MAX_OWED: Final = 16 * 1024 * 1024
"""A server that leaves so much of ours unread is not read from."""
LAST_READS: Final = 64
"""Reads of what a server said before it closed its input."""
DOES_NOT_KNOW_INITIALIZE: Final = frozenset({wire.METHOD_NOT_FOUND, -32022, wire.INVALID_REQUEST, wire.INVALID_PARAMS})
"""Answers to `initialize` of a server that speaks 2026-07-28 alone."""


class StdioLink(Link):
    """The one conversation with a child. It is never ready again once it is lost: a restart makes another one.

    Args:
        child: the server; its descriptors are this link's from here on.
        on_lost: called once, when the conversation ends by itself.
        stall: seconds that the server may leave our bytes unread.
    """

    def __init__(
        self,
        config: StdioServerConfig,
        events: UpstreamEvents,
        child: Child,
        backlog: Backlog,
        *,
        client_info: Mapping[str, Any],
        on_lost: Callable[[StdioLink], None],
        stall: float,
    ) -> None:
        super().__init__(config.name, events)
        self._config = config
        self._client_info = client_info
        self._on_lost = on_lost
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._stdin, self._stdout = child.stdin, child.stdout
        self._backlog = backlog
        self._queue: list[bytes] = []
        self._unsent = memoryview(b"")
        self._waiting: list[bytes] = []
        self._stalled: asyncio.TimerHandle | None = None
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._taken = 0
        self._reading = False
        self._paused = False
        self._full = False
        self._unwatch = backlog.watch(self._on_backlog)
        self.patience = Patience()
        self.source = self
        self._read_or_not()

    # Out

    def send(self, minted: int, message: bytes, head: RequestHead) -> None:  # noqa: ARG002 - stdio has no headers
        if self.lost is not None:
            self.fail(minted, self.lost)
            return
        self._queue.append(message)

    def say(self, message: bytes) -> None:
        if self.lost is None:
            self._queue.append(message)

    async def ask(self, method: str, params: Mapping[str, Any], head: RequestHead | None = None) -> Any:
        if self.era is Era.STATELESS:
            params = stateless_params(params, self._client_info, self._config.declare)
        return await super().ask(method, params, head)

    def flush(self) -> None:
        if self._queue and self.lost is None:
            self._queue.append(b"")
            data = b"\n".join(self._queue)
            self._queue.clear()
            if self._stalled is None:
                self._write(memoryview(data))
            else:
                self._backlog.add(len(data))
                self._waiting.append(data)
                self._read_or_not()

    def _write(self, data: memoryview) -> None:
        try:
            written = os.write(self._stdin, data)
        except BlockingIOError:
            written = 0
        except OSError:
            # What it answered before it closed its input is still in the pipe.
            self._loop.call_soon(self._input_closed)
            return
        if written < len(data):
            self._unsent = data[written:]
            self._backlog.add(len(self._unsent))
            self._stalled = self._loop.call_later(self._stall, self.lose, "it stopped reading")
            self._loop.add_writer(self._stdin, self._write_on)

    def _write_on(self) -> None:
        """The pipe takes bytes again."""
        try:
            written = os.write(self._stdin, self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._input_closed()
            return
        self._backlog.done(written)
        self._unsent = self._unsent[written:]
        self._taken += written
        if not self._unsent and self._waiting:
            self._unsent = memoryview(b"".join(self._waiting))
            self._waiting.clear()
        if not self._unsent:
            self._stop_stall()
            self._loop.remove_writer(self._stdin)
        elif self._taken >= ENOUGH_TAKEN:
            # A few bytes now and then are no progress: what waits here waits for everybody.
            self._stop_stall()
            self._stalled = self._loop.call_later(self._stall, self.lose, "it stopped reading")
        self._read_or_not()

    def _stop_stall(self) -> None:
        self._taken = 0
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _input_closed(self) -> None:
        if self.lost is not None:
            return
        for _ in range(LAST_READS):
            if not self._read():
                break
        self.lose("it closed its input")

    def forget(self, minted: int) -> None:
        """Nothing to close: the answer, if it comes, belongs to nobody."""

    def listen(self, last_event_id: str | None, listen: object) -> None:  # noqa: ARG002 - the interface's
        self.events.ended(self, listen, "a server over stdio has no streams of its own")

    def unlisten(self, listen: object) -> None:
        """There is none."""

    # In

    def pause(self) -> None:
        self._paused = True
        self._read_or_not()

    def resume(self) -> None:
        self._paused = False
        self._read_or_not()

    def _on_backlog(self, full: bool) -> None:
        self._full = full
        self._read_or_not()

    def _read_or_not(self) -> None:
        # Who asks and does not listen is not heard either.
        owed = len(self._unsent) + sum(map(len, self._waiting))
        wanted = not self._paused and not self._full and self.lost is None and owed <= MAX_OWED
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._stdout, self.events.turn, self._read)
            else:
                self._loop.remove_reader(self._stdout)

    def _read(self) -> bool:
        """Take what the pipe holds. False when it holds nothing, or nothing more will come."""
        try:
            chunk = os.read(self._stdout, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self.lose("it ended")
            return False
        return self._take_lines(chunk.split(b"\n"))

    def looked_for(self) -> bytes | None:
        """What the pipe holds now; its end is left to be read in its turn."""
        if not self._reading:
            return None
        try:
            return os.read(self._stdout, READ_BYTES) or None
        except OSError:
            return None

    def heard(self, data: bytes) -> None:
        """Take what was looked for."""
        self._take_lines(data.split(b"\n"))

    def _take_lines(self, lines: list[bytes]) -> bool:
        """Take whole lines, and keep what follows the last of them. False when the conversation is over."""
        tail = lines.pop()
        if lines and self._partial:
            self._partial.append(lines[0])
            lines[0] = b"".join(self._partial)
            self._partial.clear()
            self._partial_size = 0
        take = self.take
        for line in lines:
            if len(line) > wire.MAX_BYTES:
                self._too_large()
                return False
            text = line[:-1] if line.endswith(b"\r") else line
            if text:
                take(text)
                if self.lost is not None:
                    return False
        if tail:
            self._partial.append(tail)
            self._partial_size += len(tail)
            # The line's own CR comes on top of what a message may have.
            if self._partial_size > wire.MAX_BYTES + 1:
                self._too_large()
                return False
        return True

    def _too_large(self) -> None:
        self.lose(f"it sent a message of more than {wire.MAX_BYTES // 1024 // 1024} MiB")

    # End

    def lose(self, why: str) -> None:
        if self.lost is None:
            self.close(why)
            self._on_lost(self)

    def close(self, why: str) -> None:
        """End the conversation without telling `on_lost`. The child's descriptors are free to be closed then."""
        if self.lost is not None:
            return
        super().lose(why)
        self._read_or_not()
        self._unwatch()
        if self._stalled is not None:
            self._stop_stall()
            self._loop.remove_writer(self._stdin)
            self._backlog.done(len(self._unsent) + sum(map(len, self._waiting)))
        self._queue.clear()
        self._partial.clear()
        self._unsent = memoryview(b"")


class StdioUpstream:
    """A server that is our child, restarted when it dies.

    Args:
        config: the server.
        events: the relay.
        client_info: who we say we are.
        backlog: counts what the server does not read.
        on_stderr: is given every complete line of its stderr, unmasked.
        start_seconds: how long one restart may take; the caller bounds the first start.
    """

    def __init__(
        self,
        config: StdioServerConfig,
        events: UpstreamEvents,
        *,
        client_info: Mapping[str, Any],
        backlog: Backlog,
        on_stderr: Callable[[str], None] | None = None,
        backoff: Backoff | None = None,
        start_seconds: float = 30.0,
        stall: float = WRITE_STALL_SECONDS,
    ) -> None:
        self.name = config.name
        self.speaks: frozenset[Era] = frozenset()
        self._config = config
        self._events = events
        self._client_info = dict(client_info)
        self._backlog = backlog
        self._on_stderr = on_stderr
        self._stall = stall
        self._restarter = Restarter(self._launch, backoff or Backoff(), limit=start_seconds)
        self._link: StdioLink | None = None
        self._greeted: StdioLink | None = None
        self._child: Child | None = None
        self._words = ""
        self._serving = False

    @property
    def house(self) -> StdioLink:
        """Our own conversation, which is everybody's. Raises UpstreamFailed before `start`."""
        if self._link is None:
            raise UpstreamFailed("it is not running")
        return self._link

    async def start(self) -> None:
        await self._launch()
        self._restarter.born()

    async def definitions(self) -> list[dict[str, Any]]:
        return await list_definitions(self.house)

    def link(self, session: SessionLike | None, era: Era) -> Link:  # noqa: ARG002 - one pipe, one conversation
        return self.house

    def drop(self, session: SessionLike) -> None:
        """Nothing of a client's session is kept."""

    def last_words(self) -> str:
        said = "" if self._child is None else self._child.last_words()
        return said or self._words

    async def stop(self) -> None:
        self._serving = False
        await self._restarter.stop()
        await self._end("it was stopped")

    async def _launch(self) -> None:
        try:
            if self._config.protocol in STATELESS_VERSIONS:
                await self._connect(Era.STATELESS)
            else:
                await self._connect_handshake_first()
        except BaseException:
            await self._end("it did not start")
            raise
        self._serving = True

    async def _connect_handshake_first(self) -> None:
        try:
            await self._connect(Era.HANDSHAKE)
        except UpstreamError as error:
            if self._config.protocol != "auto" or error.code not in DOES_NOT_KNOW_INITIALIZE:
                raise
            # Some servers stay in the era of the first request they got, so this one gets another first request.
            await self._connect(Era.STATELESS)

    async def _connect(self, era: Era) -> None:
        await self._end("it is started again")
        config = self._config
        try:
            self._child = Child(config.argv, config.env, config.cwd, self._on_stderr)
            await self._child.connect()
        except OSError as error:
            raise UpstreamFailed(f"it could not be started: {error.strerror}") from None
        link = StdioLink(
            config,
            self._events,
            self._child,
            self._backlog,
            client_info=self._client_info,
            on_lost=self._lost,
            stall=self._stall,
        )
        # Nobody else may be the first to ask, so that `house` stays the lost one until hands are shaken.
        self._greeted = link
        link.era = era
        await shake_hands(link, era, self._client_info, config.declare)
        if era is Era.HANDSHAKE:
            link.say(wire.notification("notifications/initialized"))
            link.flush()
        if link.lost is not None:
            raise UpstreamFailed(link.lost)
        link.ready = True
        self._link = link
        self.speaks = frozenset({era})

    def _lost(self, link: StdioLink) -> None:
        if self._serving and link is self._link:
            self._serving = False
            self._restarter.died(lambda: self._events.restarted(self))

    async def _end(self, why: str) -> None:
        for link in (self._link, self._greeted):
            if link is not None:
                link.close(why)
        child = self._child
        if child is not None:
            await child.stop()
            self._words = child.last_words() or self._words
            self._child = None
