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
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

_Schema: TypeAlias = dict[str, Any]

MAX_REMEMBERED: Final = 256
"""Sets of keys that one place remembers to have found harmless."""
MAX_REMEMBERED_LENGTH: Final = 512
"""The characters of such a set."""

_CONTAINERS: Final = (dict, list)
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
    if key.isascii():
        return key.lower()
    upper = unicodedata.normalize("NFKC", key).upper()
    return unicodedata.normalize("NFKC", upper.casefold()).replace("\u0307", "")


def has_twins(keys: Iterable[str]) -> bool:
    """Whether two keys of one object fold alike."""
    text = "".join(keys)
    if text.islower() and text.isascii():
        # Each is its own folding, and the keys of one object differ.
        return False
    found = [fold(key) for key in keys]
    return len(set(found)) != len(found)


class _Place:
    """What is known of the values at one place: the schemas that judge them, the names an object there may have, and sets
    of keys already found harmless.
    """

    __slots__ = ("clean", "folded", "here", "items", "judges", "members", "names", "others")

    def __init__(self, here: list[_Schema]) -> None:
        self.here = here
        self.judges = any(not _OBJECTS.isdisjoint(one) for one in here)
        self.names = frozenset(name for one in here for name in _names(one))
        self.folded = frozenset(fold(name) for name in self.names)
        self.clean: set[tuple[str, ...]] = set()
        self.members: dict[str, _Place] = {}
        self.others: _Place | None = None
        self.items: _Place | None = None


class LookalikeKeys:
    """Finds such keys in the arguments of one grant. What the schema says of a place is worked out once, when first met.

    Args:
        schema: the grant's, already found valid.
        positions: every place in it that is itself a schema.
    """

    def __init__(self, schema: _Schema, positions: tuple[_Schema, ...]) -> None:
        self._schema = schema
        self._positions = positions
        # An `$id` further down would be what a pointer below it starts from.
        self._moved = any("$id" in one for one in positions)
        self._places: dict[frozenset[int], _Place] = {}
        self._named = frozenset(name for one in positions for name in one.get("properties", ()))
        self._root = self._place([schema])

    def found_in(self, arguments: Any) -> bool:
        """Whether any object in the arguments has one. Recursive: the arguments' depth is bounded by their parser."""
        return self._found(arguments, self._root)

    def _found(self, value: Any, place: _Place) -> bool:
        if not place.here:
            return False
        if isinstance(value, dict):
            if place.judges and _is_misread(value, place):
                return True
            for key, item in value.items():
                if isinstance(item, _CONTAINERS) and self._found(item, self._member(place, key)):
                    return True
            return False
        if isinstance(value, list):
            items = place.items
            if items is None:
                items = place.items = self._place(_of_items(place.here))
            return any(self._found(item, items) for item in value if isinstance(item, _CONTAINERS))
        return False

    def _member(self, place: _Place, key: str) -> _Place:
        # Keys that no schema names are all alike, so that an agent cannot fill the table with keys of its own.
        if key not in self._named:
            if place.others is None:
                place.others = self._place(_of_member(place.here, None))
            return place.others
        found = place.members.get(key)
        if found is None:
            found = place.members[key] = self._place(_of_member(place.here, key))
        return found

    def _place(self, schemas: Iterable[Any]) -> _Place:
        here = self._judging(schemas)
        key = frozenset(map(id, here))
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = _Place(here)
        return found

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
        target = _at(self._schema, reference)
        if target is None or self._moved:
            yield from self._positions
        else:
            yield target


def _is_misread(value: Mapping[str, Any], place: _Place) -> bool:
    keys = tuple(value)
    if keys in place.clean:
        return False
    found = [fold(key) for key in keys]
    if len(set(found)) != len(found):
        return True
    names, folded = place.names, place.folded
    if any(key not in names and one in folded for key, one in zip(keys, found, strict=True)):
        return True
    # The bounds are for an agent that sends other keys each time.
    if len(place.clean) < MAX_REMEMBERED and sum(map(len, keys)) <= MAX_REMEMBERED_LENGTH:
        place.clean.add(keys)
    return False


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


def _of_member(here: Iterable[_Schema], key: str | None) -> Iterator[Any]:
    """The schemas of one member, None for one that none names; a pattern counts as matching: only names are asked for."""
    for one in here:
        if key is not None and key in one.get("properties", ()):
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
