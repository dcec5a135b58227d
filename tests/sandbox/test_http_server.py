"""The emulators' server: quick, on the loopback only, gone when closed, and able to fail in every way a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from agent_token_injector.clock import SystemClock
from agent_token_injector.sandbox.http_server import DROP, TRUNCATE, Emulator, Reply, Request, digest, method
from agent_token_injector.transport import TransportError, client
from tests.requirements import requirement


class Counter(Emulator):
    """Counts what was carried out."""

    done = 0

    def answer(self, request: Request) -> Reply:
        if request.path == "/broken":
            raise ValueError("a defect")
        self.done += 1
        return Reply(200, {"done": self.done})

    def live_credentials(self) -> tuple[str, ...]:
        return ()


def post(server: Emulator, path: str = "/x") -> int | None:
    with client(server.url) as http:
        try:
            answer = http.request("POST", path, headers={"Authorization": "Bearer t"}, idempotent=False)
        except TransportError:
            return None
        answer.json()
        return answer.status


@requirement("sandbox.lifecycle")
def test_it_starts_quickly_on_the_loopback_and_leaves_nothing_behind() -> None:
    threads = set(threading.enumerate())
    began = time.monotonic()
    server = Counter(SystemClock()).start()
    assert time.monotonic() - began < 1.0
    assert post(server) == 200
    where = urlsplit(server.url)
    assert where.hostname == "127.0.0.1"
    with socket.create_connection(("127.0.0.1", int(where.port or 0))) as idle:
        server.close()
        server.close()
        # Reset where it was still waiting to be accepted, ended where it was not.
        with contextlib.suppress(ConnectionResetError):
            assert idle.recv(1) == b""
    assert set(threading.enumerate()) == threads
    with pytest.raises(RuntimeError):
        _ = server.url


@requirement("sandbox.lifecycle")
def test_closing_ends_a_request_that_is_held() -> None:
    server = Counter(SystemClock()).start()
    held = server.hold(method("POST"), at="before")
    thread = threading.Thread(target=post, args=(server,))
    thread.start()
    held.wait_reached()
    server.close()
    thread.join(10)
    assert not thread.is_alive()


@requirement("sandbox.faults")
def test_a_hook_runs_before_or_after_the_effect() -> None:
    with Counter(SystemClock()) as server:
        server.hook(method("POST"), before=lambda _request: Reply(503, {}), times=1)
        assert (post(server), server.done) == (503, 0)
        server.hook(method("POST"), after=lambda _request, _reply: Reply(500, {}), times=1)
        assert (post(server), server.done) == (500, 1)
        server.hook(method("POST"), before=lambda _request: DROP, times=1)
        assert (post(server), server.done) == (None, 1)
        server.hook(method("POST"), after=lambda _request, _reply: DROP, times=1)
        assert (post(server), server.done) == (None, 2)
        server.hook(method("POST"), after=lambda _request, _reply: TRUNCATE, times=1)
        assert (post(server), server.done) == (None, 3)
        hook = server.hook(method("POST"), before=lambda _request: DROP)
        hook.remove()
        assert post(server) == 200


@requirement("sandbox.faults")
def test_a_held_request_holds_up_no_other() -> None:
    with Counter(SystemClock()) as server:
        held = server.hold(method("POST", "/slow"), at="after")
        thread = threading.Thread(target=post, args=(server, "/slow"))
        thread.start()
        held.wait_reached()
        assert server.done == 1
        assert post(server, "/fast") == 200
        held.release()
        thread.join(10)
        assert not thread.is_alive()


@requirement("sandbox.log")
def test_the_log_names_requests_and_credentials_by_digest_only() -> None:
    with Counter(SystemClock()) as server:
        post(server, "/x?secret=1")
        (entry,) = server.log
    assert (entry.method, entry.path, entry.status) == ("POST", "/x", 200)
    assert entry.credential == digest("t")[:19]
    assert "secret" not in repr(entry)


@requirement("sandbox.faults")
def test_an_emulators_own_defect_is_a_500_and_remembered() -> None:
    with Counter(SystemClock()) as server:
        assert post(server, "/broken") == 500
        assert server.failures == ["POST /broken: ValueError('a defect')"]
