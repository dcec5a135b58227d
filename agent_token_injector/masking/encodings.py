"""The encodings a secret is looked for in: what it looks like in each, and how a place is checked for it.

A `Needle` is one form of a secret in one encoding. `anchors.py` finds the places where it may stand; a needle says
whether it stands there. Every rule of the promise (masking/__init__.py) is written down here and nowhere else.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Final

MIN_LENGTH: Final = 8
"""Shorter secrets, in characters, are masked as whole words only."""

BASE64_ANY: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")
SHIFTS: Final = (0, 1, 2)
"""How many bytes of a group of three stand before the secret."""

MAX_ESCAPE: Final = len(r"\u002b")
"""No escape is longer; a character beyond 16 bits takes two."""

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_WORD: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_SHORT_ESCAPES: Final = {'"': b'"', "\\": b"\\", "/": b"/", "\b": b"b", "\f": b"f", "\n": b"n", "\r": b"r", "\t": b"t"}

# + and / are - and _ in the other alphabet, and are themselves escaped in a URL and by some JSON writers.
_PLUS: Final = (rb"%2[bB]", rb"\\u002[bB]")
_SLASH: Final = (rb"%2[fF]", rb"\\/", rb"\\u002[fF]")
_PADDING: Final = rb"(?:%3[dD]|\\u003[dD]|=|)"
_HEAD: Final = 4

_SWALLOWED: Final = re.compile(r"\\*(?:u[0-9a-fA-F]{4}|[0-9a-fA-F]{1,4}|.)?", re.DOTALL)


def utf8(text: str) -> bytes:
    """The text as the bytes that are searched."""
    return text.encode("utf-8", "surrogatepass")


def utf16_units(text: str) -> bytes:
    """The text with each UTF-16 unit in UTF-8 by itself: so is it read from JSON, which escapes unit by unit."""
    if text.isascii():
        return text.encode()
    units = memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H")
    return b"".join(utf8(chr(unit)) for unit in units)


def swallowed(text: str) -> int:
    r"""How many leading characters of a secret a decoder may read otherwise than the secret's own writer wrote them.

    That is so when what stands before it ends in `%`, `%4`, `\`, `\u00` or the like and takes them for the rest of an
    escape. From there on every reading is the same: no escape has an escape's first character inside, but for `\\`.
    """
    found = _SWALLOWED.match(text)
    return found.end() if found is not None else 0


def spread(secrets: Iterable[str]) -> tuple[list[str], list[str]]:
    """What to look for in every encoding, and what as whole words only."""
    long: dict[str, None] = {}
    short: dict[str, None] = {}
    for secret in secrets:
        for form in (secret, secret.strip()):
            if form.strip():
                (long if len(form) >= MIN_LENGTH else short)[form] = None
        for raw in secret.splitlines():
            line = raw.strip()
            if len(line) >= MIN_LENGTH:
                long[line] = None
    return list(long), list(short)


class Literal:
    """A secret as it is."""

    __slots__ = ("data",)
    lead = False

    def __init__(self, data: bytes) -> None:
        self.data = data

    def end(self, data: bytes, begin: int) -> int:
        """Where the needle ends that begins there; 0 when none does."""
        return begin + len(self.data) if data.startswith(self.data, begin) else 0


class Word(Literal):
    """A short secret: no ASCII letter or digit may continue it on either side."""

    __slots__ = ("_after", "_before")

    def __init__(self, text: str) -> None:
        super().__init__(utf8(text))
        self._before = text[0].isalnum()
        self._after = text[-1].isalnum()

    def end(self, data: bytes, begin: int) -> int:
        """As `Literal.end`."""
        end = super().end(data, begin)
        if self._before and begin and data[begin - 1] in _WORD:
            return 0
        if self._after and end < len(data) and data[end] in _WORD:
            return 0
        return end


class Hexadecimal(Literal):
    """A secret in hexadecimal, in either case."""

    __slots__ = ()

    def end(self, data: bytes, begin: int) -> int:
        """As `Literal.end`."""
        end = begin + len(self.data)
        return end if data[begin:end].lower() == self.data else 0


class Pattern:
    """A secret in an encoding that spells it in many ways.

    `lead`: a match takes the base64 character before it along, some of whose bits are the secret's. `longest`: no
    spelling has more bytes. `make(count)` writes the expression of the first `count` units of the secret, None for all.
    """

    __slots__ = ("_head", "_make", "_whole", "lead", "longest")

    def __init__(self, make: Callable[[int | None], bytes], longest: int, *, lead: bool = False) -> None:
        # Most secrets are never met in most encodings, and an expression takes longer to compile than a page to
        # search: so it is compiled when it is first needed.
        self._make = make
        self._head: re.Pattern[bytes] | None = None
        self._whole: re.Pattern[bytes] | None = None
        self.lead = lead
        self.longest = longest

    def end(self, data: bytes, begin: int) -> int:
        """As `Literal.end`."""
        if self._whole is None:
            self._whole = re.compile(self._make(None))
        found = self._whole.match(data, begin)
        return found.end() if found is not None else 0

    def between(self, data: bytes, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Every place in [low, high] where a needle begins, with its end."""
        if self._head is None:
            self._head = re.compile(self._make(_HEAD))
        # The first units only: a search for the whole would go on to the end of the longest spelling in vain.
        search, limit = self._head.search, high + _HEAD * 2 * MAX_ESCAPE
        while low <= high and (found := search(data, low, limit)) is not None and (begin := found.start()) <= high:
            if end := self.end(data, begin):
                yield begin, end
            low = begin + 1


class Base64(Pattern):
    """A secret in the base64 of something longer, in either alphabet, padded or not.

    `core`: the characters that hold bits of the secret only, in the standard alphabet. The character it shares with
    what stands before it is left to `lead`, the one it shares with what follows to the pattern.
    """

    __slots__ = ("core",)

    def __init__(self, data: bytes, shift: int) -> None:
        bits = 8 * (shift + len(data))
        letters = b2a_base64(bytes(shift) + data, newline=False)
        first = shift + 1 if shift else 0
        free = -bits % 6
        self.core = letters[first : bits // 6]
        last = letters[bits // 6] if free else None
        padding = letters.count(b"=")
        long = self.core.count(b"+") + self.core.count(b"/") + bool(free) + padding
        super().__init__(
            partial(_base64_regex, self.core, last, free, padding),
            len(self.core) + bool(free) + padding + long * (MAX_ESCAPE - 1),
            lead=shift > 0,
        )


def _base64_regex(core: bytes, last: int | None, free: int, padding: int, count: int | None) -> bytes:
    regex = b"".join(_sextet(bytes([letter])) for letter in core[:count])
    if count is not None:
        return regex
    if last is not None:
        value = _ALPHABET.index(last)
        regex += _sextet(_ALPHABET[value : value + (1 << free)])
    return regex + _PADDING * padding


@cache
def _sextet(letters: bytes) -> bytes:
    """Any of these characters of the standard alphabet, however it is written."""
    escaped: tuple[bytes, ...] = ()
    if b"+" in letters:
        letters, escaped = letters + b"-", escaped + _PLUS
    if b"/" in letters:
        letters, escaped = letters + b"_", escaped + _SLASH
    one = re.escape(letters) if len(letters) == 1 else b"[" + re.escape(letters) + b"]"
    return b"(?:" + b"|".join((*escaped, one)) + b")" if escaped else one


def _either_case(digits: str) -> bytes:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in digits).encode()


@cache
def _percent_byte(byte: int) -> bytes:
    spellings = [b"%" + _either_case(f"{byte:02x}")]
    # Each encoder leaves other characters as they are, so every one may be raw, except the escape itself.
    if byte != ord("%"):
        spellings.append(re.escape(bytes([byte])))
    if byte == ord(" "):
        spellings.append(rb"\+")
    return b"(?:" + b"|".join(spellings) + b")"


def _json_character(character: str) -> bytes:
    units = memoryview(character.encode("utf-16-le", "surrogatepass")).cast("H")
    spellings = [b"".join(rb"\\u" + _either_case(f"{unit:04x}") for unit in units)]
    if character in _SHORT_ESCAPES:
        spellings.append(rb"\\" + re.escape(_SHORT_ESCAPES[character]))
    if character != "\\":
        spellings.append(re.escape(utf8(character)))
    return b"(?:" + b"|".join(spellings) + b")"


def percent(data: bytes) -> Pattern:
    """A secret percent-encoded, whole or in part, in either case, `+` for a space."""
    return Pattern(lambda count: b"".join(map(_percent_byte, data[:count])), 3 * len(data))


def json(text: str) -> Pattern:
    """A secret escaped as JSON escapes, whole or in part."""
    units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    return Pattern(lambda count: b"".join(map(_json_character, text[:count])), MAX_ESCAPE * units)


Needle = Literal | Pattern
