r"""Masking: a known secret is replaced by asterisks wherever it is about to be shown, stored or sent (H6, D7).

A secret of eight characters or more is found

- as it is, and line by line where it has several lines (lines of eight characters or more);
- in base64 and base64url, at each of the three alignments it can have inside something longer, padded or not;
- in hexadecimal, in either case;
- percent-encoded, whole or in part, in either case, `+` for a space;
- escaped as JSON escapes, whole or in part (`\n`, `\/`, `\u00e9` in either case).

A shorter one would be found by accident everywhere: it is masked only as it is, and only as a whole word. Blank ones
are ignored. What was encrypted, hashed, reversed or encoded twice is not found: this is a net under honest code, and
no wall around a hostile agent (that is what expiry and revocation are for).

How it works: each encoding is one automaton over all secrets, so that the cost grows with the bytes that are read and
hardly with the number of secrets. Within one encoding a text is read in one way only, hence the longest secret that
starts at a place is found by trying them longest first; matches that overlap are joined before anything is replaced,
so that no tail of either stays visible.

Pure: no input, no output, no clock.
"""

from __future__ import annotations

import re
from builtins import bytes as Bytes  # noqa: N812 - inside the classes below `bytes` is a method
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

from pydantic import SecretStr

MASK: Final = "********"
"""What stands where a secret stood: its length says nothing of the secret's."""

MIN_LENGTH: Final = 8
"""Shorter secrets, in characters, are masked as whole words only."""

MAX_DEPTH: Final = 100
"""A JSON value nested deeper than this is masked whole: it is never shown unread."""

_MASK: Final = MASK.encode()
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BASE64_ANY: Final = frozenset(_BASE64 + b"-_")
_SHORT_ESCAPES: Final = {'"': b'"', "\\": b"\\", "/": b"/", "\b": b"b", "\f": b"f", "\n": b"n", "\r": b"r", "\t": b"t"}
_PERCENT, _SPACE, _BACKSLASH = 0x25, 0x20, "\\"

# A spelling is a run of byte classes; an atom is one unit of a secret with all its spellings; a needle is a secret in
# one encoding, which is a run of atoms.
_Spelling = tuple[frozenset[int], ...]
_Atom = tuple[_Spelling, ...]


@dataclass(frozen=True, slots=True)
class _Needle:
    atoms: tuple[_Atom, ...]
    size: int
    """How many units of the secret it covers: of two that start at one place the larger one reaches further."""

    @property
    def longest(self) -> int:
        return sum(max(len(spelling) for spelling in atom) for atom in self.atoms)


def _exact(data: bytes) -> _Spelling:
    return tuple(frozenset((byte,)) for byte in data)


def _either_case(data: bytes) -> _Spelling:
    return tuple(frozenset((*bytes([byte]).lower(), *bytes([byte]).upper())) for byte in data)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _plain(secret: str) -> Iterator[_Needle]:
    data = _raw(secret)
    yield _Needle(((_exact(data),),), len(data))


def _hexadecimal(secret: str) -> Iterator[_Needle]:
    data = _raw(secret)
    yield _Needle(((_either_case(data.hex().encode()),),), len(data))


def _percent(secret: str) -> Iterator[_Needle]:
    def atom(byte: int) -> _Atom:
        spellings = [_exact(b"%") + _either_case(b"%02x" % byte)]
        # Each encoder leaves other characters as they are, so every one may be raw, except the escape itself.
        if byte != _PERCENT:
            spellings.append(_exact(bytes([byte])))
        if byte == _SPACE:
            spellings.append(_exact(b"+"))
        return tuple(spellings)

    data = _raw(secret)
    yield _Needle(tuple(atom(byte) for byte in data), len(data))


def _json(secret: str) -> Iterator[_Needle]:
    def atom(character: str) -> _Atom:
        units = character.encode("utf-16-be", "surrogatepass")
        pairs = (units[index : index + 2] for index in range(0, len(units), 2))
        spellings = [tuple(part for pair in pairs for part in _exact(b"\\u") + _either_case(pair.hex().encode()))]
        if character in _SHORT_ESCAPES:
            spellings.append(_exact(b"\\" + _SHORT_ESCAPES[character]))
        if character != _BACKSLASH:
            spellings.append(_exact(_raw(character)))
        return tuple(spellings)

    yield _Needle(tuple(atom(character) for character in secret), len(secret))


