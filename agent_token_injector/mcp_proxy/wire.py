"""One strict reading of a JSON-RPC message, and one spelling of it.

What `parse` returns is all that the proxy ever decides on, and `encode` of it is all that the proxy ever sends: the
bytes that came in go no further. So there is no second parser that could read a message differently from the first (D8).

Refused: invalid UTF-8, a byte order mark, a key twice in one object, NaN and numbers beyond a double, integers in a
request that a double cannot hold exactly, lone surrogates, more than 10 MiB, more than 64 levels, batches, unknown keys
beside the envelope's own, an envelope that is both request and response, ids that are not a string or an integer.

Pure: no I/O.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

MAX_BYTES: Final = 10 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_METHOD: Final = 128
QUICK_BYTES: Final = 64 * 1024
"""Longer messages are read strictly at once."""
MAX_ID: Final = 256
MAX_EXACT_INT: Final = 2**53 - 1
"""RFC 7493 §2.2: beyond it, parsers that read numbers as doubles see another number than we decided on."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

MessageId: TypeAlias = str | int


class WireError(Exception):
    """A message was refused before it meant anything. `code` and `message` are JSON-RPC's; the message quotes nothing."""

    def __init__(self, code: int, message: str, *, id: MessageId | None = None) -> None:  # noqa: A002 - JSON-RPC's word
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id


@dataclass(slots=True)
class Request:
    """A call that wants an answer."""

    id: MessageId
    method: str
    params: dict[str, Any]


@dataclass(slots=True)
class Notification:
    """A call that wants none."""

    method: str
    params: dict[str, Any]


@dataclass(slots=True)
class Response:
    """An answer: `result`, or an `error` as it came."""

    id: MessageId
    result: Any = None
    error: dict[str, Any] | None = None


Message: TypeAlias = Request | Notification | Response


def parse(raw: bytes) -> Message:
    """Read one message of a client. Raises WireError and nothing else, whatever the bytes."""
    document = _load(raw)
    if type(document) is dict and len(document) == 4:
        # Nearly every message: what has these four members, each of its kind, has no others.
        get = document.get
        found: Any
        found, method, params = get("id"), get("method"), get("params")
        fits = type(found) is int if type(found) is not str else len(found) <= MAX_ID
        if fits and type(method) is str and 0 < len(method) <= MAX_METHOD and type(params) is dict:  # noqa: SIM102
            if get("jsonrpc") == "2.0":
                return Request(found, method, params)
    if isinstance(document, list):
        raise WireError(INVALID_REQUEST, "Invalid Request: batches are not accepted")
    if not isinstance(document, dict):
        raise WireError(INVALID_REQUEST, "Invalid Request: not an object")
    return _message(document)


def read_reply(raw: bytes) -> dict[str, Any]:
    """Read one message of a server: `method` with or without `id`, or `id` and one of `result` and `error`.

    Read once, and written anew before anybody sees it: of a key that came twice the last one is all there is. A result
    may hold any integer, because nothing is decided on it. Raises WireError and nothing else, whatever the bytes.
    """
    if len(raw) > MAX_BYTES:
        raise WireError(INVALID_REQUEST, f"larger than {MAX_BYTES // 1024 // 1024} MiB")
    try:
        document = _DECODER.decode(raw)
    except RecursionError:
        raise WireError(PARSE_ERROR, f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        # msgspec.DecodeError and UnicodeDecodeError are ValueErrors.
        raise WireError(PARSE_ERROR, "not JSON") from None
    if type(document) is not dict or document.get("jsonrpc") != "2.0":
        raise WireError(INVALID_REQUEST, "not a JSON-RPC 2.0 message")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _walk(document)
    if "method" in document:
        if "result" in document or "error" in document or type(document["method"]) is not str:
            raise WireError(INVALID_REQUEST, "neither a request nor a response")
    elif ("result" in document) is ("error" in document):
        raise WireError(INVALID_REQUEST, "neither a request nor a response")
    return document


def loose_id(raw: bytes) -> int | None:
    """The integer id of a message that cannot be read otherwise, as far as it can be told: for failing its question."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    number = found.get("id") if isinstance(found, dict) else None
    return number if type(number) is int else None


def encode(document: Any) -> bytes:
    """The one spelling: ASCII, one line, no blanks. Raises ValueError for what JSON does not have."""
    try:
        raw = _ENCODER.encode(document)
    except OverflowError:
        # An integer of more than 64 bits, in a server's answer.
        raw = b"\xff"
    return raw if raw.isascii() else _ascii(document)


def _ascii(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def request(id: MessageId, method: str, params: dict[str, Any]) -> bytes:  # noqa: A002 - JSON-RPC's word
    return encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params})


def notification(method: str, params: dict[str, Any] | None = None) -> bytes:
    document: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    return encode(document if params is None else {**document, "params": params})


def result(id: MessageId, value: Any) -> bytes:  # noqa: A002 - JSON-RPC's word
    return encode({"jsonrpc": "2.0", "id": id, "result": value})


def error(id: MessageId | None, code: int, message: str, data: Any = None) -> bytes:  # noqa: A002 - JSON-RPC's word
    """An error reply; `id` is null where the request's could not be read."""
    body: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return encode({"jsonrpc": "2.0", "id": id, "error": body})


_ENVELOPE: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})


