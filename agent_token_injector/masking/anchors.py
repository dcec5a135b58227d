"""Where a secret may stand: a few bytes of each needle, and one automaton that finds them all in one reading.

A needle is not searched whole. Six bytes of it tell where to look, and the needle itself then says whether it is
there. They are taken where they are rarest in text, for two reasons: an automaton is fast while it stays near its
root, which it leaves for the first byte of an anchor only, so that a thousand secrets cost hardly more than one; and
what is rare is seldom checked in vain. Each anchor belongs to one needle where that can be had, so that secrets that
have much in common (the same host, the same prefix) are not all checked wherever it occurs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, product
from typing import Final, Generic, TypeVar

from ahocorasick_rs import BytesAhoCorasick, Implementation

T = TypeVar("T")

_LENGTH: Final = 6
_SHORTER: Final = 4
_MAX_SPELLINGS: Final = 16
_MAX_PLACES: Final = 64
_MAX_DENSE: Final = 8192
"""So many anchors, about 1,500 secrets, are kept in a dense table (up to 10 MB); more in one that is slower and small."""

_COMMON: Final = b" eta\"sinor:ldmp1h,cu2\n/f.03-v6x_54bg=yw87`T9|)('k{}Z?EAI#*NDSORCF>HP;LMj][UGWVB+qz%<\\KYJ$X&@!Q^~"
"""Bytes of English, source code and JSON documents, the most frequent ones first (counted over 3 MB of them)."""


class Spelling:
    """Which bytes stand for a byte of a needle besides itself."""

    __slots__ = ("others", "scores")

    def __init__(self, *pairs: bytes) -> None:
        self.others = {pair[0]: pair for pair in pairs}
        scores = bytearray([len(_COMMON)]) * 256
        for rank, byte in enumerate(_COMMON):
            scores[byte] = rank
        # Every byte that can be spelled in two ways doubles the anchors.
        for byte in self.others:
            scores[byte] = 0
        self.scores = bytes(scores)

    def all(self, anchor: bytes) -> list[bytes]:
        """The anchor in every spelling."""
        if self.others.keys().isdisjoint(anchor):
            return [anchor]
        return [bytes(one) for one in product(*(self.others.get(byte, bytes([byte])) for byte in anchor))]


EXACT: Final = Spelling()
SPACE: Final = Spelling(b" +")
HEX: Final = Spelling(*(bytes([letter, letter - 32]) for letter in b"abcdef"))
BASE64: Final = Spelling(b"+-", b"/_")


class Anchors(Generic[T]):
    """Collects the anchors of needles, then makes the automaton."""

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        self._owners: dict[bytes, list[tuple[T, int]]] = {}

    def add(self, data: bytes, spelling: Spelling, owner: T, length: int = _LENGTH) -> None:
        """Choose an anchor in `data` for `owner`; hits are given with how many bytes of it stand before the anchor."""
        length = min(length, len(data))
        offset = self._choose(data, spelling, length)
        anchors = spelling.all(data[offset : offset + length])
        if len(anchors) > _MAX_SPELLINGS and length > _SHORTER:
            self.add(data, spelling, owner, _SHORTER)
            return
        for anchor in anchors:
            self._owners.setdefault(anchor, []).append((owner, offset))

    def add_whole(self, data: bytes, owner: T) -> None:
        """Take all of it for the anchor: it is short."""
        self._owners.setdefault(data, []).append((owner, 0))

    def _choose(self, data: bytes, spelling: Spelling, length: int) -> int:
        last = len(data) - length
        if last == 0:
            return 0
        scores = data.translate(spelling.scores)
        sums = list(accumulate(scores, initial=0))
        places = range(0, last + 1, 1 + last // _MAX_PLACES)

        def rarity(place: int) -> int:
            # The first byte counts most: it is where the automaton leaves its root.
            return 4 * scores[place] + 2 * scores[place + 1] + sums[place + length] - sums[place]

        best = max(places, key=rarity)
        if data[best : best + length] not in self._owners:
            return best
        free = (place for place in places if data[place : place + length] not in self._owners)
        return max(free, key=rarity, default=best)

    def automaton(self) -> Automaton[T]:
        """What finds them all."""
        return Automaton(self._owners)


class Automaton(Generic[T]):
    """Finds every anchor in one reading.

    `find(data, True)` lists (number, begin, end) of every place where an anchor stands, in the order of the ends: True
    says that they may overlap, and a name for it would cost a small text a sixth of its reading.
    `owners[number]` are the needles it was chosen for, each with the bytes that the needle has before the anchor.
    """

    __slots__ = ("find", "owners")

    def __init__(self, owners: dict[bytes, list[tuple[T, int]]]) -> None:
        kind = Implementation.DFA if len(owners) <= _MAX_DENSE else Implementation.ContiguousNFA
        automaton = BytesAhoCorasick(list(owners), implementation=kind)
        self.find: Callable[[bytes, bool], list[tuple[int, int, int]]] = automaton.find_matches_as_indexes
        self.owners = [tuple(found) for found in owners.values()]


__all__ = ["BASE64", "EXACT", "HEX", "SPACE", "Anchors", "Automaton", "Spelling"]
