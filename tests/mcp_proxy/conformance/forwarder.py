"""Adds the bearer token to each request of a program that cannot: the conformance suite has no option for it.

It stands on an address of its own, so a Host or Origin that names that address is made to name the proxy's. Everything else
passes byte for byte, both ways and as it comes: blanks around values, the case of names, a strange Host or Origin.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

START_SECONDS: Final = 10.0
CHUNK: Final = 65536
_ENDS: Final = (asyncio.CancelledError, OSError, asyncio.IncompleteReadError)


@contextmanager
def forwarder(url: str, token: SecretStr) -> Iterator[str]:
    """An address on loopback that leads to `url` with the token. Fails on leaving for a request that it cannot read."""
    target = urlsplit(url)
    made = _Forwarder(target.netloc, token)
    thread = threading.Thread(target=made.run, name="forwarder")
    thread.start()
    try:
        assert made.ready.wait(START_SECONDS), "the forwarder did not start"
        yield f"http://{made.authority}{target.path}"
    finally:
        made.stop()
        thread.join()
    assert made.problems == []


class _Forwarder:
    def __init__(self, target: str, token: SecretStr) -> None:
        self.target = target
        self.authority = ""
        self.ready = threading.Event()
        self.problems: list[str] = []
        self._token = token
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        asyncio.run(self._main())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.authority = f"{host}:{port}"
        self.ready.set()
        await self._stop.wait()
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A closed transport is gone one turn of the loop later.
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except _ENDS:
            # Stopping cancels it, and a peer may leave at any moment: both are how a connection ends.
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        there, to = await asyncio.open_connection(host, int(port))
        answers = asyncio.create_task(_pour(there, writer))
        requests = asyncio.create_task(self._requests(reader, to))
        try:
            # Either side's end is the connection's: a request whose client has gone must be seen to be given up.
            await asyncio.wait({answers, requests}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to.close()
            for task in (answers, requests):
                task.cancel()
            ends = await asyncio.gather(answers, requests, return_exceptions=True)
            self.problems += [repr(one) for one in ends if one is not None and not isinstance(one, _ENDS)]

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].split(b"\r\n")
            length = 0
            for number, line in enumerate(lines):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                elif name.lower() == b"transfer-encoding":
                    self.problems.append(f"a request with {line!r}")
                    return
                elif name.lower() in (b"host", b"origin"):
                    lines[number] = name + b":" + value.replace(self.authority.encode(), self.target.encode())
            lines.append(f"Authorization: Bearer {self._token.get_secret_value()}".encode())
            to.write(b"\r\n".join((first, *lines)) + b"\r\n\r\n" + await reader.readexactly(length))
            await to.drain()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
