from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from agent_token_injector.audit import AuditLog, Decision, Draft, verify_file
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.masking import MASK, Redactor
from tests.audit.support import (
    DEADLINE,
    HANDOFF,
    OTHER,
    Disk,
    chain_of,
    open_log,
    start_writer,
    wait_until,
    write_chain,
)
from tests.requirements import requirement

SECRET = 'ghs_Zk3/x9"QpLm\\vW2+tail'
CALL = Draft("tool.call", Decision.ALLOWED, "mcp", "github/create_issue", "granted", {"bytes": 12})


def calls(count: int) -> list[Draft]:
    return [CALL._replace(detail={"n": number}) for number in range(count)]


def lines_of(directory: Path) -> list[bytes]:
    return chain_of(directory).read_bytes().splitlines(keepends=True)


def written_one_by_one(directory: Path, drafts: list[Draft], redactor: Redactor) -> bytes:
    with open_log(directory, redactor=redactor) as log:
        for draft in drafts:
            action, decision, surface, target, reason, detail = draft
            log.record(HANDOFF, action, decision=decision, surface=surface, target=target, reason=reason, detail=detail)
    return chain_of(directory).read_bytes()


@requirement("audit.batch")
def test_a_batch_stands_in_the_chain_in_order_at_one_time(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        log.record(HANDOFF, "spawn.started", decision=Decision.DONE)
        log.append(HANDOFF, calls(20))
        log.append(HANDOFF, [CALL])

        events = list(log.events(HANDOFF))
        assert [event.detail.get("n") for event in events] == [None, *range(20), None]
        assert {event.at for event in events} == {"2026-06-20T12:00:00.000000Z"}
        assert (events[1].surface, events[1].target, events[1].reason) == ("mcp", "github/create_issue", "granted")
        assert log.verify(HANDOFF, checkpoints=[log.head(HANDOFF)]).events == 22


@requirement("audit.batch")
def test_a_batch_is_one_write(tmp_path: Path) -> None:
    def writes() -> int:
        found = dict(line.split(": ") for line in Path("/proc/thread-self/io").read_text().splitlines())
        return int(found["syscw"])

    with open_log(tmp_path / "audit") as log:
        log.append(HANDOFF, [CALL])
        before = writes()
        log.append(HANDOFF, calls(64))

        assert writes() - before == 1


@requirement("audit.batch")
def test_no_events_are_no_batch(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        assert log.on_disk(log.append(HANDOFF, []))

        assert not (tmp_path / "audit").exists()


TEXTS = st.text(max_size=20) | st.sampled_from(
    [
        SECRET,
        f"a {SECRET} b",
        f"{SECRET[:-1]}",
        "31415926",
        "4711",
        "x" * 2049,
        "half \ud800",
        "back\\slash",
        "\x00\x7f ",
    ]
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.lists(TEXTS, max_size=4)
    | st.sampled_from(
        [31415926, 4711, 4711.0, 2**53 - 1, 2**53, 10**400, ("a", 1), {"b", "a"}, Decision.DONE, {"deep": SECRET}]
    )
    | st.just(["x"] * 257)
)
DRAFTS = st.builds(
    Draft,
    action=TEXTS,
    decision=st.sampled_from(Decision),
    surface=TEXTS,
    target=TEXTS,
    reason=TEXTS,
    detail=st.dictionaries(TEXTS | st.just("n" * 129), VALUES, max_size=4),
)


@requirement("audit.batch", "audit.masked", "audit.bounded", "audit.spelling")
@settings(deadline=None)
@given(drafts=st.lists(DRAFTS, max_size=5))
@example(drafts=[Draft("a", Decision.DONE, detail={f"k{number}": number for number in range(300)})])
@example(drafts=[Draft("a", Decision.DONE, detail={f"k{number}": "\x01" * 2000 for number in range(250)})])
@example(drafts=[Draft("a", Decision.DONE, detail={f"k{number}": "\N{PILE OF POO}" * 2000 for number in range(30)})])
@example(drafts=[Draft("a", Decision.DONE, detail={"\N{PILE OF POO}": 1, "￿": 2})])
@example(drafts=[Draft("a", Decision.DONE, detail={"list": ["x" * 2048, "y" * 2049]})])
def test_a_batch_is_what_its_events_would_be_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, drafts: list[Draft]
) -> None:
    redactor = Redactor([SecretStr(SECRET), SecretStr("31415926"), SecretStr("4711")])
    directory = tmp_path_factory.mktemp("log")
    with open_log(directory / "batch", redactor=redactor) as log:
        log.append(HANDOFF, drafts)
        assert log.verify(HANDOFF).ok

    if drafts:
        written = chain_of(directory / "batch").read_bytes()
        assert written == written_one_by_one(directory / "single", drafts, redactor)
        assert json.dumps(SECRET)[1:-1] not in written.decode()


@requirement("audit.spelling")
@settings(deadline=None)
@given(
    texts=st.lists(st.text(), min_size=4, max_size=4),
    detail=st.dictionaries(
        st.text(st.characters(max_codepoint=127)) | st.text(),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    ),
)
def test_every_line_is_spelled_as_rfc_8785_has_it(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], detail: dict[str, object]
) -> None:
    action, surface, target, reason = texts
    directory = tmp_path_factory.mktemp("log") / "audit"
    with open_log(directory, actor=reason) as log:
        log.append(HANDOFF, [Draft(action, Decision.DONE, surface, target, reason, detail)])  # type: ignore[arg-type]

    (line,) = lines_of(directory)
    assert line == rfc8785.dumps(json.loads(line)) + b"\n"


