"""A server made with the official SDK: `sdk_server.py stdio`, or `sdk_server.py http PORT [json] [stateless]`."""

import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("sdk")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
async def count(to: int, ctx: Context) -> str:
    """Count, and report progress."""
    for step in range(to):
        await ctx.report_progress(step + 1, to)
    return "counted"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run()
    else:
        server.run(
            "streamable-http",
            host="127.0.0.1",
            port=int(sys.argv[2]),
            json_response="json" in sys.argv,
            stateless_http="stateless" in sys.argv,
        )
