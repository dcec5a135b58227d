"""The client of the Python SDK's 1.30 line, against the address in argv with the token in TOKEN; says what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import httpx
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client


async def main(url: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=30) as http,
        streamable_http_client(url, http_client=http) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        echo = await session.call_tool("echo", {"text": "hi"})
        try:
            await session.call_tool("merge", {})
        except McpError as error:
            refused = error.error.code
        else:
            refused = 0
        print(json.dumps({"tools": tools, "echo": echo.content[0].text, "refused": refused}))


asyncio.run(main(sys.argv[1]))
