"""What a keeper writes down of one mint: a small file that outlives it, and holds no secret.

One file a mint, `<identity>.<nonce>.json`, mode 0600, replaced atomically. It is written before the request that mints
leaves, so that a missing file of a started mint proves that nothing was sent. States:

    minting -> refused                     the vendor said no, or nothing was sent
            -> ambiguous                   it may exist, and nobody holds it
            -> held -> recorded            its value is in the vault
                    -> undone              revoked and seen dead
                    -> unknown             could not be revoked
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from agent_token_injector.processes import ProcessId

SETTLED: Final = frozenset({"refused", "undone"})
"""States in which nothing is alive and nothing will be."""
KEPT: Final = timedelta(days=1)
"""How long after its credential's end a record is left lying."""
_VERSION: Final = 1
_NONCE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Record:
    """One mint as its keeper last saw it."""

    identity: str
    nonce: str
    state: str
    started: datetime
    """When the mint was ordered, by the provisioner's clock."""
    at: datetime
    """When this state was entered, by the same clock."""
    live_until: datetime
    """Whatever may exist dies by itself then."""
    pid: int = 0
    pid_started: int = 0
    boot: str = ""
    """With `boot` and `pid_started` the pid names one process for good (processes.py)."""
    handle: str = ""
    """`sha256:<hex>` of the value, once there is one."""
    why: str = ""

    def changed(self, state: str, at: datetime, **more: Any) -> Record:
        return replace(self, state=state, at=at, **more)

    def keeper_lives(self) -> bool:
        """Whether the process that wrote this still runs here."""
        return ProcessId(self.boot, self.pid, self.pid_started).is_alive() is True

    def write(self, directory: Path) -> None:
        """Replace the file, durably. Raises OSError."""
        document = {"version": _VERSION, **asdict(self)}
        for name in ("started", "at", "live_until"):
            document[name] = document[name].isoformat()
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=".", suffix=".tmp")  # mkstemp makes it 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path_of(directory, self.identity, self.nonce))
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        _sync(directory)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record, or None when there is none. Raises ValueError for a file that is not one."""
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        try:
            if document.pop("version") != _VERSION:
                raise ValueError("was written by another version")
            for name in ("started", "at", "live_until"):
                document[name] = datetime.fromisoformat(document[name])
                if document[name].tzinfo is None:
                    raise ValueError(f"its {name} has no time zone")
            return cls(**document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"is not a keeper's record ({type(error).__name__})") from None


def path_of(directory: Path, identity: str, nonce: str) -> Path:
    return directory / f"{identity}.{nonce}.json"


def records_of(directory: Path, identity: str, since: datetime) -> tuple[tuple[Record, ...], bool]:
    """The records of an identity's mints ordered at or after `since`, and whether every file could be read."""
    found, complete = [], True
    for path in sorted(directory.glob(f"{identity}.*.json")):
        if not _NONCE.fullmatch(path.name[len(identity) + 1 : -len(".json")]):
            continue
        try:
            record = Record.read(path)
        except ValueError:
            complete = False
            continue
        if record is not None and record.identity == identity and record.started >= since:
            found.append(record)
    return tuple(found), complete


def wait_settled(
    directory: Path, identity: str, since: datetime, patience: timedelta
) -> tuple[tuple[Record, ...], bool]:
    """The same, after giving living keepers up to `patience` to finish."""
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        records, complete = records_of(directory, identity, since)
        busy = any(record.state in {"minting", "held"} and record.keeper_lives() for record in records)
        if not busy or time.monotonic() >= deadline:
            return records, complete
        time.sleep(0.05)


def forget_old(directory: Path, now: datetime) -> None:
    """Delete records whose credential's own end is more than a day past."""
    for path in directory.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            record = Record.read(path)
            if record is not None and record.live_until + KEPT < now:
                path.unlink()


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
