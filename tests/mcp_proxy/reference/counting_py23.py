"""A small server on the 2.3 line of the Python SDK that writes down each tool call that reaches it.

python counting_py23.py stdio|http. COUNTING_LOG names the file: one JSON line a call, {"name", "arguments"}, before the
call is answered. Over HTTP the first line of stdout is {"port": N}; the address is http://127.0.0.1:N/mcp.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


async def list_tools(
    ctx: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    return types.ListToolsResult(
        tools=[types.Tool(name=name, description=name, input_schema=SCHEMA) for name in ("echo", "forbidden")]
    )


def count(params: types.CallToolRequestParams) -> None:
    with Path(os.environ["COUNTING_LOG"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"name": params.name, "arguments": params.arguments}) + "\n")


async def call_tool(ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    count(params)
    text = str((params.arguments or {}).get("text", ""))
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


def make() -> Server[Any]:
    return Server("counting", version="1.0", on_list_tools=list_tools, on_call_tool=call_tool)


async def serve_stdio() -> None:
    server = make()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
        config = uvicorn.Config(make().streamable_http_app(), log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve_http() if sys.argv[1:] == ["http"] else anyio.run(serve_stdio)
