"""What the tests of the embedded vault share: names, short ways to fill one, and hands for its files."""

from __future__ import annotations

import base64
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.names import SecretGlob, VaultPath
from agent_token_injector.vaults import IdentityCredentials
from agent_token_injector.vaults.embedded import EmbeddedVault
from tests.vaults.processes import DEADLINE

START = datetime(2026, 6, 20, 12, 0, tzinfo=UTC)
TTL = timedelta(minutes=15)
X, Y = VaultPath("/x"), VaultPath("/y")
NAME = "infisical-handoff-a-20260620"
PLAIN = "ghs_Th1sIsThePlainValue+of/a=secret"
DATABASE, KEY, MADE = "vault.sqlite3", "vault.key", "vault.made"


def open_and_close(directory: Path) -> None:
    EmbeddedVault(directory, clock=ManualClock(START)).close()


def put(vault: EmbeddedVault, path: VaultPath, **values: str) -> None:
    if not vault.folder_exists(path):
        vault.create_folder(path)
    for name, value in values.items():
        vault.create_secret(path, name, SecretStr(value))


def mint(vault: EmbeddedVault, glob: str = "/x/*") -> IdentityCredentials:
    return vault.create_identity(
        NAME, read=[SecretGlob.parse(glob)], token_ttl=TTL, expires_at=START + timedelta(hours=1)
    )


def tamper(directory: Path, *statements: str) -> None:
    """Write to the database as somebody who has the file and not the key."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def flipped(sealed: bytes, at: int) -> bytes:
    return sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]


def on_disk(directory: Path) -> bytes:
    """Every byte of every file, read by another process: closing a file here would drop this one's SQLite locks."""
    files = sorted(str(path) for path in directory.iterdir())
    return subprocess.run(["/bin/cat", *files], check=True, capture_output=True, timeout=DEADLINE).stdout


def encodings(value: str) -> list[bytes]:
    raw = value.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode(), value.encode("utf-16-le"), raw[::-1]]
    for shift in range(3):
        # Without the first and last group, which depend on the neighbours.
        padded = b"\x00" * shift + raw
        found.extend(encode(padded)[4:-4] for encode in (base64.b64encode, base64.urlsafe_b64encode))
    return found
