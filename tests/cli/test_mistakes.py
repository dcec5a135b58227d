"""Every mistake a user can make gets a message that names the thing and a next step, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent_token_injector.errors import ExitCode
from tests.cli.support import HANDOFF, LIVE_STRIPE, MINIMAL, no_traceback, provisioned, run, write
from tests.requirements import requirement
from tests.world import World, make_world

KEY = "rk_test_51NotARealKeyButItLooksLikeOne"
TOKEN = "ghs_NotARealTokenButItLooksLikeOne0123"
ABSENT = "nobody-20260101"
USAGE, CLEAN = ExitCode.USAGE, ExitCode.FAILED_CLEAN


@dataclass(frozen=True)
class Mistake:
    """What is typed, with which exit code it ends, and what the message must name."""

    argv: str
    code: int
    names: str
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""


FILES: dict[str, str | bytes] = {
    "good.json": json.dumps(MINIMAL),
    "live.json": json.dumps(LIVE_STRIPE),
    "empty.json": "",
    "cut.json": '{"task_slug": ',
    "binary.json": bytes(range(256)),
    "array.json": "[]",
    "twice.json": '{"task_slug": "a", "task_slug": "b"}',
    "nan.json": '{"task_slug": NaN}',
    "deep.json": "[" * 5000 + "]" * 5000,
    "unknown.json": json.dumps({**MINIMAL, "surfaces": {"gitlab": {}}}),
    "missing-field.json": json.dumps({key: value for key, value in MINIMAL.items() if key != "expires_in"}),
    "good.approvals.json": "{}",
    "operators-text": "not json",
    "open.key": KEY,
    "not-executable": "#!/bin/sh\n",
}

CORPUS = [
    Mistake("check missing.json", USAGE, "missing.json"),
    Mistake("check a-directory", USAGE, "a-directory"),
    Mistake("check empty.json", USAGE, "empty.json"),
    Mistake("check cut.json", USAGE, "line 1"),
    Mistake("check binary.json", USAGE, "UTF-8"),
    Mistake("check array.json", USAGE, "object"),
    Mistake("check twice.json", USAGE, "'task_slug' twice"),
    Mistake("check nan.json", USAGE, "NaN"),
    Mistake("check deep.json", USAGE, "deep.json"),
    Mistake("check unknown.json", USAGE, "surfaces.gitlab"),
    Mistake("check missing-field.json", USAGE, "expires_in"),
    Mistake("check good.json", USAGE, "good.approvals.json"),
    Mistake("check live.json --approvals missing", USAGE, "missing"),
    Mistake("check live.json --approvals a-directory", USAGE, "a-directory"),
    Mistake("check live.json --approvals /dev/zero", USAGE, "/dev/zero"),
    Mistake("check live.json --approvals /dev/full", USAGE, "not a regular file"),
    Mistake("check /dev/zero", USAGE, "/dev/zero"),
    Mistake("check /dev/full", USAGE, "not a regular file"),
    Mistake("approve live.json --surface stripe --mode live --out /dev/zero", USAGE, "/dev/zero"),
    Mistake("check a-pipe", USAGE, "not a regular file"),
    Mistake("check", USAGE, "--schema"),
    Mistake("check live.json extra", USAGE, "extra"),
    Mistake("chekc live.json", USAGE, "chekc"),
    Mistake("check --frobnicate live.json", USAGE, "--frobnicate"),
    Mistake("init good.json", USAGE, "good.json"),
    Mistake("init a-directory", USAGE, "a-directory"),
    Mistake("init no/such/directory/spec.json", USAGE, "no/such/directory"),
    Mistake("init new.json --task-slug Not_A_Slug", USAGE, "Not_A_Slug"),
    Mistake("init new.json --repository everything", USAGE, "everything"),
    Mistake("init new.json --card=", USAGE, "card"),
    Mistake("approve live.json --surface stripe", USAGE, "--mode"),
    Mistake("approve live.json --surface stripe --mode life", USAGE, "stripe life"),
    Mistake("approve live.json --surface stripe --mode live --valid-hours 100", USAGE, "100"),
    Mistake("approve live.json --surface stripe --mode live --key missing.key", USAGE, "missing.key"),
    Mistake("approve live.json --surface stripe --mode live --key open.key", USAGE, "open.key"),
    Mistake("approve live.json --surface stripe --mode live --out no/such/file", USAGE, "no/such/file"),
    Mistake("supply live.json --surface github", USAGE, "github"),
    Mistake("supply live.json --surface gitlab", USAGE, "gitlab"),
    Mistake("supply live.json --surface stripe", USAGE, "stdin"),
    Mistake("supply live.json --surface stripe", USAGE, "blank", stdin="two words\n"),
    Mistake(f"supply live.json --surface stripe {KEY}", USAGE, "make that credential anew"),
    Mistake(f"supply live.json --surface {KEY}", USAGE, "no surface"),
    Mistake(f"provision live.json --supply stripe={KEY}", USAGE, "make that credential anew"),
    Mistake(f"provision live.json --supply {KEY}", USAGE, "SURFACE=FILE"),
    Mistake(f"provision live.json --supply github={TOKEN}", USAGE, "never the value"),
    Mistake("provision live.json --supply stripe=open.key", USAGE, "chmod"),
    Mistake("provision live.json --supply stripe=a-directory", USAGE, "a-directory"),
    Mistake("provision live.json --supply stripe=missing.key", USAGE, "missing.key"),
    Mistake("provision live.json --supply stripe=-", USAGE, "stdin"),
    Mistake("provision live.json --supply stripe=- --supply stripe=-", USAGE, "twice", stdin="a\nb\n"),
    Mistake("show not-an-id", USAGE, "not-an-id"),
    Mistake(f"show {ABSENT}", ExitCode.MANIFEST, ABSENT),
    Mistake("revoke not-an-id", USAGE, "not-an-id"),
    Mistake("audit show not-an-id", USAGE, "not-an-id"),
    Mistake("audit verify not-an-id", USAGE, "not-an-id"),
    Mistake("audit", USAGE, "verify"),
    Mistake("spawn not-an-id -- true", USAGE, "not-an-id"),
    Mistake(f"spawn {ABSENT} -- true", ExitCode.MANIFEST, ABSENT),
    Mistake(f"spawn {ABSENT}", USAGE, "--"),
    Mistake(f"spawn {ABSENT} --", USAGE, "no command"),
    Mistake(f"spawn {ABSENT} sh -c true", USAGE, "-c"),
    Mistake(f"spawn {ABSENT} true", USAGE, "--"),
    Mistake(f"spawn {ABSENT} --cwd missing -- true", USAGE, "missing"),
    Mistake("exec missing.json -- true", USAGE, "missing.json"),
    Mistake("demo missing.json", USAGE, "missing.json"),
    Mistake("demo live.json", ExitCode.GATE_REFUSED, "live"),
    Mistake("list", USAGE, "HANDOFF_VAULT", {"HANDOFF_VAULT": "a-vault"}),
    Mistake("list", USAGE, "HANDOFF_VAULT_ROOT", {"HANDOFF_VAULT_ROOT": "no-slash"}),
    Mistake("list", USAGE, "HANDOFF_PROVISION_DEADLINE", {"HANDOFF_PROVISION_DEADLINE": "soon"}),
    Mistake("list", USAGE, "HANDOFF_AUDIT_DURABILITY", {"HANDOFF_AUDIT_DURABILITY": "never"}),
    Mistake("list", USAGE, "HANDOFF_GITHUB_INSTALLATION_ID", {"HANDOFF_GITHUB_INSTALLATION_ID": "seven"}),
    Mistake("list", USAGE, "missing.env", {"HANDOFF_ENV_FILE": "missing.env"}),
    Mistake("list", USAGE, "HANDOFF_STATE_DIR", {"HANDOFF_STATE_DIR": "good.json"}),
    Mistake("list", USAGE, "HANDOFF_STATE_DIR", {"HANDOFF_STATE_DIR": "/proc/here"}),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_world(tmp_path_factory.mktemp("mistakes")) as made:
        for name, content in FILES.items():
            (made.home / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (made.home / "a-directory").mkdir()
        os.mkfifo(made.home / "a-pipe")
        yield made


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda mistake: f"{mistake.argv[:60]} {' '.join(mistake.env)}".strip())
@requirement("cli.mistakes", "cli.json")
def test_a_mistake_is_told_in_words_and_in_json(shared: World, mistake: Mistake) -> None:
    argv = mistake.argv.split(" ")
    at = argv.index("--") if "--" in argv else len(argv)
    both = (argv, [*argv[:at], "--json", *argv[at:]])
    with ThreadPoolExecutor(2) as pool:
        done, quiet = pool.map(lambda one: run(shared, one, stdin=mistake.stdin, **mistake.env), both)
    assert no_traceback(done)
    assert done.returncode == mistake.code, done.stderr
    told = done.stderr + (done.stdout if mistake.code == ExitCode.GATE_REFUSED else "")
    assert mistake.names in told
    assert any(word in told for word in ("next: ", "Usage: ", "mend: "))
    assert KEY not in done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr

    assert quiet.returncode == mistake.code
    document = json.loads(quiet.stdout)
    assert {"error", "what", "cause", "hint"} <= document.keys() or document["ok"] is False


@dataclass(frozen=True)
class BadFile:
    name: str
    content: str
    names: str
    mode: int = 0o600


BAD_CONFIGURATION = [
    BadFile("operators.json", "not json", "operators.json"),
    BadFile("operators.json", '{"operator@example.com": "one key"}', "operators.json"),
    BadFile("operators.json", "{}", "chmod", 0o666),
    BadFile("policy.json", "[]", "policy.json"),
    BadFile("policy.json", '{"no_such_rule": 1}', "no_such_rule"),
    BadFile("policy.json", "{}", "chmod", 0o622),
    BadFile("trusted_provisioners.json", '{"a": 1}', "trusted_provisioners.json"),
    BadFile("trusted_provisioners.json", '["ed25519:nonsense"]', "key"),
    BadFile("policy.json", '{"max_lifetime": "PT1H", "max_lifetime": "PT24H"}', "twice"),
    BadFile(".env", "HANDOFF_VAULT=other\n", "HANDOFF_VAULT"),
    BadFile(".env", "HANDOFF_VAULT=embedded\n", "chmod", 0o666),
]


@pytest.mark.parametrize("bad", BAD_CONFIGURATION, ids=lambda bad: f"{bad.name} {bad.content.strip()} {bad.mode:o}")
@requirement("cli.mistakes")
def test_a_bad_configuration_file_is_refused_by_name(shared: World, tmp_path: Path, bad: BadFile) -> None:
    path = tmp_path / bad.name
    path.write_text(bad.content)
    path.chmod(bad.mode)
    done = run(shared, ["list"], HANDOFF_CONFIG_DIR=str(tmp_path), HANDOFF_STATE_DIR=str(tmp_path / "state"))
    assert no_traceback(done)
    assert done.returncode == USAGE, done.stderr
    assert bad.names in done.stderr


@pytest.mark.parametrize("name", ["operators.json", "policy.json", "trusted_provisioners.json", ".env"])
@requirement("cli.mistakes")
def test_a_directory_where_a_configuration_file_belongs_is_no_traceback(
    shared: World, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    done = run(shared, ["list"], HANDOFF_CONFIG_DIR=str(tmp_path), HANDOFF_STATE_DIR=str(tmp_path / "state"))
    assert no_traceback(done)
    assert done.returncode in {USAGE, CLEAN}
    assert "directory" in done.stderr.lower()


@requirement("settings.trusted-directory", "cli.mistakes")
def test_a_policy_that_another_user_could_have_deleted_is_missed(shared: World, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for argv in (["check", "live.json"], ["provision", "live.json"], ["list"]):
        done = run(shared, argv, HANDOFF_CONFIG_DIR=str(tmp_path), HANDOFF_STATE_DIR=str(tmp_path / "state"))
        assert (done.returncode, no_traceback(done)) == (USAGE, True)
        assert f"chmod go-w {tmp_path}" in done.stderr
    assert not (tmp_path / "state" / "vault").exists()


@requirement("cli.list", "D6.fail-closed")
def test_one_folder_that_was_tampered_with_hides_no_other_handoff(world: World) -> None:
    spoilt, sound = provisioned(world), provisioned(world, {**MINIMAL, "task_slug": "another-task"})
    database = sqlite3.connect(world.home / "state" / "vault" / "vault.sqlite3", isolation_level=None)
    with contextlib.closing(database):
        changed = database.execute("UPDATE secrets SET sealed = zeroblob(60) WHERE path LIKE ?", (f"%{spoilt}",))
        assert changed.rowcount > 0
    done = run(world, ["list", "--json"])
    assert (done.returncode, no_traceback(done)) == (0, True)
    assert {row["handoff_id"]: row["state"] for row in json.loads(done.stdout)} == {
        spoilt: "unreadable",
        sound: "provisioned",
    }
    assert f"{spoilt}  unreadable" in run(world, ["list"]).stdout


@requirement("approval.file")
def test_an_approval_is_not_written_through_a_link_that_was_planted(world: World) -> None:
    write(world, "live.json", LIVE_STRIPE)
    victim = world.home / "victim"
    victim.write_text("precious")
    for name in (".live.approvals.json.tmp", "live.approvals.json.tmp"):
        (world.home / name).symlink_to(victim)
    before = set(world.home.iterdir())
    done = run(world, ["approve", "live.json", "--surface", "stripe", "--mode", "live"])
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "precious"
    assert {path.name for path in set(world.home.iterdir()) - before} == {"live.approvals.json", "config"}
    assert not (world.home / "live.approvals.json").is_symlink()


@pytest.mark.parametrize("command", ["supply live.json --surface stripe", "provision live.json --supply stripe=-"])
@requirement("cli.mistakes")
def test_a_closed_stdin_is_told(shared: World, command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *HANDOFF, *command.split(" ")],
        env=shared.environment,
        cwd=shared.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert no_traceback(done)
    assert done.returncode == USAGE
    assert "stdin" in done.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@requirement("cli.mistakes")
def test_closed_streams_change_nothing_else(shared: World, redirection: str) -> None:
    argv = [*HANDOFF, "check", "live.json", "--json"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *argv],
        env=shared.environment,
        cwd=shared.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.GATE_REFUSED
    assert no_traceback(done)


@pytest.mark.parametrize("argv", [["check", "live.json"], ["check", "--schema"], ["list", "--json"]])
@requirement("cli.mistakes")
def test_a_full_disk_behind_stdout_is_told(shared: World, argv: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*HANDOFF, *argv],
            env=shared.environment,
            cwd=shared.home,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == CLEAN
    assert done.stderr.startswith("handoff: the output could not be written: No space left on device")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [["check", "live.json"], ["check", "--schema"], ["--help"], ["check", "--json", "x"]])
@requirement("cli.mistakes")
def test_a_reader_that_has_gone_is_no_error_to_tell(shared: World, argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*HANDOFF, *argv],
        env=shared.environment,
        cwd=shared.home,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (USAGE if "x" in argv else 141)


@pytest.mark.parametrize(
    ("agent", "names"),
    [("no-such-agent", "full path"), ("/nonexistent/agent", "No such file"), ("./not-executable", "executable")],
)
@requirement("cli.mistakes")
def test_an_agent_that_cannot_be_started_is_named(world: World, agent: str, names: str) -> None:
    (world.home / "not-executable").write_text("#!/bin/sh\n")
    done = run(world, ["spawn", provisioned(world), "--", agent])
    assert (done.returncode, no_traceback(done)) == (CLEAN, True)
    assert agent in done.stderr
    assert names in done.stderr


@requirement("cli.exit-codes", "D6.fail-closed")
def test_a_vault_that_gives_no_answer_is_exit_8_and_starts_nothing(world: World) -> None:
    handoff = provisioned(world)
    commands = (["list"], ["show", handoff], ["spawn", handoff, "--", "echo", "started"], ["revoke", handoff, "--json"])
    database = sqlite3.connect(world.home / "state" / "vault" / "vault.sqlite3", isolation_level=None)
    with contextlib.closing(database), ThreadPoolExecutor(len(commands)) as pool:
        # Another process that hangs with the whole vault locked.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        for done in pool.map(lambda argv: run(world, argv), commands):
            assert no_traceback(done)
            assert done.returncode == ExitCode.VAULT_UNREACHABLE, done.stderr
            assert "gave no answer" in done.stderr
            assert "started" not in done.stdout
            assert not done.stdout or json.loads(done.stdout)["error"] == "vault.unreachable"


@pytest.mark.parametrize("damage", ["a directory", "garbage", "no key"])
@pytest.mark.parametrize("argv", [["list"], ["spawn", "{id}", "--", "true"], ["revoke", "{id}"]])
@requirement("cli.mistakes", "D6.fail-closed")
def test_a_damaged_vault_is_told_and_starts_nothing(world: World, damage: str, argv: list[str]) -> None:
    handoff = provisioned(world)
    folder = world.home / "state" / "vault"
    database = folder / "vault.sqlite3"
    for path in folder.glob("vault.sqlite3-*"):
        path.unlink()
    match damage:
        case "a directory":
            database.unlink()
            database.mkdir()
        case "garbage":
            database.write_bytes(b"not a database " * 1000)
        case _:
            (folder / "vault.key").unlink()
    done = run(world, [part.format(id=handoff) for part in argv])
    assert no_traceback(done)
    assert done.returncode in {USAGE, CLEAN, ExitCode.VAULT_UNREACHABLE}, done.stderr
    assert "next: " in done.stderr
    assert "vault.sqlite3" in done.stderr or "vault.key" in done.stderr


@pytest.mark.parametrize("argv", [["provision", "spec.json"], ["audit", "show", "nightly-report-20260101"]])
@requirement("cli.exit-codes", "H5.no-audit-no-action")
def test_an_audit_directory_that_cannot_be_used_is_exit_7(world: World, argv: list[str]) -> None:
    write(world, "spec.json", MINIMAL)
    run(world, ["list"])
    audit = world.home / "state" / "audit"
    if audit.exists():
        audit.rmdir()
    audit.write_text("a file")
    done = run(world, argv)
    assert no_traceback(done)
    assert done.returncode == ExitCode.AUDIT_UNAVAILABLE, done.stderr


IN_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal it was given its own, so that ^C there is a signal, and becomes the command."""


@requirement("cli.mistakes")
def test_a_person_is_asked_without_echo_and_ctrl_c_there_ends_it(world: World) -> None:
    spec = world.write_spec().name
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *HANDOFF, "supply", spec, "--surface", "stripe"],
        env=world.environment,
        cwd=world.home,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        seen = b""
        while b"Credential" not in seen:
            seen += os.read(ours, 4096)
        os.write(ours, b"rk_test_typed\x03")
        while chunk := _read(ours):
            seen += chunk
        assert process.wait(timeout=30) == 130
    finally:
        watchdog.cancel()
        os.close(ours)
    assert b"rk_test_typed" not in seen
    assert b"interrupted" in seen
    assert b"Traceback" not in seen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
