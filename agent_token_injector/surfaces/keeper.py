"""The keeper: a process that makes a mint for us and undoes it when we do not live to record it.

Some credentials can be revoked only by whoever holds their value (`Recovery.BY_HANDLE`). Were the provisioner to send
the request itself, a `kill -9` between the vendor's answer and our write to the vault would leave a live credential that
nobody knows. So a small process of its own session sends it, ignores the signals that end terminals and services, hands
the answer over through a pipe, and waits:

- `recorded()` tells it that the value is in the vault: it writes that down and ends;
- the end of its input, by `undo()` or by our death, makes it revoke the credential and watch it die.

What it does it writes down first (keeper_record.py), so that whoever comes later on this host knows how it ended.
Nothing here knows a vendor: a `Job` is three calls, of which two are built from the answer to the first.

The child is orphaned on purpose (it forks once more, keeper_process.py): it is nobody's to reap.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

from agent_token_injector.surfaces.keeper_record import SETTLED, Record, forget_old, path_of
from agent_token_injector.transport import Refused, Unclear

ANSWER_WITHIN: Final = 90.0
"""Seconds. Longer than the request's own deadline (transport.Timeout.total), so that the keeper speaks first."""
CONFIRM_WITHIN: Final = 15.0
_MODULE: Final = "agent_token_injector.surfaces.keeper_process"


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a job. In `path` and `headers` of an undo or a proof, `{a.b}` stands for that field of the answer."""

    method: str
    path: str
    statuses: frozenset[int]
    """Those that mean: it is so (minted, revoked, dead)."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    json: Any = field(default=None, repr=False)
    words: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """What the JSON answer of a status must say for it to count: field (dotted) -> its exact value. Whatever stands between
    us and the vendor can answer with any status; it does not answer in the vendor's words."""

    def document(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "path": self.path,
            "statuses": sorted(self.statuses),
            "headers": dict(self.headers),
            "json": self.json,
            "words": {str(status): dict(fields) for status, fields in self.words.items()},
        }


@dataclass(frozen=True, slots=True)
class Job:
    """What a keeper is to do: `mint`, and if it comes to that `undo`, until `proof` shows the credential dead."""

    identity: str
    base_url: str
    mint: Call
    undo: Call
    proof: Call
    secret: str
    """The answer's field that holds the credential's value."""
    expiry: str
    """The answer's field with its end (ISO 8601); empty when the vendor gives none."""
    started: datetime
    live_until: datetime
    """No credential of this mint lives longer, whatever the answer says or fails to say."""
    hold_for: timedelta = timedelta(minutes=15)
    """How long to wait for `recorded`: longer than a provisioner takes before it gives up (D2)."""
    undo_for: timedelta = timedelta(minutes=10)
    """How long to go on trying to undo."""


class Kept:
    """A credential that a keeper holds an undo for. `body` is the vendor's answer."""

    def __init__(self, body: Mapping[str, Any], link: _Link) -> None:
        self.body = body
        self._link = link
        self._over = False

    def __repr__(self) -> str:
        return "Kept(...)"

    def recorded(self) -> None:
        """Tell the keeper that the value is in the vault, and that it may go. Idempotent; never raises."""
        self._finish(b"recorded\n")

    def undo(self) -> bool:
        """Let the keeper revoke the credential now. Returns whether it was seen dead (false: not within seconds)."""
        return self._finish(b"undo\n").get("state") == "undone"

    def _finish(self, word: bytes) -> Mapping[str, Any]:
        if self._over:
            return {}
        self._over = True
        with contextlib.suppress(OSError):
            self._link.send(word)
        last = self._link.receive(CONFIRM_WITHIN) or {}
        self._link.close()
        return last


class _Link:
    """The two pipes to a keeper. Dropped, they close, and the keeper undoes."""

    def __init__(self, to: IO[bytes], back: IO[bytes]) -> None:
        self._to = to
        self._back = back
        self._pending = b""
        self.close = weakref.finalize(self, _close, to, back)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._to.fileno(), view) :]

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next line from the keeper, or None when it says nothing more or nothing in time."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._back.fileno(), select.POLLIN | select.POLLHUP)
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            part = os.read(self._back.fileno(), 65536)
            if not part:
                return None
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        found = json.loads(line)
        return found if isinstance(found, dict) else None


def start(job: Job, directory: Path) -> Kept | Refused | Unclear:
    """Have a keeper carry the job's mint out. Its three outcomes are those of any mint (D3).

    `directory` holds the records; it is made with mode 0700 when missing.
    """
    nonce = secrets.token_hex(16)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        forget_old(directory, job.started)
        link = _spawn()
    except OSError as error:
        return Refused(
            0, f"the keeper could not be started ({error.strerror or type(error).__name__}); nothing was sent"
        )
    try:
        link.send(_document(job, directory, nonce))
        answer = link.receive(ANSWER_WITHIN)
    except OSError:
        answer = None
    except BaseException:
        link.close()
        raise
    if answer is None:
        link.close()
        return _fate(path_of(directory, job.identity, nonce))
    match answer.get("outcome"):
        case "accepted":
            return Kept(answer["body"], link)
        case "refused":
            link.close()
            return Refused(int(answer["status"]), str(answer["why"]))
        case _:
            link.close()
            return Unclear(str(answer.get("why", "the keeper did not say how the request ended")))


def _spawn() -> _Link:
    process = subprocess.Popen(
        # -I: neither the environment nor the working directory decides what code handles a credential.
        [sys.executable, "-I", "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        close_fds=True,
        cwd="/",
        env={},
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None:
        raise OSError("no pipes to the keeper")
    link = _Link(process.stdin, process.stdout)
    try:
        process.wait(30)  # for the first of its two processes, which ends once the second runs
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.returncode != 0:
        link.close()
        raise OSError("the keeper did not start")
    return link


def _document(job: Job, directory: Path, nonce: str) -> bytes:
    document = {
        "identity": job.identity,
        "base_url": job.base_url,
        "mint": job.mint.document(),
        "undo": job.undo.document(),
        "proof": job.proof.document(),
        "secret": job.secret,
        "expiry": job.expiry,
        "started": job.started.isoformat(),
        "live_until": job.live_until.isoformat(),
        "hold_for": job.hold_for.total_seconds(),
        "undo_for": job.undo_for.total_seconds(),
        "directory": str(directory.absolute()),
        "nonce": nonce,
    }
    return json.dumps(document).encode() + b"\n"


def _fate(path: Path) -> Refused | Unclear:
    """How a mint ended whose keeper went silent: by its record, which is written before anything is sent."""
    deadline = time.monotonic() + CONFIRM_WITHIN
    while True:
        try:
            record = Record.read(path)
        except ValueError as error:
            return Unclear(f"the keeper's record {error}")
        if record is None:
            return Refused(0, "the keeper ended before anything was sent")
        if record.state in SETTLED:
            return Refused(0, record.why or "the keeper undid it")
        if not record.keeper_lives() or time.monotonic() >= deadline:
            return Unclear(f"the keeper went silent while {record.state}")
        time.sleep(0.05)


def _close(to: IO[bytes], back: IO[bytes]) -> None:
    for pipe in (to, back):
        with contextlib.suppress(OSError):
            pipe.close()
