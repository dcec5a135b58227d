"""`Mcp-Param-*`: arguments of a tool call that are repeated as HTTP headers (MCP 2026-07-28, SEP-2243).

A tool asks for it with `x-mcp-header` on a property of its inputSchema. The headers are for routers on the way; nothing
here is decided on them. A request whose headers say something else than its body is refused, and what goes on to a
server is made from the judged body.

Pure: no I/O, imports nothing of ours. Tests hold it to the official SDK's functions.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

PREFIX: Final = "Mcp-Param-"
ANNOTATION: Final = "x-mcp-header"

_TYPES: Final = frozenset({"string", "integer", "boolean"})
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 §5.6.2: what a header's name may be made of."""
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=")
_DECIMAL: Final = re.compile(r"(-?[0-9]+)(?:\.0+)?", re.ASCII)

# JSON Schema 2020-12 keywords that hold schemas. An annotation below one of them is in a place where it may not be.
# Keywords that hold data (`default`, `enum`) are absent, so data is never taken for an annotation; `$ref` is not followed.
_ONE: Final = frozenset(
    {
        "items",
        "contains",
        "unevaluatedItems",
        "additionalProperties",
        "propertyNames",
        "unevaluatedProperties",
        "not",
        "if",
        "then",
        "else",
        "contentSchema",
    }
)
_LISTED: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})

_Path: TypeAlias = tuple[str, ...]


def encode_header_value(value: str) -> str:
    """`value` as a header can carry it: as it is when it is printable ASCII without blanks at its ends, else wrapped
    as `=?base64?..?=`. Raises UnicodeEncodeError for half a surrogate pair.
    """
    if _PLAIN.fullmatch(value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8')).decode('ascii')}?="


def decode_header_value(value: str) -> str | None:
    """What a header says, out of its `=?base64?..?=` form; None for such a form that is not the one way to write it."""
    match = _SENTINEL.fullmatch(value)
    if match is None:
        return value
    try:
        raw = base64.b64decode(match[1], validate=True)
        # A second spelling of the same bytes is refused, so that no two readers differ.
        return raw.decode("utf-8") if base64.b64encode(raw).decode("ascii") == match[1] else None
    except (binascii.Error, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class _Declared:
    path: _Path
    header: str
    key: str
    integer: bool


class ParamHeaders:
    """The headers that one tool's inputSchema asks for, compiled once.

    A schema with an annotation that the specification forbids asks for none: clients drop such a tool, and servers do
    not check it.
    """

    __slots__ = ("_declared",)

    def __init__(self, schema: Any) -> None:
        self._declared = _compiled(schema)

    def __bool__(self) -> bool:
        return bool(self._declared)

    def headers(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """What must be sent with these arguments: header name to encoded value, in the schema's order."""
        return {PREFIX + name: encode_header_value(value) for name, value in self.values(arguments).items()}

    def values(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The same, each name without its prefix and each value as it is."""
        found: dict[str, str] = {}
        for one in self._declared:
            said = _rendered(_at(arguments, one.path))
            if said is not None:
                found[one.header.removeprefix(PREFIX)] = said
        return found

    def disagreeing(self, arguments: Mapping[str, Any], received: Mapping[str, str]) -> str | None:
        """The first header that does not say what its argument does, or None.

        Header and argument are there together or absent together; null counts as absent, and so does what no header
        can say. An integer agrees with any decimal spelling of itself.

        Args:
            arguments: the call's own.
            received: what came, keyed by the name without its prefix, in lower case. Others than the tool asks for
                are ignored.
        """
        for one in self._declared:
            raw = received.get(one.key)
            value = _at(arguments, one.path)
            rendered = _rendered(value)
            if rendered is None:
                if raw is not None:
                    return one.header
                continue
            decoded = decode_header_value(raw) if raw is not None else None
            if decoded is None or not _agrees(decoded, rendered, value if one.integer else None):
                return one.header
        return None


_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def param_headers(schema: Any, arguments: Mapping[str, Any]) -> dict[str, str]:
    """`ParamHeaders.headers`, for a schema that is used once."""
    return ParamHeaders(schema).headers(arguments)


def check_param_headers(
    schema: Any, arguments: Mapping[str, Any], received: Mapping[str, str] | None = None
) -> str | None:
    """`ParamHeaders.disagreeing`, for a schema that is used once."""
    return ParamHeaders(schema).disagreeing(arguments, _NONE if received is None else received)


def _compiled(schema: Any) -> tuple[_Declared, ...]:
    found: list[_Declared] = []
    seen: set[str] = set()
    for path, node in _positions(schema):
        if ANNOTATION not in node:
            continue
        token, kind = node[ANNOTATION], node.get("type")
        if not path or not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
            return ()
        key = token.lower()
        if not isinstance(kind, str) or kind not in _TYPES or key in seen:
            return ()
        seen.add(key)
        found.append(_Declared(path, PREFIX + token, key, kind == "integer"))
    return tuple(found)


def _positions(root: Any) -> Iterator[tuple[_Path | None, dict[str, Any]]]:
    """Every schema within `root`, with its chain of `properties` keys; None as the chain once another keyword was
    passed. An explicit stack, because a schema may be nested deeper than Python recurses.
    """
    stack: list[tuple[_Path | None, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if not isinstance(node, dict):
            continue
        yield path, node
        for keyword, value in node.items():
            if keyword == "properties" and isinstance(value, dict):
                stack.extend((None if path is None else (*path, name), child) for name, child in value.items())
            elif keyword in _ONE:
                stack.append((None, value))
            elif keyword in _LISTED and isinstance(value, list):
                stack.extend((None, child) for child in value)
            elif keyword in _NAMED and isinstance(value, dict):
                stack.extend((None, child) for child in value.values())


def _at(arguments: Mapping[str, Any], path: _Path) -> Any:
    node: Any = arguments
    for key in path:
        if not isinstance(node, Mapping):
            return None
        node = node.get(key)
    return node


def _rendered(value: Any) -> str | None:
    """The text of a value in a header, or None where it has none: null, an object, an array, half a surrogate pair."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        return None
    try:
        text = str(value)
        text.encode("utf-8")
    except ValueError:
        # An integer of more digits than Python writes, or text that is not Unicode.
        return None
    return text


def _agrees(decoded: str, rendered: str, integer: Any) -> bool:
    """`integer` is the value where the schema says integer: numbers are compared as numbers, without a float between."""
    if isinstance(integer, bool) or not (
        isinstance(integer, int) or (isinstance(integer, float) and integer.is_integer())
    ):
        return decoded == rendered
    match = _DECIMAL.fullmatch(decoded)
    if match is None:
        return decoded == rendered
    try:
        return int(match[1]) == int(integer)
    except ValueError:
        return False
