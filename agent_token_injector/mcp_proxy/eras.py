"""The two protocol eras that agents speak, and what each lets a client ask of this proxy.

Handshake era (2024-11-05 to 2025-11-25): `initialize`, a session, then requests that belong to it.
Stateless era (2026-07-28): every request carries its version in `params._meta` and repeats version, method and tool
name as headers. Headers are for routers; we decide on the body, and a request that disagrees with itself is refused.

Pure: no I/O. The numbers are those of the specification's revisions; tests hold them to the official SDK's own tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.param_headers import decode_header_value
from agent_token_injector.mcp_proxy.tool_policy import Reason

HANDSHAKE_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS_VERSIONS: Final = ("2026-07-28",)

HEADER_MISMATCH: Final = -32020
CAPABILITY_MISSING: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
HANDOFF_OVER: Final = -32001
"""Ours, in JSON-RPC's range for implementations: the handoff has expired, was revoked, or cannot be checked."""
CALL_ENDED: Final = -32000
"""Ours: the call was cancelled, or its server failed."""

META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
META_SERVER_INFO: Final = "io.modelcontextprotocol/serverInfo"

_STATUS: Final[Mapping[int, int]] = {
    wire.PARSE_ERROR: 400,
    wire.INVALID_REQUEST: 400,
    wire.INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    CAPABILITY_MISSING: 400,
    UNSUPPORTED_VERSION: 400,
    wire.METHOD_NOT_FOUND: 404,
}
NAMED: Final[Mapping[str, str]] = MappingProxyType(
    {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
)
"""The member of `params` that `Mcp-Name` repeats, by method."""


class Era(StrEnum):
    """Which of the two a request belongs to."""

    HANDSHAKE = "handshake"
    STATELESS = "stateless"


class Refused(Exception):
    """A request that is answered with an error. `reason` is for the audit; `code`, `message`, `data` are for the client."""

    def __init__(self, code: int, message: str, *, reason: str, data: Any = None, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.data = data
        self.status = status

    def http_status(self, era: Era | None) -> int:
        """The HTTP status: the stateless era maps codes to statuses, the handshake era answers 200 once it has parsed."""
        if self.status is not None:
            return self.status
        return status_of(self.code, era)


def status_of(code: int, era: Era | None) -> int:
    """The HTTP status of an error: the stateless era has one for some codes, the handshake era answers 200."""
    return 200 if era is Era.HANDSHAKE else _STATUS.get(code, 200)


class McpHeaders(NamedTuple):
    """The MCP headers of one HTTP request, blanks at their ends trimmed.

    Attributes:
        version, method, name, session: `MCP-Protocol-Version`, `Mcp-Method`, `Mcp-Name`, `Mcp-Session-Id`.
        params: the `Mcp-Param-*` headers, by their name without the prefix, in lower case.
        twice: one of all these that came more than once; then nothing else is said.
    """

    version: str | None = None
    method: str | None = None
    name: str | None = None
    session: str | None = None
    params: Mapping[str, str] = MappingProxyType({})
    twice: str | None = None


_ABSENT: Final = McpHeaders()


def era_of(message: wire.Request | wire.Notification, headers: McpHeaders | None) -> Era:
    """The era a message belongs to, after its headers were held against its body. Raises Refused.

    `headers` is None where there are none to hold against it (stdio).
    """
    said = _ABSENT if headers is None else headers
    if said.twice is not None:
        raise repeated(said.twice)
    _agree("Mcp-Method", said.method, message.method)
    name = NAMED.get(message.method)
    if name is not None and said.name is not None:
        decoded = decode_header_value(said.name)
        if decoded is None or decoded != message.params.get(name):
            raise mismatch("Mcp-Name")
    meta = message.params.get("_meta")
    declared = META_VERSION in meta if isinstance(meta, dict) else False
    if not declared and said.version not in STATELESS_VERSIONS and message.method != "server/discover":
        if said.version is not None and said.version not in HANDSHAKE_VERSIONS:
            raise _unsupported(said.version, HANDSHAKE_VERSIONS)
        return Era.HANDSHAKE
    if isinstance(message, wire.Request):
        _check_envelope(message, headers, meta)
    return Era.STATELESS


def _check_envelope(request: wire.Request, headers: McpHeaders | None, meta: Any) -> None:
    missing = [key for key in (META_VERSION, META_CAPABILITIES) if not isinstance(meta, dict) or key not in meta]
    if missing:
        raise Refused(
            wire.INVALID_PARAMS, f"params._meta is missing {', '.join(missing)}", reason=Reason.MALFORMED, status=400
        )
    version = meta[META_VERSION]
    if headers is not None:
        if headers.version is None or headers.version != version:
            raise mismatch("MCP-Protocol-Version")
        if headers.method is None:
            raise mismatch("Mcp-Method")
        name = NAMED.get(request.method)
        if name is not None and headers.name is None and request.params.get(name) is not None:
            raise mismatch("Mcp-Name")
    if not isinstance(version, str):
        raise Refused(wire.INVALID_PARAMS, f"{META_VERSION} is not a string", reason=Reason.MALFORMED, status=400)
    if version not in STATELESS_VERSIONS:
        raise _unsupported(version, STATELESS_VERSIONS)


def _agree(header: str, said: str | None, meant: Any) -> None:
    if said is not None and said != meant:
        raise mismatch(header)


def mismatch(header: str) -> Refused:
    """A header that does not say what the body says."""
    return Refused(
        HEADER_MISMATCH, f"{header} header does not match the request body", reason=Reason.HEADERS, status=400
    )


def repeated(header: str) -> Refused:
    """A header that came more than once, so that two readers could see two values."""
    return Refused(HEADER_MISMATCH, f"{header} header appears more than once", reason=Reason.HEADERS, status=400)


def _unsupported(version: str, supported: tuple[str, ...]) -> Refused:
    return Refused(
        UNSUPPORTED_VERSION,
        "Unsupported protocol version",
        reason=Reason.HEADERS,
        data={"supported": list(supported), "requested": version[:64]},
        status=400,
    )
