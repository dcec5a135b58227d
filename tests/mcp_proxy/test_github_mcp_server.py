"""The sandbox's GitHub MCP server behind the proxy, against the sandbox's GitHub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import httpx
import jwt
import pytest
from pydantic import SecretStr

from agent_token_injector.mcp_proxy import StdioServer
from agent_token_injector.sandbox.github import SandboxGitHub
from tests.mcp_proxy.harness import RawClient, Rig
from tests.requirements import requirement

SERVER = (sys.executable, "-m", "agent_token_injector.sandbox.github_mcp_server")
GRANTS = [
    {
        "name": "github_pr_create",
        "server": "github",
        "tool": "create_pull_request",
        "arguments": {"properties": {"owner": {"const": "raxx"}, "base": {"const": "main"}}, "required": ["owner"]},
    },
    {"name": "github_pr_comment", "server": "github", "tool": "add_issue_comment"},
    "list_pull_requests",
]


@pytest.fixture
def github(rig: Rig) -> Iterator[SandboxGitHub]:
    with SandboxGitHub(rig.clock) as made:
        made.repositories["raxx/trademasterapi"].branches["feature"] = {}
        yield made


def installation_token(github: SandboxGitHub, rig: Rig) -> SecretStr:
    now = rig.clock.now()
    claims = {"iat": now, "exp": now + timedelta(minutes=5), "iss": github.client_id}
    key = github.private_key.get_secret_value()
    response = httpx.post(
        f"{github.url}/app/installations/{github.installation_id}/access_tokens",
        headers={"Authorization": f"Bearer {jwt.encode(claims, key, algorithm='RS256')}"},
        json={"repositories": ["TradeMasterAPI"], "permissions": {"contents": "write", "pull_requests": "write"}},
    )
    return SecretStr(response.json()["token"])


@requirement("mcp.github-server")
def test_the_agent_opens_a_pull_request_through_the_proxy_and_never_sees_the_token(
    rig: Rig, github: SandboxGitHub
) -> None:
    token = installation_token(github, rig)
    env: dict[str, str | SecretStr] = {"GITHUB_API_URL": github.url, "GITHUB_PERSONAL_ACCESS_TOKEN": token}
    proxy = rig.start(GRANTS, servers=[StdioServer("github", SERVER, env=env)], secrets=[token])
    client = RawClient(proxy.url)
    client.initialize()
    assert proxy.tools == ("github_pr_create", "github_pr_comment", "list_pull_requests")
    where = {"owner": "raxx", "repo": "TradeMasterAPI"}

    opened = client.call("github_pr_create", {**where, "title": "Checkout", "head": "feature", "base": "main"})
    number = json.loads(opened.text)["number"]
    client.call("github_pr_comment", {**where, "issue_number": number, "body": "done"})
    listed = client.call("list_pull_requests", where)
    assert [pull["title"] for pull in json.loads(listed.text)] == ["Checkout"]
    repository = github.repositories["raxx/trademasterapi"]
    assert [pull.title for pull in repository.pulls] == ["Checkout"]
    assert repository.comments

    elsewhere = client.call("github_pr_create", {**where, "title": "x", "head": "feature", "base": "production"})
    assert elsewhere.error["message"] == "Arguments are not allowed for this handoff: github_pr_create"
    for hidden in ("merge_pull_request", "delete_repository", "github_merge_pull_request"):
        assert client.call(hidden, {**where, "pull_number": number}).error["message"] == f"Unknown tool: {hidden}"
    assert len(repository.pulls) == 1
    assert repository.pulls[0].state == "open"


@requirement("mcp.github-server")
def test_what_github_refuses_is_the_tools_error(rig: Rig, github: SandboxGitHub) -> None:
    env: dict[str, str | SecretStr] = {
        "GITHUB_API_URL": github.url,
        "GITHUB_PERSONAL_ACCESS_TOKEN": SecretStr("ghs_of_nobody"),
    }
    client = RawClient(rig.start(["list_pull_requests"], servers=[StdioServer("github", SERVER, env=env)]).url)
    client.initialize()
    answer = client.call("list_pull_requests", {"owner": "raxx", "repo": "TradeMasterAPI"})
    assert answer.json["result"]["isError"] is True
    assert "GitHub answered 401" in answer.text
    for owner in ("..", "a/b", "."):
        bad = client.call("list_pull_requests", {"owner": owner, "repo": "TradeMasterAPI"})
        assert bad.error["message"].startswith("Arguments do not fit")


@requirement("mcp.github-server")
def test_without_its_two_variables_it_says_which_is_missing() -> None:
    done = subprocess.run(SERVER, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "GITHUB_API_URL is not set\n")
