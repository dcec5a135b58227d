"""Transport: what is sent twice and what is not, how a mint can end, and what is never logged or quoted."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from agent_token_injector.clock import SystemClock
from agent_token_injector.errors import SettingsError
from agent_token_injector.sandbox.http_server import DROP, TRUNCATE, Emulator, Reply, Request, method
from agent_token_injector.transport import (
    ATTEMPTS,
    MAX_ANSWER,
    MAX_VENDOR_TEXT,
    Accepted,
    Http,
    Refused,
    Timeout,
    TransportError,
    Unclear,
    check_url,
    clean,
    client,
)
from tests.requirements import requirement

GET, POST = method("GET"), method("POST")


class Echo(Emulator):
    """Answers 200 to everything."""

    def answer(self, request: Request) -> Reply:
        return Reply(200, {"method": request.method, "form": request.form()})

    def live_credentials(self) -> tuple[str, ...]:
        return ()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo(SystemClock()) as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def http(echo: Echo, pauses: list[float]) -> Iterator[Http]:
    with client(echo.url, pause=pauses.append) as made:
        yield made


@requirement("transport.https-only")
@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "ftp://localhost",
        "https://user:pass@api.example.com",
        "https://api.example.com?x=1",
        "https://",
        "https://host:99999",
        "api.example.com",
        "",
    ],
)
def test_a_credential_is_only_sent_over_tls_or_to_this_machine(url: str) -> None:
    with pytest.raises(SettingsError):
        client(url)


@requirement("transport.https-only")
def test_https_anywhere_and_http_to_a_loopback_host_are_fine() -> None:
    assert check_url("https://api.example.com/v3") == "api.example.com"
    for host in ("localhost:1", "127.0.0.1:2", "127.8.8.8:3", "[::1]:4"):
        assert check_url(f"http://{host}").endswith(host[-2:])


@requirement("transport.retry-idempotent")
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_idempotent_request_is_sent_again_when_the_vendor_is_not_itself(
    http: Http, echo: Echo, pauses: list[float], status: int
) -> None:
    echo.hook(GET, before=lambda _request: Reply(status), times=2)
    assert http.request("GET", "/x", idempotent=True).status == 200
    assert echo.count(GET) == 3
    assert len(pauses) == 2


@requirement("transport.retry-idempotent")
@pytest.mark.parametrize("fault", [DROP, TRUNCATE])
def test_an_idempotent_request_is_sent_again_when_its_answer_breaks(http: Http, echo: Echo, fault: object) -> None:
    echo.hook(GET, after=lambda _request, _reply: fault, times=2)  # type: ignore[arg-type,return-value]
    assert http.request("GET", "/x", idempotent=True).status == 200
    assert echo.count(GET) == 3


@requirement("D3.ambiguous", "transport.never-twice")
@pytest.mark.parametrize("reply", [DROP, TRUNCATE, Reply(429), Reply(500), Reply(503), Reply(504)])
def test_any_other_request_is_sent_once_however_it_ends(http: Http, echo: Echo, reply: Reply) -> None:
    echo.hook(POST, after=lambda _request, _reply: reply)
    if isinstance(reply, Reply):
        assert http.request("POST", "/x", json={}, idempotent=False).status == reply.status
    else:
        with pytest.raises(TransportError) as caught:
            http.request("POST", "/x", json={}, idempotent=False)
        assert caught.value.sent
    assert echo.count(POST) == 1


@requirement("transport.retry-idempotent")
def test_retrying_ends_and_returns_the_last_answer(http: Http, echo: Echo) -> None:
    echo.hook(GET, before=lambda _request: Reply(503, {"message": "down"}))
    assert http.request("GET", "/x", idempotent=True).status == 503
    assert echo.count(GET) == ATTEMPTS


@requirement("transport.retry-after")
def test_a_pause_the_vendor_asks_for_is_kept_and_one_too_long_is_not_waited_for(
    http: Http, echo: Echo, pauses: list[float]
) -> None:
    echo.hook(GET, before=lambda _request: Reply(429, None, {"Retry-After": "7"}), times=1)
    http.request("GET", "/x", idempotent=True)
    assert pauses == [7.0]
    past = format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)
    echo.hook(GET, before=lambda _request: Reply(429, None, {"Retry-After": past}), times=1)
    http.request("GET", "/x", idempotent=True)
    assert pauses == [7.0, 0.0]
    echo.hook(GET, before=lambda _request: Reply(429, None, {"Retry-After": "3600"}))
    assert http.request("GET", "/x", idempotent=True).status == 429
    assert pauses == [7.0, 0.0]


@requirement("transport.not-sent")
def test_a_request_that_found_no_connection_was_not_sent_and_may_be_tried_again(pauses: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        with client(f"http://127.0.0.1:{taken.getsockname()[1]}", pause=pauses.append) as http:
            with pytest.raises(TransportError) as caught:
                http.request("POST", "/x", idempotent=False)
            assert not caught.value.sent
            assert len(pauses) == ATTEMPTS - 1
            assert isinstance(http.once("POST", "/x"), Refused)


@requirement("D3.ambiguous")
def test_a_request_without_an_answer_in_time_may_have_been_carried_out(echo: Echo) -> None:
    held = echo.hold(POST, at="after")
    with client(echo.url, timeout=Timeout(read=0.2)) as http:
        outcome = http.once("POST", "/x")
    held.release()
    assert isinstance(outcome, Unclear)
    assert echo.count(POST) <= 1


@requirement("D3.ambiguous", "D3.refused", "D3.minted")
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(201, {"id": 1}), Accepted),
        (Reply(200, {"id": 1}), Accepted),
        (Reply(400, {"message": "no"}), Refused),
        (Reply(403, {"error": {"message": "no"}}), Refused),
        (Reply(422, {}), Refused),
        (Reply(429, {"message": "slow down"}), Refused),
        (Reply(201, ["a", "list"]), Unclear),
        (Reply(201), Unclear),
        (Reply(204), Unclear),
        (Reply(404), Unclear),
        (Reply(408, {"message": "a proxy's"}), Unclear),
        (Reply(301, {"message": "moved"}, {"Location": "/y"}), Unclear),
        (Reply(500, {"message": "oops"}), Unclear),
        (Reply(503, {"message": "oops"}), Unclear),
    ],
)
def test_a_mint_ends_in_one_of_three_ways(http: Http, echo: Echo, reply: Reply, kind: type) -> None:
    echo.hook(POST, before=lambda _request: reply)
    assert isinstance(http.once("POST", "/x", json={}), kind)
    assert echo.count(POST) == 1


@requirement("transport.no-redirect")
def test_a_redirect_is_not_followed(http: Http, echo: Echo) -> None:
    echo.hook(GET, before=lambda _request: Reply(302, None, {"Location": f"{echo.url}/elsewhere"}))
    assert http.request("GET", "/x", headers={"Authorization": "Bearer t"}, idempotent=True).status == 302
    assert [entry.path for entry in echo.log] == ["/x"]


@requirement("transport.no-environment")
def test_a_proxy_in_the_environment_is_not_used(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with client(echo.url) as http:
        assert http.request("GET", "/x", idempotent=True).status == 200


@requirement("transport.bounded")
def test_an_answer_that_is_too_large_is_not_read_to_its_end(http: Http, echo: Echo) -> None:
    echo.hook(POST, before=lambda _request: Reply(201, {"x": "a" * MAX_ANSWER}))
    with pytest.raises(TransportError, match="larger"):
        http.request("POST", "/x", idempotent=False)


@requirement("transport.bounded")
def test_an_answer_that_trickles_is_given_up() -> None:
    stop = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                while not stop.wait(0.02):
                    connection.sendall(b"x")
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with client(url, timeout=Timeout(total=0.3)) as http, pytest.raises(TransportError, match="in time"):
                http.request("POST", "/x", idempotent=False)
        finally:
            stop.set()
            thread.join()


@requirement("H6.no-secret-shown", "transport.quiet")
def test_neither_query_nor_header_nor_answer_is_logged(
    http: Http, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo.hook(GET, after=lambda _request, reply: Reply(200, reply.body, {"X-Set": "answer-secret"}))
    http.request(
        "GET", "/x", headers={"Authorization": "Bearer header-secret"}, params={"q": "query-secret"}, idempotent=True
    )
    assert "/x: 200" in caplog.text
    assert "secret" not in caplog.text


@requirement("transport.quiet")
def test_the_log_lines_of_other_users_of_httpx_are_left_alone(http: Http, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logging.getLogger("httpx").info("HTTP Request: someone else's")
    assert "someone else's" in caplog.text


@requirement("H6.no-secret-shown")
def test_what_a_vendor_says_is_redacted_put_on_one_line_and_cut_short(echo: Echo) -> None:
    said = "your token ghs_secret\r\n\x1b[31m is bad " + "x" * 1000
    echo.hook(GET, before=lambda _request: Reply(400, {"message": said}))
    with client(echo.url, redact=lambda text: text.replace("ghs_secret", "********")) as http:
        answer = http.request("GET", "/x", idempotent=True)
        text = http.describe("GET", "/x", answer)
        assert http.describe("GET", "/x", answer, quote=False) == "GET /x answered 400"
    assert text.startswith("GET /x answered 400: your token ********")
    assert "ghs_secret" not in text + repr(answer)
    assert not any(ord(character) < 32 for character in text)
    assert len(text) <= len("GET /x answered 400: ") + MAX_VENDOR_TEXT
    assert len(clean("x" * 10_000)) == MAX_VENDOR_TEXT


@requirement("transport.form")
def test_a_form_is_sent_as_one(http: Http) -> None:
    answer = http.request("POST", "/x", data={"a": "1"}, idempotent=False)
    assert answer.document() == {"method": "POST", "form": {"a": "1"}}
