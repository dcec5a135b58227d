from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from agent_token_injector.audit import Decision, verify_file
from agent_token_injector.audit.sync import GROUP_WINDOW
from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import AuditUnavailable
from tests.audit.support import (
    DEADLINE,
    HANDOFF,
    OTHER,
    START,
    Disk,
    chain_of,
    open_log,
    start_writer,
    wait_until,
    write_chain,
)
from tests.requirements import requirement

URGENT = [
    ("mint.requested", Decision.ALLOWED),
    ("revoke.proved", Decision.DONE),
    ("spawn.started", Decision.DONE),
    ("approval.used", Decision.ALLOWED),
    ("provision.committed", Decision.ALLOWED),
    ("tool.denied", Decision.REFUSED),
    ("vault.read", Decision.FAILED),
]


@requirement("audit.durable")
@pytest.mark.parametrize(("action", "decision"), URGENT)
def test_an_urgent_event_is_on_disk_when_record_returns(tmp_path: Path, action: str, decision: Decision) -> None:
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk) as log:
        log.record(HANDOFF, action, decision=decision)

        assert disk.calls >= 1


@requirement("audit.durable")
def test_in_sync_mode_every_event_is_on_disk_when_record_returns(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk, durability="sync") as log:
        for number in range(1, 4):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
            assert disk.calls >= number


