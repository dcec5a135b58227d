"""The embedded vault under many users: threads, processes, forks, and a writer that is killed."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import (
    AlreadyExists,
    VaultForbidden,
)
from agent_token_injector.names import VaultPath
from agent_token_injector.vaults.embedded import EmbeddedVault
from tests.requirements import requirement
from tests.vaults.helpers import (
    DATABASE,
    NAME,
    PLAIN,
    X,
    mint,
    on_disk,
    put,
)
from tests.vaults.processes import DEADLINE, finish, line_of, race, started


class TestManyAtOnce:
    @requirement("vault.processes", "vault.key")
    def test_processes_that_open_a_new_vault_at_once_agree_on_one_key(
        self, directory: Path, clock: ManualClock
    ) -> None:
        script = """
wait_for_go()
for round in range(6):
    DIRECTORY = Path(sys.argv[1]) / str(round)
    vault = opened()
    try:
        vault.create_folder(VaultPath("/x"))
    except AlreadyExists:
        pass
    vault.create_secret(VaultPath("/x"), f"BY_{NUMBER}", SecretStr(f"value-{NUMBER}"))
    vault.close()
say("done")
"""
        assert race(script, directory, 4) == [["done"]] * 4
        for number in range(6):
            with closing(EmbeddedVault(directory / str(number), clock=clock)) as vault:
                read = {name: value.get_secret_value() for name, value in vault.read_folder(X).items()}
            assert read == {f"BY_{one}": f"value-{one}" for one in range(4)}

    @requirement("D2.create-only", "vault.processes")
    def test_of_processes_that_create_one_secret_exactly_one_succeeds_each_time(
        self, directory: Path, vault: EmbeddedVault
    ) -> None:
        vault.create_folder(X)
        script = """
vault = opened()
wait_for_go()
for attempt in range(30):
    try:
        vault.create_secret(VaultPath("/x"), f"INTENT_{attempt}", SecretStr(f"by-{NUMBER}"))
    except AlreadyExists:
        continue
    say(attempt)
vault.close()
"""
        said = race(script, directory, 2)
        won = {int(line): number for number, lines in enumerate(said) for line in lines}
        assert sorted(int(line) for lines in said for line in lines) == list(range(30))
        read = vault.read_folder(X)
        assert {name: value.get_secret_value() for name, value in read.items()} == {
            f"INTENT_{attempt}": f"by-{number}" for attempt, number in won.items()
        }

    @requirement("H2.kill-at-once", "vault.processes")
    def test_an_identity_deleted_by_another_process_is_dead_here_at_once(
        self, directory: Path, vault: EmbeddedVault
    ) -> None:
        put(vault, X, A="1")
        made = mint(vault)
        session = vault.login(made.client_id, made.client_secret)
        session.read_secret(X, "A")
        script = f"vault = opened(); say(vault.delete_identity({made.identity_id!r})); vault.close()"
        with started(script, directory) as process:
            assert finish(process) == ["True"]
        with pytest.raises(VaultForbidden):
            session.read_secret(X, "A")

    @requirement("vault.durable")
    @pytest.mark.parametrize("acknowledged", [1, 7, 20])
    def test_a_writer_killed_in_the_middle_leaves_everything_it_acknowledged(
        self, directory: Path, clock: ManualClock, acknowledged: int
    ) -> None:
        script = """
import itertools
vault = opened()
for number in itertools.count():
    folder = VaultPath(f"/h/h-{number}")
    vault.create_folder(folder)
    vault.create_secret(folder, "A", SecretStr(f"a-{number}"))
    if number % 3 == 2:
        vault.delete_folder(folder)
    say(number)
"""
        with started(script, directory) as process:
            for number in range(acknowledged):
                assert line_of(process) == str(number)
            process.kill()
            rest, _ = process.communicate(timeout=DEADLINE)
            said = acknowledged + len(rest.splitlines())

        assert PLAIN.encode() not in on_disk(directory)
        assert b"a-0" not in on_disk(directory)  # the write-ahead log of the dead writer included
        with closing(EmbeddedVault(directory, clock=clock)) as vault:
            folders = set(vault.list_folders(VaultPath("/h")))
            expected = {f"h-{number}" for number in range(said) if number % 3 != 2}
            # The one that was being made when the end came may be there, in part or whole.
            assert folders - {f"h-{said}"} == expected
            for name in expected:
                read = vault.read_folder(VaultPath(f"/h/{name}"))
                assert {key: value.get_secret_value() for key, value in read.items()} == {"A": name.replace("h-", "a-")}
            put(vault, X, A="still writable")
        with closing(sqlite3.connect(directory / DATABASE)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []

    @requirement("vault.processes")
    def test_a_vault_that_is_open_at_a_fork_works_on_both_sides(self, directory: Path, clock: ManualClock) -> None:
        script = """
vault = opened()
vault.create_folder(VaultPath("/x"))
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        for number in range(10):
            vault.create_secret(VaultPath("/x"), f"CHILD_{child}_{number}", SecretStr("c"))
        assert len([n for n in vault.read_folder(VaultPath("/x")) if n.startswith(f"CHILD_{child}_")]) == 10
        os._exit(0)
    children.append(pid)
    for number in range(10):
        vault.create_secret(VaultPath("/x"), f"PARENT_{child}_{number}", SecretStr("p"))
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
say(len(vault.read_folder(VaultPath("/x"))))
vault.close()
"""
        with started(script, directory) as process:
            assert finish(process) == ["60"]
        with closing(EmbeddedVault(directory, clock=clock)) as vault:
            assert len(vault.read_folder(X)) == 60
        with closing(sqlite3.connect(directory / DATABASE)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    @requirement("vault.processes")
    def test_what_a_child_writes_after_its_parent_closed_the_vault_is_kept(
        self, directory: Path, clock: ManualClock
    ) -> None:
        # With a connection carried over the fork the parent takes itself for the last user and removes the
        # write-ahead log that the child goes on writing to.
        script = """
vault = opened()
vault.create_folder(VaultPath("/x"))
wait, tell = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(wait, 1)
    vault.create_secret(VaultPath("/x"), "BY_CHILD", SecretStr("c"))
    os._exit(0)
vault.close()
os.write(tell, b"!")
assert os.waitpid(pid, 0)[1] == 0
say("done")
"""
        with started(script, directory) as process:
            assert finish(process) == ["done"]
        with closing(EmbeddedVault(directory, clock=clock)) as vault:
            assert vault.read_secret(X, "BY_CHILD").get_secret_value() == "c"

    @requirement("vault.threads")
    def test_many_threads_share_one_handle(self, vault: EmbeddedVault) -> None:
        put(vault, X, A="1")
        made = mint(vault)

        def work(number: int) -> str:
            folder = VaultPath(f"/threads/t-{number}")
            put(vault, folder, A=f"value-{number}", B="2")
            vault.delete_secret(folder, "B")
            with pytest.raises(AlreadyExists):
                vault.create_folder(folder)
            session = vault.login(made.client_id, made.client_secret)
            assert session.read_secret(X, "A").get_secret_value() == "1"
            return vault.read_folder(folder)["A"].get_secret_value()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(24), timeout=DEADLINE)) == [f"value-{number}" for number in range(24)]
        assert len(vault.access_events(NAME)) == 48
