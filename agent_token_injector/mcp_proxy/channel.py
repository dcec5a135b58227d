"""The engine's end of the channel to the control side: documents both ways, one a line, and questions that get an answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from agent_token_injector.mcp_proxy import wire

READ: Final = 256 * 1024
MAX_UNSENT: Final = 64 * 1024 * 1024
ANSWER_SECONDS: Final = 60.0


class ChannelClosed(Exception):
    """The control side is gone, or broke the channel's form: there is nothing left to work for."""


class NoAnswer(Exception):
    """A question was not answered. `audit` says that it could not be put on record."""

    def __init__(self, why: str, *, audit: bool = False) -> None:
        super().__init__(why)
        self.audit = audit


class Channel:
    """A stream socket to the control side, on the engine's event loop.

    Args:
        connection: connected, of this process alone.
        heard: is given each document that is no answer.
        ended: is called once, when the control side is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._rest = b""
        self._unsent = b""
        self._questions: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._asked = 0
        self._heard: Callable[[dict[str, Any]], None] = lambda _: None
        self._ended: Callable[[], None] = lambda: None
        self._over = False

    async def configuration(self) -> dict[str, Any]:
        """The first document. Raises ChannelClosed."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        while b"\n" not in data:
            more = await loop.sock_recv(self._connection, READ)
            if not more:
                raise ChannelClosed
            data += more
        line, _, self._rest = bytes(data).partition(b"\n")
        return _document(line)

    def serve(self, heard: Callable[[dict[str, Any]], None], ended: Callable[[], None]) -> None:
        """Hear documents from now on: what is no answer goes to `heard`; `ended` is called once, at the end."""
        self._heard, self._ended = heard, ended
        asyncio.get_running_loop().add_reader(self._connection, self._on_readable)
        # What came behind the configuration is here already.
        self._take(b"")

    def say(self, document: Mapping[str, Any]) -> None:
        """Send a document."""
        data = wire.encode(document) + b"\n"
        if self._over:
            return
        if self._unsent:
            self._unsent += data
            if len(self._unsent) > MAX_UNSENT:
                self._end()
            return
        done = self._send(data)
        if done < len(data) and not self._over:
            self._unsent = data[done:]
            asyncio.get_running_loop().add_writer(self._connection, self._on_writable)

    async def ask(self, kind: str, **question: Any) -> Mapping[str, Any]:
        """Ask the control side; returns its answer. Raises NoAnswer."""
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            self.say({"ask": {"id": number, "kind": kind, **question}})
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await answer
        except TimeoutError:
            raise NoAnswer("it gave no answer in time") from None
        finally:
            self._questions.pop(number, None)
        if "failed" in found:
            raise NoAnswer(str(found["failed"]), audit=found.get("audit") is True)
        return found

    def close(self) -> None:
        """Let go of the channel."""
        if not self._over:
            self._end()

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._end()

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._hear(_document(line))
        except ChannelClosed:
            self._end()

    def _hear(self, document: dict[str, Any]) -> None:
        answer = document.get("answer")
        if not isinstance(answer, dict):
            self._heard(document)
            return
        waiting = self._questions.get(answer.get("id", 0))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _send(self, data: bytes) -> int:
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._end()
            return 0

    def _on_writable(self) -> None:
        self._unsent = self._unsent[self._send(self._unsent) :]
        if not self._unsent and not self._over:
            asyncio.get_running_loop().remove_writer(self._connection)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection)
        loop.remove_writer(self._connection)
        self._connection.close()
        for waiting in self._questions.values():
            if not waiting.done():
                waiting.set_exception(NoAnswer("the orchestrator is gone"))
        self._ended()


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(line)
    except ValueError:
        raise ChannelClosed from None
    if not isinstance(document, dict):
        raise ChannelClosed
    return document
