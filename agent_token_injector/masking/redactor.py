"""The redactor: secrets in, asterisks out."""

from __future__ import annotations

from builtins import bytes as Bytes  # noqa: N812 - inside the class below `bytes` is a method
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Final, NoReturn, Protocol

from agent_token_injector.masking.encodings import utf8
from agent_token_injector.masking.index import SecretIndex, Span, spans
from agent_token_injector.masking.stream import MASK, StreamRedactor, replace

MAX_DEPTH: Final = 100
"""A JSON value nested deeper than this is masked whole: it is never shown unread."""

_GROWTH: Final = 16


class Secret(Protocol):
    """What hides a value and gives it when asked, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """The value itself."""


class Redactor:
    """Replaces every secret it was given by `********`, in text, bytes and JSON values.

    Secrets are given as they are or as pydantic's SecretStr. Immutable: `with_secrets` returns another one. Its repr
    says how many secrets it knows and nothing else, and it refuses to be pickled. Safe to share between threads.
    """

    __slots__ = ("_indexes", "_separator")

    def __init__(self, secrets: Iterable[str | Secret] = ()) -> None:
        index = SecretIndex(map(_revealed, secrets))
        self._indexes: tuple[SecretIndex, ...] = (index,) if len(index) else ()
        self._separator: str | None = None

    def __repr__(self) -> str:
        return f"Redactor({self.secret_count} secrets)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a redactor holds secrets and is not written down")

    @property
    def secret_count(self) -> int:
        """How many different secrets it knows."""
        return sum(map(len, self._indexes))

    def secrets(self) -> tuple[str, ...]:
        """The secrets it knows, in the order they were given: for who must make another one elsewhere."""
        return tuple(chain.from_iterable(index.secrets for index in self._indexes))

    def with_secrets(self, more: Iterable[str | Secret]) -> Redactor:
        """A redactor that knows `more` as well; itself when it knew them all.

        It shares what was made for those known before. Only where the new ones are many beside older ones are both
        put together, so that secrets learned one by one cost a logarithm of their number each, and reading does too.
        """
        known = self._indexes
        new = dict.fromkeys(
            secret for secret in map(_revealed, more) if not any(secret in index.secrets for index in known)
        )
        if not new:
            return self
        indexes = [*known, SecretIndex(new)]
        while len(indexes) > 1 and len(indexes[-2]) < _GROWTH * len(indexes[-1]):
            last, before = indexes.pop(), indexes.pop()
            indexes.append(SecretIndex(chain(before.secrets, last.secrets)))
        grown = Redactor()
        grown._indexes = tuple(indexes)
        return grown

    def text(self, text: str) -> str:
        """The text without secrets."""
        return self.text_counted(text)[0]

    def text_counted(self, text: str) -> tuple[str, int]:
        """The text without secrets, and how many places were masked: the same text when none were."""
        masked, count = self.bytes_counted(utf8(text))
        return (masked.decode("utf-8", "surrogatepass"), count) if count else (text, 0)

    def bytes(self, data: Bytes) -> Bytes:
        """The bytes without secrets; secrets are looked for in UTF-8."""
        return self.bytes_counted(data)[0]

    def bytes_counted(self, data: Bytes) -> tuple[Bytes, int]:
        """The bytes without secrets, and how many places were masked: the same bytes when none were."""
        found = spans(self._indexes, data, 0)
        if not found:
            return data, 0
        masked, _, count = replace(data, found, 0, len(data))
        return masked, count

    def json(self, value: Any) -> Any:
        """A JSON value without secrets: strings, keys and numbers, at any depth.

        Keys that are alike once masked are told apart by a number. A SecretStr is masked whoever it is. What JSON does
        not know is taken as its `str`. The value given is never changed: it is returned itself when it is plain JSON
        with nothing to mask, and a copy otherwise.
        """
        return self.json_counted(value)[0]

    def json_counted(self, value: Any) -> tuple[Any, int]:
        """A JSON value without secrets, as `json` makes it, and how many places were masked.

        With nothing to mask all texts of the value are read at once, and it is not copied.
        """
        separator = self._separator or self._between()
        texts = _texts(value)
        try:
            joined = None if texts is None else separator.join(texts)
        except TypeError:  # a key that is no string
            joined = None
        if texts is None or joined is None:
            return _masked(value, self.text_counted, MAX_DEPTH)
        data = utf8(joined)
        found = spans(self._indexes, data, 0)
        if not found:
            return value, 0
        whole, _, count = replace(data, found, 0, len(data))
        parts = whole.decode("utf-8", "surrogatepass").split(separator)
        if len(parts) != len(texts):  # a text has the separator in it
            return _masked(value, self.text_counted, MAX_DEPTH)
        # No secret has the separator in it, so each text was masked as it would have been by itself.
        changed = {text: part for text, part in zip(texts, parts, strict=True) if text != part}
        return _masked(value, lambda text: (changed.get(text, text), text in changed), MAX_DEPTH)[0], count

    def stream(self) -> StreamRedactor:
        """A redactor for bytes that come in chunks, cut anywhere."""
        return StreamRedactor(self._spans, max((index.longest for index in self._indexes), default=0))

    def _spans(self, data: Bytes, start: int) -> list[Span]:
        return spans(self._indexes, data, start)

    def _between(self) -> str:
        """A character that no secret has and no encoding gives, so that nothing is found across two texts."""
        if self._separator is None:
            used = set(chain.from_iterable(self.secrets()))
            self._separator = next(one for one in map(chr, chain(range(1), range(0xE000, 0x110000))) if one not in used)
        return self._separator


def _revealed(secret: str | Secret) -> str:
    return secret if isinstance(secret, str) else secret.get_secret_value()


def _texts(value: Any) -> list[str] | None:
    """Every string, key and number of a JSON value; None for what is no plain JSON or nested too deep.

    Keys are taken unseen: one that is no string is noticed when they are joined.
    """
    texts: list[str] = []
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                texts.append(item)
            elif kind is dict:
                texts += item
                deeper += item.values()
            elif kind is list:
                deeper += item
            elif kind is int or kind is float:
                texts.append(str(item))
            elif item is not None and kind is not bool:
                return None
        if not deeper:
            return texts
        level = deeper
    return None


def _masked(value: Any, mask: Callable[[str], tuple[str, int]], depth: int) -> tuple[Any, int]:
    """A copy of the value with its texts masked, and how many places were."""
    if value is None or isinstance(value, bool):
        return value, 0
    if isinstance(value, str) and depth:
        return mask(value)
    if not depth or hasattr(value, "get_secret_value"):
        return MASK, 1
    if isinstance(value, Mapping):
        return _masked_object(value, mask, depth)
    if isinstance(value, list | tuple):
        pairs = [_masked(item, mask, depth - 1) for item in value]
        return [masked for masked, _ in pairs], sum(count for _, count in pairs)
    text, count = mask(str(value))
    return (value, 0) if isinstance(value, int | float) and not count else (text, count)


def _masked_object(
    value: Mapping[Any, Any], mask: Callable[[str], tuple[str, int]], depth: int
) -> tuple[dict[str, Any], int]:
    result: dict[str, Any] = {}
    total = 0
    for key, item in value.items():
        name, count = mask(str(key))
        masked, inner = _masked(item, mask, depth - 1)
        unique, number = name, 2
        while unique in result:
            unique, number = f"{name}#{number}", number + 1
        result[unique] = masked
        total += count + inner
    return result, total


__all__ = ["MAX_DEPTH", "Redactor", "Secret"]
