"""Looks for secrets where they must not be, in every spelling that a log or a file could have given them (H6)."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus


def spellings(value: bytes) -> dict[str, bytes]:
    """A value in plain, base64 and base64url at each alignment, hex in either case, and percent-encoded in part or whole."""
    found = {"plain": value, "hex": value.hex().encode(), "HEX": value.hex().upper().encode()}
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + value)
        # Without the characters that hold bits of what stands before or behind it.
        inner = text[(shift * 8 + 5) // 6 : (shift + len(value)) * 8 // 6]
        found[f"base64+{shift}"] = inner
        found[f"base64url+{shift}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    found["percent"] = quote(value, safe="").encode()
    found["percent-plus"] = quote_plus(value).encode()
    found["percent-all"] = b"".join(b"%%%02X" % byte for byte in value)
    found["percent-all-lower"] = b"".join(b"%%%02x" % byte for byte in value)
    return found


@dataclass
class Needles:
    """The secrets of a run by name, and everything that was seen of it."""

    values: dict[str, bytes] = field(default_factory=dict, repr=False)
    seen: dict[str, set[bytes]] = field(default_factory=dict, repr=False)

    def add(self, name: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        assert len(data) >= 16, f"{name} is too short to be looked for"
        self.values[name] = data

    def add_key(self, name: str, pem: str) -> None:
        """A private key: a line of it is as bad as the whole."""
        for number, line in enumerate(pem.splitlines()[2:-2]):
            self.add(f"{name}, line {number}", line)

    def look_at(self, where: str, what: str | bytes) -> None:
        self.seen.setdefault(where, set()).add(what.encode() if isinstance(what, str) else what)

    def look_through(self, home: Path) -> None:
        """Every file below a folder, and every name of one."""
        for path in sorted(home.rglob("*")):
            where = str(path.relative_to(home))
            self.look_at("names", where)
            if path.is_file():
                try:
                    self.look_at(where, path.read_bytes())
                except FileNotFoundError:
                    continue

    def found(self, allowed: Mapping[str, set[str]] | None = None) -> list[str]:
        """Where each secret was found and how spelt. `allowed` names, by place, the secrets that belong there."""
        hits = []
        for name, value in self.values.items():
            for spelling, needle in spellings(value).items():
                for where, texts in self.seen.items():
                    if any(needle in text for text in texts) and name not in (allowed or {}).get(where, set()):
                        hits.append(f"{name} in {where}, {spelling}")
        return hits

    @contextmanager
    def command_lines(self) -> Iterator[None]:
        """Sample the command line of every process of this machine while the block runs."""
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.004):
                for entry in Path("/proc").iterdir():
                    if entry.name.isdigit():
                        try:
                            self.look_at("command lines", (entry / "cmdline").read_bytes())
                        except (FileNotFoundError, ProcessLookupError):
                            continue

        thread = threading.Thread(target=sample, name="command-lines")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)

    @contextmanager
    def log_records(self) -> Iterator[None]:
        """Take every record of every logger at every level, with its arguments as they were passed."""
        needles = self

        class Taking(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                needles.look_at("log records", f"{record.getMessage()} {record.__dict__!r}")

        root, handler = logging.getLogger(), Taking(level=1)
        before = {name: logging.getLogger(name).level for name in ("", *logging.root.manager.loggerDict)}
        root.addHandler(handler)
        for name in before:
            logging.getLogger(name).setLevel(1)
        try:
            yield
        finally:
            root.removeHandler(handler)
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
