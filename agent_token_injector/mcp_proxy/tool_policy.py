"""Which tools one handoff may call, and with which arguments: compiled once, decided per call.

Closed by default: a policy made of no grants allows nothing. Names are compared as they are, character by character;
nothing is folded, trimmed or normalised, so a look-alike is simply another name.

Pure: no clock, and no I/O but what the resolver of paths does that `resolve` is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.argument_formats import HelperFormats, RealPath, real_path
from agent_token_injector.mcp_proxy.argument_schema import SchemaError, Validator, compile_grant, compile_tool
from agent_token_injector.mcp_proxy.grants import Limits, Places
from agent_token_injector.mcp_proxy.lookalike_keys import has_twins
from agent_token_injector.mcp_proxy.param_headers import ParamHeaders
from agent_token_injector.mcp_proxy.pins import PINNED_FIELDS

_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}", re.ASCII)


class Reason(StrEnum):
    """Why an access was refused: the audit's reason codes. The agent is not told the first four apart."""

    UNKNOWN = "unknown"
    """No server has such a tool."""
    NOT_LISTED = "not-listed"
    """A server has it, and the handoff was not granted it."""
    EXCLUDED = "excluded"
    """`mcp_tools_excluded` names it."""
    WITHDRAWN = "withdrawn"
    """It was granted, and its definition is no longer the one that was granted."""
    ARGUMENTS = "arguments"
    """Outside what the grant allows."""
    TOOL_SCHEMA = "tool-schema"
    """Outside what the tool itself takes."""
    BUDGET = "budget"
    """It has been called as often as the grant allows."""
    RATE = "rate"
    """It was called as often as the grant allows within a minute."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """The call may go to `tool` on `server`. There is one for each granted tool, made with the policy.

    Attributes:
        name: the name under which the agent sees it.
        server, tool: where the call goes; `target` is both, as the audit writes them.
        tool_json: `tool` as JSON text.
        log_arguments: the arguments whose values the audit may hold.
        limits: how often it may be called; None where nothing is counted.
        tasks: whether it may answer with a task.
        input_required: whether it may ask for more input.
        definition: the tool as its server defines it, untouched.
        param_headers: the headers that its inputSchema asks for; None when it asks for none.
    """

    name: str
    server: str
    tool: str
    target: str
    tool_json: bytes = field(repr=False)
    log_arguments: tuple[str, ...]
    limits: Limits | None
    tasks: bool
    input_required: bool
    definition: Mapping[str, Any] = field(repr=False)
    param_headers: ParamHeaders | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Denied:
    """The call may not be made."""

    reason: Reason


Decision: TypeAlias = Allowed | Denied

_DENIED: Final[Mapping[Reason, Denied]] = {reason: Denied(reason) for reason in Reason}
_DENIED_ARGUMENTS: Final = _DENIED[Reason.ARGUMENTS]
_DENIED_TOOL_SCHEMA: Final = _DENIED[Reason.TOOL_SCHEMA]


class LimitsLike(Protocol):
    """`grants.Limits`, or the spec's own."""

    @property
    def calls(self) -> int | None: ...
    @property
    def per_minute(self) -> int | None: ...


class GrantLike(Protocol):
    """`grants.Grant`, or the spec's `ToolGrant`."""

    @property
    def name(self) -> str: ...
    @property
    def server(self) -> str | None: ...
    @property
    def tool(self) -> str | None: ...
    @property
    def arguments(self) -> Mapping[str, Any] | None: ...
    @property
    def limits(self) -> LimitsLike: ...
    @property
    def log_arguments(self) -> Sequence[str]: ...
    @property
    def tasks(self) -> bool: ...
    @property
    def input_required(self) -> bool: ...


class _Granted:
    __slots__ = ("allowed", "known", "narrowed", "own")

    def __init__(self, allowed: Allowed, own: Validator, narrowed: Validator | None) -> None:
        properties = allowed.definition["inputSchema"].get("properties")
        names = frozenset(properties) if isinstance(properties, Mapping) else frozenset()
        # Among names that do not fold alike there are no twins to look for.
        self.known = frozenset() if has_twins(names) else names
        self.allowed = allowed
        self.own = own
        self.narrowed = narrowed


