from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_token_injector.audit import AuditLog, ChainHead, Decision, Verification, genesis, read_file, verify_file
from agent_token_injector.errors import AuditUnavailable
from tests.audit.support import HANDOFF, OTHER, chain_of, open_log, write_chain
from tests.requirements import requirement

EVENTS = 6

with tempfile.TemporaryDirectory() as folder:
    CHAIN = write_chain(Path(folder) / "audit", EVENTS, reason='line\nbreak "é" 😀').read_bytes()
LINES = CHAIN.splitlines(keepends=True)
HEADS = [genesis(str(HANDOFF)), *(ChainHead(json.loads(line)["seq"], json.loads(line)["digest"]) for line in LINES)]


@contextmanager
def chain_file(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = chain_of(Path(directory))
        path.write_bytes(content)
        yield path


def verify(content: bytes, *checkpoints: ChainHead) -> Verification:
    with chain_file(content) as path:
        return verify_file(path, checkpoints=checkpoints)


@requirement("audit.chain", "H5.tamper-evident")
def test_a_chain_verifies_from_its_file_alone() -> None:
    assert verify(CHAIN) == Verification(ok=True, events=EVENTS, head=HEADS[-1])
    assert verify(CHAIN, *HEADS).ok
    assert verify(b"") == Verification(ok=True, events=0, head=genesis(str(HANDOFF)))


@requirement("audit.chain")
def test_a_stranger_can_compute_the_digests() -> None:
    previous = HEADS[0].digest
    for line in LINES:
        event = json.loads(line)
        digest = event.pop("digest")

        assert digest == "sha256:" + hashlib.sha256(rfc8785.dumps(event)).hexdigest()
        assert event["prev"] == previous
        assert line == rfc8785.dumps({**event, "digest": digest}) + b"\n"
        previous = digest


@requirement("audit.chain", "H5.tamper-evident")
@settings(deadline=None)
@given(position=st.integers(0, len(CHAIN) - 1), byte=st.integers(1, 255))
def test_any_byte_that_changes_is_found_at_its_event(position: int, byte: int) -> None:
    altered = bytearray(CHAIN)
    altered[position] ^= byte

    found = verify(bytes(altered))

    assert (found.ok, found.at_seq) == (False, CHAIN[:position].count(b"\n") + 1)
    assert found.problem is not None
    assert found.events == found.at_seq - 1  # type: ignore[operator]
    assert found.head == HEADS[found.events]


@requirement("audit.chain", "H5.tamper-evident")
@settings(deadline=None)
@given(position=st.integers(0, len(CHAIN) - 1), byte=st.binary(min_size=1, max_size=3))
@example(position=CHAIN.index(b"sha256:") + 7, byte=rb"\u")
def test_any_byte_that_is_slipped_in_is_found(position: int, byte: bytes) -> None:
    found = verify(CHAIN[:position] + byte + CHAIN[position:])

    assert not found.ok


@requirement("audit.chain", "H5.tamper-evident")
@settings(deadline=None)
@given(at=st.integers(1, EVENTS - 1))
def test_an_event_that_was_removed_is_named(at: int) -> None:
    found = verify(b"".join(LINES[: at - 1] + LINES[at:]))

    assert (found.ok, found.at_seq) == (False, at)
    assert "removed" in str(found.problem)


@requirement("audit.chain", "H5.tamper-evident")
@settings(deadline=None)
@given(pair=st.lists(st.integers(0, EVENTS - 1), min_size=2, max_size=2, unique=True))
def test_events_that_changed_places_are_found_at_the_first(pair: list[int]) -> None:
    one, two = sorted(pair)
    swapped = LINES.copy()
    swapped[one], swapped[two] = swapped[two], swapped[one]

    found = verify(b"".join(swapped))

    assert (found.ok, found.at_seq) == (False, one + 1)


@requirement("audit.chain", "H5.tamper-evident")
@settings(deadline=None)
@given(at=st.integers(0, EVENTS - 1))
def test_an_event_that_was_written_twice_is_found(at: int) -> None:
    found = verify(b"".join([*LINES[: at + 1], *LINES[at:]]))

    assert (found.ok, found.at_seq) == (False, at + 2)


@requirement("audit.checkpoint", "H5.tamper-evident")
@settings(deadline=None)
@given(length=st.integers(0, len(CHAIN) - 1), checkpoint=st.integers(1, EVENTS))
def test_an_end_that_was_cut_off_is_found_against_a_checkpoint(length: int, checkpoint: int) -> None:
    whole = CHAIN[:length].count(b"\n")
    torn = CHAIN[:length][-1:] not in {b"\n", b""}

    found = verify(CHAIN[:length], HEADS[checkpoint])

    assert found.ok == (whole >= checkpoint and not torn)
    if not found.ok:
        assert found.at_seq == whole + 1


@requirement("audit.checkpoint", "H5.tamper-evident")
def test_a_chain_that_was_written_anew_is_found_against_a_checkpoint(tmp_path: Path) -> None:
    forged = write_chain(tmp_path / "forged", EVENTS, reason="nothing to see")

    assert verify_file(forged).ok
    found = verify_file(forged, checkpoints=[HEADS[5], HEADS[2]])
    assert (found.ok, found.at_seq, found.events) == (False, 2, 1)
    assert "rewritten since the beginning" in str(found.problem)


@requirement("audit.checkpoint")
def test_a_rewrite_behind_a_good_checkpoint_is_dated_by_it(tmp_path: Path) -> None:
    write_chain(tmp_path, 2)
    recorded = verify_file(chain_of(tmp_path)).head
    write_chain(tmp_path, 2)

    found = verify_file(chain_of(tmp_path), checkpoints=[recorded, ChainHead(4, HEADS[4].digest)])

    assert (found.ok, found.at_seq) == (False, 4)
    assert "after event 2" in str(found.problem)


@requirement("audit.checkpoint")
def test_a_missing_file_is_an_empty_chain_and_a_cut_one_against_a_checkpoint(tmp_path: Path) -> None:
    assert verify_file(chain_of(tmp_path)).ok
    assert verify_file(chain_of(tmp_path), checkpoints=[genesis(str(HANDOFF))]).ok
    assert verify_file(chain_of(tmp_path), checkpoints=[HEADS[1]]).at_seq == 1
    assert not verify_file(chain_of(tmp_path), checkpoints=[genesis(str(OTHER))]).ok


@requirement("audit.chain", "H5.tamper-evident")
def test_the_chain_of_one_handoff_is_not_that_of_another(tmp_path: Path) -> None:
    path = chain_of(tmp_path, OTHER)
    path.write_bytes(CHAIN)

    found = verify_file(path)

    assert (found.ok, found.at_seq) == (False, 1)
    assert "another handoff" in str(found.problem)
    assert verify_file(path, HANDOFF).ok


EVENT = json.loads(LINES[0])

NO_EVENTS: dict[str, dict[str, object] | list[object] | str] = {
    "not an object": [],
    "a text": "event",
    "a member more": {**EVENT, "more": 1},
    "a member less": {name: value for name, value in EVENT.items() if name != "reason"},
    "another version": {**EVENT, "v": 2},
    "a version that is true": {**EVENT, "v": True},
    "a number that is true": {**EVENT, "seq": True},
    "a number that is a text": {**EVENT, "seq": "1"},
    "a number with a fraction": {**EVENT, "seq": 1.5},
    "the number zero": {**EVENT, "seq": 0},
    "a target that is null": {**EVENT, "target": None},
    "an actor that is a number": {**EVENT, "actor": 1},
    "a digest that is a list": {**EVENT, "digest": []},
    "a time without a zone": {**EVENT, "at": "2026-06-20T12:00:00.000000"},
    "a time with a zone of its own": {**EVENT, "at": "2026-06-20T12:00:00.000000+00:00"},
    "a time in other digits": {**EVENT, "at": "\u0662026-06-20T12:00:00.000000Z"},
    "a time and a line break": {**EVENT, "at": "2026-06-20T12:00:00.000000Z\n"},
    "a decision nobody makes": {**EVENT, "decision": "perhaps"},
    "a decision in capitals": {**EVENT, "decision": "ALLOWED"},
    "a detail that is a list": {**EVENT, "detail": []},
    "a detail that is null": {**EVENT, "detail": None},
    "a nested detail": {**EVENT, "detail": {"deep": {}}},
    "a list of numbers in its detail": {**EVENT, "detail": {"list": [1]}},
    "a list of lists in its detail": {**EVENT, "detail": {"list": [[]]}},
}


@requirement("audit.strict", "H5.tamper-evident")
@pytest.mark.parametrize("document", NO_EVENTS.values(), ids=NO_EVENTS.keys())
def test_a_line_that_is_no_event_is_refused_though_its_digest_fits(document: object) -> None:
    if isinstance(document, dict):
        body = {name: value for name, value in document.items() if name != "digest"}
        digest = "sha256:" + hashlib.sha256(rfc8785.dumps(body)).hexdigest()
        document = {**document, "digest": digest} if document["digest"] == EVENT["digest"] else document

    found = verify(rfc8785.dumps(document) + b"\n")  # type: ignore[arg-type]

    assert (found.ok, found.at_seq, found.events) == (False, 1, 0)
    assert "not an audit event" in str(found.problem)


NO_SPELLINGS: dict[str, tuple[bytes, bytes]] = {
    "a fraction of nothing": (b'"detail":{}', b'"detail":{"n":1.0}'),
    "a number beyond what is exact": (b'"detail":{}', b'"detail":{"n":9007199254740992}'),
    "a number far beyond": (b'"detail":{}', b'"detail":{"n":18446744073709552000}'),
    "a number without end": (b'"detail":{}', b'"detail":{"n":1e999}'),
    "no number": (b'"detail":{}', b'"detail":{"n":NaN}'),
    "half a character": (b'"target":"tool_0"', rb'"target":"\ud800"'),
    "half a character in bytes": (b'"target":"tool_0"', b'"target":"\xed\xa0\x80"'),
    "a byte that is no character": (b'"target":"tool_0"', b'"target":"\xff"'),
    "a raw control character": (b'"target":"tool_0"', b'"target":"\x01"'),
    "depth without end": (b'"detail":{}', b'"detail":' + b"[" * 5000 + b"]" * 5000),
    "a byte order mark": (b'{"action"', b'\xef\xbb\xbf{"action"'),
}


@requirement("audit.strict", "H5.tamper-evident")
@pytest.mark.parametrize(("there", "instead"), NO_SPELLINGS.values(), ids=NO_SPELLINGS.keys())
def test_a_line_that_not_every_parser_reads_is_refused(there: bytes, instead: bytes) -> None:
    assert there in LINES[0]

    found = verify(_forged(LINES[0].replace(there, instead)))

    assert (found.ok, found.at_seq, found.events) == (False, 1, 0)
    assert "not an audit event" in str(found.problem)


@requirement("audit.strict", "H5.tamper-evident")
@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (b'"v":1', b'"v":1,"v":1'),
        (b'"detail":{}', b'"detail":{"n":1,"n":2}'),
        (b'"detail":{}', b'"detail":{"n":-0}'),
        (b'"detail":{}', b'"detail": {}'),
        (b'"detail":{}', b'"detail":{"b":1,"a":2}'),
        (b'"target":"tool_0"', rb'"target":"\u0074ool_0"'),
        (b'"target":"tool_0"', rb'"target":"tool\/0"'),
        (b'{"action":"tool.call",', b'{"actor":"test","action":"tool.call",'),
    ],
)
def test_a_line_with_another_spelling_is_refused_though_its_digest_fits(there: bytes, instead: bytes) -> None:
    assert there in LINES[0]

    found = verify(_forged(LINES[0].replace(there, instead)))

    assert (found.ok, found.at_seq, found.events) == (False, 1, 0)


