"""Keys that a server may read as another key: what differs only in case, width or the like (`Text` for `text`).

JSON Schema compares keys character by character, and so does a grant. Go's encoding/json and others fold case and let the
last one win. So a key is refused where it is not a name of the grant's schema and folds to one, and where two keys of one
object fold alike.

Which names belong to which object is told by the schema: `properties`, `required` and the like at that place, seen through
`allOf`, `not`, `if` and every other keyword that judges the same value, and through `$ref`. Where a `$ref` is more than a
JSON pointer into the schema, every name of the schema counts: that refuses more, never less.

Pure: no I/O.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

_Schema: TypeAlias = dict[str, Any]

_SAME: Final = ("else", "if", "not", "then")
_SAME_LISTS: Final = ("allOf", "anyOf", "oneOf")
_MEMBERS: Final = ("additionalProperties", "unevaluatedProperties")
_ITEMS: Final = ("contains", "items", "unevaluatedItems")
_OBJECTS: Final = frozenset(
    {
        "additionalProperties",
        "dependentRequired",
        "dependentSchemas",
        "maxProperties",
        "minProperties",
        "patternProperties",
        "properties",
        "propertyNames",
        "required",
        "unevaluatedProperties",
    }
)


def fold(key: str) -> str:
    """What a key is compared by: alike for all spellings that a reader which ignores case could take for one name.

    NFKC and case folding; by way of upper case and without U+0307, because some readers compare in upper case, where
    dotless and dotted i are the plain letter.
    """
    upper = unicodedata.normalize("NFKC", key).upper()
    return unicodedata.normalize("NFKC", upper.casefold()).replace("\u0307", "")


def has_twins(keys: Iterable[str]) -> bool:
    """Whether two keys of one object fold alike."""
    found = [fold(key) for key in keys]
    return len(set(found)) != len(found)


@dataclass(frozen=True, slots=True)
class LookalikeKeys:
    """Finds such keys in the arguments of one grant.

    Args:
        schema: the grant's, already found valid.
        positions: every place in it that is itself a schema.
    """

    schema: _Schema
    positions: tuple[_Schema, ...]

    def found_in(self, arguments: Any) -> bool:
        """Whether any object in the arguments has one. Recursive: the arguments' depth is bounded by their parser."""
        return self._found(arguments, [self.schema])

    def _found(self, value: Any, schemas: Iterable[Any]) -> bool:
        here = self._judging(schemas)
        if not here:
            return False
        if isinstance(value, dict):
            if any(not _OBJECTS.isdisjoint(one) for one in here) and _is_misread(value, here):
                return True
            return any(self._found(item, _of_member(here, key)) for key, item in value.items())
        if isinstance(value, list):
            below = list(_of_items(here))
            return any(self._found(item, below) for item in value)
        return False

    def _judging(self, schemas: Iterable[Any]) -> list[_Schema]:
        """These, and every schema that they apply to the same value."""
        found: dict[int, _Schema] = {}
        pending = list(schemas)
        while pending:
            one = pending.pop()
            if not isinstance(one, dict) or id(one) in found:
                continue
            found[id(one)] = one
            pending.extend(one[keyword] for keyword in _SAME if keyword in one)
            pending.extend(inner for keyword in _SAME_LISTS for inner in one.get(keyword, ()))
            pending.extend(one.get("dependentSchemas", {}).values())
            pending.extend(target for keyword in ("$ref", "$dynamicRef") for target in self._target(one.get(keyword)))
        return list(found.values())

    def _target(self, reference: Any) -> Iterator[_Schema]:
        if reference is None:
            return
        target = _at(self.schema, reference)
        # An `$id` further down would be what a pointer below it starts from.
        if target is None or any("$id" in one for one in self.positions):
            yield from self.positions
        else:
            yield target


def _is_misread(value: Mapping[str, Any], here: Iterable[_Schema]) -> bool:
    names = {name for one in here for name in _names(one)}
    folded = {fold(name) for name in names}
    return has_twins(value) or any(key not in names and fold(key) in folded for key in value)


def _names(one: _Schema) -> Iterator[str]:
    yield from one.get("properties", ())
    yield from one.get("required", ())
    yield from one.get("dependentSchemas", ())
    for name, others in one.get("dependentRequired", {}).items():
        yield name
        yield from others
    yield from _named(one.get("propertyNames"))


def _named(names: Any) -> Iterator[str]:
    """The names that a `propertyNames` spells out."""
    if isinstance(names, dict):
        yield from (name for name in (names.get("const"), *names.get("enum", ())) if isinstance(name, str))


def _of_member(here: Iterable[_Schema], key: str) -> Iterator[Any]:
    """The schemas of one member; a pattern counts as matching, because only names are asked for."""
    for one in here:
        if key in one.get("properties", ()):
            yield one["properties"][key]
        yield from one.get("patternProperties", {}).values()
        yield from (one[keyword] for keyword in _MEMBERS if keyword in one)


def _of_items(here: Iterable[_Schema]) -> Iterator[Any]:
    for one in here:
        yield from one.get("prefixItems", ())
        yield from (one[keyword] for keyword in _ITEMS if keyword in one)


def _at(schema: _Schema, reference: str) -> _Schema | None:
    """What a JSON pointer (RFC 6901, as a URI fragment) points to; None when it is not one, or points to no schema."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    node: Any = schema
    for part in reference.split("/")[1:]:
        token = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and token.isdecimal() and int(token) < len(node):
            node = node[int(token)]
        else:
            node = node.get(token) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
