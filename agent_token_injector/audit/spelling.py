"""How an event is spelled: RFC 8785, hence in one way, and quickly.

Fast JSON writers write just what RFC 8785 asks for where it leaves little to decide: texts, booleans, null, integers up
to 2^53-1, fractions that need no exponent, lists of texts, and members whose ASCII names sort alike in every alphabet.
Other fractions, and names beyond ASCII (RFC 8785 sorts by UTF-16 units), are left to the reference implementation.

A row is an event's line without what only its place in a chain gives it. A NUL stands in each of the three gaps: who
writes when, which event it follows, its number. No JSON holds one.

Pure: drafts in, bytes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from json.encoder import encode_basestring
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agent_token_injector.audit.event import (
    MAX_DETAIL,
    MAX_ITEMS,
    MAX_NAME,
    MAX_TEXT,
    AuditEvent,
    Decision,
    Draft,
    texts_of,
)
from agent_token_injector.signing import canonical

if TYPE_CHECKING:
    from agent_token_injector.masking import Redactor

GAP: Final = b"\0"
_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_SAFE_INTEGER: Final = 2**53 - 1
_TEXTS: Final = frozenset({str})
_PLAIN: Final = frozenset({bool, NoneType})
"""Exact types: subclasses have their own ways of becoming JSON."""

_DECISIONS: Final = {decision: f'"{decision}"' for decision in Decision}


def spell_text(text: str) -> bytes:
    """The RFC 8785 form of a text. Raises ValueError for half a character, TypeError for what is no text."""
    return encode_basestring(text).encode()


def spell_event(event: AuditEvent) -> bytes:
    """The row of an event that was read."""
    draft = Draft(event.action, event.decision, event.surface, event.target, event.reason, event.detail)
    return _row(draft, _spell_detail(event.detail))


def spell(draft: Draft) -> bytes:
    """The row of a clean draft; a detail that no line can hold is replaced by its digest.

    Raises ValueError for what no JSON has: a fraction without end, half a character.
    """
    detail = _spell_detail(draft.detail)
    if len(text := detail.encode()) > MAX_DETAIL:
        detail = _spell_detail({"cut_bytes": len(text), "cut_sha256": hashlib.sha256(text).hexdigest()})
    return _row(draft, detail)


class Template:
    """Rows of events that differ in values of ours alone: cleaned and spelled once, then filled in.

    Args:
        draft: what all of them have in common.
        gaps: the members of the detail that differ, by name.
        redactor: masks what they have in common. Who learns of another secret makes another template.

    Raises ValueError for an event that somebody waits for on the disk (`Draft.urgent`), or whose detail no line can hold.
    """

    __slots__ = ("_format",)

    def __init__(self, draft: Draft, gaps: Mapping[str, Gap], redactor: Redactor) -> None:
        if draft.urgent:
            raise ValueError("an urgent event has no template")
        clean = draft.cleaned(redactor)
        members = {name: _escaped(_spell_detail({name: value})[1:-1].encode()) for name, value in clean.detail.items()}
        members |= {name: b"%b:%b" % (spell_text(name), gap.value) for name, gap in gaps.items()}
        detail = b",".join(members[name] for name in sorted(members))
        if not "".join(members).isascii() or len(detail) > MAX_TEXT:
            raise ValueError("a template's detail is short, and its names are ASCII")
        # JSON escapes control characters, so that this one stands in the detail's place alone.
        before, after = _row(clean, "\3").split(b"\3")
        self._format = b"%b{%b}%b" % (_escaped(before), detail, _escaped(after))

    def row(self, *values: Any) -> bytes:
        """The row with its gaps filled, in the order of their names: `Gap.NUMBER` with an int, the others with bytes."""
        return self._format % values


class Gap(Enum):
    """A value of a template's detail that each event has its own of."""

    NUMBER = b"%d"
    """An integer within RFC 8785's bounds."""
    TEXT = b'"%b"'
    """A text that JSON escapes nothing of and no secret can be in, such as a digest of ours."""
    LITERAL = b"%b"
    """A number or a boolean, spelled by whoever fills it in."""


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")


def literal(value: float) -> bytes:
    """How a template spells a number with few digits, or a boolean."""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    whole = int(value)
    return b"%d" % whole if whole == value else repr(value).encode()


