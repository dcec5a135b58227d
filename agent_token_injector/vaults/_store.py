"""The embedded vault's database: one SQLite file that many processes and threads use at once.

`reading()` is one snapshot, `writing()` one exclusive transaction that is on the disk when it ends. What SQLite raises
leaves here as VaultUnreachable or VaultError, never raw.

A handle keeps one connection, behind a lock. The connection is closed around every fork and opened again when it is
next needed, because no SQLite connection survives being carried over one (sqlite.org/howtocorrupt.html, 2.6).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from agent_token_injector.errors import HandoffError, VaultError, VaultUnreachable
from agent_token_injector.vaults._crypto import SealBroken, VaultKey
from agent_token_injector.vaults._files import DATABASE_FILE, KEY_FILE, prepare, refuse_if_made, remember_made

SCHEMA_VERSION: Final = 1
_CHECK: Final = ("check", "vault.key")
_RETRY_SECONDS: Final = 0.01

_SCHEMA: Final = (
    "CREATE TABLE key_check (sealed BLOB NOT NULL)",
    "CREATE TABLE folders (path TEXT PRIMARY KEY, parent TEXT) WITHOUT ROWID",
    "CREATE INDEX folders_by_parent ON folders (parent)",
    "INSERT INTO folders (path, parent) VALUES ('/', NULL)",
    """CREATE TABLE secrets (
        path TEXT NOT NULL REFERENCES folders (path) ON DELETE CASCADE,
        name TEXT NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (path, name)
    ) WITHOUT ROWID""",
    """CREATE TABLE identities (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        client_id TEXT NOT NULL UNIQUE,
        client_secret_tag BLOB NOT NULL,
        read TEXT NOT NULL,
        token_ttl_us INTEGER NOT NULL,
        expires_us INTEGER NOT NULL,
        record_tag BLOB NOT NULL
    )""",
    "CREATE INDEX identities_by_name ON identities (name)",
    """CREATE TABLE tokens (
        tag BLOB PRIMARY KEY,
        identity_id TEXT NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
        expires_us INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX tokens_by_identity ON tokens (identity_id)",
    "CREATE INDEX tokens_by_expiry ON tokens (expires_us)",
    # No reference to identities: what an identity did outlives it.
    """CREATE TABLE access_events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_us INTEGER NOT NULL,
        identity_id TEXT NOT NULL,
        identity_name TEXT NOT NULL,
        action TEXT NOT NULL,
        path TEXT NOT NULL,
        name TEXT NOT NULL,
        allowed INTEGER NOT NULL
    )""",
    "CREATE INDEX access_events_by_identity ON access_events (identity_name, seq)",
)


