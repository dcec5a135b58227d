"""The hash chain of one handoff: how an event becomes a line, and how a line is known to be the next one.

A line is the RFC 8785 form of its event, one spelling only, so that any byte that changes in it changes what it says
or makes it no line at all. The first event follows the handoff's genesis, hence the chain of one handoff cannot be
passed off as another's.

Pure: bytes in, events out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from agent_token_injector.audit.event import FORMAT, AuditEvent, Draft
from agent_token_injector.audit.spelling import GAP, spell, spell_event, spell_text

_GENESIS: Final = b"agent_token_injector audit chain v1\x00"


class ChainBroken(Exception):
    """A line is not the event that is due. Its text says how, and quotes nothing of the line."""


@dataclass(frozen=True, slots=True, order=True)
class ChainHead:
    """A place in a chain: the last event's number and digest. `seq` 0 is the empty chain, with the genesis digest."""

    seq: int
    digest: str


def genesis(handoff: str) -> ChainHead:
    """Where the chain of a handoff begins."""
    return ChainHead(0, "sha256:" + sha256(_GENESIS + handoff.encode()).hexdigest())


class Frame(NamedTuple):
    """What all lines of one handoff have in common, in JSON where it is bytes."""

    handoff: str
    before: bytes
    after: bytes

    @classmethod
    def of(cls, handoff: str, slug: str) -> Frame:
        return cls(
            handoff,
            b'"handoff":%b,"prev":"' % spell_text(handoff),
            b'"task_slug":%b,"v":%d}' % (spell_text(slug), FORMAT),
        )

    def seal(self, row: bytes, seq: int, prev: bytes, writer: bytes) -> tuple[bytes, bytes]:
        """The digest of an event without its digest, and its line with it (newline included)."""
        action, decided, reason, placed = row.split(GAP)
        # Members are sorted and "digest" falls between them: two halves serve for the digest and for the line.
        first = b"".join((action, writer, decided))
        second = b"".join((self.before, prev, b'",', reason, b"%d" % seq, placed, self.after))
        digest = b"sha256:" + sha256(first + second).hexdigest().encode()
        return digest, b"".join((first, b'"digest":"', digest, b'",', second, b"\n"))


def extend(
    head: ChainHead, frame: Frame, rows: Iterable[bytes], *, at: str, actor: str
) -> tuple[list[bytes], ChainHead]:
    """The lines of the events that come after `head`, and the head they make."""
    writer = _writer(actor, at)
    seq, digest = head.seq, head.digest.encode()
    lines = []
    for row in rows:
        seq += 1
        digest, line = frame.seal(row, seq, digest, writer)
        lines.append(line)
    return lines, ChainHead(seq, digest.decode())


def follow(head: ChainHead, frame: Frame, draft: Draft, *, at: str, actor: str) -> tuple[AuditEvent, bytes]:
    """The event that a clean draft becomes after `head`, as it will be read, and its line."""
    (line,), _ = extend(head, frame, [spell(draft)], at=at, actor=actor)
    return read(line, frame.handoff), line


def read(line: bytes, handoff: str) -> AuditEvent:
    """The event of one line (newline included), when it is whole and of this handoff. Raises ChainBroken."""
    try:
        event = AuditEvent.from_dict(msgspec.json.decode(line))
    except (ValueError, RecursionError):
        # It may quote the line; what we say does not.
        raise ChainBroken("it was altered: it is not an audit event") from None
    frame = Frame.of(event.handoff, event.task_slug)
    prev = spell_text(event.prev)[1:-1]
    digest, due = frame.seal(spell_event(event), event.seq, prev, _writer(event.actor, event.at))
    if digest != event.digest.encode():
        raise ChainBroken("it was altered: its digest does not fit its content")
    if line != due:
        raise ChainBroken("it was altered: it is not spelled as an audit event is")
    if event.handoff != handoff:
        raise ChainBroken("it was altered: it belongs to the chain of another handoff")
    return event


def _writer(actor: str, at: str) -> bytes:
    return b'"actor":%b,"at":%b,' % (spell_text(actor), spell_text(at))


def read_after(head: ChainHead, line: bytes, handoff: str) -> AuditEvent:
    """The event of one line, when it is the one that follows `head`. Raises ChainBroken."""
    event = read(line, handoff)
    if event.seq != head.seq + 1:
        raise ChainBroken(f"it was removed or moved: event {event.seq} stands in its place")
    if event.prev != head.digest:
        raise ChainBroken("it was altered: it does not follow the event before it")
    return event


def head_of(event: AuditEvent) -> ChainHead:
    """The place in the chain that an event makes the last."""
    return ChainHead(event.seq, event.digest)
