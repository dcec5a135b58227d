"""What a client gets to see of a server's answer: the members that its method has, in the client's era. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.mcp_proxy.eras import (
    HANDSHAKE_VERSIONS,
    META_SERVER_INFO,
    STATELESS_VERSIONS,
    Era,
)
from agent_token_injector.mcp_proxy.methods import CACHEABLE, SERVER_REQUESTS

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.grants import ServerAllow

MAX_TTL_MS: Final = 300_000
MAX_INPUT_REQUESTS: Final = 32

_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "tools/call": ("content", "structuredContent", "isError"),
    "resources/read": ("contents",),
    "prompts/get": ("description", "messages"),
    "completion/complete": ("completion",),
    "resources/subscribe": (),
    "resources/unsubscribe": (),
    "logging/setLevel": (),
}
_NEEDED: Final[Mapping[str, tuple[str, type]]] = {
    "tools/call": ("content", list),
    "resources/read": ("contents", list),
    "prompts/get": ("messages", list),
    "completion/complete": ("completion", dict),
}


def result_type(value: Mapping[str, Any]) -> str:
    """`complete` where a result says nothing, as every server of the handshake era does."""
    kind = value.get("resultType", "complete")
    return kind if isinstance(kind, str) else ""


def complete(method: str, value: Any) -> dict[str, Any] | None:
    """The members of a complete result that its method has; None when it is not a result of that method."""
    if type(value) is not dict or ("_meta" in value and type(value["_meta"]) is not dict):
        return None
    members = _MEMBERS.get(method)
    if members is None:
        return {key: item for key, item in value.items() if key not in ("resultType", "ttlMs", "cacheScope")}
    needed = _NEEDED.get(method)
    if needed is not None and type(value.get(needed[0])) is not needed[1]:
        return None
    kept = {key: value[key] for key in members if key in value}
    if "_meta" in value:
        kept["_meta"] = value["_meta"]
    return kept


def input_required(value: Mapping[str, Any], allow: ServerAllow | None) -> dict[str, Any] | None:
    """A result that asks for more input, when every question in it is granted; None when it may not be passed on."""
    questions, state = value.get("inputRequests", {}), value.get("requestState")
    if type(questions) is not dict or len(questions) > MAX_INPUT_REQUESTS or not isinstance(state, str | None):
        return None
    for question in questions.values():
        field = SERVER_REQUESTS.get(str(question.get("method"))) if isinstance(question, dict) else None
        if field is None or allow is None or not getattr(allow, field):
            return None
    return {key: value[key] for key in ("inputRequests", "requestState") if key in value}


def in_era(
    era: Era,
    method: str,
    value: dict[str, Any],
    info: Mapping[str, Any],
    *,
    ttl_ms: int,
    kind: str = "complete",
) -> dict[str, Any]:
    """A result as the client's era spells it. What may be cached is private, for no longer than the handoff lives."""
    if era is Era.HANDSHAKE:
        return value
    shaped = {**value, "resultType": kind, "_meta": {**value.get("_meta", {}), META_SERVER_INFO: info}}
    if method in CACHEABLE and kind == "complete":
        shaped["ttlMs"] = min(MAX_TTL_MS, ttl_ms)
        shaped["cacheScope"] = "private"
    return shaped


def upstream_ttl(value: Mapping[str, Any]) -> int:
    """How long a server lets its answer be kept, in milliseconds."""
    ttl = value.get("ttlMs")
    return min(MAX_TTL_MS, max(0, ttl)) if type(ttl) is int else 0


def initialize_result(requested: Any, capabilities: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """What `initialize` is answered with: the version asked for, or the newest of its era, and only what is granted."""
    version = requested if requested in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]
    return {"protocolVersion": version, "capabilities": dict(capabilities), "serverInfo": dict(info)}


def discover_result(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """What `server/discover` declares, before it is spelled in its era: only what is granted."""
    return {"supportedVersions": list(STATELESS_VERSIONS), "capabilities": dict(capabilities)}
