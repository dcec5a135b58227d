"""From a spec's MCP servers to what the proxy starts and calls: each with the secrets granted to it, and no others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy import BuiltinServer, HttpServer, StdioServer, places_of, servers_of
from agent_token_injector.mcp_proxy.servers import allow_of
from tests.flow.rig import ID, spec_of
from tests.requirements import requirement
from tests.world import World

SECRETS = {
    "INFISICAL_CLIENT_ID": SecretStr("the-id"),
    "INFISICAL_CLIENT_SECRET": SecretStr("the-secret-of-the-identity"),
    "GH_TOKEN": SecretStr("ghs_OfThisHandoffAlone0001"),
}
FAR: dict[str, Any] = {
    "url": "https://mcp.example.com/mcp",
    "headers": {"X-Key": "GH_TOKEN", "Authorization": {"variable": "GH_TOKEN", "prefix": "Bearer "}},
    "protocol": "2025-11-25",
    "allow": {"logging": True},
}


def servers(world: World, ctx: HandoffContext, **named: dict[str, Any]) -> list[Any]:
    return servers_of(spec_of(world, "github", mcp_servers=named), SECRETS, ctx, ID)


@requirement("mcp.server-secrets", "D7.secrets-not-in-repr")
def test_each_server_gets_what_was_granted_to_it_and_shows_none_of_it(world: World, ctx: HandoffContext) -> None:
    near = {"command": [sys.executable, "-V"], "env": {"TOKEN": "GH_TOKEN"}, "plain_env": {"MODE": "x"}}
    made = servers(world, ctx, near=near, far=FAR, infisical={"builtin": "vault"})
    http, vault, stdio = made  # by name, as a spec's canonical form has them
    assert isinstance(stdio, StdioServer)
    assert stdio.to_plain()["env"] == {"TOKEN": "ghs_OfThisHandoffAlone0001", "MODE": "x"}
    assert stdio.cwd is None
    assert isinstance(http, HttpServer)
    assert http.to_plain() == {
        "kind": "http",
        "name": "far",
        "url": "https://mcp.example.com/mcp",
        "headers": {"X-Key": "ghs_OfThisHandoffAlone0001", "Authorization": "Bearer ghs_OfThisHandoffAlone0001"},
        "oauth": False,
        "protocol": "2025-11-25",
    }
    assert isinstance(vault, BuiltinServer)
    assert not [value for value in SECRETS.values() if value.get_secret_value() in repr(made)]


@requirement("mcp.server-secrets", "mcp.oauth")
def test_a_servers_oauth_client_stays_on_this_side(world: World, ctx: HandoffContext) -> None:
    oauth = {
        "token_url": "https://auth.example.com/token",
        "client_id": "INFISICAL_CLIENT_ID",
        "client_secret": "INFISICAL_CLIENT_SECRET",
        "scopes": ["tools:call"],
    }
    (server,) = servers(world, ctx, far={"url": "https://mcp.example.com/mcp", "oauth": oauth})
    assert server.oauth.client_secret.get_secret_value() == "the-secret-of-the-identity"
    assert (server.oauth.token_url, server.oauth.scopes) == ("https://auth.example.com/token", ("tools:call",))
    assert server.to_plain()["oauth"] is True
    assert "the-secret-of-the-identity" not in str(server.to_plain()) + repr(server)


@requirement("mcp.server-secrets")
def test_a_command_or_a_variable_that_is_not_there_is_refused_by_name(world: World, ctx: HandoffContext) -> None:
    with pytest.raises(SpawnRefused, match="'no-such-server' is not found"):
        servers(world, ctx, near={"command": ["no-such-server"]})
    spec = spec_of(world, "github", mcp_servers={"far": FAR})
    with pytest.raises(SpawnRefused, match="'far' needs GH_TOKEN"):
        servers_of(spec, {}, ctx, ID)


@requirement("mcp.server-secrets")
def test_what_a_server_may_and_where_the_task_is_at_home_come_from_the_spec(world: World, tmp_path: Path) -> None:
    spec = spec_of(world, "github", mcp_servers={"far": FAR, "infisical": {"builtin": "vault"}})
    assert {name: one["logging"] for name, one in allow_of(spec).items()} == {"far": True, "infisical": False}
    assert spec.surfaces.github is not None
    places = places_of(spec, tmp_path)
    assert (places.worktree, places.repository) == (str(tmp_path), spec.surfaces.github.repository)
    assert places.branches == spec.surfaces.github.push_branches
    assert places_of(spec_of(world)).repository is None


@requirement("mcp.path-in-worktree")
def test_a_worktree_that_is_everything_is_none_and_the_operators_branches_are_protected(world: World) -> None:
    spec = spec_of(world, "github")
    assert places_of(spec, Path("/tmp/..")).worktree is None
    places = places_of(spec, protected=("launch",))
    assert {"main", "master", "launch"} <= set(places.protected)
