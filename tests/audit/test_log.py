from __future__ import annotations

import base64
import dataclasses
import json
import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.audit import AuditLog, ChainHead, Decision, Draft, genesis
from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import AuditUnavailable, ExitCode
from agent_token_injector.masking import MASK, Redactor
from agent_token_injector.names import HandoffId
from tests.audit.support import HANDOFF, OTHER, START, chain_of, open_log, write_chain
from tests.requirements import requirement

SECRET = "ghs_Zk3/x9QpLmvW2+tail"


@requirement("H5.who-what-when")
def test_an_event_says_who_did_what_to_which_thing_under_which_handoff(tmp_path: Path) -> None:
    clock = ManualClock(START)
    clock.advance(timedelta(microseconds=1500))
    with open_log(tmp_path / "audit", clock=clock, actor="proxy@ci") as log:
        written = log.record(
            HANDOFF,
            "tool.call",
            decision=Decision.ALLOWED,
            surface="github",
            target="create_pull_request",
            reason="granted",
            detail={"bytes": 12, "ratio": 0.5, "cached": False, "era": None, "tools": ("a", "b"), "ms": 2.0},
        )

        assert [written] == list(log.events(HANDOFF))
    document = json.loads(chain_of(tmp_path / "audit").read_bytes())
    assert {name: document[name] for name in document if name not in {"prev", "digest"}} == {
        "v": 1,
        "seq": 1,
        "at": "2026-06-20T12:00:00.001500Z",
        "handoff": "founders-checkout-20260620",
        "task_slug": "founders-checkout",
        "actor": "proxy@ci",
        "action": "tool.call",
        "surface": "github",
        "target": "create_pull_request",
        "decision": "allowed",
        "reason": "granted",
        "detail": {"bytes": 12, "ratio": 0.5, "cached": False, "era": None, "tools": ["a", "b"], "ms": 2},
    }
    assert written.to_dict() == document
    assert written.when == clock.now()
    with pytest.raises(dataclasses.FrozenInstanceError):
        written.seq = 2  # type: ignore[misc]


@requirement("audit.private")
def test_chains_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_chain(tmp_path / "deep" / "audit", 1)
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "deep" / "audit").stat().st_mode) == 0o700
    assert stat.S_IMODE(chain_of(tmp_path / "deep" / "audit").stat().st_mode) == 0o600


@requirement("audit.chain")
def test_each_handoff_has_a_chain_of_its_own(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        assert log.handoffs() == ()
        assert log.head(HANDOFF) == genesis(str(HANDOFF))
        assert not (tmp_path / "audit").exists()
        for handoff in (OTHER, HANDOFF, OTHER):
            log.record(handoff, "tool.call", decision=Decision.ALLOWED)
        (tmp_path / "audit" / "notes.jsonl").touch()

        assert log.handoffs() == (str(HANDOFF), str(OTHER))
        assert (log.head(HANDOFF).seq, log.head(OTHER).seq) == (1, 2)
        assert log.head(OTHER) == log.verify(OTHER).head
        assert log.verify(OTHER, checkpoints=[log.head(OTHER)]).ok


@requirement("audit.chain")
def test_a_chain_goes_on_where_another_process_left_it(tmp_path: Path) -> None:
    for _ in range(3):
        write_chain(tmp_path / "audit", 2)

    with open_log(tmp_path / "audit") as log:
        assert log.head(HANDOFF).seq == 6
        assert [event.seq for event in log.events(HANDOFF)] == [1, 2, 3, 4, 5, 6]
        assert log.verify(HANDOFF).ok


@requirement("audit.many")
def test_more_chains_than_open_files_are_kept(tmp_path: Path) -> None:
    handoffs = [HandoffId.parse(f"task-{number}-20260620") for number in range(150)]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the count matters
    with open_log(tmp_path / "audit") as log:
        for _ in range(2):
            for handoff in handoffs:
                log.record(handoff, "tool.call", decision=Decision.ALLOWED)
        log.flush()
        log.record(handoffs[0], "tool.call", decision=Decision.ALLOWED)
        assert len(os.listdir("/proc/self/fd")) - before < 80  # noqa: PTH208

        assert {log.head(handoff).seq for handoff in handoffs[1:]} == {2}
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@requirement("H6.no-values", "audit.masked")
def test_no_field_of_an_event_holds_a_secret(tmp_path: Path) -> None:
    hidden = base64.b64encode(f"x-access-token:{SECRET}".encode()).decode()
    with open_log(tmp_path / "audit", redactor=Redactor([SecretStr("first-secret")])) as log:
        log.add_secrets([SecretStr(SECRET)])
        event = log.record(
            HANDOFF,
            "tool.call",
            decision=Decision.ALLOWED,
            surface=SECRET,
            target=f"https://x:{SECRET.replace('/', '%2F')}@host/",
            reason=f"Basic {hidden} first-secret",
            detail={SECRET: [f"a {SECRET}", hidden], "deep": {"not": SECRET}, "key": SecretStr("never seen before")},
        )

    assert event.surface == MASK
    assert event.target == f"https://x:{MASK}@host/"
    written = chain_of(tmp_path / "audit").read_text()
    for value in (SECRET, SECRET[-8:], hidden[-12:], "first-secret", "never seen"):
        assert value not in written


@requirement("audit.bounded")
def test_an_event_stays_small_whatever_an_agent_calls_its_tools(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        event = log.record(
            HANDOFF,
            "tool.denied",
            decision=Decision.REFUSED,
            target="\x00" * 10_000_000,
            detail={"list": ["x"] * 5000, "long": "y" * 5000},
        )
        flood = log.record(
            HANDOFF, "tool.denied", decision=Decision.REFUSED, detail={f"k{n}": "\x01" * 9000 for n in range(5000)}
        )

        assert event.target.endswith("...(9997952 more)")
        assert len(event.detail["list"]) == 257  # type: ignore[arg-type]
        assert set(flood.detail) == {"cut_bytes", "cut_sha256"}
        assert log.verify(HANDOFF).ok
    assert chain_of(tmp_path / "audit").stat().st_size < 100_000


@requirement("audit.chain")
@settings(deadline=None)
@given(
    texts=st.lists(st.text(), min_size=4, max_size=4),
    detail=st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.just(10**400),
    ),
)
def test_whatever_is_recorded_can_be_read_back_and_verified(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], detail: dict[str, object]
) -> None:
    with open_log(tmp_path_factory.mktemp("log") / "audit") as log:
        action, surface, target, reason = texts
        wild = {**detail, "half \ud800": "\udfff"}
        event = log.record(
            HANDOFF, action, decision=Decision.DONE, surface=surface, target=target, reason=reason, detail=wild
        )

        assert list(log.events(HANDOFF)) == [event]
        assert log.verify(HANDOFF).ok


