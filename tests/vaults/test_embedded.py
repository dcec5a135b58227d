"""What the embedded vault promises beyond the contract: its files, its key, its cipher, its neighbours."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent_token_injector.clock import ManualClock, SystemClock
from agent_token_injector.errors import (
    SecretNotFound,
    SettingsError,
    VaultError,
    VaultForbidden,
    VaultUnreachable,
)
from agent_token_injector.names import VaultPath
from agent_token_injector.vaults.embedded import EmbeddedVault
from tests.requirements import requirement
from tests.vaults.helpers import (
    DATABASE,
    KEY,
    MADE,
    NAME,
    PLAIN,
    START,
    TTL,
    X,
    Y,
    encodings,
    flipped,
    mint,
    on_disk,
    open_and_close,
    put,
    tamper,
)
from tests.vaults.processes import DEADLINE, finish, started


class TestFiles:
    @requirement("vault.private-files")
    def test_directory_and_files_are_the_owners_alone_under_any_umask(
        self, directory: Path, clock: ManualClock
    ) -> None:
        before = os.umask(0)
        try:
            with closing(EmbeddedVault(directory, clock=clock)) as vault:
                put(vault, X, A="1")
                modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in directory.iterdir()}
        finally:
            os.umask(before)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert modes == dict.fromkeys((DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", KEY, MADE), 0o600)

    @requirement("vault.private-files")
    @pytest.mark.parametrize(
        ("name", "mode"),
        [(".", 0o750), (".", 0o701), (".", 0o707), (KEY, 0o640), (KEY, 0o604), (KEY, 0o602), (DATABASE, 0o644)],
    )
    def test_what_others_can_reach_is_refused_and_left_as_it_is(self, directory: Path, name: str, mode: int) -> None:
        open_and_close(directory)
        (directory / name).chmod(mode)
        with pytest.raises(SettingsError, match="others can reach it") as refused:
            open_and_close(directory)
        assert refused.value.hint is not None
        assert refused.value.hint.startswith("chmod ")
        assert stat.S_IMODE((directory / name).stat().st_mode) == mode

    @requirement("vault.private-files")
    @pytest.mark.parametrize("name", ["", KEY, DATABASE])
    def test_a_symbolic_link_is_refused(self, directory: Path, tmp_path: Path, name: str) -> None:
        open_and_close(directory)
        link = directory / name
        real = link.rename(tmp_path / "elsewhere")
        link.symlink_to(real)
        with pytest.raises(SettingsError, match="symbolic link"):
            open_and_close(directory)

    @requirement("vault.private-files")
    @pytest.mark.parametrize("name", ["", KEY, DATABASE])
    def test_what_another_user_owns_is_refused(self, directory: Path, name: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        open_and_close(directory)
        os.chown(directory / name, 12345, -1)
        with pytest.raises(SettingsError, match="belongs to user id 12345"):
            open_and_close(directory)

    @requirement("vault.private-files")
    @pytest.mark.parametrize("name", [KEY, DATABASE])
    def test_a_named_pipe_in_a_files_place_is_refused_and_not_waited_for(self, directory: Path, name: str) -> None:
        open_and_close(directory)
        (directory / name).unlink()
        os.mkfifo(directory / name, 0o600)
        with pytest.raises(SettingsError, match="no regular file"):
            open_and_close(directory)

    @requirement("vault.errors")
    def test_a_file_in_the_directorys_place_is_refused(self, directory: Path) -> None:
        directory.parent.mkdir()
        directory.write_bytes(b"")
        with pytest.raises(SettingsError, match="no directory"):
            open_and_close(directory)
        with pytest.raises(SettingsError, match="no directory"):
            open_and_close(directory / "below")

    @requirement("vault.light-import")
    def test_naming_the_vaults_package_loads_no_database_and_no_cipher(self) -> None:
        script = (
            "import sys, agent_token_injector.vaults as v; v.Vault; "
            "print([m for m in ('sqlite3', 'cryptography') if m in sys.modules]); v.EmbeddedVault; "
            "print(hasattr(v, 'NoSuchVault'))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=DEADLINE
        )
        assert ran.stdout.splitlines() == ["[]", "False"]


class TestKey:
    @requirement("vault.key")
    def test_a_missing_key_beside_a_database_is_an_error_and_never_a_new_key(self, directory: Path) -> None:
        open_and_close(directory)
        (directory / KEY).unlink()
        with pytest.raises(VaultError, match="made with another key") as refused:
            open_and_close(directory)
        assert refused.value.hint is not None
        assert not (directory / KEY).exists()

    @requirement("vault.key")
    def test_another_key_is_an_error(self, directory: Path) -> None:
        open_and_close(directory)
        (directory / KEY).write_bytes(bytes(32))
        with pytest.raises(VaultError, match="made with another key"):
            open_and_close(directory)

    @requirement("vault.key")
    @pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
    def test_a_file_of_another_length_is_no_key(self, directory: Path, content: bytes) -> None:
        open_and_close(directory)
        (directory / KEY).write_bytes(content)
        with pytest.raises(VaultError, match="does not hold a key"):
            open_and_close(directory)

    @requirement("vault.key")
    def test_a_key_without_a_database_is_kept_and_used(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        (directory / KEY).write_bytes(bytes(range(32)))
        (directory / KEY).chmod(0o600)
        open_and_close(directory)
        assert (directory / KEY).read_bytes() == bytes(range(32))
        open_and_close(directory)

    @requirement("vault.key")
    def test_two_vaults_have_two_keys_and_nothing_else_is_left_beside_them(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            open_and_close(tmp_path / name)
            assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted((KEY, MADE, DATABASE))
        first, second = ((tmp_path / name / KEY).read_bytes() for name in ("a", "b"))
        assert len(first) == len(second) == 32
        assert first != second


class TestEncryption:
    @requirement("vault.encrypted")
    def test_no_secret_is_in_any_file_in_any_common_encoding(self, directory: Path, vault: EmbeddedVault) -> None:
        put(vault, X, A=PLAIN)
        made = mint(vault)
        vault.login(made.client_id, made.client_secret).read_secret(X, "A")
        while_open = on_disk(directory)
        vault.close()
        for content in (while_open, on_disk(directory)):
            assert b"/x" in content  # names are not hidden: the search below looks at the right bytes
            for value in (PLAIN, made.client_secret.get_secret_value()):
                for form in encodings(value):
                    assert form not in content

    @requirement("vault.encrypted")
    def test_equal_values_are_stored_differently(self, directory: Path, vault: EmbeddedVault) -> None:
        put(vault, X, A=PLAIN, B=PLAIN)
        with closing(sqlite3.connect(directory / DATABASE)) as db:
            (first,), (second,) = db.execute("SELECT sealed FROM secrets ORDER BY name").fetchall()
        assert first[:12] != second[:12]
        assert first[12:] != second[12:]

    @requirement("vault.tamper")
    @pytest.mark.parametrize(
        "altered",
        [
            pytest.param(lambda sealed: flipped(sealed, 0), id="nonce"),
            pytest.param(lambda sealed: flipped(sealed, 12), id="ciphertext"),
            pytest.param(lambda sealed: flipped(sealed, len(sealed) - 1), id="tag"),
            pytest.param(lambda sealed: sealed[:-1], id="cut by one"),
            pytest.param(lambda sealed: sealed[:5], id="cut inside the nonce"),
            pytest.param(lambda _: b"", id="empty"),
            pytest.param(lambda _: "text", id="text"),
            pytest.param(lambda _: 12, id="number"),
        ],
    )
    def test_an_altered_ciphertext_is_an_error_and_never_a_value(
        self, directory: Path, vault: EmbeddedVault, altered: Callable[[bytes], object]
    ) -> None:
        put(vault, X, A=PLAIN)
        made = mint(vault)
        session = vault.login(made.client_id, made.client_secret)
        with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as db:
            (sealed,) = db.execute("SELECT sealed FROM secrets").fetchone()
            db.execute("UPDATE secrets SET sealed = ?", (altered(sealed),))
        reads: list[Callable[[], object]] = [
            lambda: vault.read_secret(X, "A"),
            lambda: vault.read_folder(X),
            lambda: session.read_secret(X, "A"),
        ]
        for read in reads:
            with pytest.raises(VaultError, match="cannot be trusted") as refused:
                read()
            assert not isinstance(refused.value, SecretNotFound | VaultForbidden)
            assert PLAIN not in repr(refused.value.to_dict())

    @requirement("vault.tamper")
    def test_a_row_moved_to_another_name_or_folder_does_not_open_there(
        self, directory: Path, vault: EmbeddedVault
    ) -> None:
        put(vault, X, A="value-of-a", B="value-of-b")
        put(vault, Y, C="value-of-c")
        tamper(
            directory,
            "UPDATE secrets SET name = 'SWAP' WHERE name = 'A'",
            "UPDATE secrets SET name = 'A' WHERE name = 'B'",
            "UPDATE secrets SET name = 'B' WHERE name = 'SWAP'",
            "UPDATE secrets SET path = '/x' WHERE name = 'C'",
        )
        for name in ("A", "B", "C"):
            with pytest.raises(VaultError, match="cannot be trusted"):
                vault.read_secret(X, name)

    @requirement("vault.tamper")
    @pytest.mark.parametrize(
        "change",
        [
            """read = '["/*", "/x/*", "/y/*"]'""",
            "expires_us = expires_us + 3600000000",
            "token_ttl_us = 86400000000",
            "name = 'other'",
            "client_secret_tag = (SELECT client_secret_tag FROM identities ORDER BY seq DESC LIMIT 1)",
            "record_tag = 'text'",
            "read = X'00'",
        ],
    )
    def test_an_altered_identity_cannot_log_in_and_is_not_read_back(
        self, directory: Path, vault: EmbeddedVault, change: str
    ) -> None:
        made, other = mint(vault), mint(vault, "/y/*")
        tamper(directory, f"UPDATE identities SET {change} WHERE id = '{made.identity_id}'")  # noqa: S608  it tampers
        for client_secret in (made.client_secret, other.client_secret):
            with pytest.raises(VaultError, match="cannot be trusted"):
                vault.login(made.client_id, client_secret)
        with pytest.raises(VaultError, match="cannot be trusted"):
            vault.find_identities("other" if change.startswith("name") else NAME)
        assert vault.delete_identity(made.identity_id) is True

    @requirement("vault.tamper", "H3.token-ttl")
    def test_a_token_whose_row_was_given_more_time_dies_when_it_would_have(
        self, directory: Path, vault: EmbeddedVault, clock: ManualClock
    ) -> None:
        put(vault, X, A="1")
        made = mint(vault)
        session = vault.login(made.client_id, made.client_secret)
        tamper(directory, "UPDATE tokens SET expires_us = expires_us * 2")
        session.read_secret(X, "A")
        clock.advance(TTL)
        with pytest.raises(VaultForbidden):
            session.read_secret(X, "A")

    @requirement("vault.encrypted", "H2.revoke-removes-secrets")
    def test_a_deleted_secret_leaves_not_even_its_ciphertext(self, directory: Path, vault: EmbeddedVault) -> None:
        put(vault, X, A=PLAIN, B="b" * 200)
        put(vault, Y, C="c" * 9000)
        with closing(sqlite3.connect(directory / DATABASE)) as db:
            sealed = [row[0] for row in db.execute("SELECT sealed FROM secrets")]
        assert all(one[:40] in on_disk(directory) for one in sealed)
        vault.delete_secret(X, "A")
        vault.delete_folder(X)
        vault.delete_folder(Y)
        left = on_disk(directory)
        assert not any(one[start : start + 16] in left for one in sealed for start in range(0, len(one) - 16, 16))

    @requirement("D7.no-secret-shown")
    def test_a_value_that_is_no_text_is_refused_without_being_shown(self, vault: EmbeddedVault) -> None:
        vault.create_folder(X)
        with pytest.raises(ValueError, match="value of A is not text") as refused:
            vault.create_secret(X, "A", SecretStr(PLAIN + "\udc80"))
        assert refused.value.__context__ is None
        assert dict(vault.read_folder(X)) == {}

    @requirement("D7.no-secret-shown")
    def test_reprs_name_the_thing_and_show_no_secret(self, directory: Path, vault: EmbeddedVault) -> None:
        made = mint(vault)
        session = vault.login(made.client_id, made.client_secret)
        assert repr(vault) == f"<EmbeddedVault {directory}>"
        assert repr(session) == f"<EmbeddedSession of {NAME} until 2026-06-20T12:15:00+00:00>"


class TestErrors:
    @requirement("vault.schema-version")
    def test_the_schema_version_is_written_and_a_newer_one_is_refused(self, directory: Path) -> None:
        open_and_close(directory)
        with closing(sqlite3.connect(directory / DATABASE)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (1,)
        tamper(directory, "PRAGMA user_version = 2")
        with pytest.raises(VaultError, match="its schema is version 2, and this program knows version 1"):
            open_and_close(directory)

    @requirement("vault.errors")
    def test_a_database_of_something_else_is_refused_and_left_alone(self, directory: Path) -> None:
        open_and_close(directory)
        (directory / DATABASE).write_bytes(b"")
        tamper(directory, "CREATE TABLE theirs (x)")
        with pytest.raises(VaultError, match="is not a vault"):
            open_and_close(directory)
        with closing(sqlite3.connect(directory / DATABASE)) as db:
            assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]

    @requirement("vault.errors")
    def test_a_file_that_is_no_database_is_an_error(self, directory: Path) -> None:
        open_and_close(directory)
        (directory / DATABASE).write_bytes(b"not a database, " * 100)
        with pytest.raises(VaultError, match="is damaged") as refused:
            open_and_close(directory)
        assert refused.value.hint is not None

    @requirement("vault.errors")
    def test_a_database_without_its_tables_is_an_error(self, directory: Path, vault: EmbeddedVault) -> None:
        tamper(directory, "DROP TABLE secrets")
        with pytest.raises(VaultError, match="did not do what was asked"):
            vault.read_secret(X, "A")

    @requirement("vault.errors")
    def test_a_vault_locked_too_long_is_unreachable_for_writers_and_still_read(
        self, directory: Path, vault: EmbeddedVault, clock: ManualClock
    ) -> None:
        put(vault, X, A="1")
        with (
            closing(EmbeddedVault(directory, clock=clock, busy_timeout=timedelta(milliseconds=50))) as other,
            closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as holder,
        ):
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(VaultUnreachable, match=r"kept it locked for 0.05 s") as refused:
                other.create_secret(X, "B", SecretStr("2"))
            assert refused.value.hint is not None
            assert other.read_secret(X, "A").get_secret_value() == "1"
            holder.execute("ROLLBACK")
            other.create_secret(X, "B", SecretStr("2"))

    @requirement("H5.event-before-disclosure")
    def test_a_session_reads_nothing_when_the_event_cannot_be_written(
        self, directory: Path, vault: EmbeddedVault, clock: ManualClock
    ) -> None:
        put(vault, X, A="1")
        made = mint(vault)
        with closing(EmbeddedVault(directory, clock=clock, busy_timeout=timedelta(milliseconds=50))) as other:
            session = other.login(made.client_id, made.client_secret)
            with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as holder:
                holder.execute("BEGIN IMMEDIATE")
                with pytest.raises(VaultUnreachable):
                    session.read_secret(X, "A")
                holder.execute("ROLLBACK")
            assert session.read_secret(X, "A").get_secret_value() == "1"
            tamper(directory, "DROP TABLE access_events")
            for path in (X, Y):
                with pytest.raises(VaultError) as refused:
                    session.read_secret(path, "A")
                assert not isinstance(refused.value, VaultForbidden)

    @requirement("vault.errors")
    def test_a_full_disk_is_unreachable_and_what_was_there_stays(self, directory: Path, clock: ManualClock) -> None:
        script = """
