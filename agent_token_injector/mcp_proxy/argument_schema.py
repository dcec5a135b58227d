"""JSON Schema (2020-12) over a tool's arguments: compiled once, judged without I/O, closed where JSON Schema is open.

A grant's schema is an allowlist, so a mistake in it must not read as "anything goes":

- a keyword that JSON Schema does not have (`proprties`) is an error, not an annotation;
- `format` is asserted, and an unknown format is an error; the helper formats (argument_formats) judge texts, and what is no
  text fails them;
- patterns are those that are matched in linear time; look-around is an error, because a matcher that gives up halfway
  makes `not` succeed;
- no `$ref` is ever fetched;
- a key that a server may read as one of the schema's names, and is not spelled like it, does not fit (lookalike_keys).

A tool's own schema, which a stranger wrote, is taken as the standard says: unknown keywords pass, `$schema` picks the draft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agent_token_injector.mcp_proxy.lookalike_keys import LookalikeKeys
from agent_token_injector.mcp_proxy.plain_schema import compiled


class SchemaError(ValueError):
    """A schema cannot be relied on. The text says why, for the operator who wrote it."""


class Validator(Protocol):
    """Says whether arguments fit."""

    def is_valid(self, instance: Any) -> bool: ...


class FormatSource(Protocol):
    """Knows the helper formats by name (`argument_formats.HelperFormats`)."""

    def check(self, name: str) -> Callable[[str], bool] | None: ...


@dataclass(frozen=True, slots=True)
class _GrantValidator:
    by_schema: Validator
    lookalikes: LookalikeKeys

    def is_valid(self, instance: Any) -> bool:
        return self.by_schema.is_valid(instance) and not self.lookalikes.found_in(instance)


_SINGLE: Final = frozenset(
    {
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS: Final = frozenset({"$defs", "dependentSchemas", "patternProperties", "properties"})
_OTHERS: Final = frozenset(
    {
        "$anchor",
        "$comment",
        "$dynamicAnchor",
        "$dynamicRef",
        "$id",
        "$ref",
        "$schema",
        "const",
        "contentEncoding",
        "contentMediaType",
        "default",
        "dependentRequired",
        "deprecated",
        "description",
        "enum",
        "examples",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "readOnly",
        "required",
        "title",
        "type",
        "uniqueItems",
        "writeOnly",
    }
)
_KNOWN: Final = _SINGLE | _LISTS | _MAPS | _OTHERS
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def compile_grant(schema: Mapping[str, Any], formats: FormatSource | None = None) -> Validator:
    """The validator of a grant's `arguments`; `formats` knows the helper formats. Raises SchemaError."""
    root = copy.deepcopy(dict(schema))
    positions = tuple(_positions(root))
    for position in positions:
        unknown = sorted(position.keys() - _KNOWN)
        if unknown:
            raise SchemaError(f"{', '.join(map(repr, unknown))} is not a keyword of JSON Schema 2020-12")
        if position.get("$schema", _DIALECT) != _DIALECT:
            raise SchemaError(f"$schema is not {_DIALECT}")
    validator: Validator | None = compiled(root)
    if validator is None:
        validator = _by_library(root, {} if formats is None else _helpers(positions, formats))
    return _GrantValidator(validator, LookalikeKeys(root, positions))


def _by_library(root: dict[str, Any], formats: dict[str, Callable[[str], bool]]) -> Validator:
    import jsonschema_rs

    try:
        return jsonschema_rs.Draft202012Validator(
            root,
            validate_formats=True,
            ignore_unknown_formats=False,
            retriever=_never,
            pattern_options=jsonschema_rs.RegexOptions(),
            formats=formats,
        )
    except (ValueError, TypeError) as error:
        raise SchemaError(_first_line(error)) from None


def _helpers(positions: tuple[dict[str, Any], ...], formats: FormatSource) -> dict[str, Callable[[str], bool]]:
    """The helper formats that a schema uses. Each place that uses one also gets `type: string`, which `format` lacks."""
    found: dict[str, Callable[[str], bool]] = {}
    used: list[dict[str, Any]] = []
    for position in positions:
        name = position.get("format")
        check = formats.check(name) if isinstance(name, str) else None
        if isinstance(name, str) and check is not None:
            found[name] = check
            used.append(position)
            _judge_texts_only(position, name)
    if used and any("$ref" in position or "$dynamicRef" in position for position in positions):
        raise SchemaError(f"format {used[0]['format']} cannot be used in a schema with $ref: write it out in place")
    turned = {id(inner) for position in positions for inner in _turned(position)}
    for position in used:
        if id(position) in turned:
            raise SchemaError(
                f"format {position['format']} stands under `not`, `if`, `oneOf` or `contains`, where failing it could let arguments through"
            )
    return found


def _judge_texts_only(position: dict[str, Any], name: str) -> None:
    kinds = position.setdefault("type", "string")
    if kinds != "string" and not (isinstance(kinds, list) and set(kinds) <= {"string", "null"} and "string" in kinds):
        raise SchemaError(
            f'format {name} judges texts, and its `type` lets something else pass: write "type": "string"'
        )


def _turned(position: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every schema below the keywords of `position` that succeed where an inner one fails, or judge only some items."""
    for inner in (position.get("not"), position.get("if"), position.get("contains"), *position.get("oneOf", ())):
        yield from _positions(inner)


def compile_tool(schema: Mapping[str, Any]) -> Validator:
    """The validator of a tool's own `inputSchema`. Raises SchemaError."""
    plain = compiled(dict(schema))
    if plain is not None:
        return plain
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for({"$schema": _DIALECT, **schema}, retriever=_never)
    except (ValueError, TypeError) as error:
        raise SchemaError(_first_line(error)) from None


def _never(uri: str) -> Any:
    raise SchemaError(f"a $ref to {uri} would have to be fetched")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _positions(schema: Any) -> Iterator[dict[str, Any]]:
    """Every place in a schema that is itself a schema; what stands under `const` or `enum` is data and is none."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for keyword, value in node.items():
            if keyword in _SINGLE:
                pending.append(value)
            elif keyword in _LISTS and isinstance(value, list):
                pending.extend(value)
            elif keyword in _MAPS and isinstance(value, dict):
                pending.extend(value.values())