@requirement("audit.spelling")
def test_every_character_is_spelled_as_rfc_8785_has_it(tmp_path: Path) -> None:
    characters = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    pieces = [characters[start : start + 500] for start in range(0, len(characters), 500)]
    with open_log(tmp_path / "audit") as log:
        log.append(HANDOFF, [CALL._replace(target=piece, detail={"text": piece}) for piece in pieces])

    lines = lines_of(tmp_path / "audit")
    assert [json.loads(line)["target"] for line in lines] == pieces
    for line in lines:
        assert line == rfc8785.dumps(json.loads(line)) + b"\n"


@requirement("audit.masked", "H6.no-values")
@pytest.mark.parametrize("others", [[], [CALL], [CALL._replace(target="back\\slash")]])
@pytest.mark.parametrize(
    "draft",
    [
        CALL._replace(action=SECRET),
        CALL._replace(surface=SECRET),
        CALL._replace(target=f"of {SECRET}"),
        CALL._replace(reason=SECRET),
        CALL._replace(detail={SECRET: 1}),
        CALL._replace(detail={"value": SECRET}),
        CALL._replace(detail={"values": ["a", f"\n{SECRET}"]}),
        CALL._replace(detail={"value": 31415926}),
        CALL._replace(detail={"value": 31415926, "text": "back\\slash"}),
    ],
)
def test_a_secret_in_a_batch_is_masked(tmp_path: Path, draft: Draft, others: list[Draft]) -> None:
    with open_log(tmp_path / "audit") as log:
        log.add_secrets([SecretStr(SECRET), SecretStr("31415926")])
        log.append(HANDOFF, [*others, draft, *others])

        assert log.verify(HANDOFF).ok
    lines = lines_of(tmp_path / "audit")
    assert [MASK in line.decode() for line in lines] == [*[False] * len(others), True, *[False] * len(others)]
    for part in (json.dumps(SECRET)[1:-1], "Zk3", "31415926"):
        assert part not in b"".join(lines).decode()