class Store:
    """An open database and its key.

    Args:
        directory: where `vault.sqlite3` and `vault.key` are; made on the first opening.
        busy_timeout: how long to wait for other writers before giving up as VaultUnreachable.
    """

    def __init__(self, directory: Path, *, busy_timeout: timedelta) -> None:
        self.directory = directory.absolute()
        self._busy_timeout = busy_timeout
        # Re-entrant, so that a signal handler that calls in here again gets an error and not a deadlock.
        self._lock = threading.RLock()
        self._in_transaction = False
        self._connection: sqlite3.Connection | None = None
        self._key: VaultKey | None = None
        self._closed = False
        with _gate:
            _stores.add(self)
        with self._mapped():
            self._connected()

    @property
    def key(self) -> VaultKey:
        """The key that opened the database."""
        if self._key is None:
            raise self._refused_as_closed()
        return self._key

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction in which every query sees the same instant."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer's overlaps: committed and flushed at the end, undone by any exception."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def scrub(self) -> None:
        """Take what was just deleted out of the write-ahead log too, as far as other processes' reading lets it go.

        Never fails and never waits for others: the deletion itself is done and must not be reported as undone (D10).
        """
        with self._lock, contextlib.suppress(sqlite3.Error, HandoffError):
            connection = self._connected()
            try:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout // timedelta(milliseconds=1)}")

    def close(self) -> None:
        """Close for good; closing twice is no error."""
        with self._lock:
            self._closed = True
            self._key = None
            self._disconnect()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._mapped():
            if self._in_transaction:
                raise VaultUnreachable(
                    f"the vault in {self.directory} cannot be used now",
                    cause="this thread is in the middle of another call to it",
                    hint="let a signal handler set a flag, and call the vault when the first call is over",
                )
            connection = self._connected()
            self._in_transaction = True
            try:
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                try:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                except sqlite3.Error:
                    # A connection in an unknown state is not used again; closing it undoes what was open.
                    self._disconnect()
                raise
            finally:
                self._in_transaction = False

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise self._refused_as_closed()
        if self._connection is None:
            self._connection, self._key = self._connect()
        return self._connection

    def _refused_as_closed(self) -> VaultUnreachable:
        return VaultUnreachable(
            f"the vault in {self.directory} cannot be used", cause="this handle was closed", hint="open it again"
        )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # What was committed is on the disk already; a failing close changes nothing about it.
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _connect(self) -> tuple[sqlite3.Connection, VaultKey]:
        key = VaultKey(prepare(self.directory))
        connection = sqlite3.connect(
            # mode=rw: SQLite itself must never create the file, which would then get the umask's mode.
            f"{(self.directory / DATABASE_FILE).as_uri()}?mode=rw",
            uri=True,
            timeout=self._busy_timeout.total_seconds(),
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._enter_wal(connection)
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            self._check_schema(connection, key)
        except BaseException:
            connection.close()
            raise
        return connection, key

    def _enter_wal(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._busy_timeout.total_seconds()
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                # SQLite does not wait here when two processes make the change at once, as they do on the first opening.
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                break
        if mode != "wal":
            raise VaultUnreachable(
                f"the vault in {self.directory} cannot be used",
                cause=f"its file system does not carry SQLite's write-ahead log (journal mode {mode})",
                hint="keep the state directory on a local disk",
            )

    def _check_schema(self, connection: sqlite3.Connection, key: VaultKey) -> None:
        if _version(connection) == 0:
            self._create_schema(connection, key)
        version = _version(connection)
        if version != SCHEMA_VERSION:
            raise VaultError(
                f"the vault in {self.directory} cannot be opened",
                cause=f"its schema is version {version}, and this program knows version {SCHEMA_VERSION}",
                hint="use the version of agent_token_injector that wrote it, or a newer one",
            )
        try:
            row = connection.execute("SELECT sealed FROM key_check").fetchone()
            key.open(row[0] if row else b"", *_CHECK)
        except SealBroken:
            raise VaultError(
                f"the vault in {self.directory} cannot be opened",
                cause=f"its database was made with another key than the one in {KEY_FILE}",
                hint=f"put the {KEY_FILE} that belongs to it back from the backup",
            ) from None
        remember_made(self.directory)

    def _create_schema(self, connection: sqlite3.Connection, key: VaultKey) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Again, now that nobody else can write: another process may have been first.
            if _version(connection) == 0:
                self._refuse_foreign(connection)
                # Only here, where nobody else can write, does an empty database beside this note mean a lost one.
                refuse_if_made(self.directory)
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO key_check (sealed) VALUES (?)", (key.seal(b"", *_CHECK),))
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise VaultError(
                f"{self.directory / DATABASE_FILE} is not a vault",
                cause="it is a database of something else",
                hint="use another state directory",
            )

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                # SQLite's texts name tables and columns, never a parameter's value: chaining them shows no secret.
                raise self._mapped_error(error) from error

    def _mapped_error(self, error: sqlite3.Error) -> VaultError:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        match _primary(error):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return VaultUnreachable(
                    f"the vault in {self.directory} gave no answer",
                    cause=f"another process kept it locked for {self._busy_timeout.total_seconds():g} s ({name})",
                    hint="try again; if it stays locked, look for a process that hangs with the vault open",
                )
            case (
                sqlite3.SQLITE_IOERR
                | sqlite3.SQLITE_FULL
                | sqlite3.SQLITE_CANTOPEN
                | sqlite3.SQLITE_READONLY
                | sqlite3.SQLITE_PERM
                | sqlite3.SQLITE_PROTOCOL
            ):
                return VaultUnreachable(
                    f"the vault in {self.directory} gave no answer",
                    cause=f"its file cannot be read or written ({name})",
                    hint="check that the directory is on a local, writable disk with space left",
                )
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                return VaultError(
                    f"the vault in {self.directory} is damaged",
                    cause=f"{DATABASE_FILE} is not a database that SQLite can read ({name})",
                    hint=f"put {DATABASE_FILE} back from the backup",
                )
        return VaultError(
            f"the vault in {self.directory} did not do what was asked",
            cause=f"its database refused ({name})",
            hint=f"check that nothing but agent_token_injector writes to {DATABASE_FILE}",
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _primary(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code (the low byte of the extended one), where the error carries one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


_gate = threading.Lock()
_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_held: list[Store] = []


def _before_fork() -> None:
    _gate.acquire()
    _held.extend(_stores)
    for store in _held:
        store._lock.acquire()  # noqa: SLF001  this module's own class
        store._disconnect()  # noqa: SLF001


def _after_fork() -> None:
    for store in _held:
        store._lock.release()  # noqa: SLF001
    _held.clear()
    _gate.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
