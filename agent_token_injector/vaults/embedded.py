"""The embedded vault: one encrypted SQLite file that behaves as the contract in `base` says.

`EmbeddedVault(directory, clock=clock)` opens, or on the first use makes, `vault.sqlite3` and `vault.key` in a directory
that is its owner's alone. Any number of processes and threads may use it at once.

What it protects: every secret's value is sealed with AES-256-GCM for its own folder and name; client secrets and access
tokens are stored as keyed digests; an identity's record carries a keyed tag. So a copy of the database without the key
file gives away names, times and the lengths of values, and nothing else, and a row that was altered or moved is refused.

What it does not protect from: a process of the same user, which can read the key file as this one does. An agent that
must not reach it runs as another user, in a container or on another host. Nor does it see that the whole file, or a
row in its own place, was put back to an older state.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from agent_token_injector.clock import Clock
from agent_token_injector.errors import AlreadyExists, SecretNotFound, VaultError, VaultForbidden
from agent_token_injector.names import SecretGlob, VaultPath, check_secret_name
from agent_token_injector.vaults._crypto import SealBroken, VaultKey
from agent_token_injector.vaults._store import Store
from agent_token_injector.vaults.base import MAX_TOKEN_TTL, AccessEvent, Guard, IdentityCredentials, IdentityRecord

BUSY_TIMEOUT: Final = timedelta(seconds=10)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_IDENTITY_COLUMNS: Final = "id, name, client_id, client_secret_tag, read, token_ttl_us, expires_us, record_tag"


class EmbeddedVault:
    """The administrator's face of the vault in `directory` (`base.Vault`).

    Args:
        directory: made with mode 0700 when it is missing.
        clock: decides when identities and tokens expire.
        busy_timeout: how long to wait for another process's write.

    Raises SettingsError when others can reach the files; VaultError when the key does not belong to the database, or
    a newer program wrote it; VaultUnreachable when the disk or a lock gives no answer.
    """

    def __init__(self, directory: Path, *, clock: Clock, busy_timeout: timedelta = BUSY_TIMEOUT) -> None:
        self._clock = clock
        self._store = Store(directory, busy_timeout=busy_timeout)

    def __repr__(self) -> str:
        return f"<EmbeddedVault {self._store.directory}>"

    def create_folder(self, path: VaultPath) -> None:
        """Create a folder and its missing parents. Raises AlreadyExists."""
        with self._store.writing() as db:
            if _has_folder(db, path):
                raise AlreadyExists(f"the vault folder {path} exists already", hint="nothing was changed")
            missing = [path]
            while not _has_folder(db, missing[-1].parent):
                missing.append(missing[-1].parent)
            db.executemany(
                "INSERT INTO folders (path, parent) VALUES (?, ?)",
                [(str(folder), str(folder.parent)) for folder in reversed(missing)],
            )

    def folder_exists(self, path: VaultPath) -> bool:
        """Whether the folder is there; the root always is."""
        with self._store.reading() as db:
            return _has_folder(db, path)

    def list_folders(self, path: VaultPath) -> tuple[str, ...]:
        """The names of the folders directly in `path`, sorted; empty when it does not exist."""
        with self._store.reading() as db:
            rows = db.execute("SELECT path FROM folders WHERE parent = ?", (str(path),)).fetchall()
        return tuple(sorted(str(row[0]).rpartition("/")[2] for row in rows))

    def delete_folder(self, path: VaultPath, *, only_if: Guard | None = None) -> bool:
        """Delete a folder with all it holds, folders below it too. Returns whether it was there, and the one meant.

        Raises VaultForbidden for the root.
        """
        if not path.segments:
            raise VaultForbidden(
                "the vault's root folder cannot be deleted", hint="delete the folders in it one at a time"
            )
        with self._store.writing() as db:
            if not self._holds(db, path, only_if):
                return False
            # Below `/x` is what sorts between `/x/` and `/x0`, for `0` comes right after `/`; the index serves it.
            found = db.execute(
                "DELETE FROM folders WHERE path = ? OR (path > ? AND path < ?)", (str(path), f"{path}/", f"{path}0")
            ).rowcount
        if found:
            self._store.scrub()
        return found > 0

    def create_secret(self, path: VaultPath, name: str, value: SecretStr, *, only_if: Guard | None = None) -> None:
        """Write a new secret. Raises AlreadyExists, SecretNotFound when the folder is missing; ValueError for no text."""
        check_secret_name(name)
        sealed = self._store.key.seal(_utf8(value, f"the value of {name}"), "secret", str(path), name)
        with self._store.writing() as db:
            if not _has_folder(db, path) or not self._holds(db, path, only_if):
                raise _no_folder(path)
            try:
                db.execute("INSERT INTO secrets (path, name, sealed) VALUES (?, ?, ?)", (str(path), name, sealed))
            except sqlite3.IntegrityError as error:
                raise AlreadyExists(
                    f"the secret {name} exists already in {path}",
                    cause="secrets are created, never overwritten",
                    hint="nothing was changed; delete it first, or revoke the handoff it belongs to",
                ) from error

    def _holds(self, db: sqlite3.Connection, path: VaultPath, guard: Guard | None) -> bool:
        """Whether the condition on a folder holds, inside the transaction that depends on it."""
        if guard is None:
            return True
        sealed = _sealed(db, path, check_secret_name(guard.name))
        if sealed is None or guard.value is None:
            return sealed is None and guard.value is None
        found = _unseal(self._store.key, path, guard.name, sealed)
        return found.get_secret_value() == guard.value.get_secret_value()

    def read_secret(self, path: VaultPath, name: str) -> SecretStr:
        """The value. Raises SecretNotFound; VaultError when it was tampered with."""
        with self._store.reading() as db:
            sealed = _sealed(db, path, check_secret_name(name))
        if sealed is None:
            raise _no_secret(path, name)
        return _unseal(self._store.key, path, name, sealed)

    def read_folder(self, path: VaultPath) -> Mapping[str, SecretStr]:
        """Every secret directly in a folder, by name, as of one instant. Raises SecretNotFound, VaultError as above."""
        with self._store.reading() as db:
            if not _has_folder(db, path):
                raise _no_folder(path)
            rows = db.execute("SELECT name, sealed FROM secrets WHERE path = ? ORDER BY name", (str(path),)).fetchall()
        return {name: _unseal(self._store.key, path, name, sealed) for name, sealed in rows}

    def delete_secret(self, path: VaultPath, name: str) -> bool:
        """Delete one secret. Returns whether it was there."""
        check_secret_name(name)
        with self._store.writing() as db:
            found = db.execute("DELETE FROM secrets WHERE path = ? AND name = ?", (str(path), name)).rowcount
        if found:
            self._store.scrub()
        return found > 0

    def create_identity(
        self, name: str, *, read: Sequence[SecretGlob], token_ttl: timedelta, expires_at: datetime
    ) -> IdentityCredentials:
        """Create a machine identity that reads `read` and nothing else until `expires_at` (aware).

        Raises ValueError for an empty `read`, for a `token_ttl` that is not above zero and at most `MAX_TOKEN_TTL`,
        and for an `expires_at` without a time zone.
        """
        if not read:
            raise ValueError("an identity without anything to read is not created")
        if not timedelta(0) < token_ttl <= MAX_TOKEN_TTL:
            raise ValueError(f"an access token lives more than 0 and at most {MAX_TOKEN_TTL}, not {token_ttl}")
        if expires_at.tzinfo is None:
            raise ValueError("an identity's expiry has a time zone")
        key = self._store.key
        identity_id, client_id = str(uuid.uuid4()), str(uuid.uuid4())
        client_secret = secrets.token_urlsafe(32)
        # One fast keyed hash and no scrypt: the secret is 256 random bits, which no guessing reaches, and every login
        # would pay for the stretching.
        row = (
            identity_id,
            name,
            client_id,
            key.tag("client-secret", identity_id, client_secret).hex(),
            json.dumps([str(glob) for glob in read]),
            token_ttl // _MICROSECOND,
            _to_us(expires_at),
        )
        with self._store.writing() as db:
            db.execute(
                f"INSERT INTO identities ({_IDENTITY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  a constant
                (*row, key.tag("identity", *row)),
            )
        return IdentityCredentials(identity_id, client_id, SecretStr(client_secret))

    def find_identities(self, name: str) -> tuple[IdentityRecord, ...]:
        """Every identity of exactly that name, expired ones too, oldest first. Raises VaultError for an altered one."""
        with self._store.reading() as db:
            rows = db.execute(
                f"SELECT {_IDENTITY_COLUMNS} FROM identities WHERE name = ? ORDER BY seq",  # noqa: S608  a constant
                (name,),
            ).fetchall()
        return tuple(_identity(self._store.key, row) for row in rows)

    def delete_identity(self, identity_id: str) -> bool:
        """Delete an identity, its client secret and its tokens, at once. Returns whether it was there."""
        with self._store.writing() as db:
            found = db.execute("DELETE FROM identities WHERE id = ?", (identity_id,)).rowcount
        if found:
            self._store.scrub()
        return found > 0

    def login(self, client_id: str, client_secret: SecretStr) -> EmbeddedSession:
        """Log in as a machine identity. Raises VaultForbidden for a wrong, dead or expired one, all alike."""
        key = self._store.key
        token = secrets.token_urlsafe(32)
        with self._store.writing() as db:
            now = self._clock.now()
            row = db.execute(
                f"SELECT {_IDENTITY_COLUMNS} FROM identities WHERE client_id = ?",  # noqa: S608  a constant
                # Ours are ASCII; anything else is unknown, and some of it could not even be asked for.
                (client_id if client_id.isascii() else "",),
            ).fetchone()
            identity = _identity(key, row) if row else None
            stored = row[3] if row else ""
            # An unknown client id costs the same hash and comparison as a known one.
            given = key.tag("client-secret", identity.id if identity else "", client_secret.get_secret_value()).hex()
            right = hmac.compare_digest(stored, given)
            allowed = identity is not None and right and now < identity.expires_at
            _record(db, now, identity, "login", allowed=allowed)
            if identity is not None and allowed:
                expires_at = min(now + identity.token_ttl, identity.expires_at)
                tag = _token_tag(key, identity.id, token, expires_at)
                db.execute("DELETE FROM tokens WHERE expires_us <= ?", (_to_us(now),))
                db.execute(
                    "INSERT INTO tokens (tag, identity_id, expires_us) VALUES (?, ?, ?)",
                    (tag, identity.id, _to_us(expires_at)),
                )
        if identity is None or not allowed:
            raise VaultForbidden(
                "the vault refused the login",
                cause="the client id or the client secret is wrong, or the identity is deleted or expired",
                hint="provision the handoff again when its time is over",
            )
        return EmbeddedSession(self._store, self._clock, identity, SecretStr(token), expires_at)

    def access_events(self, identity_name: str) -> tuple[AccessEvent, ...]:
        """What identities of that name did, oldest first. It outlives them."""
        with self._store.reading() as db:
            rows = db.execute(
                "SELECT at_us, identity_id, action, path, name, allowed FROM access_events WHERE identity_name = ? ORDER BY seq",
                (identity_name,),
            ).fetchall()
        return tuple(
            AccessEvent(_from_us(at), who, identity_name, action, path, name, bool(allowed))
            for at, who, action, path, name, allowed in rows
        )

    def close(self) -> None:
        """Close this handle and its sessions; every later call is VaultUnreachable. Closing twice is no error."""
        self._store.close()


class EmbeddedSession:
    """A logged-in identity (`base.VaultSession`); made by `EmbeddedVault.login`.

    Every read asks the database again whether token and identity live, so that a deletion in another process counts.
    """

    def __init__(
        self, store: Store, clock: Clock, identity: IdentityRecord, token: SecretStr, expires_at: datetime
    ) -> None:
        self._store = store
        self._clock = clock
        self._identity = identity
        self._token = token
        self._expires_at = expires_at

    def __repr__(self) -> str:
        return f"<EmbeddedSession of {self._identity.name} until {self._expires_at.isoformat()}>"

    @property
    def expires_at(self) -> datetime:
        """When the access token dies: at most 15 minutes after the login, and never after the identity."""
        return self._expires_at

    def read_secret(self, path: VaultPath, name: str) -> SecretStr:
        """The value. Raises VaultForbidden outside the globs, or when token or identity are dead; SecretNotFound inside them."""
        check_secret_name(name)
        with self._store.writing() as db:
            now = self._clock.now()
            alive = now < self._expires_at and self._is_known(db)
            covered = any(glob.matches(path, name) for glob in self._identity.read)
            # Not looked up unless covered: how long a refusal takes must not tell whether the secret is there.
            sealed = _sealed(db, path, name) if alive and covered else None
            _record(db, now, self._identity, "read", path=str(path), name=name, allowed=alive and covered)
        # Only here is the event on the disk, and only after it may the value exist in the clear.
        if not alive:
            raise VaultForbidden(
                f"the vault refused {self._identity.name} the secret {name} in {path}",
                cause="its access token is over, or the identity was deleted",
                hint="log in again; when that is refused, the handoff is over",
            )
        if not covered:
            raise VaultForbidden(
                f"the vault refused {self._identity.name} the secret {name} in {path}",
                cause="the identity may not read there",
                hint="what it may read is in the handoff spec, under surfaces.infisical.read",
            )
        if sealed is None:
            raise _no_secret(path, name)
        return _unseal(self._store.key, path, name, sealed)

    def _is_known(self, db: sqlite3.Connection) -> bool:
        tag = _token_tag(self._store.key, self._identity.id, self._token.get_secret_value(), self._expires_at)
        found = db.execute(
            "SELECT 1 FROM tokens JOIN identities ON identities.id = tokens.identity_id "
            "WHERE tokens.tag = ? AND tokens.identity_id = ?",
            (tag, self._identity.id),
        ).fetchone()
        return found is not None


def _has_folder(db: sqlite3.Connection, path: VaultPath) -> bool:
    return not path.segments or db.execute("SELECT 1 FROM folders WHERE path = ?", (str(path),)).fetchone() is not None


def _sealed(db: sqlite3.Connection, path: VaultPath, name: str) -> Any:
    row = db.execute("SELECT sealed FROM secrets WHERE path = ? AND name = ?", (str(path), name)).fetchone()
    return None if row is None else row[0]


def _unseal(key: VaultKey, path: VaultPath, name: str, sealed: Any) -> SecretStr:
    try:
        return SecretStr(key.open(sealed, "secret", str(path), name).decode())
    except SealBroken:
        raise VaultError(
            f"the secret {name} in {path} cannot be trusted and was not read",
            cause="it was altered, or moved here from another place",
            hint="revoke the handoff it belongs to, and find out who wrote to the vault's file",
        ) from None


def _identity(key: VaultKey, row: Sequence[Any]) -> IdentityRecord:
    *fields, tag = row
    try:
        intact = hmac.compare_digest(key.tag("identity", *fields), tag)
    except TypeError:  # a column of another type than ours
        intact = False
    if not intact:
        raise VaultError(
            f"the vault's record of the identity {row[0]} cannot be trusted",
            cause="it was altered",
            hint="delete the identity, and find out who wrote to the vault's file",
        )
    return IdentityRecord(
        id=row[0],
        name=row[1],
        client_id=row[2],
        read=tuple(SecretGlob.parse(text) for text in json.loads(row[4])),
        token_ttl=row[5] * _MICROSECOND,
        expires_at=_from_us(row[6]),
    )


def _record(
    db: sqlite3.Connection,
    now: datetime,
    identity: IdentityRecord | None,
    action: str,
    *,
    path: str = "",
    name: str = "",
    allowed: bool,
) -> None:
    """Write an access event, in the transaction that decides what it tells of. An unknown client has no id and no name."""
    who = (identity.id, identity.name) if identity else ("", "")
    db.execute(
        "INSERT INTO access_events (at_us, identity_id, identity_name, action, path, name, allowed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (_to_us(now), *who, action, path, name, int(allowed)),
    )


def _token_tag(key: VaultKey, identity_id: str, token: str, expires_at: datetime) -> bytes:
    return key.tag("token", identity_id, token, _to_us(expires_at))


def _utf8(value: SecretStr, what: str) -> bytes:
    try:
        return value.get_secret_value().encode()
    except UnicodeEncodeError:
        failed = ValueError(f"{what} is not text: it holds half a character pair")
    # Raised out here because inside the block the new error would carry the old one, and that one holds the value.
    raise failed


def _no_secret(path: VaultPath, name: str) -> SecretNotFound:
    return SecretNotFound(
        f"there is no secret {name} in {path}", hint="check the name, and that the handoff still lives"
    )


def _no_folder(path: VaultPath) -> SecretNotFound:
    return SecretNotFound(f"there is no vault folder {path}", hint="create the folder first, or check its spelling")


def _to_us(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _from_us(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