@requirement("audit.masked", "H6.no-values")
def test_a_secret_in_the_writers_name_is_masked(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit", actor=f"run of {SECRET}") as log:
        log.add_secrets([SecretStr(SECRET)])
        log.append(HANDOFF, [CALL])

        (event,) = log.events(HANDOFF)
        assert event.actor == f"run of {MASK}"


@requirement("audit.batch", "audit.fail-closed")
@pytest.mark.parametrize("field", ["action", "surface", "target", "reason"])
def test_a_draft_whose_text_is_none_spoils_no_chain(tmp_path: Path, field: str) -> None:
    with open_log(tmp_path / "audit") as log:
        log.append(HANDOFF, [CALL])
        with pytest.raises(TypeError):
            log.append(HANDOFF, [CALL, CALL._replace(**{field: 5})])  # type: ignore[arg-type]

        assert log.verify(HANDOFF).events == 1


@requirement("audit.spool", "audit.batch")
def test_a_batch_stands_behind_what_was_spooled(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir(mode=0o755)
    with open_log(tmp_path / "audit") as log:
        assert not log.record_or_spool(HANDOFF, "revoke.requested", decision=Decision.ALLOWED)
        with pytest.raises(AuditUnavailable):
            log.append(HANDOFF, calls(2))
        (tmp_path / "audit").chmod(0o700)
        log.append(HANDOFF, calls(2))

        assert [event.action for event in log.events(HANDOFF)] == ["revoke.requested", "tool.call", "tool.call"]


@requirement("audit.durable", "audit.stalled")
@pytest.mark.parametrize("decision", [Decision.ALLOWED, Decision.REFUSED])
def test_a_batch_does_not_wait_for_the_disk_and_tells_when_it_hangs(tmp_path: Path, decision: Decision) -> None:
    seconds = [100.0]
    disk = Disk(os.fsync)
    disk.free.clear()
    with open_log(tmp_path / "audit", _sync=disk, _monotonic=lambda: seconds[0]) as log:
        assert not log.stalled(0.0)
        first = log.append(HANDOFF, [CALL, CALL._replace(decision=decision)])
        assert disk.entered.wait(DEADLINE)
        seconds[0] += 1.0
        second = log.append(HANDOFF, calls(3))

        assert (log.stalled(1.0), log.stalled(0.9)) == (False, True)
        assert not log.on_disk(first, 0.0)

        disk.free.set()
        assert log.on_disk(first)
        assert log.on_disk(second)
        assert not log.stalled(0.0)


@requirement("audit.stalled")
def test_what_waits_behind_a_sync_is_counted_from_its_own_time(tmp_path: Path) -> None:
    seconds = [100.0]
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk, _monotonic=lambda: seconds[0]) as log:
        assert log.on_disk(log.append(HANDOFF, [CALL]))
        seconds[0] += 60.0
        disk.free.clear()
        log.append(HANDOFF, [CALL])

        assert not log.stalled(0.0)
        seconds[0] += 1.0
        assert log.stalled(0.5)
        disk.free.set()


@requirement("audit.durable", "audit.group")
def test_an_urgent_draft_hurries_its_batch_to_the_disk(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk) as log:
        log.append(HANDOFF, [CALL, CALL._replace(decision=Decision.REFUSED), CALL])

        wait_until(lambda: disk.calls >= 1)


@requirement("audit.durable")
def test_in_sync_mode_a_batch_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    disk = Disk(os.fsync)
    with open_log(tmp_path / "audit", _sync=disk, durability="sync") as log:
        for number in range(1, 4):
            log.append(HANDOFF, calls(5))
            assert disk.calls >= number


@requirement("audit.durable", "audit.stalled", "H5.fail-closed")
@pytest.mark.parametrize("durability", ["group", "sync"])
def test_a_disk_that_failed_is_stalled_for_good_and_takes_no_batch(tmp_path: Path, durability: str) -> None:
    disk = Disk(os.fsync)
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))
    log = open_log(tmp_path / "audit", _sync=disk, durability=durability)
    if durability == "sync":
        with pytest.raises(AuditUnavailable, match="Input/output error"):
            log.append(HANDOFF, [CALL])
    else:
        assert not log.on_disk(log.append(HANDOFF, [CALL]))
    disk.error = None

    assert log.stalled(3600.0)
    for handoff in (HANDOFF, OTHER):
        with pytest.raises(AuditUnavailable, match="not known to be on disk"):
            log.append(handoff, [CALL])
    with pytest.raises(AuditUnavailable):
        log.close()


