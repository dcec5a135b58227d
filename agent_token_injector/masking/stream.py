"""Masking of bytes that come in chunks, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from agent_token_injector.masking.index import Span

MASK: Final = "********"
"""What stands where a secret stood: its length says nothing of the secret's."""

_MASK: Final = MASK.encode()


def replace(data: bytes, spans: Iterable[Span], position: int, cut: int) -> tuple[bytes, int, int]:
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


class StreamRedactor:
    """Masks a stream of bytes, however it is cut: what comes out is what `Redactor.bytes` makes of the whole.

    It holds back as many bytes as the longest secret has in its longest encoding, until `flush`, and at most half as
    many again that came since it last looked: so that small chunks do not have the same bytes searched over and over.
    """

    __slots__ = ("_before", "_held", "_hold", "_masked", "_spans", "count")

    def __init__(self, spans: Callable[[bytes, int], list[Span]], longest: int) -> None:
        self._spans = spans
        # What stands at a place is known once its longest needle fits behind it, and the two characters that
        # look-around and a base64 lead may ask for.
        self._hold = longest + 2 if longest else 0
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
        ready = len(self._held) - self._hold
        return self._release(ready) if ready > self._hold // 2 else b""

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
        out, position, masked = replace(data, self._spans(data, start), position, cut)
        self.count += masked
        self._masked = position - cut
        self._before = data[cut - 1 : cut]
        self._held = data[cut:]
        return out


__all__ = ["MASK", "StreamRedactor", "replace"]
