"""What surrounds a request's meaning: its `_meta` and its members.

Of a client's `_meta` only what is listed here goes on, written anew; identity is never taken from it. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.calls import granted_capabilities
from agent_token_injector.mcp_proxy.eras import META_CAPABILITIES, META_CLIENT_INFO, META_VERSION, Refused
from agent_token_injector.mcp_proxy.tool_policy import Reason

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.grants import ServerAllow

META_LOG_LEVEL: Final = "io.modelcontextprotocol/logLevel"
PROGRESS: Final = "progressToken"
MAX_META_TEXT: Final = 1024
_TRACE: Final = ("traceparent", "tracestate", "baggage")
"""W3C trace context, as the specification carries it in `_meta`."""


def check_members(params: Mapping[str, Any], allowed: Collection[str]) -> dict[str, Any]:
    """The request's `_meta`, after its members were held against those that its method has. Raises Refused."""
    meta = params.get("_meta")
    if type(meta) is not dict:
        if meta is not None or "_meta" in params:
            raise invalid_params()
        meta = {}
    for key in params:
        if key not in allowed and key != "_meta":
            raise invalid_params()
    return meta


def invalid_params() -> Refused:
    """The refusal of parameters that are not those of the method."""
    return Refused(wire.INVALID_PARAMS, "Invalid params", reason=Reason.MALFORMED)


def progress_token(meta: Mapping[str, Any]) -> wire.MessageId | None:
    """The client's own progress token; None when it wants no progress, or a token that is none."""
    token = meta.get(PROGRESS)
    if type(token) is int and abs(token) <= wire.MAX_EXACT_INT:
        return token
    return token if isinstance(token, str) and len(token) <= wire.MAX_ID else None


def forwarded_meta(
    meta: Mapping[str, Any],
    *,
    minted: int,
    version: str | None,
    info: Mapping[str, Any],
    allow: ServerAllow | None,
) -> dict[str, Any]:
    """The `_meta` that a server is sent; `version` is the stateless link's own, None in the handshake era."""
    sent: dict[str, Any] = {}
    if progress_token(meta) is not None:
        sent[PROGRESS] = minted
    for key in _TRACE:
        text = meta.get(key)
        if isinstance(text, str) and len(text) <= MAX_META_TEXT and text.isprintable() and text.isascii():
            sent[key] = text
    if version is not None:
        declared = meta.get(META_CAPABILITIES)
        sent[META_VERSION] = version
        sent[META_CLIENT_INFO] = info
        sent[META_CAPABILITIES] = granted_capabilities(declared if isinstance(declared, dict) else {}, allow)
        level = meta.get(META_LOG_LEVEL)
        if allow is not None and allow.logging and isinstance(level, str) and level in LOG_LEVELS:
            sent[META_LOG_LEVEL] = level
    return sent


LOG_LEVELS: Final = frozenset({"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"})