@requirement("audit.no-hang", "H5.fail-closed")
def test_a_batch_does_not_wait_for_a_lock_beyond_its_deadline(tmp_path: Path) -> None:
    path = write_chain(tmp_path / "audit", 1)
    with path.open("rb") as holder, open_log(tmp_path / "audit", deadline=0.05) as log:
        fcntl.flock(holder, fcntl.LOCK_EX)
        begun = time.monotonic()
        with pytest.raises(AuditUnavailable, match="held by another writer"):
            log.append(HANDOFF, calls(3))
        assert time.monotonic() - begun < DEADLINE

        fcntl.flock(holder, fcntl.LOCK_UN)
        log.append(HANDOFF, calls(3))
        assert log.verify(HANDOFF).events == 4


FULL = """
import os, resource
from agent_token_injector.audit import Draft
from agent_token_injector.errors import AuditUnavailable
batch = [Draft("tool.call", Decision.ALLOWED, detail={"n": number}) for number in range(3)]
log.append(handoff, batch)
path = Path(sys.argv[1]) / f"{handoff}.jsonl"
before = path.read_bytes()
# Room for one line and a half of the next batch.
room = len(before) // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        log.append(handoff, batch)
    except AuditUnavailable as error:
        print(error, "|", error.hint)
    assert path.read_bytes() == before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append(handoff, batch)
log.close()
"""


@requirement("audit.disk-full", "audit.batch", "H5.fail-closed")
def test_a_batch_that_does_not_fit_the_disk_leaves_nothing_of_itself(tmp_path: Path) -> None:
    with start_writer(tmp_path / "audit", "full", FULL) as writer:
        out, _ = writer.communicate(timeout=DEADLINE)

    assert writer.returncode == 0
    assert out.count("File too large | raise the limit") == 2
    found = verify_file(chain_of(tmp_path / "audit"))
    assert (found.ok, found.events) == (True, 6)


DIES_IN_A_BATCH = """
import resource, signal
from agent_token_injector.audit import Draft
log.record(handoff, "tool.call", decision=Decision.ALLOWED)
size = (Path(sys.argv[1]) / f"{handoff}.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[3]), resource.RLIM_INFINITY))
# The kernel writes what fits, then kills: a part of the batch is left behind.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
log.append(handoff, [Draft("tool.call", Decision.ALLOWED, target="x" * 600) for _ in range(5)])
"""


@requirement("audit.torn", "audit.batch")
@pytest.mark.parametrize("left", [1, 700, 2500])
@pytest.mark.parametrize("there_before", [True, False])
def test_half_a_batch_of_a_killed_writer_is_closed_off_by_the_next(
    tmp_path: Path, left: int, there_before: bool
) -> None:
    path = chain_of(tmp_path / "audit")
    with open_log(tmp_path / "audit") as log:
        if there_before:
            log.append(HANDOFF, [CALL])
        with start_writer(tmp_path / "audit", "dies", DIES_IN_A_BATCH, str(left)) as writer:
            writer.communicate(timeout=DEADLINE)
        assert writer.returncode == -signal.SIGXFSZ
        whole = path.read_bytes().count(b"\n")
        torn = path.read_bytes().splitlines(keepends=True)[whole]
        found = verify_file(path)
        assert (found.ok, found.events) == (False, whole)

        log.append(HANDOFF, calls(2))

        events = list(log.events(HANDOFF))
        assert [event.action for event in events[whole:]] == ["audit.torn", "tool.call", "tool.call"]
        assert events[whole].detail["length"] == len(torn)
        assert log.verify(HANDOFF).ok


