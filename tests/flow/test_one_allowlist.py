"""One allowlist (D9): what the spec grants, what the context says, and what the proxy lists and allows are the same."""

from __future__ import annotations

import json

import httpx

from agent_token_injector.context import HandoffContext
from agent_token_injector.session_context import SessionContext
from agent_token_injector.spawn import spawn_handoff
from tests.flow.rig import HANDOFF, provisioned
from tests.requirements import requirement
from tests.world import World


def ask(context: SessionContext, method: str, params: dict[str, object]) -> dict[str, object]:
    """One request to the proxy, as a client that shook hands would make it."""
    env = context.reveal_env()
    headers = {
        "Authorization": f"Bearer {env['HANDOFF_MCP_TOKEN']}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-11-25",
    }
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    with httpx.Client(headers=headers, trust_env=False) as http:
        greeting = http.post(
            env["HANDOFF_MCP_URL"], json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        )
        session = {"Mcp-Session-Id": greeting.headers["mcp-session-id"]}
        http.post(
            env["HANDOFF_MCP_URL"], json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session
        )
        answer = http.post(
            env["HANDOFF_MCP_URL"],
            json={"jsonrpc": "2.0", "id": 2, "method": method, "params": params},
            headers=session,
        )
    document: dict[str, object] = json.loads(answer.text)
    return document


@requirement("D9.one-allowlist")
def test_the_spec_the_context_and_the_proxy_name_the_same_tools(world: World, ctx: HandoffContext) -> None:
    manifest = provisioned(world, ctx)
    seen: list[SessionContext] = []
    with spawn_handoff(HANDOFF, seen.append, ctx=ctx):
        context = seen[0]
        listed = ask(context, "tools/list", {})["result"]
        assert isinstance(listed, dict)
        granted = tuple(grant.name for grant in manifest.read_spec().mcp_tools)
        assert tuple(tool["name"] for tool in listed["tools"]) == context.mcp_tools == granted
        assert context.to_json()["mcp_tools"] == list(granted)
        for name in context.mcp_tools_excluded:
            refused = ask(context, "tools/call", {"name": name, "arguments": {}})
            assert refused["error"] == {"code": -32602, "message": f"Unknown tool: {name}"}
