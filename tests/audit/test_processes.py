from __future__ import annotations

import base64
import hashlib
import json
import signal
import threading
from pathlib import Path

import pytest

from agent_token_injector.audit import Decision, verify_file
from agent_token_injector.errors import AuditUnavailable
from tests.audit.support import DEADLINE, HANDOFF, chain_of, open_log, start_writer, write_chain
from tests.requirements import requirement

MANY = """
sys.stdin.readline()
for number in range(100):
    log.record(handoff, "tool.call", decision=Decision.ALLOWED, detail={"n": number})
log.close()
"""

FOREVER = """
number = 0
while True:
    log.record(handoff, "tool.call", decision=Decision.ALLOWED, detail={"fill": ["x" * 1500] * 100})
    number += 1
    print(number, flush=True)
"""

DIES_IN_A_LINE = """
import resource, signal
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
size = (Path(sys.argv[1]) / f"{handoff}.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[3]), resource.RLIM_INFINITY))
# The kernel writes what fits, then kills: half a line is left behind.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
log.record(handoff, "tool.call", decision=Decision.ALLOWED, target="x" * 1500)
"""

FORKS = """
import os
from agent_token_injector.errors import AuditUnavailable
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
if os.fork() == 0:
    try:
        log.record(handoff, "tool.call", decision=Decision.ALLOWED)
    except AuditUnavailable as error:
        os.write(1, str(error).encode())
    sys.exit(0)
os.wait()
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
log.close()
"""


@requirement("audit.processes")
def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path / "audit", f"writer-{number}", MANY) for number in range(4)]
    with open_log(tmp_path / "audit", actor="here", deadline=DEADLINE) as log:
        for writer in writers:
            writer.stdin.write("go\n")  # type: ignore[union-attr]
            writer.stdin.flush()  # type: ignore[union-attr]
        for number in range(100):
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED, detail={"n": number})
        for writer in writers:
            writer.communicate(timeout=DEADLINE)

        events = list(log.events(HANDOFF))
        assert log.verify(HANDOFF).ok
        assert log.head(HANDOFF).seq == len(events) == 500
    for actor in ("here", *(f"writer-{number}" for number in range(4))):
        assert [event.detail["n"] for event in events if event.actor == actor] == list(range(100))


@requirement("audit.processes")
def test_several_threads_write_one_chain(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit", deadline=DEADLINE) as log:

        def write() -> None:
            for _ in range(50):
                log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

        found = log.verify(HANDOFF)
        assert (found.ok, found.events) == (True, 200)


@requirement("audit.torn", "audit.processes")
@pytest.mark.parametrize("lines", range(1, 11))
def test_a_killed_writer_does_not_spoil_the_chain(tmp_path: Path, lines: int) -> None:
    writers = [start_writer(tmp_path / "audit", f"writer-{number}", FOREVER) for number in range(2)]
    for writer in writers:
        for _ in range(lines):
            writer.stdout.readline()  # type: ignore[union-attr]
        writer.send_signal(signal.SIGKILL)
    for writer in writers:
        writer.communicate(timeout=DEADLINE)

    with open_log(tmp_path / "audit") as log:
        log.record(HANDOFF, "spawn.ended", decision=Decision.FAILED)
        found = log.verify(HANDOFF)

        assert found.ok
        assert found.events >= 2 * lines + 1


@requirement("audit.torn")
@pytest.mark.parametrize("left", [1, 100, 1500])
def test_half_a_line_of_a_killed_writer_is_kept_aside_and_told_of(tmp_path: Path, left: int) -> None:
    path = chain_of(tmp_path / "audit")
    with start_writer(tmp_path / "audit", "dies", DIES_IN_A_LINE, str(left)) as writer:
        writer.communicate(timeout=DEADLINE)
    assert writer.returncode == -signal.SIGXFSZ
    torn = path.read_bytes().splitlines(keepends=True)[1]
    assert len(torn) == left
    found = verify_file(path)
    assert (found.ok, found.at_seq, found.events) == (False, 2, 1)
    assert "unfinished" in str(found.problem)

    with open_log(tmp_path / "audit") as log:
        assert log.head(HANDOFF).seq == 1
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)

        assert log.verify(HANDOFF).ok
        first, told, last = log.events(HANDOFF)
    assert (first.action, told.action, last.action) == ("tool.call", "audit.torn", "tool.call")
    assert told.decision is Decision.FAILED
    assert told.detail == {"length": left, "sha256": hashlib.sha256(torn).hexdigest()}
    side = json.loads((tmp_path / "audit" / f"{path.name}.torn").read_bytes())
    assert base64.b64decode(side["bytes"]) == torn
    assert (side["length"], side["seq"]) == (left, 2)


@requirement("audit.torn")
def test_half_a_line_is_closed_off_by_a_writer_that_was_there_all_along(tmp_path: Path) -> None:
    path = chain_of(tmp_path / "audit")
    with open_log(tmp_path / "audit") as log:
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)
        for piece in (b'{"half', b"\x00" * 5000):
            with path.open("ab") as killed:
                killed.write(piece)
            log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)

        assert [event.action for event in log.events(HANDOFF)] == [
            "tool.call",
            *["audit.torn", "tool.call"] * 2,
        ]
        assert log.verify(HANDOFF).ok
        assert len((tmp_path / "audit" / f"{path.name}.torn").read_bytes().splitlines()) == 2


@requirement("audit.torn", "audit.fail-closed")
def test_half_a_line_is_not_closed_off_when_it_cannot_be_kept(tmp_path: Path) -> None:
    path = write_chain(tmp_path / "audit", 1)
    with path.open("ab") as killed:
        killed.write(b'{"half')
    (tmp_path / "audit" / f"{path.name}.torn").symlink_to(tmp_path / "stolen")
    before = path.read_bytes()

    with open_log(tmp_path / "audit") as log, pytest.raises(AuditUnavailable):
        log.record(HANDOFF, "tool.call", decision=Decision.ALLOWED)

    assert path.read_bytes() == before
    assert not (tmp_path / "stolen").exists()


@requirement("audit.processes", "audit.fail-closed")
def test_a_forked_child_does_not_write_through_its_parents_lock(tmp_path: Path) -> None:
    with start_writer(tmp_path / "audit", "forks", FORKS) as writer:
        out, _ = writer.communicate(timeout=DEADLINE)

    assert writer.returncode == 0
    assert "forked" in out
    found = verify_file(chain_of(tmp_path / "audit"))
    assert (found.ok, found.events) == (True, 2)
