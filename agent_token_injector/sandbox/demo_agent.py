"""The agent of `handoff demo`: a real process that knows nothing but its environment, and tries what it was told to.

Started as `python -m agent_token_injector.sandbox.demo_agent PLAN`, where PLAN is a JSON array of calls
(`{"tool": ..., "arguments": {...}}`). It finds the MCP proxy by HANDOFF_MCP_URL and HANDOFF_MCP_TOKEN, speaks to it
with the official SDK's client, and prints one JSON line a step: what it sees, and how each call ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import httpx2
from mcp import MCPError
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def run(plan: list[dict[str, Any]]) -> None:
    """List the tools, then make each call of the plan in turn."""
    headers = {"Authorization": f"Bearer {os.environ['HANDOFF_MCP_TOKEN']}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as http:
        transport = streamable_http_client(os.environ["HANDOFF_MCP_URL"], http_client=http)
        async with Client(transport) as client:
            listed = await client.list_tools()
            _say({"event": "tools", "names": [tool.name for tool in listed.tools], "env": sorted(os.environ)})
            for call in plan:
                _say({"event": "call", **(await _try(client, call))})


async def _try(client: Client, call: dict[str, Any]) -> dict[str, Any]:
    try:
        result = await client.call_tool(call["tool"], call["arguments"])
    except MCPError as error:
        return {"tool": call["tool"], "outcome": "refused", "text": str(error)}
    text = " ".join(getattr(part, "text", "") for part in result.content)
    return {"tool": call["tool"], "outcome": "error" if result.is_error else "ok", "text": text[:2000]}


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
