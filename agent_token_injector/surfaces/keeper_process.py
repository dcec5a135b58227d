"""The keeper's own process (`python -I -m agent_token_injector.surfaces.keeper_process`); keeper.py starts it.

It reads one job from its standard input, answers on its standard output in lines of JSON, and treats the end of its
input as the death of the provisioner. It never prints anything else, and what it writes to a file holds no secret.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from agent_token_injector.processes import ProcessId
from agent_token_injector.surfaces.keeper_record import Record

_FIELD: Final = re.compile(r"\{([a-z_][a-z0-9_.]*)\}")
_PR_SET_DUMPABLE: Final = 4
_JOB_WITHIN: Final = 60.0


def main() -> None:
    """Do one job and end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)  # the provisioner waits for this one only; the other is nobody's to reap
    _harden()
    line = _read_line(_JOB_WITHIN)
    if line is not None:
        Keeper(json.loads(line)).run()


def _harden() -> None:
    # The agent runs as the same user: no core file, and no reading of this memory through ptrace or /proc/<pid>/mem.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Keeper:
    """One job, from the record that it begins to the record of how it ended."""

    def __init__(self, job: dict[str, Any]) -> None:
        from agent_token_injector import transport

        self._job = job
        self._began = time.monotonic()
        self._started = datetime.fromisoformat(job["started"])
        self._directory = Path(job["directory"])
        self._transport = transport
        self._http = transport.client(job["base_url"])
        me = ProcessId.current()
        self._record = Record(
            identity=job["identity"],
            nonce=job["nonce"],
            state="minting",
            started=self._started,
            at=self._started,
            live_until=datetime.fromisoformat(job["live_until"]),
            pid=me.pid,
            pid_started=me.started,
            boot=me.boot,
        )

    def run(self) -> None:
        try:
            self._record.write(self._directory)
        except OSError as error:
            why = f"the keeper's record cannot be written ({error.strerror}); nothing was sent"
            _say({"outcome": "refused", "status": 0, "why": why})
            return
        if _input_ended():
            self._enter("refused", why="the provisioner was gone before anything was sent")
            return
        mint = self._job["mint"]
        outcome = self._http.once(
            mint["method"],
            mint["path"],
            headers=mint["headers"],
            json=mint["json"],
            accepted=frozenset(mint["statuses"]),
        )
        if isinstance(outcome, self._transport.Refused):
            self._enter("refused", why=outcome.why)
            _say({"outcome": "refused", "status": outcome.status, "why": outcome.why})
        elif isinstance(outcome, self._transport.Unclear):
            self._enter("ambiguous", why=outcome.why)
            _say({"outcome": "unclear", "why": outcome.why})
        else:
            self._hold(outcome.body)

    def _hold(self, body: dict[str, Any]) -> None:
        value = _look_up(body, self._job["secret"])
        if not isinstance(value, str) or not value:
            self._enter("ambiguous", why="the vendor's answer holds no credential")
            _say({"outcome": "unclear", "why": "the vendor's answer holds no credential"})
            return
        handle = "sha256:" + hashlib.sha256(value.encode()).hexdigest()
        self._enter("held", handle=handle, live_until=self._end(body))
        _say({"outcome": "accepted", "body": body})
        word = _read_line(self._job["hold_for"])
        if word == b"recorded":
            self._enter("recorded")
            _say({"state": "recorded"})
            return
        proof = self._undo(body)
        if proof is not None:
            self._enter("undone", why=proof)
        else:
            self._enter("unknown", why="it could not be revoked or not be seen dead")
        _say({"state": self._record.state})

    def _undo(self, body: dict[str, Any]) -> str | None:
        """Revoke it and see it dead: how, or None when that did not succeed in time."""
        deadline = time.monotonic() + float(self._job["undo_for"])
        revoked, pause = False, 0.05
        while time.monotonic() < deadline:
            if not revoked:
                revoked = self._asked(self._job["undo"], body)
            if revoked and self._asked(self._job["proof"], body):
                proof = self._job["proof"]
                return f"{proof['method']} {proof['path']} says that it is dead"
            time.sleep(pause)
            pause = min(pause * 2, 10.0)
        return None

    def _asked(self, call: dict[str, Any], body: dict[str, Any]) -> bool:
        try:
            path = _fill(call["path"], body, lambda text: quote(text, safe=""))
            headers = {name: _fill(text, body, str) for name, text in call["headers"].items()}
            answer = self._http.request(call["method"], path, headers=headers, json=call["json"], idempotent=True)
        except (self._transport.TransportError, LookupError):
            return False
        return answer.status in call["statuses"] and _in_words(answer.document(), call["words"].get(str(answer.status)))

    def _end(self, body: dict[str, Any]) -> datetime:
        """When the credential dies by itself: what the vendor says, where that is sooner than what the job knows.

        An end that is past already is no end of what was just minted: then only the job's bound is known.
        """
        with contextlib.suppress(KeyError, TypeError, ValueError):
            said = datetime.fromisoformat(_look_up(body, self._job["expiry"]))
            if said.tzinfo is not None and said > self._now():
                return min(said, self._record.live_until)
        return self._record.live_until

    def _now(self) -> datetime:
        """The time by the provisioner's clock."""
        return self._started + timedelta(seconds=time.monotonic() - self._began)

    def _enter(self, state: str, **more: Any) -> None:
        self._record = self._record.changed(state, self._now(), **more)
        # A record that cannot be replaced still says "minting", which nobody takes for safe.
        with contextlib.suppress(OSError):
            self._record.write(self._directory)


def _look_up(body: dict[str, Any], dotted: str) -> Any:
    found: Any = body
    for name in dotted.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _in_words(document: dict[str, Any] | None, words: dict[str, str] | None) -> bool:
    """Whether an answer says what it must; without such words, any answer does."""
    return not words or (
        document is not None and all(_look_up(document, name) == value for name, value in words.items())
    )


def _fill(template: str, body: dict[str, Any], encode: Callable[[str], str]) -> str:
    def value(match: re.Match[str]) -> str:
        found = _look_up(body, match[1])
        if not isinstance(found, str | int):
            raise LookupError(match[1])  # noqa: TRY004  the vendor's answer lacks it, no caller passed it
        return encode(str(found))

    return _FIELD.sub(value, template)


def _say(document: dict[str, Any]) -> None:
    # A provisioner that no longer listens is found out by the end of our input.
    with contextlib.suppress(OSError):
        data = memoryview(json.dumps(document).encode() + b"\n")
        while data:
            data = data[os.write(1, data) :]


_pending = bytearray()


def _read_line(seconds: float) -> bytes | None:
    """The next line from the provisioner; None at the end of input, or when none comes in time."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    while b"\n" not in _pending:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        part = os.read(0, 65536)
        if not part:
            return None
        _pending.extend(part)
    line, _, rest = bytes(_pending).partition(b"\n")
    _pending[:] = rest
    return line


def _input_ended() -> bool:
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


if __name__ == "__main__":
    # Anything that goes wrong ends here: a traceback could quote a request, so none is printed.
    sys.excepthook = lambda *_: None
    main()
