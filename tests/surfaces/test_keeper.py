"""The keeper, with real processes and real kills: no token outlives a provisioner that did not record it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from agent_token_injector.clock import SystemClock
from agent_token_injector.names import HandoffId, IdentityName, TaskSlug
from agent_token_injector.sandbox.github import SandboxGitHub
from agent_token_injector.sandbox.http_server import DROP, Reply, method
from agent_token_injector.surfaces import keeper
from agent_token_injector.surfaces.github import LIFETIME, MINT_WINDOW, GitHubSurface
from agent_token_injector.surfaces.keeper_record import Record, path_of
from agent_token_injector.transport import Refused, Unclear
from tests.requirements import requirement
from tests.surfaces.worlds import MINT, until

REVOKE = method("DELETE", "/installation/token")


@dataclass
class Scene:
    """GitHub, a directory of records, and provisioners to be killed."""

    github: SandboxGitHub
    directory: Path
    began: datetime

    @property
    def identity(self) -> IdentityName:
        return IdentityName("gh-token", HandoffId(TaskSlug("killed"), self.began.date()))

    def surface(self, patience: float = 15.0) -> GitHubSurface:
        return GitHubSurface(
            api_url=self.github.url,
            app_client_id=self.github.client_id,
            installation_id=self.github.installation_id,
            private_key=self.github.private_key,
            clock=SystemClock(),
            keeper_dir=self.directory,
            patience=timedelta(seconds=patience),
        )

    def records(self) -> list[Record]:
        found = [Record.read(path) for path in self.directory.glob("*.json") if path.stat().st_size > 2]
        return [record for record in found if record is not None]

    def state(self) -> str:
        records = self.records()
        return records[0].state if records else ""

    @contextmanager
    def provisioner(self, stop: Literal["minted", "recorded"]) -> Iterator[subprocess.Popen[bytes]]:
        arguments = [
            self.github.url,
            self.github.client_id,
            str(self.github.installation_id),
            str(self.directory),
            stop,
        ]
        with subprocess.Popen(
            [sys.executable, "-m", "tests.surfaces.keeper_driver", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdin is not None
                process.stdin.write(self.github.private_key.get_secret_value().encode())
                process.stdin.close()
                yield process
            finally:
                process.kill()

    def job(self, **changes: object) -> keeper.Job:
        now = SystemClock().now()
        token = {"Authorization": "Bearer {token}"}
        fields = {
            "identity": str(self.identity),
            "base_url": self.github.url,
            "mint": keeper.Call("POST", "/app/installations/1/access_tokens", frozenset({201})),
            "undo": keeper.Call("DELETE", "/installation/token", frozenset({204, 401}), headers=token),
            "proof": keeper.Call("GET", "/installation/repositories", frozenset({401}), headers=token),
            "secret": "token",
            "expiry": "expires_at",
            "started": now,
            "live_until": now + timedelta(hours=1),
            **changes,
        }
        return keeper.Job(**fields)  # type: ignore[arg-type]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock = SystemClock()
    with ExitStack() as stack:
        github = stack.enter_context(SandboxGitHub(clock))
        scene = Scene(github, tmp_path / "keepers", clock.now())
        yield scene
        # Keepers are nobody's children: one that is still undoing would go on after its emulator is gone.
        until(lambda: not any(record.keeper_lives() for record in scene.records()))
        assert not github.failures


def says(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().decode().strip() == word


def gone(process: subprocess.Popen[bytes], number: int) -> None:
    os.killpg(process.pid, number)
    process.wait(30)


@requirement("D3.kill-safe", "surface.github.keeper")
@pytest.mark.parametrize("at", ["before", "after"])
def test_a_provisioner_killed_around_the_vendors_mint_leaves_no_token(
    scene: Scene, at: Literal["before", "after"]
) -> None:
    held = scene.github.hold(MINT, at=at)
    with scene.provisioner("minted") as process:
        held.wait_reached()
        gone(process, signal.SIGKILL)
        assert len(scene.github.live_credentials()) == (1 if at == "after" else 0)
        held.release()
        search = scene.surface().find(scene.identity, scene.began)
    assert (search.certain, search.leases) == (True, ())
    assert scene.github.live_credentials() == ()
    assert scene.state() == "undone"
    assert scene.github.count(MINT) == 1


@requirement("D3.kill-safe", "surface.github.keeper")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_provisioner_that_ends_before_it_recorded_leaves_no_token(scene: Scene, number: int) -> None:
    with scene.provisioner("minted") as process:
        says(process, "minted")
        assert len(scene.github.live_credentials()) == 1
        gone(process, number)
        until(lambda: scene.github.live_credentials() == ())
        search = scene.surface().find(scene.identity, scene.began)
    assert (search.certain, search.leases) == (True, ())


@requirement("surface.github.keeper")
def test_a_recorded_token_outlives_its_provisioner_and_is_found_by_its_handle(scene: Scene) -> None:
    with scene.provisioner("recorded") as process:
        says(process, "recorded")
        gone(process, signal.SIGKILL)
    (record,) = scene.records()
    until(lambda: not record.keeper_lives())
    search = scene.surface().find(scene.identity, scene.began)
    assert search.certain
    assert [lease.handle for lease in search.leases] == list(scene.github.live_credentials())


@requirement("surface.github.keeper")
def test_the_signals_that_end_terminals_and_services_do_not_end_a_keeper(scene: Scene) -> None:
    with scene.provisioner("minted") as process:
        says(process, "minted")
        (record,) = scene.records()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            os.kill(record.pid, number)
        assert record.keeper_lives()
        gone(process, signal.SIGKILL)
        until(lambda: scene.github.live_credentials() == ())
        until(lambda: not record.keeper_lives())


@requirement("D3.kill-safe", "D3.bounded")
def test_a_killed_keeper_makes_the_search_uncertain_until_the_token_has_expired(scene: Scene) -> None:
    with scene.provisioner("minted") as process:
        says(process, "minted")
        (record,) = scene.records()
        os.kill(record.pid, signal.SIGKILL)
        until(lambda: not record.keeper_lives())
        gone(process, signal.SIGKILL)
    search = scene.surface().find(scene.identity, scene.began)
    assert not search.certain
    assert "killed" in search.why
    assert search.live_until == record.live_until
    assert len(scene.github.live_credentials()) == 1


@requirement("D3.bounded")
def test_no_record_proves_nothing_and_is_bounded(scene: Scene) -> None:
    search = scene.surface().find(scene.identity, scene.began)
    assert not search.certain
    assert search.live_until == scene.began + MINT_WINDOW + LIFETIME


@requirement("D3.stale-record")
def test_the_record_of_an_earlier_mint_of_the_same_name_is_not_taken_for_this_one(scene: Scene) -> None:
    with scene.provisioner("minted") as process:
        says(process, "minted")
        gone(process, signal.SIGKILL)
    surface = scene.surface()
    assert surface.find(scene.identity, scene.began).certain
    assert not surface.find(scene.identity, SystemClock().now()).certain


@requirement("D3.stale-record")
def test_a_record_that_cannot_be_read_proves_nothing(scene: Scene) -> None:
    with scene.provisioner("minted") as process:
        says(process, "minted")
        gone(process, signal.SIGKILL)
    surface = scene.surface()
    assert surface.find(scene.identity, scene.began).certain
    path_of(scene.directory, str(scene.identity), "0" * 32).write_text("{}")
    assert not surface.find(scene.identity, scene.began).certain


@requirement("surface.github.keeper")
def test_a_keeper_goes_on_trying_to_undo_until_it_succeeds(scene: Scene) -> None:
    scene.github.hook(REVOKE, before=lambda _request: Reply(500, {"message": "down"}), times=2)
    scene.github.hook(REVOKE, before=lambda _request: DROP, times=1)
    with scene.provisioner("minted") as process:
        says(process, "minted")
        gone(process, signal.SIGKILL)
        until(lambda: scene.state() == "undone")
    assert scene.github.live_credentials() == ()


@requirement("surface.github.proof-in-its-words", "surface.github.keeper")
def test_a_keeper_takes_no_401_of_a_gateway_for_a_dead_token(scene: Scene) -> None:
    lapsed = Reply(401, {"error": "gateway session expired"})
    scene.github.hook(REVOKE, before=lambda _request: lapsed, times=2)
    scene.github.hook(method("GET", "/installation/repositories"), before=lambda _request: lapsed, times=2)
    with scene.provisioner("minted") as process:
        says(process, "minted")
        gone(process, signal.SIGKILL)
        until(lambda: scene.state() == "undone")
    assert scene.github.live_credentials() == ()
    assert scene.github.count(REVOKE) == 3


@requirement("surface.github.proof-in-its-words", "surface.github.keeper")
def test_a_status_that_must_come_with_words_counts_only_with_them(scene: Scene) -> None:
    scene.github.hook(MINT, before=lambda _request: Reply(201, {"token": "ghs_" + "a" * 40}))
    other = {401: {"message": "Bad credentials", "documentation_url": "not what it answers"}}
    job = scene.job(undo_for=timedelta(seconds=0.3))
    kept = keeper.start(replace(job, proof=replace(job.proof, words=other)), scene.directory)
    assert isinstance(kept, keeper.Kept)
    assert not kept.undo()
    assert scene.state() == "unknown"


@requirement("surface.github.vendor-end", "D3.bounded")
@pytest.mark.parametrize(("said", "believed"), [(-60, False), (0, False), (30, True), (90, False)])
def test_a_keeper_believes_an_end_only_within_what_it_can_be(scene: Scene, said: int, *, believed: bool) -> None:
    job = scene.job()
    end = job.started + timedelta(minutes=said)
    body = {"token": "ghs_" + "a" * 40, "expires_at": end.isoformat()}
    scene.github.hook(MINT, before=lambda _request: Reply(201, body))
    kept = keeper.start(job, scene.directory)
    assert isinstance(kept, keeper.Kept)
    (record,) = scene.records()
    assert record.live_until == (end if believed else job.live_until)
    kept.undo()


@requirement("D3.bounded")
def test_a_keeper_that_cannot_undo_says_so(scene: Scene) -> None:
    scene.github.hook(MINT, before=lambda _request: Reply(201, {"token": "ghs_" + "a" * 40}))
    scene.github.hook(REVOKE, before=lambda _request: Reply(403, {"message": "no"}))
    kept = keeper.start(scene.job(undo_for=timedelta(seconds=0.3)), scene.directory)
    assert isinstance(kept, keeper.Kept)
    assert not kept.undo()
    until(lambda: scene.state() == "unknown")


@requirement("D3.kill-safe")
def test_a_keeper_gives_up_a_provisioner_that_never_speaks(scene: Scene) -> None:
    scene.github.hook(
        MINT,
        before=lambda _request: Reply(201, {"token": "ghs_" + "a" * 40, "expires_at": "2026-06-20T12:00:00Z"}),
    )
    kept = keeper.start(scene.job(hold_for=timedelta(seconds=0.2)), scene.directory)
    assert isinstance(kept, keeper.Kept)
    until(lambda: scene.state() == "undone")
    kept.recorded()
    assert scene.state() == "undone"


@requirement("D3.refused")
def test_a_keeper_whose_record_cannot_be_written_sends_nothing(scene: Scene) -> None:
    scene.directory.write_text("a file where the directory should be")
    outcome = keeper.start(scene.job(), scene.directory)
    assert isinstance(outcome, Refused)
    assert scene.github.log == ()


@requirement("D3.ambiguous")
def test_an_answer_without_a_credential_is_unclear(scene: Scene) -> None:
    scene.github.hook(MINT, before=lambda _request: Reply(201, {"expires_at": "2026-06-20T12:00:00Z"}))
    outcome = keeper.start(scene.job(), scene.directory)
    assert isinstance(outcome, Unclear)
    assert scene.state() == "ambiguous"


@requirement("H6.no-secret-shown", "surface.github.keeper")
def test_a_record_is_private_and_holds_no_secret(scene: Scene) -> None:
    value = "ghs_" + "secret-value" * 5
    scene.github.hook(MINT, before=lambda _request: Reply(201, {"token": value}))
    headers = {"Authorization": "Bearer app-jwt-of-the-provisioner"}
    call = keeper.Call("POST", "/app/installations/1/access_tokens", frozenset({201}), headers=headers)
    kept = keeper.start(scene.job(mint=call), scene.directory)
    assert isinstance(kept, keeper.Kept)
    (path,) = scene.directory.glob("*.json")
    (record,) = scene.records()
    text = path.read_text() + repr(kept) + repr(call)
    kept.recorded()
    kept.recorded()
    assert scene.state() == "recorded"
    assert value not in text + path.read_text()
    assert "app-jwt" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(scene.directory.stat().st_mode) == 0o700
    until(lambda: not record.keeper_lives())


@requirement("H6.no-secret-shown")
def test_a_keepers_command_line_environment_and_memory_show_nothing(scene: Scene) -> None:
    with scene.provisioner("minted") as process:
        says(process, "minted")
        (record,) = scene.records()
        proc = Path(f"/proc/{record.pid}")
        assert b"ghs_" not in (proc / "cmdline").read_bytes()
        assert record.keeper_lives()
        if os.geteuid() == 0:
            assert (proc / "environ").read_bytes() == b""
        else:  # not dumpable: the same user may read neither
            with pytest.raises(PermissionError):
                (proc / "mem").open("rb")


@requirement("surface.github.keeper")
def test_old_records_are_cleared_away_by_the_next_mint(scene: Scene) -> None:
    scene.directory.mkdir()
    long_ago = scene.began - timedelta(days=3)
    old = Record("gh-token-handoff-old-20260617", "a" * 32, "recorded", long_ago, long_ago, long_ago)
    old.write(scene.directory)
    scene.github.hook(MINT, before=lambda _request: Reply(403, {"message": "no"}))
    assert isinstance(keeper.start(scene.job(), scene.directory), Refused)
    assert [record.identity for record in scene.records()] == [str(scene.identity)]
