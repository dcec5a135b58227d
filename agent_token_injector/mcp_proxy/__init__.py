"""The MCP proxy: what stands between a hostile agent and every tool (D8).

Two processes. The control side, in the orchestrator, knows the handoff's standing and its vault; the engine, a process
of its own, reads what agents and servers say. A request's way through the engine, one module a step:

    http_front, stdio_front   who may ask: token, Host, Origin, form and size
    wire                      one strict reading of the message
    eras                      which protocol era it belongs to, and what that era may ask
    tool_policy, methods      may this be asked, with these arguments
    ledger                    may the handoff still act, and is the call on record
    relay                     the whole way, in that order, and the reply, masked
    links, upstream           the server: minted ids, over stdio (child, child_main) or HTTP

`proxy.McpProxy` is the face that the rest of the package uses; `control` is the channel between the two, `answers` what
the engine asks back (the built-in vault server's calls, OAuth tokens), `servers` what may stand behind the proxy.

Everything here is loaded when it is first used: the engine imports modules of this package, and must stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.proxy import McpProxy, list_tools
    from agent_token_injector.mcp_proxy.servers import BuiltinServer, HttpServer, StdioServer, places_of, servers_of
    from agent_token_injector.mcp_proxy.tool_policy import ToolPolicy

_HOME: Final = {
    "BuiltinServer": "servers",
    "HttpServer": "servers",
    "McpProxy": "proxy",
    "StdioServer": "servers",
    "ToolPolicy": "tool_policy",
    "list_tools": "proxy",
    "places_of": "servers",
    "servers_of": "servers",
}

__all__ = [
    "BuiltinServer",
    "HttpServer",
    "McpProxy",
    "StdioServer",
    "ToolPolicy",
    "list_tools",
    "places_of",
    "servers_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
