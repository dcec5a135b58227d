r"""The data as a decoder reads it: with `%2B`, `\u002b` or `\/` undone, and with the way back to where it stood.

A view is made only of data that has such escapes. It tells where a secret may stand; whether it does is judged in the
data itself, so a view need not be right about what an escape means to somebody else.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import accumulate
from typing import Final

from agent_token_injector.masking.encodings import utf8, utf16_units


class Kind(IntEnum):
    """Which escapes are undone."""

    PERCENT = 0
    JSON = 1
    BASE64 = 2
    """Those of the characters that base64 has and a URL or a JSON writer escapes."""


# Each begins with one byte where it can: that byte is searched for at many times the speed of an alternative.
_PERCENT: Final = re.compile(rb"(%[0-9a-fA-F]{2})")
_JSON: Final = re.compile(rb'(\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))')
_BEYOND: Final = re.compile(rb"[\xf0-\xf4]")
_JSON_BEYOND: Final = re.compile(
    rb'(\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})"
)
_BASE64_URL: Final = re.compile(rb"(%2[bBfF])")
_BASE64_JSON: Final = re.compile(rb"(\\(?:/|u002[bBfF]))")
_BASE64_BOTH: Final = re.compile(rb"(%2[bBfF]|\\(?:/|u002[bBfF]))")

_DIGITS: Final = "0123456789abcdefABCDEF"
_MAX_KEPT: Final = 4096


class _Units(dict[bytes, bytes]):
    """What JSON's escapes stand for, and characters beyond 16 bits as their two units."""

    def __missing__(self, escape: bytes) -> bytes:
        unit, digits = escape[:2], escape[2:]
        known = utf8(chr(int(digits, 16))) if unit == rb"\u" else utf16_units(escape.decode())
        if len(self) < _MAX_KEPT:
            self[escape] = known
        return known


_PERCENT_BYTES: Final = {f"%{high}{low}".encode(): bytes([int(high + low, 16)]) for high in _DIGITS for low in _DIGITS}
_JSON_UNITS: Final = _Units(
    {
        rb"\"": b'"',
        rb"\\": b"\\",
        rb"\/": b"/",
        rb"\b": b"\b",
        rb"\f": b"\f",
        rb"\n": b"\n",
        rb"\r": b"\r",
        rb"\t": b"\t",
    }
)
_BASE64_LETTERS: Final = {
    **dict.fromkeys((b"%2b", b"%2B", rb"\u002b", rb"\u002B"), b"+"),
    **dict.fromkeys((b"%2f", b"%2F", rb"\u002f", rb"\u002F", rb"\/"), b"/"),
}


class View:
    """Data with one kind of escapes undone."""

    __slots__ = ("_parts", "_read", "_starts", "_written", "data", "kind")

    def __init__(self, kind: Kind, written: list[bytes], undo: Callable[[bytes], bytes]) -> None:
        read = written.copy()
        read[1::2] = map(undo, written[1::2])
        self.kind = kind
        self.data = b"".join(read)
        self._written = written
        self._read = read
        self._starts: tuple[list[int], list[int]] | None = None

    def place(self, position: int) -> int:
        """Where in the data stands what the view has there; inside an escape, where the escape begins."""
        if self._starts is None:
            self._starts = _starts(self._read), _starts(self._written)
        read, written = self._starts
        part = bisect_right(read, position) - 1
        return written[part] if part & 1 else written[part] + position - read[part]


def _starts(parts: list[bytes]) -> list[int]:
    return list(accumulate(map(len, parts), initial=0))


def views(data: bytes) -> Iterator[View]:
    """Every view that differs from the data."""
    url = json = False
    if b"%" in data:
        written = _PERCENT.split(data)
        if len(written) > 1:
            yield View(Kind.PERCENT, written, _PERCENT_BYTES.__getitem__)
            url = b"%2" in data
    if b"\\" in data:
        beyond = not data.isascii() and _BEYOND.search(data) is not None
        written = (_JSON_BEYOND if beyond else _JSON).split(data)
        if len(written) > 1:
            yield View(Kind.JSON, written, _JSON_UNITS.__getitem__)
            json = rb"\/" in data or rb"\u002" in data
    if url or json:
        written = (_BASE64_BOTH if url and json else _BASE64_URL if url else _BASE64_JSON).split(data)
        if len(written) > 1:
            yield View(Kind.BASE64, written, _BASE64_LETTERS.__getitem__)


__all__ = ["Kind", "View", "views"]