@dataclass(frozen=True, slots=True, eq=False)
class ToolPolicy:
    """The tool allowlist of one handoff. Make one with `resolve`."""

    _granted: Mapping[str, _Granted] = field(repr=False)
    _excluded: frozenset[str]
    _offered: frozenset[str] = field(repr=False)
    _withdrawn: frozenset[str] = frozenset()

    @classmethod
    def resolve(
        cls,
        grants: Sequence[GrantLike],
        excluded: Sequence[str],
        offered: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        places: Places | None = None,
        resolver: RealPath = real_path,
    ) -> ToolPolicy:
        """Match the spec's grants with what the servers offer.

        A grant without server and tool is `<server>_<tool>`, or a tool's own name when exactly one server has it; when
        more than one tool fits it is ambiguous. What `excluded` names, in any of these forms, is excluded whoever
        grants it.

        Args:
            grants: the spec's `mcp_tools`.
            excluded: the spec's `mcp_tools_excluded`.
            offered: every server's tool definitions, as it listed them.
            places: what the helper formats of `arguments` speak of (argument_formats); without it the task has none.
            resolver: resolves an absolute path or raises OSError, at each decision on one.

        Raises:
            SpawnRefused: naming every grant that is unknown to every server, ambiguous, excluded, granted twice, not
                plain ASCII, whose schema cannot be relied on, or speaks of a place that the task does not have.
        """
        catalog = _catalog(offered)
        formats = HelperFormats(places or Places(), resolver)
        shut = frozenset(excluded)
        problems = [f"{name!r} in mcp_tools_excluded is not a tool's name" for name in excluded if not _is_name(name)]
        granted: dict[str, _Granted] = {}
        for grant in grants:
            try:
                one = _match(grant, shut, catalog, formats)
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
        return cls(granted, shut, seen)

    @property
    def tools(self) -> tuple[str, ...]:
        """The allowlist, in the order of the grants."""
        return tuple(self._granted)

    @property
    def allowed(self) -> Mapping[str, Allowed]:
        """What each tool of the allowlist is, by the name under which the agent sees it."""
        return MappingProxyType({name: one.allowed for name, one in self._granted.items()})

    def definitions(self) -> list[dict[str, Any]]:
        """The allowed tools as their servers define them: the fields that a pin is over, each untouched but for `name`.

        What no pin is over could change after the grant, and would be read by the agent all the same.
        """
        return [
            {
                **{field: one.allowed.definition[field] for field in PINNED_FIELDS if field in one.allowed.definition},
                "name": name,
            }
            for name, one in self._granted.items()
        ]

    def without(self, names: Collection[str]) -> ToolPolicy:
        """The same policy with these tools of the allowlist withdrawn; a call of one is denied as `withdrawn`."""
        gone = frozenset(names) & self._granted.keys()
        kept = {name: one for name, one in self._granted.items() if name not in gone}
        return ToolPolicy(kept, self._excluded, self._offered, self._withdrawn | gone)

    def decide(self, name: str, arguments: Mapping[str, Any]) -> Decision:
        """Whether the agent may call `name` with `arguments` (an absent object is an empty one)."""
        one = self._granted.get(name)
        if one is None:
            return self._why_not(name)
        # Two keys that a server may read as one are refused even where the grant says nothing about arguments.
        if not arguments.keys() <= one.known and has_twins(arguments):
            return _DENIED_ARGUMENTS
        if one.narrowed is not None and not one.narrowed.is_valid(arguments):
            return _DENIED_ARGUMENTS
        if not one.own.is_valid(arguments):
            return _DENIED_TOOL_SCHEMA
        return one.allowed

    def _why_not(self, name: str) -> Denied:
        if name in self._excluded:
            return _DENIED[Reason.EXCLUDED]
        if name in self._withdrawn:
            return _DENIED[Reason.WITHDRAWN]
        return _DENIED[Reason.NOT_LISTED if name in self._offered else Reason.UNKNOWN]


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


def _match(grant: GrantLike, excluded: frozenset[str], catalog: _Catalog, formats: HelperFormats) -> _Granted:
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
            narrowed = compile_grant(_plain(grant.arguments), formats)
        except SchemaError as error:
            raise SchemaError(f"has an `arguments` schema that cannot be used: {error}") from None
    allowed = Allowed(
        name=grant.name,
        server=server,
        tool=tool,
        target=f"{server}/{tool}",
        tool_json=json.dumps(tool).encode("ascii"),
        log_arguments=tuple(grant.log_arguments),
        limits=_counted(grant.limits),
        tasks=grant.tasks,
        input_required=grant.input_required,
        definition=definition,
        param_headers=ParamHeaders(own) or None,
    )
    return _Granted(allowed, own_validator, narrowed)


def _counted(limits: LimitsLike) -> Limits | None:
    if limits.calls is None and limits.per_minute is None:
        return None
    return Limits(limits.calls, limits.per_minute)


def _plain(value: Any) -> Any:
    """A mutable JSON copy of a document that may be frozen."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _target(grant: GrantLike, catalog: _Catalog) -> tuple[str, str]:
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