Damage = Callable[[Path], object]


def _alter_last(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-20] + b"0" + content[-19:])


def _restart(path: Path) -> None:
    path.unlink()
    path.touch(mode=0o600)


def _move_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def _replace_directory(path: Path) -> None:
    _move_directory(path)
    path.parent.mkdir(mode=0o700)


def _link_directory(path: Path) -> None:
    _move_directory(path)
    path.parent.symlink_to(path.parent.with_name("elsewhere"))


def _link_file(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


DAMAGES: dict[str, Damage] = {
    "deleted": Path.unlink,
    "deleted and made anew": _restart,
    "replaced by a copy": lambda path: path.write_bytes(_taken(path)),
    "shorter": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "altered in its last event": _alter_last,
    "followed by a stranger's line": lambda path: path.write_bytes(path.read_bytes() + b'{"seq":3}\n'),
    "followed by its own first event": lambda path: path.write_bytes(path.read_bytes() * 2),
    "linked": _link_file,
    "given a second name": lambda path: path.with_suffix(".other").hardlink_to(path),
    "readable by others": lambda path: path.chmod(0o640),
    "in a directory open to others": lambda path: path.parent.chmod(0o755),
    "in a directory that moved": _move_directory,
    "in a directory that was replaced": _replace_directory,
    "in a directory that became a link": _link_directory,
}


def _taken(path: Path) -> bytes:
    content = path.read_bytes()
    path.unlink()
    path.touch(mode=0o600)
    return content


Write = Callable[[AuditLog], object]

WRITES: dict[str, Write] = {
    "record": lambda log: log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED),
    "append": lambda log: log.append(HANDOFF, [Draft("tool.call", Decision.ALLOWED)] * 3),
}


@requirement("H5.fail-closed", "audit.fail-closed")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_chain_that_is_not_the_one_we_left_is_not_written(tmp_path: Path, damage: Damage, write: Write) -> None:
    path = chain_of(tmp_path / "audit")
    with open_log(tmp_path / "audit") as log:
        for _ in range(2):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        damage(path)
        left = path.read_bytes() if path.exists() else None

        for _ in range(2):
            with pytest.raises(AuditUnavailable) as refusal:
                write(log)

        assert refusal.value.exit_code == ExitCode.AUDIT_UNAVAILABLE
        assert refusal.value.hint
        assert (path.read_bytes() if path.exists() else None) == left


AT_START: dict[str, Damage] = {
    "altered in its last event": _alter_last,
    "of another handoff": lambda path: path.write_bytes(path.read_bytes().replace(b"founders", b"founder-")),
    "ended by a flood": lambda path: path.write_bytes(path.read_bytes() + b"x" * (1 << 20)),
    "linked": _link_file,
    "readable by others": lambda path: path.chmod(0o604),
    "in a directory open to others": lambda path: path.parent.chmod(0o750),
    "in a directory that is a link": _link_directory,
    "a directory": lambda path: (path.unlink(), path.mkdir(mode=0o600)),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/null")),
    "in a directory that is a file": lambda path: (path.unlink(), path.parent.rmdir(), path.parent.touch()),
}


@requirement("H5.fail-closed", "audit.fail-closed")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("damage", AT_START.values(), ids=AT_START.keys())
def test_a_chain_that_is_not_sound_is_not_taken_up(tmp_path: Path, damage: Damage, write: Write) -> None:
    path = write_chain(tmp_path / "audit", 2)
    damage(path)

    with open_log(tmp_path / "audit") as log:
        for _ in range(2):
            with pytest.raises(AuditUnavailable):
                write(log)


@requirement("audit.fail-closed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_chain_of_another_user_is_not_written(tmp_path: Path, what: str) -> None:
    path = write_chain(tmp_path / "audit", 1)
    os.chown(path if what == "file" else path.parent, 12345, -1)

    with open_log(tmp_path / "audit") as log, pytest.raises(AuditUnavailable, match="another user"):
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)


@requirement("audit.fail-closed")
def test_a_closed_log_records_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
    log.close()

    with pytest.raises(AuditUnavailable, match="closed"):
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
    assert log.record_or_spool(HANDOFF, "revoke.requested", decision=Decision.ALLOWED) is False


@requirement("audit.checkpoint")
def test_a_head_is_a_value(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        event = log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)

        assert log.head(HANDOFF) == ChainHead(1, event.digest)
