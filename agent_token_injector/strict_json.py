"""Reading JSON that every parser reads the same way, from files that are files.

Two parsers that read one document differently are a way around what the first of them checked. A device or a pipe in a
document's place is a way to hang, or to exhaust, whoever opens it.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from agent_token_injector.errors import SpecError

MAX_JSON_BYTES: Final = 256 * 1024
MAX_JSON_DEPTH: Final = 64


def read_document(path: str | Path, *, what: str, hint: str | None = None) -> bytes:
    """The bytes of a regular file, or of its beginning when it has more than `strict_json` accepts.

    Links are followed. Raises SpecError for what cannot be read, and for a device, a pipe or a directory, which is
    neither waited for nor read.
    """
    refused = f"{what} {path} cannot be read"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SpecError(refused, cause="it is not a regular file", hint=hint)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_JSON_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SpecError(refused, cause=error.strerror, hint=hint) from None
    except ValueError as error:
        # A name with a null byte in it.
        raise SpecError(refused, cause=str(error), hint=hint) from None


def strict_json(text: str | bytes, *, what: str, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON that every parser reads the same way, of at most `limit` bytes.

    Raises SpecError for invalid UTF-8, duplicate keys, NaN and infinities, excessive size or depth, lone surrogates.
    """
    if len(text) > limit:
        raise SpecError(f"{what} is larger than {limit // 1024} KiB")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        decoded.encode("utf-8")
        document = json.loads(decoded, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        _no_depth(document)
        # Writing it out again finds what reading lets through: escaped lone surrogates, and 1e999 read as infinity.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeError:
        raise SpecError(f"{what} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{what} is not JSON", cause=f"{error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise SpecError(f"{what} is nested too deeply") from None
    except _DuplicateKeyError as error:
        raise SpecError(
            f"{what} has the key {error.key!r} twice in one object",
            path=error.key,
            cause="two parsers could read it differently",
            hint="keep one of them",
        ) from None
    except ValueError as error:
        raise SpecError(f"{what} holds a number that JSON does not have", cause=str(error)) from None
    return document


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKeyError(key)
        found[key] = value
    return found


def _no_depth(document: Any) -> None:
    # Counted, not left to the interpreter: where recursion ends differs between Python's versions and libraries.
    level = [document]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RecursionError


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
