"""Audit events: who did what to which thing under which handoff, when, and how it was decided (H5). Never a value.

An event is flat and bounded, so that a line can be read by eye and so that nobody can flood a chain through the name of
a tool: longer texts are cut, with a note of how much is missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent_token_injector.clock import parse_iso

if TYPE_CHECKING:
    from agent_token_injector.masking import Redactor

FORMAT: Final = 1
MAX_TEXT: Final = 2048
MAX_ITEMS: Final = 256
MAX_LINE: Final = 256 * 1024
"""No line of a chain is longer than this, in bytes, its newline included."""

_SAFE_INTEGER: Final = 2**53 - 1
"""RFC 8785 holds numbers to what every JSON reader can represent."""

_URGENT: Final = ("mint.", "revoke.", "spawn.", "approval.", "provision.")

DetailValue = str | int | float | bool | None | list[str]
Detail = Mapping[str, DetailValue]


class Decision(StrEnum):
    """How an event's action was decided or ended."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    DONE = "done"
    FAILED = "failed"


class AuditEvent(BaseModel):
    """One line of a handoff's chain.

    `seq` counts from 1. `prev` is the digest of the event before, and the handoff's genesis for the first. `digest` is
    the SHA-256 of the RFC 8785 form of everything else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    v: Literal[1]
    seq: int = Field(ge=1, le=_SAFE_INTEGER)
    at: str = Field(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\z")
    handoff: str
    task_slug: str
    actor: str
    action: str
    surface: str
    target: str
    decision: Decision
    reason: str
    detail: Mapping[str, DetailValue]
    prev: str
    digest: str

    @property
    def when(self) -> datetime:
        """`at` as an aware time. Raises ValueError for a day that no calendar has."""
        return parse_iso(self.at)


@dataclass(frozen=True, slots=True)
class Draft:
    """An event that has no place in a chain yet; masked, cut, and safe to keep."""

    action: str
    decision: Decision
    surface: str = ""
    target: str = ""
    reason: str = ""
    detail: Detail = field(default_factory=dict)

    @property
    def urgent(self) -> bool:
        """Whether it has to be on disk before anyone goes on."""
        return self.decision in {Decision.REFUSED, Decision.FAILED} or self.action.startswith(_URGENT)

    def adding(self, **more: DetailValue) -> Draft:
        """The same event with more detail."""
        return Draft(self.action, self.decision, self.surface, self.target, self.reason, {**self.detail, **more})


def stamp(at: datetime) -> str:
    """`at` in UTC with microseconds and a `Z`."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def clean(text: str, redactor: Redactor, limit: int = MAX_TEXT) -> str:
    """`text` as an event may hold it: masked, then cut, and without halves of characters (which JSON cannot carry)."""
    if not text:
        return text
    masked = redactor.text(text.encode("utf-8", "backslashreplace").decode())
    return masked if len(masked) <= limit else f"{masked[:limit]}...({len(masked) - limit} more)"


def clean_detail(detail: Mapping[str, Any], redactor: Redactor) -> Detail:
    """A flat detail as an event may hold it. What is not of a type that an event holds is taken as its `str`."""
    kept = list(detail.items())[:MAX_ITEMS]
    result = {clean(str(name), redactor, 128): _clean_value(value, redactor) for name, value in kept}
    if len(detail) > len(kept):
        result["..."] = len(detail) - len(kept)
    return result


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
    return whole if abs(whole) <= _SAFE_INTEGER else str(value)


def without_detail(draft: Draft, size: int, text: bytes) -> Draft:
    """The event with a digest in place of a detail that no line can hold."""
    cut: Detail = {"cut_bytes": size, "cut_sha256": hashlib.sha256(text).hexdigest()}
    return Draft(draft.action, draft.decision, draft.surface, draft.target, draft.reason, cut)