@requirement("audit.strict")
@pytest.mark.parametrize("value", [0.5, -1.25e-7, 1.7976931348623157e-10, [], ["é"], "", None, True, -(2**53 - 1)])
def test_every_value_that_a_detail_may_hold_is_read_back(value: object) -> None:
    (detail,) = read_back({"é": value, "n": 1})

    assert detail == {"é": value, "n": 1}


def read_back(detail: dict[str, object]) -> list[dict[str, object]]:
    body = {name: value for name, value in EVENT.items() if name != "digest"} | {"detail": detail}
    digest = "sha256:" + hashlib.sha256(rfc8785.dumps(body)).hexdigest()
    with chain_file(rfc8785.dumps({**body, "digest": digest}) + b"\n") as path:
        return [dict(event.detail) for event in read_file(path, HANDOFF)]


def _forged(line: bytes) -> bytes:
    """The line with the digest of what it says now, in its own spelling."""
    before, digest, after = line.partition(b'"digest":"' + EVENT["digest"].encode() + b'",')
    assert digest
    fitting = "sha256:" + hashlib.sha256(before + after[:-1]).hexdigest()
    return before + b'"digest":"' + fitting.encode() + b'",' + after


@requirement("audit.chain")
def test_events_are_read_up_to_the_first_that_does_not_hold() -> None:
    with chain_file(b"".join([*LINES[:3], LINES[4]])) as path:
        events = read_file(path, HANDOFF)

        assert [next(events).seq for _ in range(3)] == [1, 2, 3]
        with pytest.raises(AuditUnavailable, match="was altered"):
            next(events)


@requirement("audit.chain")
@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/null"),
        lambda path: __import__("os").mkfifo(path),
    ],
    ids=["directory", "link", "pipe"],
)
def test_what_is_not_a_file_is_not_verified(tmp_path: Path, make: object) -> None:
    make(chain_of(tmp_path))  # type: ignore[operator]

    with pytest.raises(AuditUnavailable):
        verify_file(chain_of(tmp_path))


@requirement("audit.checkpoint")
def test_a_log_holds_a_chain_to_what_it_has_seen_itself(tmp_path: Path) -> None:
    log: AuditLog
    with open_log(tmp_path / "audit") as log:
        for _ in range(3):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        path = chain_of(tmp_path / "audit")
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2]))

        found = log.verify(HANDOFF)

        assert (found.ok, found.at_seq) == (False, 3)
        assert verify_file(path).ok
