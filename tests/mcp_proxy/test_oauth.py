"""Client credentials, against an authorization server on loopback that checks what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.masking import MASK, Redactor
from agent_token_injector.mcp_proxy.oauth import TokenRefused, TokenSource
from agent_token_injector.mcp_proxy.servers import HttpServer, OAuthClient
from tests.mcp_proxy.harness import START, Rig, wait_until
from tests.mcp_proxy.test_control import READY, Scripted
from tests.requirements import requirement

SECRET = SecretStr("client secret/with:odd+characters%41")
CLIENT_ID = SecretStr("client:id")
RESOURCE = "https://MCP.example.com/mcp#part"


class Authority:
    """Answers token requests as it is told, and keeps them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.status = 200
        self.answer: Any = None
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                headers = {name.lower(): value for name, value in self.headers.items()}
                authority.asked.append((self.path, form, headers))
                usual = {"access_token": f"token-number-{len(authority.asked)}", "token_type": "bearer"}
                answer = authority.answer if authority.answer is not None else {**usual, "expires_in": 300}
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(authority.status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/oauth/token?tenant=a"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def authority() -> Iterator[Authority]:
    made = Authority()
    yield made
    made.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


def source(authority: Authority, clock: ManualClock, **more: Any) -> TokenSource:
    client = OAuthClient(authority.url, CLIENT_ID, SECRET, **more)
    return TokenSource(client, resource=RESOURCE, clock=clock, redact=Redactor([SECRET, CLIENT_ID]).text)


@requirement("mcp.oauth")
def test_a_token_is_asked_for_with_the_clients_credentials_for_this_resource(
    authority: Authority, clock: ManualClock
) -> None:
    token, seconds = source(authority, clock, scopes=("tools:read", "tools:call")).token()
    ((path, form, headers),) = authority.asked
    assert path == "/oauth/token?tenant=a"
    assert form == {
        "grant_type": ["client_credentials"],
        "scope": ["tools:read tools:call"],
        "resource": ["https://mcp.example.com/mcp"],
    }
    scheme, _, encoded = headers["authorization"].partition(" ")
    assert scheme == "Basic"
    # RFC 6749 §2.3.1: each of the two is form-encoded first.
    assert base64.b64decode(encoded).decode() == "client%3Aid:client%20secret%2Fwith%3Aodd%2Bcharacters%2541"
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert (token.get_secret_value(), seconds) == ("token-number-1", 270)


@requirement("mcp.oauth")
def test_a_token_is_kept_until_half_a_minute_before_its_end_and_a_fresh_one_on_demand(
    authority: Authority, clock: ManualClock
) -> None:
    tokens, asking = source(authority, clock), []

    def number(**more: Any) -> str:
        return tokens.token(before=lambda: asking.append(len(asking)), **more)[0].get_secret_value()[-1]

    assert number() == "1"
    clock.advance(timedelta(seconds=269))
    assert number() == "1"
    clock.advance(timedelta(seconds=1))
    assert number() == "2"
    assert number(fresh=True) == "3"
    assert number() == "3"
    assert asking == [0, 1, 2]


@requirement("mcp.oauth")
def test_a_token_of_unknown_or_excessive_life_is_kept_for_a_bounded_time(
    authority: Authority, clock: ManualClock
) -> None:
    for lives, kept in ((None, 30), (10**9, 3570), (30, 0), (0, 0), (-5, 0)):
        authority.answer = {"access_token": "t", "token_type": "Bearer"} | (
            {} if lives is None else {"expires_in": lives}
        )
        assert source(authority, clock).token()[1] == kept


@requirement("mcp.oauth")
@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, {"error": "invalid_client"}, "POST /oauth/token answered 401: invalid_client"),
        (400, {"error": f"no {SECRET.get_secret_value()}"}, f"answered 400: no {MASK}"),
        (302, {"access_token": "t", "token_type": "Bearer"}, "answered 302"),
        (500, b"", "answered 500"),
        (200, b"<html>", "not a bearer token"),
        (200, {"access_token": "t", "token_type": "mac"}, "not a bearer token"),
        (200, {"token_type": "Bearer"}, "not a bearer token"),
        (200, {"access_token": "t\r\nX-Evil: 1", "token_type": "Bearer"}, "no header can hold"),
        (200, {"access_token": "", "token_type": "Bearer"}, "no header can hold"),
    ],
)
def test_what_is_not_a_token_is_refused_once_and_without_a_secret(
    authority: Authority, clock: ManualClock, status: int, answer: Any, said: str
) -> None:
    authority.status, authority.answer = status, answer
    with pytest.raises(TokenRefused) as refused:
        source(authority, clock).token()
    assert said in str(refused.value)
    assert SECRET.get_secret_value() not in str(refused.value)
    assert len(authority.asked) == 1


