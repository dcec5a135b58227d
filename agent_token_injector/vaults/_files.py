"""The embedded vault's files: one private directory with the key and the database, which no other user can touch.

Nothing is repaired here. A file that others can read, that is a symbolic link or that another user owns is refused,
because it may have been read, or put there, by somebody else already.

A database file is never opened here once it has its name: closing a descriptor drops every POSIX lock that the process
holds on the file, those of its open SQLite connections too (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent_token_injector.errors import SettingsError, VaultError, VaultUnreachable
from agent_token_injector.vaults._crypto import KEY_BYTES

KEY_FILE: Final = "vault.key"
DATABASE_FILE: Final = "vault.sqlite3"
MADE_FILE: Final = "vault.made"
"""An empty file that says that the database has been made: from then on an empty or missing one is a lost one."""
_SQLITE_COMPANIONS: Final = ("-wal", "-shm", "-journal")


def prepare(directory: Path) -> bytes:
    """The vault's key, with directory, key file and database file made where they are missing.

    Any number of processes may do this at once for the first time: they get the same key. Raises SettingsError for
    files that others can reach, VaultError for a database without its key, VaultUnreachable when the disk says no.
    """
    with _opened(directory) as folder:
        key = _read_key(directory, folder)
        if key is None:
            # The order makes this safe without a lock: a key gets its name before the database does, so whoever sees
            # a database and, after that, still no key looks at a database that lost its key.
            database = _status(folder, DATABASE_FILE)
            if database is None:
                _create(folder, KEY_FILE, secrets.token_bytes(KEY_BYTES))
            key = _read_key(directory, folder)
        if key is None:
            raise VaultError(
                f"the vault in {directory} cannot be opened",
                cause=f"its database was made with another key: {KEY_FILE} is missing",
                hint=f"put {KEY_FILE} back from the backup; without it what the vault holds cannot be read",
            )
        if _status(folder, DATABASE_FILE) is None:
            refuse_if_made(directory, missing=True)
            _create(folder, DATABASE_FILE, b"")
        for suffix in ("", *_SQLITE_COMPANIONS):
            status = _status(folder, DATABASE_FILE + suffix)
            if status is not None:
                _refuse_unless_private(directory / (DATABASE_FILE + suffix), status)
        return key


def refuse_if_made(directory: Path, *, missing: bool = False) -> None:
    """Return when no database was ever made here. Raises VaultError: a new one would say that there is no handoff.

    `missing`: there was no file a moment ago. It counts only when there is still none, for another process that came
    first at once may have made it, and the note, in between.
    """
    with _opened(directory) as folder:
        made = _status(folder, MADE_FILE) is not None
        if made and not (missing and _status(folder, DATABASE_FILE) is not None):
            raise VaultError(
                f"the vault in {directory} has lost its database",
                cause=f"{DATABASE_FILE} is missing or empty, and there was one",
                hint=f"put {DATABASE_FILE} back from the backup; handoffs in it may be alive (docs/runbooks)",
            )


def remember_made(directory: Path) -> None:
    """Note that the database has been made."""
    with _opened(directory) as folder:
        if _status(folder, MADE_FILE) is None:
            _create(folder, MADE_FILE, b"")


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EEXIST}:
            raise _not_private(directory, "it is a symbolic link or no directory", "name a directory itself") from error
        raise _unreachable(directory, error) from error
    try:
        status = os.fstat(folder)
        _refuse_unless_ours(directory, status)
        if status.st_mode & 0o077:
            raise _not_private(
                directory, f"others can reach it (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 700 {directory}"
            )
        yield folder
    except OSError as error:
        raise _unreachable(directory, error) from error
    finally:
        os.close(folder)


def _read_key(directory: Path, folder: int) -> bytes | None:
    path = directory / KEY_FILE
    try:
        # O_NONBLOCK: a named pipe in the key's place must be refused, not waited for.
        file = os.open(KEY_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_private(path, "it is a symbolic link", "put the key file itself there") from error
        raise
    try:
        _refuse_unless_private(path, os.fstat(file))
        key = os.read(file, KEY_BYTES + 1)
    finally:
        os.close(file)
    if len(key) != KEY_BYTES:
        raise VaultError(
            f"the vault in {directory} cannot be opened",
            cause=f"{KEY_FILE} does not hold a key: it is not {KEY_BYTES} bytes long",
            hint=f"put {KEY_FILE} back from the backup",
        )
    return key


def _create(folder: int, name: str, content: bytes) -> None:
    """Give a complete, flushed file its name, unless the name is taken: then the one who was first has made it."""
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        try:
            os.write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        # A link and not a rename: a rename would replace the file of whoever was first.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.unlink(temporary, dir_fd=folder)
    os.fsync(folder)


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _refuse_unless_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _not_private(path, "it is a symbolic link or no regular file", "put the file itself there")
    _refuse_unless_ours(path, status)
    if status.st_mode & 0o077:
        raise _not_private(path, f"others can reach it (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 {path}")


def _refuse_unless_ours(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise _not_private(
            path,
            f"it belongs to user id {status.st_uid}, and this process runs as {os.geteuid()}",
            "run as the vault's owner, or use another state directory",
        )


def _not_private(path: Path, cause: str, hint: str) -> SettingsError:
    return SettingsError(f"{path} is not safe to keep the vault in", cause=cause, hint=hint)


def _unreachable(directory: Path, error: OSError) -> VaultUnreachable:
    return VaultUnreachable(
        f"the vault in {directory} cannot be reached",
        cause=error.strerror or type(error).__name__,
        hint="check that the directory is on a local, writable disk with space left",
    )