BATCHES = """
from agent_token_injector.audit import Draft
sys.stdin.readline()
for number in range(40):
    log.append(handoff, [Draft("tool.call", Decision.ALLOWED, detail={"n": number, "of": of}) for of in range(5)])
log.close()
"""


@requirement("audit.processes", "audit.batch")
def test_batches_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path / "audit", f"writer-{number}", BATCHES) for number in range(3)]
    with open_log(tmp_path / "audit", actor="here", deadline=DEADLINE) as log:
        for writer in writers:
            writer.stdin.write("go\n")  # type: ignore[union-attr]
            writer.stdin.flush()  # type: ignore[union-attr]
        for number in range(40):
            log.append(HANDOFF, [CALL._replace(detail={"n": number, "of": of}) for of in range(5)])
            log.record(HANDOFF, "tool.single", decision=Decision.ALLOWED)
        for writer in writers:
            writer.communicate(timeout=DEADLINE)

        assert log.verify(HANDOFF).ok
        events = [event for event in log.events(HANDOFF) if event.action == "tool.call"]
        singles = log.head(HANDOFF).seq - len(events)
    assert (len(events), singles) == (4 * 40 * 5, 40)
    for start in range(0, len(events), 5):
        batch = events[start : start + 5]
        assert [event.detail["of"] for event in batch] == [0, 1, 2, 3, 4]
        assert len({(event.actor, event.detail["n"], event.at) for event in batch}) == 1
        assert batch[4].seq - batch[0].seq == 4
    for actor in ("here", *(f"writer-{number}" for number in range(3))):
        assert [event.detail["n"] for event in events if event.actor == actor][::5] == list(range(40))


@requirement("audit.processes", "audit.batch")
def test_batches_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit", deadline=DEADLINE) as log:

        def write(name: str) -> None:
            for _ in range(20):
                log.append(HANDOFF, [CALL._replace(target=name)] * 3)

        threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

        assert log.verify(HANDOFF).events == 240
        targets = [event.target for event in log.events(HANDOFF)]
    assert all(len(set(targets[start : start + 3])) == 1 for start in range(0, 240, 3))


FORKS = """
import os
from agent_token_injector.audit import Draft
from agent_token_injector.errors import AuditUnavailable
batch = [Draft("tool.call", Decision.ALLOWED)] * 2
log.append(handoff, batch)
if os.fork() == 0:
    try:
        log.append(handoff, batch)
    except AuditUnavailable as error:
        os.write(1, str(error).encode())
    sys.exit(0)
os.wait()
log.append(handoff, batch)
log.close()
"""


@requirement("audit.processes", "audit.fail-closed")
def test_a_forked_child_appends_no_batch_through_its_parents_lock(tmp_path: Path) -> None:
    with start_writer(tmp_path / "audit", "forks", FORKS) as writer:
        out, _ = writer.communicate(timeout=DEADLINE)

    assert writer.returncode == 0
    assert "forked" in out
    assert verify_file(chain_of(tmp_path / "audit")).events == 4


@requirement("audit.many", "audit.batch")
def test_batches_of_many_handoffs_go_to_their_own_chains(tmp_path: Path) -> None:
    with open_log(tmp_path / "audit") as log:
        for handoff in (HANDOFF, OTHER, HANDOFF, HANDOFF, OTHER):
            log.append(handoff, calls(2))

        assert [log.verify(handoff).events for handoff in (HANDOFF, OTHER)] == [6, 4]
        assert all(event.handoff == str(OTHER) for event in log.events(OTHER))


@requirement("audit.fail-closed")
def test_a_closed_log_takes_no_batch(tmp_path: Path) -> None:
    log: AuditLog = open_log(tmp_path / "audit")
    log.append(HANDOFF, [CALL])
    log.close()

    with pytest.raises(AuditUnavailable, match="closed"):
        log.append(HANDOFF, [CALL])
    assert log.verify(HANDOFF).events == 1
