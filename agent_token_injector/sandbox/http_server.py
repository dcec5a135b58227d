"""A small HTTP/1.1 server on the loopback, and what every emulated vendor is made of.

An emulator answers with real sockets, so that timeouts, dropped connections and killed clients are real too. It starts
in milliseconds, binds 127.0.0.1 only, and leaves no thread and no socket behind when closed.

Fault injection is part of the product. `hook` runs a callable before or after the effect of matching requests: it may
answer by itself, or return `DROP` (the connection ends with no answer) or `TRUNCATE` (it ends in the middle of one).
`hold` stops matching requests at either point until the test lets them go.

    with SandboxGitHub(clock) as github:
        github.hook(method("POST"), after=lambda request, reply: DROP)      # done, and never said
        held = github.hold(method("POST"), at="before")
        held.wait_reached()
        ...
        held.release()
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import socket
import socketserver
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from agent_token_injector.clock import Clock

HOLD_BOUND: Final = 60.0
"""Seconds after which a held request goes on by itself, so that a forgotten hold ends a test and not a machine."""
_MAX_BODY: Final = 1024 * 1024


class Fault(Enum):
    """What a hook may return in place of a reply."""

    DROP = "drop"
    TRUNCATE = "truncate"


DROP: Final = Fault.DROP
TRUNCATE: Final = Fault.TRUNCATE


@dataclass(frozen=True, slots=True)
class Request:
    """One request as an emulator sees it. Its repr holds no header and no body."""

    method: str
    path: str
    query: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON, or None when it is empty. Raises ValueError when it is not JSON."""
        return json.loads(self.body) if self.body else None

    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))

    def bearer(self) -> str | None:
        """What stands after `Bearer` or `token` in the Authorization header."""
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        return value.strip() if scheme.lower() in {"bearer", "token"} and value.strip() else None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a status, and a JSON body unless it is None."""

    status: int
    body: Any = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One request in the log: no query, no header, no body; the credential only as a digest."""

    at: datetime
    method: str
    path: str
    status: int | None
    """None when the connection was dropped instead."""
    credential: str
    """`sha256:<first 12 hex digits>`, or empty."""


Match = Callable[[Request], bool]
Before = Callable[[Request], "Reply | Fault | None"]
After = Callable[[Request, Reply], "Reply | Fault | None"]


def digest(credential: str) -> str:
    """`sha256:<hex>`: how a credential is named where its value may not stand."""
    return "sha256:" + hashlib.sha256(credential.encode()).hexdigest()


def method(name: str, path: str = r".*") -> Match:
    """A matcher: requests of that method whose whole path matches the regular expression."""
    pattern = re.compile(path)
    return lambda request: request.method == name and pattern.fullmatch(request.path) is not None


@dataclass(eq=False)
class Hook:
    """A fault in place; `remove` it, or let it run out after `times` matching requests."""

    match: Match
    before: Before | None
    after: After | None
    remaining: int | None
    removed: bool = False

    def remove(self) -> None:
        self.removed = True


