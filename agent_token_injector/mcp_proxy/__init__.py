"""The MCP proxy: what stands between a hostile agent and every tool (D8).

A request's way, one module a step:

    http_face     who may ask: token, Host, Origin, form and size
    wire          one strict reading of the message
    eras          which protocol era it belongs to, and what that era may ask
    tool_policy   may this tool be called with these arguments (argument_schema,
                  lookalike_keys)
    ledger        may the handoff still act, and is the call on record
    sessions      the calls in flight, and what ends them early
    upstream      the server: minted ids, its process (child, child_main), or ours (servers, vault_server)
    relay         the whole way, in that order, and the reply, masked by known_secrets

`proxy.McpProxy` is the face that the rest of the package uses.
"""

from __future__ import annotations

from agent_token_injector.mcp_proxy.proxy import McpProxy
from agent_token_injector.mcp_proxy.servers import BuiltinServer, StdioServer
from agent_token_injector.mcp_proxy.tool_policy import ToolPolicy
from agent_token_injector.mcp_proxy.vault_server import vault_server

__all__ = ["BuiltinServer", "McpProxy", "StdioServer", "ToolPolicy", "vault_server"]
