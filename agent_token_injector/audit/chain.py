"""The hash chain of one handoff: how an event becomes a line, and how a line is known to be the next one.

A line is the RFC 8785 form of its event, one spelling only, so that any byte that changes in it changes what it says
or makes it no line at all. The first event follows the handoff's genesis, hence the chain of one handoff cannot be
passed off as another's.

Pure: bytes in, events out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from agent_token_injector.audit.event import FORMAT, MAX_LINE, AuditEvent, Draft, without_detail
from agent_token_injector.names import HandoffId
from agent_token_injector.signing import canonical

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
    return ChainHead(0, "sha256:" + hashlib.sha256(_GENESIS + handoff.encode()).hexdigest())


def seal(body: Mapping[str, Any]) -> tuple[str, bytes]:
    """The digest of an event without its digest, and its line with it (newline included)."""
    # Members are sorted and "digest" falls between them: two halves serve for the digest and for the line.
    before = canonical({name: value for name, value in body.items() if name < "digest"})[1:-1]
    after = canonical({name: value for name, value in body.items() if name > "digest"})[1:-1]
    digest = "sha256:" + hashlib.sha256(b"{" + before + b"," + after + b"}").hexdigest()
    return digest, b'{%b,"digest":"%b",%b}\n' % (before, digest.encode(), after)


def follow(head: ChainHead, handoff: HandoffId, draft: Draft, *, at: str, actor: str) -> tuple[AuditEvent, bytes]:
    """The event that comes after `head`, and its line; a detail that no line can hold is replaced by its digest."""
    body: dict[str, Any] = {
        "v": FORMAT,
        "seq": head.seq + 1,
        "at": at,
        "handoff": str(handoff),
        "task_slug": str(handoff.slug),
        "actor": actor,
        "action": draft.action,
        "surface": draft.surface,
        "target": draft.target,
        "decision": draft.decision.value,
        "reason": draft.reason,
        "detail": dict(draft.detail),
        "prev": head.digest,
    }
    digest, line = seal(body)
    if len(line) > MAX_LINE:
        text = canonical(body["detail"])
        return follow(head, handoff, without_detail(draft, len(text), text), at=at, actor=actor)
    return AuditEvent.model_validate({**body, "decision": draft.decision, "digest": digest}), line


def read(line: bytes, handoff: str) -> AuditEvent:
    """The event of one line (newline included), when it is whole and of this handoff. Raises ChainBroken."""
    try:
        event = AuditEvent.model_validate_json(line)
        digest, due = seal(event.model_dump(mode="json", exclude={"digest"}))
    except (ValidationError, ValueError):
        # A ValidationError quotes the line; what we say does not.
        raise ChainBroken("it was altered: it is not an audit event") from None
    if digest != event.digest:
        raise ChainBroken("it was altered: its digest does not fit its content")
    if line != due:
        raise ChainBroken("it was altered: it is not spelled as an audit event is")
    if event.handoff != handoff:
        raise ChainBroken("it was altered: it belongs to the chain of another handoff")
    return event


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
