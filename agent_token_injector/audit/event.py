"""Audit events: who did what to which thing under which handoff, when, and how it was decided (H5). Never a value.

An event is flat and bounded, so that a line can be read by eye and so that nobody can flood a chain through the name of
a tool: longer texts are cut, with a note of how much is missing.

No pydantic here: the MCP proxy's engine writes events, and has to stay small and quick to start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from agent_token_injector.clock import parse_iso

if TYPE_CHECKING:
    from agent_token_injector.masking import Redactor

FORMAT: Final = 1
MAX_TEXT: Final = 2048
MAX_NAME: Final = 128
MAX_ITEMS: Final = 256
MAX_LINE: Final = 256 * 1024
"""No line of a chain is longer than this, in bytes, its newline included."""

MAX_DETAIL: Final = MAX_LINE - 64 * 1024
"""So much of a line is left to the detail, in bytes: the texts beside it take less than the rest, though each character
were escaped."""

SAFE_INTEGER: Final = 2**53 - 1
"""RFC 8785 holds numbers to what every JSON reader can represent."""

DetailValue = str | int | float | bool | None | list[str]
Detail = Mapping[str, DetailValue]

_NOTHING: Final[Detail] = MappingProxyType({})
_AT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)
_URGENT: Final = ("mint.", "revoke.", "spawn.", "approval.", "provision.")


class Decision(StrEnum):
    """How an event's action was decided or ended."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    DONE = "done"
    FAILED = "failed"


_REFUSED: Final = Decision.REFUSED
_FAILED: Final = Decision.FAILED


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of a handoff's chain.

    `seq` counts from 1. `prev` is the digest of the event before, and the handoff's genesis for the first. `digest` is
    the SHA-256 of the RFC 8785 form of everything else.
    """

    v: Literal[1]
    seq: int
    at: str
    handoff: str
    task_slug: str
    actor: str
    action: str
    surface: str
    target: str
    decision: Decision
    reason: str
    detail: Detail
    prev: str
    digest: str

    @classmethod
    def from_dict(cls, document: object) -> AuditEvent:
        """The event that a JSON document is, its members neither more nor fewer, each of its exact type.

        Raises ValueError, which quotes nothing of the document.
        """
        if type(document) is not dict or document.keys() != _MEMBERS:
            raise ValueError("not the members of an audit event")
        if set(map(type, map(document.__getitem__, _TEXTS))) != {str} or not _AT.fullmatch(document["at"]):
            raise ValueError("a text of an audit event is none, or its time is not written as one")
        version, seq, detail = document["v"], document["seq"], document["detail"]
        if type(version) is not int or version != FORMAT:
            raise ValueError("an audit event of another format")
        if type(seq) is not int or not 1 <= seq <= SAFE_INTEGER:
            raise ValueError("an audit event without its number")
        if type(detail) is not dict or not all(map(_is_value, detail.values())):
            raise ValueError("an audit event with a detail that is not flat")
        if document["decision"] not in _DECISIONS:
            raise ValueError("an audit event without a decision")
        return cls(**{**document, "decision": Decision(document["decision"])})

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON has it."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _ORDER}
        return values | {"decision": str(self.decision), "detail": dict(self.detail)}

    @property
    def when(self) -> datetime:
        """`at` as an aware time. Raises ValueError for a day that no calendar has."""
        return parse_iso(self.at)


_ORDER: Final = tuple(one.name for one in fields(AuditEvent))
_MEMBERS: Final = frozenset(_ORDER)
_TEXTS: Final = tuple(name for name in _ORDER if name not in {"v", "seq", "detail"})
_DECISIONS: Final = frozenset(map(str, Decision))


def _is_value(value: object) -> bool:
    kind = type(value)
    if kind is int:
        return -SAFE_INTEGER <= value <= SAFE_INTEGER  # type: ignore[operator] # known by its exact type
    if kind is float:
        # A whole number is written without a fraction (RFC 8785), and read back as an integer or not at all.
        return math.isfinite(value) and not value.is_integer()  # type: ignore[arg-type,attr-defined] # the same
    if kind is list:
        return all(type(item) is str for item in value)  # type: ignore[attr-defined] # the same
    return kind is str or kind is bool or kind is NoneType


class Draft(NamedTuple):
    """An event that has no place in a chain yet. A tuple, because the proxy makes two for every call."""

    action: str
    decision: Decision
    surface: str = ""
    target: str = ""
    reason: str = ""
    detail: Detail = _NOTHING

    @property
    def urgent(self) -> bool:
        """Whether it has to be on disk before anyone goes on."""
        return self.decision is _REFUSED or self.decision is _FAILED or self.action.startswith(_URGENT)

    def adding(self, **more: DetailValue) -> Draft:
        """The same event with more detail."""
        return self._replace(detail={**self.detail, **more})

    def cleaned(self, redactor: Redactor) -> Draft:
        """The event as a chain may hold it: masked, cut, every value of a type that an event holds."""
        return Draft(
            clean(self.action, redactor),
            self.decision,
            clean(self.surface, redactor),
            clean(self.target, redactor),
            clean(self.reason, redactor),
            clean_detail(self.detail, redactor),
        )


def stamp(at: datetime) -> str:
    """`at` in UTC with microseconds and a `Z`."""
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    return utc.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def clean(text: str, redactor: Redactor, limit: int = MAX_TEXT) -> str:
    """`text` as an event may hold it: masked, then cut, and without halves of characters (which JSON cannot carry)."""
    if not text:
        return text
    masked = redactor.text(text.encode("utf-8", "backslashreplace").decode())
    return masked if len(masked) <= limit else f"{masked[:limit]}...({len(masked) - limit} more)"


def clean_detail(detail: Mapping[str, Any], redactor: Redactor) -> Detail:
    """A flat detail as an event may hold it. What is not of a type that an event holds is taken as its `str`."""
    kept = list(detail.items())[:MAX_ITEMS]
    result = {clean(str(name), redactor, MAX_NAME): _clean_value(value, redactor) for name, value in kept}
    if len(detail) > len(kept):
        result["..."] = len(detail) - len(kept)
    return result


def texts_of(draft: Draft) -> Iterable[str]:
    """Everything in a draft that could hold a secret, as text: names and numbers too."""
    yield from (draft.action, draft.surface, draft.target, draft.reason)
    for name, value in draft.detail.items():
        yield name
        if isinstance(value, list):
            yield from value
        else:
            yield str(value)


def _clean_value(value: Any, redactor: Redactor) -> DetailValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        number = _number(value)
        return clean(str(number), redactor) if redactor.text_counted(str(number))[1] else number
    if isinstance(value, list | tuple | set | frozenset):
        texts = [str(item) for item in value]
        items = [clean(text, redactor) for text in (sorted(texts) if isinstance(value, set | frozenset) else texts)]
        return items if len(items) <= MAX_ITEMS else [*items[:MAX_ITEMS], f"...({len(items) - MAX_ITEMS} more)"]
    return clean(str(value), redactor)


def _number(value: float) -> int | float | str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # RFC 8785 writes 1.0 as 1: the event in memory is then the one that is read back.
    whole = int(value) if value == int(value) else value
    return whole if abs(whole) <= SAFE_INTEGER else str(value)
