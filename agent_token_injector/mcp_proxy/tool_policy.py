"""Which tools one handoff may call, and with which arguments: compiled once, decided per call.

Closed by default: a policy made of no grants allows nothing. Names are compared as they are, character by character;
nothing is folded, trimmed or normalised, so a look-alike is simply another name.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.argument_schema import SchemaError, Validator, compile_grant, compile_tool
from agent_token_injector.mcp_proxy.lookalike_keys import has_twins
from agent_token_injector.spec import ToolGrant, thaw

_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}", re.ASCII)


class Reason(StrEnum):
    """Why an access was refused: the audit's reason codes. The agent is not told the first three apart."""

    UNKNOWN = "unknown"
    """No server has such a tool."""
    NOT_LISTED = "not-listed"
    """A server has it, and the handoff was not granted it."""
    EXCLUDED = "excluded"
    """`mcp_tools_excluded` names it."""
    ARGUMENTS = "arguments"
    """Outside what the grant allows."""
    TOOL_SCHEMA = "tool-schema"
    """Outside what the tool itself takes."""
    METHOD = "method"
    MALFORMED = "malformed"
    HEADERS = "headers"
    DUPLICATE_ID = "duplicate-id"
    SESSION = "session"
    BUSY = "busy"
    UNAUTHENTICATED = "unauthenticated"
    EXPIRED = "expired"
    CLOSED = "closed"
    AUDIT = "audit-unavailable"


@dataclass(frozen=True, slots=True)
class Allowed:
    """The call may go to `tool` on `server`."""

    server: str
    tool: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The call may not be made."""

    reason: Reason


Decision: TypeAlias = Allowed | Denied


@dataclass(frozen=True, slots=True)
class _Granted:
    server: str
    tool: str
    definition: Mapping[str, Any] = field(repr=False)
    own: Validator = field(repr=False)
    narrowed: Validator | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """The tool allowlist of one handoff. Make one with `resolve`."""

    _granted: Mapping[str, _Granted]
    _excluded: frozenset[str]
    _offered: frozenset[str]

    @classmethod
    def resolve(
        cls,
        grants: Sequence[ToolGrant],
        excluded: Sequence[str],
        offered: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> ToolPolicy:
        """Match the spec's grants with what the servers offer.

        A grant without server and tool is `<server>_<tool>`, or a tool's own name when exactly one server has it; when
        more than one tool fits it is ambiguous. What `excluded` names, in any of these forms, is excluded whoever
        grants it.

        Args:
            grants: the spec's `mcp_tools`.
            excluded: the spec's `mcp_tools_excluded`.
            offered: every server's tool definitions, as it listed them.

        Raises:
            SpawnRefused: naming every grant that is unknown to every server, ambiguous, excluded, granted twice, not
                plain ASCII, or whose schema cannot be relied on.
        """
        catalog = _catalog(offered)
        shut = frozenset(excluded)
        problems = [f"{name!r} in mcp_tools_excluded is not a tool's name" for name in excluded if not _is_name(name)]
        granted: dict[str, _Granted] = {}
        for grant in grants:
            try:
                one = _match(grant, shut, catalog)
            except SchemaError as error:
                problems.append(f"{grant.name!r} {error}")
                continue
            if grant.name in granted:
                problems.append(f"{grant.name!r} is granted twice")
            granted[grant.name] = one
        if problems:
            raise SpawnRefused(
                f"{len(problems)} of the spec's tool grants cannot be honoured",
                cause="; ".join(problems),
                hint="mend mcp_tools or mcp_tools_excluded in the spec, and provision again",
            )
        seen = frozenset(name for server, tool in catalog for name in (tool, f"{server}_{tool}"))
        return cls(MappingProxyType(granted), shut, seen)

    @property
    def tools(self) -> tuple[str, ...]:
        """The allowlist, in the order of the grants."""
        return tuple(self._granted)

    def definitions(self) -> list[dict[str, Any]]:
        """The allowed tools as their servers define them, untouched but for `name`."""
        return [{**one.definition, "name": name} for name, one in self._granted.items()]

    def decide(self, name: str, arguments: Mapping[str, Any]) -> Decision:
        """Whether the agent may call `name` with `arguments` (an absent object is an empty one)."""
        one = self._granted.get(name)
        if one is None:
            if name in self._excluded:
                return Denied(Reason.EXCLUDED)
            return Denied(Reason.NOT_LISTED if name in self._offered else Reason.UNKNOWN)
        # Two keys that a server may read as one are refused even where the grant says nothing about arguments.
        if has_twins(arguments) or (one.narrowed is not None and not one.narrowed.is_valid(arguments)):
            return Denied(Reason.ARGUMENTS)
        if not one.own.is_valid(arguments):
            return Denied(Reason.TOOL_SCHEMA)
        return Allowed(one.server, one.tool)


_Catalog: TypeAlias = Mapping[tuple[str, str], Mapping[str, Any]]


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _catalog(offered: Mapping[str, Sequence[Mapping[str, Any]]]) -> _Catalog:
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for server, definitions in offered.items():
        for definition in definitions:
            tool = definition.get("name")
            if not isinstance(tool, str):
                raise SpawnRefused(f"MCP server {server!r} lists a tool without a name")
            if (server, tool) in found:
                raise SpawnRefused(
                    f"MCP server {server!r} lists {tool[:128]!r} twice",
                    cause="which of the two a grant means cannot be told",
                )
            found[server, tool] = definition
    return MappingProxyType(found)


def _match(grant: ToolGrant, excluded: frozenset[str], catalog: _Catalog) -> _Granted:
    if not _is_name(grant.name):
        raise SchemaError("is not a tool's name: ASCII letters, digits and _ . / - only, at most 128")
    server, tool = _target(grant, catalog)
    if not {grant.name, tool, f"{server}_{tool}"}.isdisjoint(excluded):
        raise SchemaError("is also excluded by mcp_tools_excluded, and an exclusion wins")
    definition = catalog[server, tool]
    own = definition.get("inputSchema")
    if not isinstance(own, Mapping):
        raise SchemaError(f"has no inputSchema on server {server!r}")
    try:
        own_validator = compile_tool(own)
    except SchemaError as error:
        raise SchemaError(f"has an inputSchema on server {server!r} that cannot be used: {error}") from None
    narrowed = None
    if grant.arguments is not None:
        try:
            narrowed = compile_grant(thaw(grant.arguments))
        except SchemaError as error:
            raise SchemaError(f"has an `arguments` schema that cannot be used: {error}") from None
    return _Granted(server, tool, definition, own_validator, narrowed)


def _target(grant: ToolGrant, catalog: _Catalog) -> tuple[str, str]:
    if grant.server is not None and grant.tool is not None:
        if (grant.server, grant.tool) not in catalog:
            raise SchemaError(f"means {grant.tool!r} of server {grant.server!r}, which has no such tool")
        return grant.server, grant.tool
    fitting = [(server, tool) for server, tool in catalog if grant.name in (tool, f"{server}_{tool}")]
    if not fitting:
        raise SchemaError("is unknown to every server")
    if len(fitting) > 1:
        readings = ", ".join(f"{tool!r} of {server!r}" for server, tool in sorted(fitting))
        raise SchemaError(f"is ambiguous: it could mean {readings}; name server and tool")
    return fitting[0]