class Hold:
    """Requests that wait. `wait_reached` returns once one is waiting; `release` lets all of them go on."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._released = threading.Event()

    def wait_reached(self, seconds: float = 30.0) -> None:
        """Return once a request waits here. Raises TimeoutError."""
        if not self._reached.wait(seconds):
            raise TimeoutError("no request reached the hold")

    def release(self) -> None:
        self._released.set()

    def _stop_here(self) -> None:
        self._reached.set()
        self._released.wait(HOLD_BOUND)


class Emulator(ABC):
    """One emulated vendor: `.url`, `.start()`/`.close()` or a `with` block, `.log`, `.hook`, `.hold`.

    Requests are carried out one at a time, so that an emulator's state is consistent; hooks run outside of that, so
    that a held request holds up no other.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        self._hooks: list[Hook] = []
        self._holds: list[Hold] = []
        self._log: list[LogEntry] = []
        self.failures: list[str] = []
        """Requests on which the emulator itself failed; a test that ends with any has found a bug in it."""
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @abstractmethod
    def answer(self, request: Request) -> Reply:
        """Carry a request out and answer it. Called with the state locked."""

    @abstractmethod
    def live_credentials(self) -> tuple[str, ...]:
        """The digests of every credential that would still authenticate now, sorted."""

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`. Raises RuntimeError before `start`."""
        if self._server is None:
            raise RuntimeError(f"{type(self).__name__} is not started")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def log(self) -> tuple[LogEntry, ...]:
        """Every request so far, oldest first."""
        with self._lock:
            return tuple(self._log)

    def count(self, match: Match) -> int:
        """How many requests in the log match, by method and path."""
        empty: Mapping[str, str] = MappingProxyType({})
        return sum(match(Request(entry.method, entry.path, empty, empty, b"")) for entry in self.log)

    def start(self) -> Self:
        if self._server is None:
            self._server = _Server(self)
            self._thread = threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name=type(self).__name__, daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop, end every connection, wait for every thread. Idempotent."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        for hold in self._holds:
            hold.release()
        server.shutdown()
        server.end_connections()
        server.server_close()
        thread.join()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def hook(
        self, match: Match, *, before: Before | None = None, after: After | None = None, times: int | None = None
    ) -> Hook:
        """Run `before` and `after` around the effect of matching requests, at most `times` of them."""
        hook = Hook(match, before, after, times)
        with self._lock:
            self._hooks.append(hook)
        return hook

    def hold(self, match: Match, *, at: Literal["before", "after"], times: int | None = 1) -> Hold:
        """Stop matching requests before or after their effect until released."""
        hold = Hold()
        self._holds.append(hold)
        if at == "before":
            self.hook(match, before=lambda _request: hold._stop_here(), times=times)  # noqa: SLF001  one module
        else:
            self.hook(match, after=lambda _request, _reply: hold._stop_here(), times=times)  # noqa: SLF001  one module
        return hold

    def _run(self, request: Request) -> tuple[Reply, Fault | None]:
        """The reply and how to spoil it."""
        hooks = self._take_hooks(request)
        outcome: Reply | Fault | None = None
        for hook in hooks:
            if hook.before is not None and outcome is None:
                outcome = hook.before(request)
        reply = Reply(500)
        if isinstance(outcome, Reply):
            reply, outcome = outcome, None
        elif outcome is None:
            with self._lock:
                reply = self.answer(request)
            for hook in hooks:
                found = hook.after(request, reply) if hook.after is not None else None
                if isinstance(found, Reply):
                    reply = found
                elif found is not None:
                    outcome = found
        return reply, outcome

    def _take_hooks(self, request: Request) -> list[Hook]:
        with self._lock:
            taken = []
            for hook in self._hooks:
                if not hook.removed and hook.match(request):
                    taken.append(hook)
                    if hook.remaining is not None:
                        hook.remaining -= 1
                        hook.removed = hook.remaining <= 0
            self._hooks = [hook for hook in self._hooks if not hook.removed]
            return taken

    def _record(self, request: Request, status: int | None) -> None:
        credential = request.bearer()
        short = digest(credential)[:19] if credential else ""
        with self._lock:
            self._log.append(LogEntry(self.clock.now(), request.method, request.path, status, short))


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server's: that one looks its own host name up when it binds, which can take seconds.
    allow_reuse_address = True
    request_queue_size = 256
    daemon_threads = False
    block_on_close = True

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the signature is socketserver's
        # A client that went away is what these servers are for; an emulator's own failure is answered with 500.
        return


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 30

    def log_message(self, *_: Any) -> None:
        return

    def _serve(self) -> None:
        self.close_connection = True
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= _MAX_BODY:
            self._send(Reply(413, {"message": "payload too large"}), None)
            return
        target = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(target.path),
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(length),
        )
        emulator = self.server.emulator
        try:
            reply, fault = emulator._run(request)  # noqa: SLF001  one module
        except Exception as error:
            emulator.failures.append(f"{request.method} {request.path}: {error!r}")
            emulator._record(request, 500)  # noqa: SLF001  one module
            self._send(Reply(500, {"message": "the emulator failed"}), None)
            raise
        emulator._record(request, None if fault is DROP else reply.status)  # noqa: SLF001  one module
        if fault is not DROP:
            self._send(reply, fault)

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        body = b"" if reply.body is None else json.dumps(reply.body).encode()
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.body is not None:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        if reply.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault is TRUNCATE else body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  http.server's names