def _base64(shifts: tuple[int, ...]) -> Callable[[str], Iterator[_Needle]]:
    """The secret as it stands in the base64 of something longer, `shift` bytes into a group of three."""

    def sextet(values: Iterable[int]) -> _Atom:
        characters = bytes(_BASE64[value] for value in values)
        spellings: list[_Spelling] = []
        # + and / are - and _ in the other alphabet, and are themselves escaped in a URL and by some JSON writers.
        if b"+" in characters:
            characters += b"-"
            spellings += [_either_case(b"%2b"), _exact(b"\\u002") + _either_case(b"b")]
        if b"/" in characters:
            characters += b"_"
            spellings += [_either_case(b"%2f"), _exact(b"\\/"), _exact(b"\\u002") + _either_case(b"f")]
        return (*spellings, (frozenset(characters),))

    padding: _Atom = (_exact(b"%3") + _either_case(b"d"), _exact(b"\\u003") + _either_case(b"d"), _exact(b"="), ())

    def needles(secret: str) -> Iterator[_Needle]:
        data = _raw(secret)
        for shift in shifts:
            total = shift + len(data)
            groups = -(-total // 3)
            value = int.from_bytes(bytes(shift) + data + bytes(groups * 3 - total))
            atoms = []
            # The character that the secret shares with what stands before it is left to `lead`, below.
            for index in range(0 if shift == 0 else shift + 1, -(-8 * total // 6)):
                actual = value >> 6 * (groups * 4 - 1 - index) & 63
                free = max(0, 6 * (index + 1) - 8 * total)
                atoms.append(sextet(actual | rest for rest in range(1 << free)))
            yield _Needle((*atoms, *(padding,) * (groups * 3 - total)), len(atoms))

    return needles


def _class_regex(members: frozenset[int]) -> bytes:
    escaped = b"".join(re.escape(bytes([byte])) for byte in sorted(members))
    return escaped if len(members) == 1 else b"[" + escaped + b"]"


def _spelling_regex(spelling: _Spelling) -> bytes:
    return b"".join(map(_class_regex, spelling))


def _atoms_regex(atoms: Iterable[_Atom]) -> bytes:
    return b"".join(
        _spelling_regex(atom[0]) if len(atom) == 1 else b"(?:" + b"|".join(map(_spelling_regex, atom)) + b")"
        for atom in atoms
    )


def _compile(needles: Iterable[_Needle]) -> re.Pattern[bytes]:
    """One pattern that finds the longest needle at a place, told apart by the first byte."""
    tails: dict[int, dict[bytes, None]] = {}
    for needle in sorted(needles, key=lambda one: -one.size):
        rest = _atoms_regex(needle.atoms[1:])
        for spelling in needle.atoms[0]:
            tail = _spelling_regex(spelling[1:]) + rest
            for byte in spelling[0]:
                tails.setdefault(byte, {})[tail] = None
    return re.compile(
        b"|".join(re.escape(bytes([byte])) + b"(?:" + b"|".join(found) + b")" for byte, found in tails.items())
    )


def _compile_words(secrets: Iterable[str]) -> re.Pattern[bytes]:
    """One pattern for short secrets: no letter or digit may continue them on either side."""
    words = []
    for secret in sorted(secrets, key=len, reverse=True):
        before = rb"(?<![A-Za-z0-9])" if secret[0].isalnum() else b""
        after = rb"(?![A-Za-z0-9])" if secret[-1].isalnum() else b""
        words.append(before + re.escape(_raw(secret)) + after)
    return re.compile(b"|".join(words))


class _Matcher:
    """The pattern of one encoding, compiled when it is first needed.

    `lead`: a match takes the base64 character before it along, some of whose bits are the secret's.
    `sign`: what is in every match that the plain pattern does not find as well.
    """

    __slots__ = ("_make", "_pattern", "lead", "longest", "sign")

    def __init__(
        self, make: Callable[[], re.Pattern[bytes]], longest: int, *, lead: bool, sign: re.Pattern[bytes] | None
    ) -> None:
        self._make = make
        self._pattern: re.Pattern[bytes] | None = None
        self.longest = longest
        self.lead = lead
        self.sign = sign

    def spans(self, data: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Every place from `start` on where a needle begins, with the end of the longest one."""
        if self.sign is not None and self.sign.search(data) is None:
            return
        if self._pattern is None:
            self._pattern = self._make()
        position = start
        while (found := self._pattern.search(data, position)) is not None:
            begin, end = found.span()
            position = begin + 1
            if self.lead and begin > start and data[begin - 1] in _BASE64_ANY:
                begin -= 1
            yield begin, end


_ENCODINGS: Final[tuple[tuple[Callable[[str], Iterator[_Needle]], bool, re.Pattern[bytes] | None], ...]] = (
    (_plain, False, None),
    (_hexadecimal, False, None),
    (_base64((0,)), False, None),
    (_base64((1, 2)), True, None),
    (_percent, False, re.compile(b"[%+]")),
    (_json, False, re.compile(rb"\\")),
)


def _spread(secrets: Iterable[str]) -> tuple[set[str], set[str]]:
    """What to look for in every encoding, and what as whole words only."""
    long: set[str] = set()
    short: set[str] = set()
    for secret in secrets:
        for form in {secret, secret.strip()}:
            if form.strip():
                (long if len(form) >= MIN_LENGTH else short).add(form)
        long.update(line for raw in secret.splitlines() if len(line := raw.strip()) >= MIN_LENGTH)
    return long, short


def _replace(data: bytes, spans: Iterable[tuple[int, int]], position: int, cut: int) -> tuple[bytes, int, int]:
    """The data from `position` to `cut` with every span that begins there masked once, overlapping ones together.

    Returns it, the end of what it covers (beyond `cut` when the last span is) and how many places were masked.
    """
    out = []
    count = 0
    for begin, end in spans:
        if begin >= cut:
            break
        if begin >= position:
            out += [data[position:begin], _MASK]
            count += 1
        position = max(position, end)
    if position < cut:
        out.append(data[position:cut])
        position = cut
    return b"".join(out), position, count


class Redactor:
    """Replaces every secret it was given by `********`, in text, bytes and JSON values.

    Immutable: `with_secrets` returns another one. Its repr says how many secrets it knows and nothing else, and it
    refuses to be pickled. Safe to share between threads.
    """

    __slots__ = ("_hold", "_matchers", "_secrets")

    def __init__(self, secrets: Iterable[SecretStr] = ()) -> None:
        self._secrets = tuple(dict.fromkeys(secrets))
        long, short = _spread(secret.get_secret_value() for secret in self._secrets)
        self._matchers: list[_Matcher] = []
        for encode, lead, sign in _ENCODINGS if long else ():
            needles = [needle for secret in long for needle in encode(secret)]
            longest = max(needle.longest for needle in needles)
            self._matchers.append(_Matcher(partial(_compile, needles), longest, lead=lead, sign=sign))
        if short:
            longest = max(len(_raw(secret)) for secret in short)
            self._matchers.append(_Matcher(partial(_compile_words, short), longest, lead=False, sign=None))
        # What stands at a place is known once its longest needle fits behind it, and the two characters that
        # look-around and `lead` may ask for.
        self._hold = 2 + max((matcher.longest for matcher in self._matchers), default=-2)

    def __repr__(self) -> str:
        return f"Redactor({len(self._secrets)} secrets)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a redactor holds secrets and is not written down")

    @property
    def secret_count(self) -> int:
        """How many different secrets it knows."""
        return len(self._secrets)

    def with_secrets(self, more: Iterable[SecretStr]) -> Redactor:
        """A redactor that knows `more` as well; itself when it knew them all."""
        joined = tuple(dict.fromkeys((*self._secrets, *more)))
        return self if len(joined) == len(self._secrets) else Redactor(joined)

    def text(self, text: str) -> str:
        """The text without secrets."""
        return self.text_counted(text)[0]

    def text_counted(self, text: str) -> tuple[str, int]:
        """The text without secrets, and how many places were masked."""
        masked, count = self.bytes_counted(_raw(text))
        return (masked.decode("utf-8", "surrogatepass"), count) if count else (text, 0)

    def bytes(self, data: Bytes) -> Bytes:
        """The bytes without secrets; secrets are looked for in UTF-8."""
        return self.bytes_counted(data)[0]

    def bytes_counted(self, data: Bytes) -> tuple[Bytes, int]:
        """The bytes without secrets, and how many places were masked."""
        spans = self._spans(data, 0)
        if not spans:
            return data, 0
        masked, _, count = _replace(data, spans, 0, len(data))
        return masked, count

    def json(self, value: Any) -> Any:
        """A copy of a JSON value without secrets: strings, keys and numbers, at any depth.

        Keys that are alike once masked are told apart by a number. A SecretStr is masked whoever it is. What JSON does
        not know is taken as its `str`.
        """
        return self.json_counted(value)[0]

    def json_counted(self, value: Any) -> tuple[Any, int]:
        """A copy of a JSON value without secrets, and how many places were masked."""
        return self._json(value, MAX_DEPTH)

    def stream(self) -> StreamRedactor:
        """A redactor for bytes that come in chunks, cut anywhere."""
        return StreamRedactor(self)

    def _json(self, value: Any, depth: int) -> tuple[Any, int]:
        if value is None or isinstance(value, bool):
            return value, 0
        if isinstance(value, SecretStr) or depth == 0:
            return MASK, 1
        if isinstance(value, str):
            return self.text_counted(value)
        if isinstance(value, Mapping):
            return self._json_object(value, depth)
        if isinstance(value, list | tuple):
            pairs = [self._json(item, depth - 1) for item in value]
            return [masked for masked, _ in pairs], sum(count for _, count in pairs)
        text, count = self.text_counted(str(value))
        return (value, 0) if isinstance(value, int | float) and not count else (text, count)

    def _json_object(self, value: Mapping[Any, Any], depth: int) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        total = 0
        for key, item in value.items():
            name, count = self.text_counted(str(key))
            masked, inner = self._json(item, depth - 1)
            unique, number = name, 2
            while unique in result:
                unique, number = f"{name}#{number}", number + 1
            result[unique] = masked
            total += count + inner
        return result, total

    def _spans(self, data: Bytes, start: int) -> list[tuple[int, int]]:
        return sorted(span for matcher in self._matchers for span in matcher.spans(data, start))


class StreamRedactor:
    """Masks a stream of bytes, however it is cut: what comes out is what `Redactor.bytes` makes of the whole.

    It holds back as many bytes as the longest secret has in its longest encoding, until `flush`.
    """

    __slots__ = ("_before", "_held", "_masked", "_redactor", "count")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""
        self._before = b""
        """The last byte that went out: a short secret is a whole word only beside it."""
        self._masked = 0
        """How many of the held bytes belong to a secret whose asterisks went out already."""
        self.count = 0
        """How many places were masked so far."""

    def __repr__(self) -> str:
        return f"StreamRedactor({len(self._held)} bytes held)"

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return what can be shown by now."""
        self._held += chunk
        return self._release(len(self._held) - self._redactor._hold)  # noqa: SLF001 - the other half of the class

    def flush(self, chunk: bytes = b"") -> bytes:
        """Take the last bytes, return all that is held, and start afresh."""
        self._held += chunk
        out = self._release(len(self._held))
        self._before = b""
        self._masked = 0
        return out

    def _release(self, count: int) -> bytes:
        if count <= 0:
            return b""
        start = len(self._before)
        data = self._before + self._held
        cut = start + count
        position = start + self._masked
        spans = self._redactor._spans(data, start)  # noqa: SLF001 - the other half of the class
        out, position, masked = _replace(data, spans, position, cut)
        self.count += masked
        self._masked = position - cut
        self._before = data[cut - 1 : cut]
        self._held = data[cut:]
        return out


__all__ = ["MASK", "MAX_DEPTH", "MIN_LENGTH", "Redactor", "StreamRedactor"]