def spell_batch(drafts: Sequence[Draft | bytes], redactor: Redactor) -> list[bytes]:
    """The rows of drafts that may hold anything, masked and cut as `Draft.cleaned` does; a template's rows as they are.

    Most drafts hold nothing that has to be cleaned, and all of them are searched at once to know it. Raises TypeError
    for a draft whose action, surface, target or reason is no text.
    """
    others = [draft for draft in drafts if type(draft) is not bytes]
    if not others:
        return list(drafts)  # type: ignore[arg-type]
    spelled = iter(_spell_drafts(others, redactor))  # type: ignore[arg-type]
    return [draft if isinstance(draft, bytes) else next(spelled) for draft in drafts]


def _spell_drafts(drafts: Sequence[Draft], redactor: Redactor) -> list[bytes]:
    quick = [_spell_quickly(draft) for draft in drafts]
    text = b"\n".join([row for row in quick if row is not None])
    if b"\\" not in text and not redactor.bytes_counted(text)[1]:
        return [
            spell(draft.cleaned(redactor)) if row is None else row for row, draft in zip(quick, drafts, strict=True)
        ]
    # Where JSON escapes nothing, a text stands in it as it is. Where it does, the texts themselves are searched.
    return [
        spell(draft.cleaned(redactor)) if row is None or redactor.text_counted("\n".join(texts_of(draft)))[1] else row
        for row, draft in zip(quick, drafts, strict=True)
    ]


def _row(draft: Draft, detail: str) -> bytes:
    action, decision, surface, target, reason, _ = draft
    # In the order of their names, as RFC 8785 has it. "digest" falls into the second gap.
    return (
        f'{{"action":{encode_basestring(action)},\0"decision":{_DECISIONS[decision]},"detail":{detail},\0'
        f'"reason":{encode_basestring(reason)},"seq":\0'
        f',"surface":{encode_basestring(surface)},"target":{encode_basestring(target)},'
    ).encode()


def _spell_quickly(draft: Draft) -> bytes | None:
    """The row of a draft that is clean but for secrets; None when it may not be. Raises TypeError as above."""
    detail = _spell_plain(draft.detail)
    try:
        row = _row(draft, detail or "")
    except UnicodeEncodeError:
        return None
    # Texts that are short together are short one by one, and a character takes four bytes at most.
    if detail is None or 4 * len(detail) > MAX_DETAIL or len(row) - len(detail) > MAX_TEXT:
        return None
    return row


def _spell_detail(detail: Mapping[str, Any]) -> str:
    return _spell_plain(detail) or canonical(dict(detail)).decode()


def _spell_plain(detail: Mapping[str, Any]) -> str | None:
    """The RFC 8785 form of a detail of exact types and within bounds; None when it is not."""
    if not detail:
        return "{}"
    try:
        _check_names(detail)
        if not _TEXTS.issuperset(map(type, detail.values())):
            _check_values(detail)
        spelled = _ENCODER.encode(detail)
        if len(spelled) > MAX_TEXT:
            _check_values(detail)
    except (TypeError, ValueError):
        # A name that is no text or beyond ASCII, a value of another type, something too long, half a character.
        return None
    return spelled.decode()


def _check_names(detail: Mapping[str, Any]) -> None:
    names = "".join(detail)
    if len(detail) > MAX_ITEMS or not names.isascii():
        raise ValueError
    if len(names) > MAX_NAME and max(map(len, detail)) > MAX_NAME:
        raise ValueError


def _check_values(detail: Mapping[str, Any]) -> None:
    for value in detail.values():
        kind = type(value)
        if kind is str:
            fits = len(value) <= MAX_TEXT
        elif kind is int:
            fits = -_SAFE_INTEGER <= value <= _SAFE_INTEGER
        elif kind is float:
            # Between these, and with something behind the point, the shortest digits are written in one way by all.
            fits = 1e-4 <= abs(value) < 1e15 and value != int(value)
        elif kind is list:
            fits = (
                len(value) <= MAX_ITEMS
                and _TEXTS.issuperset(map(type, value))
                and max(map(len, value), default=0) <= MAX_TEXT
            )
        else:
            fits = kind in _PLAIN
        if not fits:
            raise ValueError