import resource, signal
vault = opened()
vault.create_folder(VaultPath("/x"))
vault.create_secret(VaultPath("/x"), "KEPT", SecretStr("1"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    vault.create_secret(VaultPath("/x"), "TOO_BIG", SecretStr("v" * 600_000))
except VaultUnreachable as error:
    say(str(error.cause))
say(",".join(vault.read_folder(VaultPath("/x"))))
vault.close()
"""
        with started(script, directory) as process:
            cause, names = finish(process)
        assert cause.startswith("its file cannot be read or written (SQLITE_")
        assert names == "KEPT"
        with closing(EmbeddedVault(directory, clock=clock)) as vault:
            assert set(vault.read_folder(X)) == {"KEPT"}

    @requirement("vault.errors")
    def test_a_closed_vault_is_unreachable_and_so_are_its_sessions(self, vault: EmbeddedVault) -> None:
        made = mint(vault)
        session = vault.login(made.client_id, made.client_secret)
        vault.close()
        for use in (
            lambda: vault.folder_exists(X),
            lambda: vault.create_secret(X, "A", SecretStr("1")),
            lambda: vault.login(made.client_id, made.client_secret),
            lambda: session.read_secret(X, "A"),
        ):
            with pytest.raises(VaultUnreachable, match="this handle was closed"):
                use()

    @requirement("vault.errors")
    def test_a_call_from_within_a_call_is_refused_and_does_no_harm(self, directory: Path) -> None:
        class MeddlingClock(ManualClock):
            """Calls the vault from inside the vault, as a signal handler might."""

            vault: EmbeddedVault | None = None

            def now(self) -> datetime:
                if self.vault is not None:
                    self.vault.create_folder(Y)
                return super().now()

        clock = MeddlingClock(START)
        with closing(EmbeddedVault(directory, clock=clock)) as vault:
            made = mint(vault)
            clock.vault = vault
            with pytest.raises(VaultUnreachable, match="in the middle of another call"):
                vault.login(made.client_id, made.client_secret)
            clock.vault = None
            assert not vault.folder_exists(Y)
            assert vault.access_events(NAME) == ()
            vault.login(made.client_id, made.client_secret)


@requirement("vault.lost-database")
@pytest.mark.parametrize("how", ["emptied", "deleted"])
def test_a_database_that_was_lost_is_an_error_and_not_a_new_empty_vault(tmp_path: Path, how: str) -> None:
    with closing(EmbeddedVault(tmp_path / "vault", clock=SystemClock())) as vault:
        vault.create_folder(VaultPath("/A"))
    database = tmp_path / "vault" / "vault.sqlite3"
    for companion in ("-wal", "-shm"):
        database.with_name(database.name + companion).unlink(missing_ok=True)
    if how == "emptied":
        os.truncate(database, 0)
    else:
        database.unlink()
    with pytest.raises(VaultError, match="lost its database"):
        EmbeddedVault(tmp_path / "vault", clock=SystemClock())
