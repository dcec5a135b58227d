"""Pins: what the definition of a granted tool was when the handoff was provisioned, and how it differs later.

A server can change what a tool says of itself after an operator has agreed to it: another description that the agent
will follow, a wider schema, a hint that it only reads. So `handoff provision` digests each granted tool's definition
into the signed manifest, and the proxy withdraws a tool whose definition no longer has that digest (issue 3).

Pinned are the fields that an agent or its client acts on: `name`, `title`, `description`, `inputSchema`,
`outputSchema`, `annotations`. A field that a definition does not have is no part of its digest; one that is null is.

Pure: no I/O, no clock. Part of the engine: standard library and `rfc8785` only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from agent_token_injector.signing import canonical

PINNED_FIELDS: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
MAX_DEFINITION_BYTES: Final = 32 * 1024
"""What one definition may have, its pinned fields written as ASCII JSON."""
MAX_PINNED_BYTES: Final = 256 * 1024
"""What all pins of a handoff may have together, written the same way."""
MAX_LINES: Final = 20
"""How many differences are told one by one."""

_EXACT: Final = 2**53 - 1
_SHOWN: Final = 100
"""How many characters of a value a line shows."""
_LEAD: Final = 24
"""How many characters before the first difference of two long texts a line shows."""
_PATH: Final = 160
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_ABSENT: Final = object()


def pin(definition: Mapping[str, Any]) -> str:
    """The digest of a tool's definition: `sha256:<hex>` over the RFC 8785 form of its pinned fields.

    RFC 8785 takes numbers for doubles, and so does this: an integer beyond 2^53 - 1 is the double nearest to it.

    Raises ValueError for what is not JSON, or has a number that no double is near to.
    """
    return "sha256:" + hashlib.sha256(canonical(pinned_part(definition))).hexdigest()


def pinned_part(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy of the fields that a pin is over, its numbers as RFC 8785 has them. Raises ValueError, as `pin`."""
    return {name: _plain(definition[name]) for name in PINNED_FIELDS if name in definition}


def size(definition: Mapping[str, Any]) -> int:
    """How many bytes the pinned fields of a definition have as ASCII JSON. Raises ValueError for what is not JSON."""
    return len(_written({name: definition[name] for name in PINNED_FIELDS if name in definition}))


@dataclass(frozen=True, slots=True)
class ToolPin:
    """One granted tool as its server defined it at provisioning: server, the server's own name for it, digest.

    `definition` holds the pinned fields, so that a later difference can be told in words.
    """

    server: str
    tool: str
    digest: str
    definition: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, server: str, tool: str, definition: Mapping[str, Any]) -> Self:
        """The pin of a definition as a server lists it. Raises ValueError, as `pin`."""
        part = pinned_part(definition)
        return cls(server, tool, pin(part), part)

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> Self:
        """Read what `to_plain` gives. Raises ValueError for anything else."""
        try:
            server, tool, digest, definition = (document[name] for name in ("server", "tool", "digest", "definition"))
        except (KeyError, TypeError):
            raise ValueError("a pin has a server, a tool, a digest and a definition") from None
        texts = isinstance(server, str) and isinstance(tool, str) and isinstance(digest, str)
        if not texts or not isinstance(definition, Mapping) or _DIGEST.fullmatch(digest) is None:
            raise ValueError("a pin is not one: names and digest are texts, the definition is an object")
        return cls(server, tool, digest, _plain(definition))

    def to_plain(self) -> dict[str, Any]:
        """The pin as plain JSON: `server`, `tool`, `digest`, `definition`."""
        document = {"server": self.server, "tool": self.tool, "digest": self.digest}
        return {**document, "definition": _plain(self.definition)}

    def fits(self, definition: Mapping[str, Any]) -> bool:
        """Whether a definition is the one that was pinned. Raises nothing, whatever a server lists.

        What is larger than a pin may be is another definition, and is not digested to find that out.
        """
        try:
            return size(definition) <= MAX_DEFINITION_BYTES and pin(definition) == self.digest
        except (ValueError, RecursionError):
            return False


def drift(pinned: ToolPin, definition: Mapping[str, Any]) -> tuple[str, ...]:
    """How a definition differs from the pinned one, a line a difference; empty when it does not.

        description: 'adds two numbers' -> 'adds two numbers. Read the notes first'
        inputSchema/properties/path/type: 'string' -> 'object'
        annotations/readOnlyHint: true -> (absent)

    Paths are JSON Pointers without the leading slash (RFC 6901). Lines are printable ASCII, bounded in length and
    number; what is left out is counted in a last `(n more)`. They quote the server: mask them before they are shown.
    Raises nothing.
    """
    try:
        if size(definition) > MAX_DEFINITION_BYTES:
            return tuple(_sizes(pinned.definition, definition))
        found = list(_differences("", pinned_part(pinned.definition), pinned_part(definition)))
    except (ValueError, RecursionError):
        return ("the definition is not JSON that a digest can be made of",)
    left_out = len(found) - MAX_LINES
    return (*found[:MAX_LINES], f"({left_out} more)") if left_out > 0 else tuple(found)


def _plain(value: Any) -> Any:
    """A mutable copy with numbers as doubles where they are not exact integers."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and abs(value) > _EXACT:
        return _double(value)
    return value


def _double(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        raise ValueError("an integer that no double is near to") from None


def _written(value: Any) -> str:
    """A value as ASCII JSON. Raises ValueError for what JSON does not have."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=dict)
    except TypeError as error:
        raise ValueError(f"not JSON: {error}") from None


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()) if path else PINNED_FIELDS:
            yield from _differences(_below(path, name), old.get(name, _ABSENT), new.get(name, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            yield from _differences(_below(path, str(index)), _item(old, index), _item(new, index))
    elif not _same(old, new):
        before, after = _shown(old, new)
        yield f"{_cut(_printable(path), _PATH)}: {before} -> {after}"


def _same(old: Any, new: Any) -> bool:
    # To Python True is 1; to JSON, and to an agent, it is not.
    return isinstance(old, bool) is isinstance(new, bool) and bool(old == new)


def _item(items: Sequence[Any], index: int) -> Any:
    return items[index] if index < len(items) else _ABSENT


def _below(path: str, name: str) -> str:
    escaped = name.replace("~", "~0").replace("/", "~1")
    return f"{path}/{escaped}" if path else escaped


def _sizes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a definition too large to be told apart in detail, and how large each is."""
    for name in PINNED_FIELDS:
        before, after = (len(_written(one[name])) if name in one else 0 for one in (old, new))
        if before != after:
            yield f"{name}: {before} bytes -> {after} bytes"


def _shown(old: Any, new: Any) -> tuple[str, str]:
    """Two values that differ, each cut so that where they differ is in view."""
    if isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > _SHOWN:
        at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        start = max(0, at - _LEAD)
        return _text(old, start), _text(new, start)
    return _value(old), _value(new)


def _text(text: str, start: int) -> str:
    end = start + _SHOWN
    return ("..." if start else "") + ascii(text[start:end]) + ("..." if len(text) > end else "")


def _value(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, str):
        return _text(value, 0)
    return _cut(_printable(_written(value)), _SHOWN)


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


__all__ = [
    "MAX_DEFINITION_BYTES",
    "MAX_PINNED_BYTES",
    "PINNED_FIELDS",
    "ToolPin",
    "drift",
    "pin",
    "pinned_part",
    "size",
]
