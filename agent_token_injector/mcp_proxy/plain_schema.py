"""Schemas that need no library: what most tools and grants say of their arguments, as closures.

`compiled` takes a schema only when it knows every keyword in it and every keyword's value is of the plain kind; for
anything else it has nothing, and the library judges. So the two never disagree on a schema that both take, which a test
holds them to; and a handoff whose schemas are all plain does not load the library at all.

Pure: no I/O. Keywords and their meaning: JSON Schema 2020-12, Validation §6 and Core §10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Check: TypeAlias = Callable[[Any], bool]

_TEXTS: Final = frozenset({"$comment", "description", "title"})
_ANNOTATIONS: Final = _TEXTS | {"default", "examples"}
_DIALECTS: Final = frozenset(
    {"https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2020-12/schema#"}
)
_MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class PlainValidator:
    """Says whether a value fits a plain schema."""

    checks: tuple[Check, ...]

    def is_valid(self, instance: Any) -> bool:
        return all(check(instance) for check in self.checks)


def compiled(schema: Any) -> PlainValidator | None:
    """The validator of a plain schema; None when it is not plain."""
    try:
        return PlainValidator(_checks(schema, 0))
    except _NotPlain:
        return None


class _NotPlain(Exception):
    """Something in the schema that is left to the library."""


def _checks(schema: Any, depth: int) -> tuple[Check, ...]:
    if type(schema) is not dict or depth > _MAX_DEPTH:
        raise _NotPlain
    checks: list[Check] = []
    for keyword, value in schema.items():
        if keyword in _ANNOTATIONS:
            if (keyword in _TEXTS and type(value) is not str) or (keyword == "examples" and type(value) is not list):
                raise _NotPlain
            continue
        if keyword == "$schema":
            if value not in _DIALECTS or depth:
                raise _NotPlain
            continue
        maker = _MAKERS.get(keyword)
        if maker is None:
            raise _NotPlain
        check = maker(value, schema, depth)
        if check is not None:
            checks.append(check)
    return tuple(checks)


def _is_integer(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


_TYPES: Final[Mapping[str, Check]] = {
    "string": lambda value: type(value) is str,
    "integer": _is_integer,
    "number": lambda value: type(value) is int or type(value) is float,
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
    "array": lambda value: type(value) is list,
    "object": lambda value: type(value) is dict,
}


def _type(value: Any, schema: Mapping[str, Any], depth: int) -> Check:
    del schema, depth
    if type(value) is str and value in _TYPES:
        return _TYPES[value]
    if type(value) is not list or not value or not all(type(one) is str and one in _TYPES for one in value):
        raise _NotPlain
    if len(set(value)) != len(value):
        raise _NotPlain
    kinds = tuple(_TYPES[one] for one in value)
    return lambda found: any(kind(found) for kind in kinds)


def _properties(value: Any, schema: Mapping[str, Any], depth: int) -> Check | None:
    del schema
    if type(value) is not dict:
        raise _NotPlain
    inner = {name: checks for name, one in value.items() if (checks := _checks(one, depth + 1))}
    if not inner:
        return None

    def check(found: Any) -> bool:
        if type(found) is not dict:
            return True
        for name, checks in inner.items():
            if name in found:
                item = found[name]
                for one in checks:
                    if not one(item):
                        return False
        return True

    return check


def _required(value: Any, schema: Mapping[str, Any], depth: int) -> Check | None:
    del schema, depth
    if type(value) is not list or not all(type(one) is str for one in value) or len(set(value)) != len(value):
        raise _NotPlain
    names = frozenset(value)
    return (lambda found: type(found) is not dict or names <= found.keys()) if names else None


def _additional(value: Any, schema: Mapping[str, Any], depth: int) -> Check | None:
    del depth
    if type(value) is not bool:
        raise _NotPlain
    known = schema.get("properties", {})
    if value or type(known) is not dict:
        return None
    names = frozenset(known)
    return lambda found: type(found) is not dict or found.keys() <= names


def _plain_text(value: Any) -> str:
    # Numbers are equal across their kinds (1 and 1.0) and unequal to booleans: left to the library.
    if type(value) is not str:
        raise _NotPlain
    return value


def _const(value: Any, schema: Mapping[str, Any], depth: int) -> Check:
    del schema, depth
    text = _plain_text(value)
    return lambda found: type(found) is str and found == text


def _enum(value: Any, schema: Mapping[str, Any], depth: int) -> Check:
    del schema, depth
    if type(value) is not list or not value:
        raise _NotPlain
    texts = frozenset(map(_plain_text, value))
    return lambda found: type(found) is str and found in texts


def _size(
    kind: type, size: Callable[[Any], int] = len, *, least: bool
) -> Callable[[Any, Mapping[str, Any], int], Check]:
    def make(value: Any, schema: Mapping[str, Any], depth: int) -> Check:
        del schema, depth
        if type(value) is not int or value < 0:
            raise _NotPlain
        if least:
            return lambda found: type(found) is not kind or size(found) >= value
        return lambda found: type(found) is not kind or size(found) <= value

    return make


def _bound(*, least: bool) -> Callable[[Any, Mapping[str, Any], int], Check]:
    def make(value: Any, schema: Mapping[str, Any], depth: int) -> Check:
        del schema, depth
        if type(value) is not int:
            raise _NotPlain
        if least:
            return lambda found: (type(found) is not int and type(found) is not float) or found >= value
        return lambda found: (type(found) is not int and type(found) is not float) or found <= value

    return make


def _items(value: Any, schema: Mapping[str, Any], depth: int) -> Check | None:
    if "prefixItems" in schema:
        raise _NotPlain
    checks = _checks(value, depth + 1)
    if not checks:
        return None
    return lambda found: type(found) is not list or all(_all(checks, item) for item in found)


def _any_of(value: Any, schema: Mapping[str, Any], depth: int) -> Check:
    del schema
    if type(value) is not list or not value:
        raise _NotPlain
    branches = tuple(_checks(one, depth + 1) for one in value)
    return lambda found: any(_all(checks, found) for checks in branches)


def _all(checks: Sequence[Check], found: Any) -> bool:
    return all(check(found) for check in checks)


_MAKERS: Final[Mapping[str, Callable[[Any, Mapping[str, Any], int], Check | None]]] = {
    "additionalProperties": _additional,
    "anyOf": _any_of,
    "const": _const,
    "enum": _enum,
    "items": _items,
    "maxItems": _size(list, least=False),
    "maxLength": _size(str, least=False),
    "maxProperties": _size(dict, least=False),
    "maximum": _bound(least=False),
    "minItems": _size(list, least=True),
    "minLength": _size(str, least=True),
    "minProperties": _size(dict, least=True),
    "minimum": _bound(least=True),
    "properties": _properties,
    "required": _required,
    "type": _type,
}
