"""What the gate lets pass about MCP servers and their grants, beside what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from agent_token_injector.gate import check
from agent_token_injector.policy import Policy
from tests.gate.good import NOW, spec_of
from tests.requirements import requirement


def codes(*changes: dict[str, Any]) -> list[str]:
    return [finding.code for finding in check(spec_of(*changes), Policy(), NOW).findings if finding.surface == "mcp"]


@requirement("mcp.url-plain")
@pytest.mark.parametrize(
    "url",
    [
        "https://mcp.example/mcp",
        "http://127.0.0.1:8000/mcp",
        "http://127.9.9.9/",
        "http://localhost/mcp",
        "http://[::1]:1/",
    ],
)
def test_a_server_over_tls_or_on_this_machine_is_accepted(url: str) -> None:
    assert codes({"mcp_servers.remote": {"url": url}}) == []


@requirement("mcp.secret-unknown")
def test_a_remote_server_may_be_given_what_the_handoff_has() -> None:
    oauth = {
        "token_url": "https://auth.example/token",
        "client_id": "INFISICAL_CLIENT_ID",
        "client_secret": "INFISICAL_CLIENT_SECRET",
    }
    server = {"url": "https://mcp.example/mcp", "headers": {"X-Api-Key": {"variable": "STRIPE_KEY", "prefix": "Key "}}}
    assert codes({"mcp_servers.remote": {**server, "oauth": oauth}}) == []


@requirement("mcp.resources-wide")
@pytest.mark.parametrize(
    "uri", ["memo://one", "docs://handbook/*", "docs://handbook*", "file:///srv/docs/*", "memo:x*", "urn:isbn:0*"]
)
def test_a_resource_by_name_or_narrow_prefix_is_accepted(uri: str) -> None:
    assert codes({"mcp_servers.github.allow": {"resources": [uri], "subscribe": True, "completion": True}}) == []


@requirement("mcp.limit", "mcp.log-credential", "mcp.format-place")
def test_a_grant_with_limits_logged_arguments_and_helper_formats_is_accepted() -> None:
    grant = {
        "name": "list_issues",
        "arguments": {"properties": {"repo": {"format": "repository"}, "path": {"format": "path-in-worktree"}}},
        "limits": {"calls": 10, "per_minute": 1},
        "log_arguments": ["title", "max_tokens", "path", "author"],
        "tasks": True,
        "input_required": True,
    }
    assert codes({"mcp_tools": [grant]}) == []


@requirement("mcp.remote-asks")
def test_a_server_on_this_machine_that_may_ask_is_not_warned_of() -> None:
    assert codes({"mcp_servers.github.allow": {"sampling": True, "elicitation": True, "roots": True}}) == []