@requirement("audit.durable", "audit.group")
def test_other_events_do_not_wait_for_the_disk_and_reach_it_by_themselves(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    disk.free.clear()
    with open_log(tmp_path / "audit", _sync=disk) as log:
        for _ in range(20):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        assert disk.calls == 0
        assert disk.entered.wait(DEADLINE)

        disk.free.set()
        wait_until(lambda: disk.calls >= 2)

        assert GROUP_WINDOW <= 0.1
        log.flush()
        assert disk.calls < 20


@requirement("audit.durable")
def test_a_head_is_given_out_once_it_is_on_disk(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk) as log:
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        log.head(HANDOFF)

        assert disk.calls >= 1


@requirement("audit.durable", "H5.fail-closed")
def test_an_fsync_that_failed_is_never_forgotten(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    log = open_log(tmp_path / "audit", _sync=disk)
    log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
    with pytest.raises(AuditUnavailable, match="Input/output error"):
        log.flush()
    disk.error = None

    for handoff in (HANDOFF, OTHER):
        with pytest.raises(AuditUnavailable, match="not known to be on disk"):
            log.record(handoff, "tool.call", decision=Decision.ALLOWED)
    with pytest.raises(AuditUnavailable):
        log.head(HANDOFF)
    with pytest.raises(AuditUnavailable):
        log.close()


@requirement("audit.durable")
def test_an_urgent_event_whose_fsync_fails_is_refused(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    log = open_log(tmp_path / "audit", _sync=disk)

    with pytest.raises(AuditUnavailable, match="No space left"):
        log.record(HANDOFF, "mint.requested", decision=Decision.ALLOWED)
    with pytest.raises(AuditUnavailable):
        log.close()


@requirement("audit.durable")
def test_the_end_of_the_interpreter_flushes(tmp_path: Path) -> None:
    body = """
import os
def sync(fd):
    os.fsync(fd)
    os.write(1, b"synced\\n")
log.close()
log = AuditLog(Path(sys.argv[1]), clock=SystemClock(), actor="x", _sync=sync)
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
os.write(1, b"end\\n")
"""
    with start_writer(tmp_path / "audit", "exit", body) as writer:
        out, _ = writer.communicate(timeout=DEADLINE)

    assert writer.returncode == 0
    assert "synced" in out
    assert verify_file(chain_of(tmp_path / "audit")).events == 1


@requirement("audit.no-hang", "H5.fail-closed")
def test_a_writer_does_not_wait_for_a_lock_beyond_its_deadline(tmp_path: Path) -> None:
    path = write_chain(tmp_path / "audit", 1)
    with path.open("rb") as holder, open_log(tmp_path / "audit", deadline=0.05) as log:
        fcntl.flock(holder, fcntl.LOCK_EX)
        begun = time.monotonic()
        with pytest.raises(AuditUnavailable, match="held by another writer"):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        log.record(OTHER, "tool.call", decision=Decision.ALLOWED)
        assert time.monotonic() - begun < DEADLINE

        fcntl.flock(holder, fcntl.LOCK_UN)
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        assert log.verify(HANDOFF).events == 2


@requirement("audit.disk-full", "H5.fail-closed")
def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path: Path) -> None:
    body = """
import os, resource
from agent_token_injector.errors import AuditUnavailable
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
path = Path(sys.argv[1]) / f"{handoff}.jsonl"
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        log.record(handoff, "tool.call", decision=Decision.ALLOWED)
    except AuditUnavailable as error:
        print(error, "|", error.hint)
assert path.stat().st_size == size
assert not log.record_or_spool(handoff, "revoke.requested", decision=Decision.ALLOWED)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
log.close()
"""
    with start_writer(tmp_path / "audit", "full", body) as writer:
        out, _ = writer.communicate(timeout=DEADLINE)

    assert writer.returncode == 0
    assert out.count("File too large | raise the limit") == 2
    found = verify_file(chain_of(tmp_path / "audit"))
    assert (found.ok, found.events) == (True, 3)


@requirement("D10.audit-never-blocks", "audit.spool")
def test_a_revocation_goes_on_without_its_audit_and_catches_up(tmp_path: Path) -> None:
    clock = ManualClock(START)
    path = write_chain(tmp_path / "audit", 1)
    with path.open("rb") as holder, open_log(tmp_path / "audit", clock=clock, deadline=0.01) as log:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for surface in ("github", "stripe"):
            assert not log.record_or_spool(HANDOFF, "revoke.surface", decision=Decision.ALLOWED, surface=surface)
        assert (log.degraded, log.spooled) == (True, 2)
        with pytest.raises(AuditUnavailable):
            log.flush()
        with pytest.raises(AuditUnavailable):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)

        clock.advance(timedelta(minutes=1))
        fcntl.flock(holder, fcntl.LOCK_UN)
        assert log.record_or_spool(HANDOFF, "revoke.finished", decision=Decision.DONE)

        assert (log.degraded, log.spooled) == (True, 0)
        events = list(log.events(HANDOFF))[1:]
        assert [event.surface or event.action for event in events] == ["github", "stripe", "revoke.finished"]
        assert [event.detail.get("spooled_at") for event in events] == [*["2026-06-20T12:00:00.000000Z"] * 2, None]
        assert {event.at for event in events} == {"2026-06-20T12:01:00.000000Z"}
        assert log.verify(HANDOFF).ok


@requirement("D10.audit-never-blocks", "audit.spool")
@pytest.mark.parametrize("how", ["record", "flush", "close"])
def test_spooled_events_are_written_at_the_next_chance(tmp_path: Path, how: str) -> None:
    (tmp_path / "audit").mkdir(mode=0o755)
    log = open_log(tmp_path / "audit")
    assert not log.record_or_spool(HANDOFF, "revoke.requested", decision=Decision.ALLOWED)
    (tmp_path / "audit").chmod(0o700)

    if how == "record":
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
    if how == "flush":
        log.flush()
    log.close()

    actions = [event.action for event in log.events(HANDOFF)]
    assert actions == ["revoke.requested", "tool.call"][: 2 if how == "record" else 1]


@requirement("D10.audit-never-blocks", "audit.spool")
def test_events_that_are_never_written_are_not_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir(mode=0o755)

    def revoke_both() -> None:
        with open_log(tmp_path / "audit") as log:
            for handoff in (HANDOFF, OTHER):
                log.record_or_spool(handoff, "revoke.requested", decision=Decision.ALLOWED)

    with pytest.raises(AuditUnavailable, match="2 audit events are not written"):
        revoke_both()


@requirement("audit.spool")
def test_what_went_wrong_in_the_block_is_not_hidden_by_the_log(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir(mode=0o755)

    def fail_while_degraded() -> None:
        with open_log(tmp_path / "audit") as log:
            log.record_or_spool(HANDOFF, "revoke.requested", decision=Decision.ALLOWED)
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_degraded()


@requirement("D10.audit-never-blocks")
def test_a_revocation_does_not_wait_for_a_dead_disk(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk) as log:
        disk.free.clear()
        assert log.record_or_spool(HANDOFF, "revoke.requested", decision=Decision.ALLOWED) is False
        assert log.degraded

        disk.free.set()
        assert log.record_or_spool(HANDOFF, "revoke.finished", decision=Decision.DONE) is True
        assert [event.seq for event in log.events(HANDOFF)] == [1, 2]


@requirement("D10.audit-never-blocks", "audit.spool")
def test_surfaces_that_are_revoked_in_parallel_lose_no_event(tmp_path: Path) -> None:
    path = write_chain(tmp_path / "audit", 1)
    with path.open("rb") as holder, open_log(tmp_path / "audit") as log:
        fcntl.flock(holder, fcntl.LOCK_EX)

        def revoke(surface: str) -> None:
            for number in range(10):
                log.record_or_spool(
                    HANDOFF, "revoke.surface", decision=Decision.ALLOWED, surface=surface, detail={"n": number}
                )

        threads = [threading.Thread(target=revoke, args=(f"s{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        fcntl.flock(holder, fcntl.LOCK_UN)
        log.flush()

        events = list(log.events(HANDOFF))[1:]
        for number in range(8):
            assert [event.detail["n"] for event in events if event.surface == f"s{number}"] == list(range(10))


@requirement("audit.light")
def test_the_audit_log_does_not_load_what_it_does_not_need() -> None:
    heavy = ("anyio", "asyncio", "click", "cryptography", "httpx", "mcp", "pydantic", "rich", "uvicorn")
    code = f"import sys, agent_token_injector.audit\nprint([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE)

    assert out.stdout.strip() == "[]"
