"""A small server on the 1.30 line of the Python SDK that writes down each tool call that reaches it.

python counting_py130.py stdio|http, with the interpreter of that environment. COUNTING_LOG names the file: one JSON line a
call, {"name", "arguments"}, before the call is answered. Over HTTP the first line of stdout is {"port": N}; the address is
http://127.0.0.1:N/mcp.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.routing import Mount

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}

server: Server[Any, Any] = Server("counting", version="1.0")


@server.list_tools()
async def list_tools() -> list[types.Tool]:
    return [types.Tool(name=name, description=name, inputSchema=SCHEMA) for name in ("echo", "forbidden")]


def count(name: str, arguments: dict[str, Any]) -> None:
    with Path(os.environ["COUNTING_LOG"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps({"name": name, "arguments": arguments}) + "\n")


@server.call_tool(validate_input=False)
async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
    count(name, arguments)
    return [types.TextContent(type="text", text=str(arguments.get("text", "")))]


async def serve_stdio() -> None:
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_http() -> None:
    manager = StreamableHTTPSessionManager(server)
    app = Starlette(routes=[Mount("/", manager.handle_request)], lifespan=lambda _: manager.run())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve_http() if sys.argv[1:] == ["http"] else anyio.run(serve_stdio)
