"""The emulated GitHub enforces what a handoff relies on."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent_token_injector.clock import ManualClock
from agent_token_injector.sandbox.github import SandboxGitHub
from agent_token_injector.sandbox.http_server import digest
from agent_token_injector.transport import Response, client
from tests.requirements import requirement

START = datetime(2026, 6, 20, 12, 0, tzinfo=UTC)
REPO = "/repos/raxx/TradeMasterAPI"
CONTENT = base64.b64encode(b"hello").decode()


class Caller:
    """Speaks to the emulator as an App and with tokens."""

    def __init__(self, github: SandboxGitHub) -> None:
        self.github = github

    def ask(self, verb: str, path: str, bearer: str | None = None, body: Any = None) -> Response:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        with client(self.github.url) as http:
            return http.request(verb, path, headers=headers, json=body, idempotent=False)

    def app_jwt(self, *, key: str | None = None, algorithm: str = "RS256", **claims: Any) -> str:
        now = int(self.github.clock.now().timestamp())
        return jwt.encode(
            {"iss": self.github.client_id, "iat": now - 60, "exp": now + 540, **claims},
            key or self.github.private_key.get_secret_value(),
            algorithm=algorithm,
        )

    def mint(self, bearer: str | None = None, **body: Any) -> Response:
        path = f"/app/installations/{self.github.installation_id}/access_tokens"
        return self.ask("POST", path, bearer or self.app_jwt(), body)

    def token(self, **permissions: str) -> str:
        answer = self.mint(repositories=["TradeMasterAPI"], permissions=permissions or {"contents": "write"})
        return str(answer.json()["token"])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def github(clock: ManualClock) -> Iterator[Caller]:
    with SandboxGitHub(clock, repositories=("TradeMasterAPI", "Other")) as emulator:
        yield Caller(emulator)
        assert not emulator.failures


@requirement("sandbox.github.app-jwt")
def test_an_app_jwt_is_checked_for_signature_issuer_and_times(github: Caller) -> None:
    now = int(START.timestamp())
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = stranger.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    for bearer in (
        github.app_jwt(key=pem),
        github.app_jwt(iss="Iv1.other"),
        github.app_jwt(exp=now - 1),
        github.app_jwt(exp=now + 601),
        github.app_jwt(iat=now + 30),
        github.app_jwt(exp="soon"),
        github.app_jwt(key="x" * 32, algorithm="HS256"),
        "no-jwt",
    ):
        assert github.mint(bearer, repositories=["TradeMasterAPI"]).status == 401
    assert github.mint(github.app_jwt(iss=str(github.github.app_id)), repositories=["TradeMasterAPI"]).status == 201


@requirement("sandbox.github.ceiling")
def test_a_token_is_never_wider_than_the_installation(github: Caller) -> None:
    for permissions in ({"administration": "read"}, {"contents": "admin"}, {"metadata": "write"}, {"contents": "x"}):
        assert github.mint(repositories=["TradeMasterAPI"], permissions=permissions).status == 422
    assert github.mint(repositories=["Nowhere"], permissions={"contents": "read"}).status == 422
    assert github.github.live_credentials() == ()


@requirement("sandbox.github.token")
def test_a_token_has_the_present_format_lives_an_hour_and_dies_when_deleted(github: Caller, clock: ManualClock) -> None:
    first, second = github.token(), github.token()
    assert re.fullmatch(r"ghs_[A-Za-z0-9._-]{500,560}", first)
    assert github.github.live_credentials() == tuple(sorted((digest(first), digest(second))))
    assert github.ask("DELETE", "/installation/token", first).status == 204
    assert github.ask("DELETE", "/installation/token", first).status == 401
    assert github.ask("GET", "/installation/repositories", first).status == 401
    assert github.ask("GET", "/installation/repositories", second).status == 200
    clock.advance(timedelta(hours=1))
    assert github.ask("GET", "/installation/repositories", second).status == 401
    assert github.ask("GET", "/installation/repositories", "ghs_unknown").status == 401
    assert github.ask("GET", "/installation/repositories").status == 401
    assert github.github.live_credentials() == ()


@requirement("sandbox.github.scope")
def test_a_token_reaches_its_repository_only(github: Caller) -> None:
    token = github.token()
    assert github.ask("GET", REPO, token).status == 200
    assert github.ask("GET", "/repos/raxx/Other", token).status == 404
    assert github.ask("GET", "/repos/raxx/Nowhere", token).status == 404
    listed = github.ask("GET", "/installation/repositories", token).json()
    assert [found["full_name"] for found in listed["repositories"]] == ["raxx/TradeMasterAPI"]


@requirement("sandbox.github.scope")
def test_a_token_does_what_its_permissions_allow(github: Caller) -> None:
    reader, writer = github.token(contents="read"), github.token(contents="write", pull_requests="write")
    sha = github.ask("GET", f"{REPO}/branches/main", reader).json()["commit"]["sha"]
    branch = {"ref": "refs/heads/feature", "sha": sha}
    file = {"message": "add", "content": CONTENT, "branch": "feature"}
    pull = {"title": "Add", "head": "feature", "base": "main"}
    assert github.ask("POST", f"{REPO}/git/refs", reader, branch).status == 403
    assert github.ask("POST", f"{REPO}/git/refs", writer, branch).status == 201
    assert github.ask("PUT", f"{REPO}/contents/a.txt", reader, file).status == 403
    assert github.ask("PUT", f"{REPO}/contents/a.txt", writer, file).status == 201
    assert github.ask("PUT", f"{REPO}/contents/a.txt", writer, file).status == 200
    assert github.ask("PUT", f"{REPO}/contents/.github/workflows/x.yml", writer, file).status == 403
    assert github.ask("GET", f"{REPO}/contents/a.txt?ref=feature", reader).json()["content"] == CONTENT
    assert github.ask("POST", f"{REPO}/pulls", reader, pull).status == 403
    assert github.ask("POST", f"{REPO}/pulls", writer, {**pull, "head": "nowhere"}).status == 422
    assert github.ask("POST", f"{REPO}/pulls", writer, {**pull, "title": ""}).status == 422
    number = github.ask("POST", f"{REPO}/pulls", writer, pull).json()["number"]
    assert [found["number"] for found in github.ask("GET", f"{REPO}/pulls", writer).json()] == [number]
    assert github.ask("GET", f"{REPO}/pulls/{number}", writer).json()["state"] == "open"
    comments = f"{REPO}/issues/{number}/comments"
    assert github.ask("POST", comments, reader, {"body": "done"}).status == 403
    assert github.ask("POST", comments, writer, {"body": "done"}).status == 201
    assert github.ask("POST", comments, writer, {}).status == 422
    assert github.ask("POST", comments, github.token(issues="write"), {"body": "too"}).status == 201
    assert [found["body"] for found in github.ask("GET", comments, writer).json()] == ["done", "too"]
    for beyond in ("actions/secrets", "hooks", "actions/workflows", "collaborators"):
        assert github.ask("GET", f"{REPO}/{beyond}", writer).status == 403


@requirement("sandbox.github.rulesets")
def test_a_protected_branch_takes_neither_a_push_nor_an_unreviewed_merge(github: Caller) -> None:
    token = github.token(contents="write", pull_requests="write")
    push = {"message": "add", "content": CONTENT, "branch": "main"}
    assert github.ask("PUT", f"{REPO}/contents/a.txt", token, push).status == 409
    sha = github.ask("GET", f"{REPO}/branches/main", token).json()["commit"]["sha"]
    github.ask("POST", f"{REPO}/git/refs", token, {"ref": "refs/heads/f", "sha": sha})
    github.ask("POST", f"{REPO}/pulls", token, {"title": "T", "head": "f", "base": "main"})
    assert github.ask("PUT", f"{REPO}/pulls/1/merge", token, {}).status == 405
    (rule, *_) = github.ask("GET", f"{REPO}/rules/branches/main", token).json()
    assert rule["parameters"]["required_approving_review_count"] == 1
    github.github.unprotect("raxx/TradeMasterAPI")
    assert github.ask("PUT", f"{REPO}/pulls/1/merge", token, {}).status == 200
    assert github.ask("PUT", f"{REPO}/contents/a.txt", token, push).status == 201


@requirement("sandbox.github.rulesets")
def test_a_ruleset_that_demands_no_approval_lets_a_token_merge_its_own_pull_request(github: Caller) -> None:
    token = github.token(contents="write", pull_requests="write")
    github.github.unprotect("raxx/TradeMasterAPI")
    github.github.protect("raxx/TradeMasterAPI", "main", approvals=0)
    (rule, *_) = github.ask("GET", f"{REPO}/rules/branches/main", token).json()
    assert rule["parameters"]["required_approving_review_count"] == 0
    push = {"message": "add", "content": CONTENT, "branch": "main"}
    assert github.ask("PUT", f"{REPO}/contents/a.txt", token, push).status == 409
    sha = github.ask("GET", f"{REPO}/branches/main", token).json()["commit"]["sha"]
    github.ask("POST", f"{REPO}/git/refs", token, {"ref": "refs/heads/f", "sha": sha})
    github.ask("POST", f"{REPO}/pulls", token, {"title": "T", "head": "f", "base": "main"})
    assert github.ask("PUT", f"{REPO}/pulls/1/merge", token, {}).status == 200


@requirement("sandbox.github.token")
def test_a_suspended_installation_stops_every_token(github: Caller) -> None:
    token = github.token()
    github.github.suspended = True
    assert github.ask("GET", REPO, token).status == 403
    assert github.mint(repositories=["TradeMasterAPI"]).status == 403
    assert github.github.live_credentials() == ()


@requirement("sandbox.github.errors")
def test_nonsense_is_refused_in_githubs_words(github: Caller) -> None:
    token = github.token(contents="write", pull_requests="write", issues="write")
    assert github.ask("GET", "/nowhere").json()["message"] == "Not Found"
    assert github.ask("GET", f"/app/installations/{1}", github.app_jwt()).status == 404
    assert github.ask("POST", f"{REPO}/pulls", token, ["a", "list"]).status == 400
    assert github.ask("GET", f"{REPO}/branches/nowhere", token).json()["message"] == "Branch not found"
    assert github.ask("GET", f"{REPO}/rulesets/1", token).status == 404
    assert github.ask("GET", f"{REPO}/pulls/9", token).status == 404
    assert github.ask("POST", f"{REPO}/issues/9/comments", token, {"body": "x"}).status == 404
