"""Some secrets, and what finds every place where one stands, in any encoding: made when the first data is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agent_token_injector.masking import encodings
from agent_token_injector.masking.anchors import BASE64, EXACT, HEX, SPACE, Anchors, Automaton
from agent_token_injector.masking.encodings import BASE64_ANY, SHIFTS, Base64, Needle, Pattern
from agent_token_injector.masking.views import Kind, View, views

Span = tuple[int, int]

_MIN_ANCHOR: Final = 3

_SPELLINGS: Final = {Kind.PERCENT: SPACE, Kind.JSON: EXACT, Kind.BASE64: BASE64}
_ALIKE: Final = {Kind.PERCENT: bytes.maketrans(b" ", b"+"), Kind.JSON: None, Kind.BASE64: bytes.maketrans(b"-_", b"+/")}
"""Bytes that may stand for each other, made one."""


def _first(needle: Needle, data: bytes, begin: int, start: int) -> int:
    """Where to mask from: the character before may have some of the secret's bits."""
    return begin - 1 if needle.lead and begin > start and data[begin - 1] in BASE64_ANY else begin


def _search(needle: Pattern, data: bytes, low: int, high: int, start: int) -> list[Span]:
    return [(_first(needle, data, begin, start), end) for begin, end in needle.between(data, low, high)]


class _Plain:
    """Finds what stands in data as it is: no escape before the anchor, so it is known where the needle begins."""

    __slots__ = ("_owners", "find")

    def __init__(self, long: Sequence[str], short: Sequence[str]) -> None:
        anchors: Anchors[Needle] = Anchors()
        for text in short:
            word = encodings.Word(text)
            anchors.add_whole(word.data, word)
        for text in long:
            data = encodings.utf8(text)
            anchors.add(data, EXACT, encodings.Literal(data))
            if b" " in data:
                anchors.add(data, SPACE, encodings.percent(data))
            digits = data.hex().encode()
            anchors.add(digits, HEX, encodings.Hexadecimal(digits))
            for shift in SHIFTS:
                needle = Base64(data, shift)
                anchors.add(needle.core, BASE64, needle)
        automaton = anchors.automaton()
        self.find = automaton.find
        self._owners = automaton.owners

    def spans(self, hits: Iterable[tuple[int, int, int]], data: bytes, start: int, found: list[Span]) -> None:
        for number, place, _ in hits:
            for needle, offset in self._owners[number]:
                begin = place - offset
                if begin >= start and (end := needle.end(data, begin)):
                    found.append((_first(needle, data, begin, start), end))


class _Rest(NamedTuple):
    """What of a needle every reader reads alike: what stands before a secret may swallow its first characters."""

    kind: Kind
    needle: Pattern
    data: bytes
    skipped: int

    def stands(self, view: View, place: int) -> bool:
        table = _ALIKE[self.kind]
        if table is None:
            return view.data.startswith(self.data, place)
        return view.data[place : place + len(self.data)].translate(table) == self.data


class _Escaped:
    """Finds what has escapes in it.

    Where the rest of a needle stands in a view, the needle is looked for in the data around its beginning. One that
    has no rest to speak of (a secret of backslashes, say) is looked for in all the data.
    """

    __slots__ = ("_always", "_automaton")

    def __init__(self, long: Iterable[str]) -> None:
        self._always: list[tuple[Kind, Pattern]] = []
        anchors: Anchors[_Rest] = Anchors()
        for text in long:
            data = encodings.utf8(text)
            head = text[: encodings.swallowed(text)]
            self._add(anchors, Kind.PERCENT, encodings.percent(data), data, len(encodings.utf8(head)))
            units = encodings.utf16_units(text)
            self._add(anchors, Kind.JSON, encodings.json(text), units, len(encodings.utf16_units(head)))
            for shift in SHIFTS:
                needle = Base64(data, shift)
                # Without a character to escape it stands in the data as it is.
                if b"+" in needle.core or b"/" in needle.core:
                    self._add(anchors, Kind.BASE64, needle, needle.core, encodings.swallowed(needle.core.decode()))
        self._automaton: Automaton[_Rest] = anchors.automaton()

    def _add(self, anchors: Anchors[_Rest], kind: Kind, needle: Pattern, data: bytes, skipped: int) -> None:
        if len(data) - skipped < _MIN_ANCHOR:
            self._always.append((kind, needle))
            return
        rest, table = data[skipped:], _ALIKE[kind]
        anchors.add(rest, _SPELLINGS[kind], _Rest(kind, needle, rest.translate(table) if table else rest, skipped))

    def spans(self, view: View, data: bytes, start: int, found: list[Span]) -> None:
        for kind, needle in self._always:
            if kind is view.kind:
                found += _search(needle, data, start, len(data), start)
        owners = self._automaton.owners
        for number, place, _ in self._automaton.find(view.data, True):
            for rest, offset in owners[number]:
                if rest.kind is view.kind and offset <= place and rest.stands(view, place - offset):
                    high = view.place(place - offset)
                    low = max(start, high - encodings.MAX_ESCAPE * rest.skipped)
                    found += _search(rest.needle, data, low, high, start)


class SecretIndex:
    """Secrets, and every place where one of them stands in data.

    Its automata are made when they are first needed: not at all for a redactor that never reads, and those for
    escapes not before there are some. Making them twice, in two threads at once, does no harm.
    """

    __slots__ = ("_escaped", "_longest", "plain", "secrets")

    def __init__(self, secrets: Iterable[str]) -> None:
        self.secrets = dict.fromkeys(secrets)
        self.plain: _Plain | None = None
        self._escaped: _Escaped | None = None
        self._longest: int | None = None

    def __len__(self) -> int:
        return len(self.secrets)

    @property
    def longest(self) -> int:
        """How many bytes the longest secret has in its longest spelling."""
        if self._longest is None:
            long, short = encodings.spread(self.secrets)
            lengths = [len(encodings.utf8(text)) for text in short]
            for text in long:
                data = encodings.utf8(text)
                patterns = (encodings.percent(data), encodings.json(text), *(Base64(data, shift) for shift in SHIFTS))
                lengths += [pattern.longest for pattern in patterns]
            self._longest = max(lengths, default=0)
        return self._longest

    def make(self) -> _Plain:
        """Make what finds a spelling that has no escape in it."""
        self.plain = _Plain(*encodings.spread(self.secrets))
        return self.plain

    def escaped_spans(self, view: View, data: bytes, start: int, found: list[Span]) -> None:
        """Add every place from `start` on where a secret stands that the view shows."""
        if self._escaped is None:
            self._escaped = _Escaped(encodings.spread(self.secrets)[0])
        self._escaped.spans(view, data, start, found)


def spans(indexes: Sequence[SecretIndex], data: bytes, start: int) -> list[Span]:
    """Every place from `start` on where a secret of any index stands, in order; they may overlap."""
    found: list[Span] = []
    for index in indexes:
        plain = index.plain or index.make()
        hits = plain.find(data, True)
        if hits:
            plain.spans(hits, data, start, found)
    if (b"%" in data or b"\\" in data) and indexes:
        for view in views(data):
            for index in indexes:
                index.escaped_spans(view, data, start, found)
    if found:
        found.sort()
    return found


__all__ = ["SecretIndex", "Span", "spans"]