def _message(document: dict[str, Any]) -> Message:
    message_id = _id(document)
    unknown = document.keys() - _ENVELOPE
    if unknown or document.get("jsonrpc") != "2.0":
        raise WireError(INVALID_REQUEST, "Invalid Request: not a JSON-RPC 2.0 message", id=message_id)
    answers = document.keys() & {"result", "error"}
    if "method" in document:
        if answers:
            raise WireError(INVALID_REQUEST, "Invalid Request: both a request and a response", id=message_id)
        return _call(document, message_id)
    if message_id is None or len(answers) != 1 or "params" in document:
        raise WireError(INVALID_REQUEST, "Invalid Request: neither a request nor a response", id=message_id)
    if "result" in document:
        return Response(message_id, result=document["result"])
    problem = document["error"]
    if not isinstance(problem, dict):
        raise WireError(INVALID_REQUEST, "Invalid Request: error is not an object", id=message_id)
    return Response(message_id, error=problem)


def _call(document: dict[str, Any], message_id: MessageId | None) -> Request | Notification:
    method, params = document["method"], document.get("params", {})
    if not isinstance(method, str) or not 0 < len(method) <= MAX_METHOD:
        raise WireError(INVALID_REQUEST, "Invalid Request: method is not a short string", id=message_id)
    if not isinstance(params, dict):
        raise WireError(INVALID_REQUEST, "Invalid Request: params is not an object", id=message_id)
    if message_id is None:
        return Notification(method, params)
    return Request(message_id, method, params)


def _id(document: dict[str, Any]) -> MessageId | None:
    """The id, or None when there is none. A null id is none that MCP allows."""
    if "id" not in document:
        return None
    found = document["id"]
    if isinstance(found, str) and len(found) <= MAX_ID:
        return found
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) <= MAX_EXACT_INT:
        return found
    raise WireError(INVALID_REQUEST, "Invalid Request: id is neither a short string nor an integer")


class _RefusedError(ValueError):
    """What the JSON decoder's hooks raise; its text is for the peer."""


def _load(raw: bytes) -> Any:
    if len(raw) <= QUICK_BYTES:
        document = _load_quickly(raw)
        if document is not None:
            return document
    elif len(raw) > MAX_BYTES:
        raise WireError(INVALID_REQUEST, f"Invalid Request: larger than {MAX_BYTES // 1024 // 1024} MiB")
    try:
        document = _EXACT.decode(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise WireError(PARSE_ERROR, "Parse error: not UTF-8") from None
    except _RefusedError as refused:
        raise WireError(PARSE_ERROR, f"Parse error: {refused}") from None
    except RecursionError:
        raise WireError(PARSE_ERROR, f"Parse error: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        raise WireError(PARSE_ERROR, "Parse error: not JSON") from None
    # Both checks walk the document; most messages show by their bytes alone that they need neither.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH or b"\\u" in raw:
        _walk(document)
    return document


def _load_quickly(raw: bytes) -> Any:
    """A document whose own spelling is ours but for non-ASCII text, which most clients' is; None for any other.

    What is spelled again in the very same bytes has no key twice, no number that changes when it is read, no blank and
    no escape that could be written otherwise. What is left to refuse in it is depth and integers beyond a double.
    """
    try:
        document = _DECODER.decode(raw)
        if _ENCODER.encode(document) != raw:
            return None
    except (ValueError, RecursionError, OverflowError):
        # The strict reading says what is wrong with it.
        return None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH or _LONG_NUMBER.search(raw) is not None:
        return None
    return document


def _walk(document: Any) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise WireError(PARSE_ERROR, f"Parse error: nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, str):
        try:
            node.encode("utf-8")
        except UnicodeEncodeError:
            raise WireError(PARSE_ERROR, "Parse error: half of a surrogate pair") from None
    elif isinstance(node, dict):
        yield from node.keys()
        yield from node.values()
    elif isinstance(node, list):
        yield from node


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RefusedError("a key twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError("a number out of range")
    return value


def _exact(text: str) -> int:
    if len(text) <= 17 and abs(value := int(text)) <= MAX_EXACT_INT:
        return value
    raise _RefusedError("an integer that not every parser reads alike")


def _constant(text: str) -> Any:
    raise _RefusedError(f"{text} is not JSON")


_EXACT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_exact, parse_float=_finite, parse_constant=_constant
)
_LONG_NUMBER: Final = re.compile(rb"[0-9]{16}")
"""2^53 has sixteen digits."""
_DECODER: Final = msgspec.json.Decoder()
_ENCODER: Final = msgspec.json.Encoder()