@requirement("mcp.oauth")
def test_a_token_is_asked_for_nowhere_but_over_tls_or_on_loopback(clock: ManualClock) -> None:
    client = OAuthClient("http://auth.example.com/token", CLIENT_ID, SECRET)
    with pytest.raises(TokenRefused, match="not https"):
        TokenSource(client, resource=RESOURCE, clock=clock).token()


@requirement("mcp.oauth", "mcp.engine-questions")
def test_the_engine_gets_a_token_that_is_learnt_and_each_request_for_one_is_on_record(
    rig: Rig, authority: Authority
) -> None:
    server = HttpServer("far", "https://mcp.example.com/mcp", oauth=OAuthClient(authority.url, CLIENT_ID, SECRET))
    question = {"ask": {"id": 1, "kind": "oauth", "server": "far"}}
    again = {"ask": {"id": 2, "kind": "oauth", "server": "far"}}
    fresh = {"ask": {"id": 3, "kind": "oauth", "server": "far", "fresh": True}}
    scripted = Scripted(rig, {"say": [READY, question, again, fresh]}, servers=[server], secrets=[SECRET])
    scripted.start()
    wait_until(lambda: len(scripted.answers()) == 3, "all are answered")
    answers = scripted.answers()
    assert answers[1] == {"id": 1, "token": "token-number-1", "expires_in": 270, "learn": ["token-number-1"]}
    assert (answers[2]["token"], answers[3]["token"]) == ("token-number-1", "token-number-2")
    assert [(one.decision, one.target) for one in rig.events("oauth.token")] == [("allowed", "far")] * 2
    assert "token-number" not in rig.written()
    assert scripted.told[0]["servers"][0]["oauth"] is True
    assert SECRET.get_secret_value() not in json.dumps(scripted.told[0]["servers"])


@requirement("mcp.oauth", "D8.audit-before-forward")
def test_a_token_is_not_asked_for_when_that_cannot_be_put_on_record(impatient: Rig, authority: Authority) -> None:
    server = HttpServer("far", "https://mcp.example.com/mcp", oauth=OAuthClient(authority.url, CLIENT_ID, SECRET))
    question = {"ask": {"id": 1, "kind": "oauth", "server": "far"}}
    impatient.audit.add_secrets([SECRET])
    with impatient.audit_held():
        scripted = Scripted(impatient, {"say": [READY, question]}, servers=[server], secrets=[SECRET])
        scripted.start()
        wait_until(lambda: 1 in scripted.answers(), "it is answered")
    assert scripted.answers()[1]["audit"] is True
    assert authority.asked == []


@requirement("mcp.oauth")
def test_a_refused_token_is_on_record_and_the_engine_is_told_why_without_a_secret(
    rig: Rig, authority: Authority
) -> None:
    authority.status, authority.answer = 401, {"error": f"invalid_client {SECRET.get_secret_value()}"}
    server = HttpServer("far", "https://mcp.example.com/mcp", oauth=OAuthClient(authority.url, CLIENT_ID, SECRET))
    question = {"ask": {"id": 1, "kind": "oauth", "server": "far"}}
    scripted = Scripted(rig, {"say": [READY, question]}, servers=[server], secrets=[SECRET])
    scripted.start()
    wait_until(lambda: 1 in scripted.answers(), "it is answered")
    assert scripted.answers()[1] == {
        "id": 1,
        "failed": f"POST /oauth/token answered 401: invalid_client {MASK}",
        "audit": False,
    }
    assert [one.decision for one in rig.events("oauth.token")] == ["allowed", "failed"]
