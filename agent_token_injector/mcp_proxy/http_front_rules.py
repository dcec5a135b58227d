"""Which HTTP requests are heard at all: whose they are, where they go, and in what form. Pure: no I/O.

One address (`/mcp`), one bearer token, compared in constant time. Host and Origin must be this machine's own, so that a
web page that had its name pointed at 127.0.0.1 is refused (DNS rebinding). What a second reader could understand
differently is refused rather than understood: two lengths, two values of a header that has one, a coded body.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import McpHeaders
from agent_token_injector.mcp_proxy.tool_policy import Reason

PATH: Final = b"/mcp"
ALLOW: Final = "GET, POST, DELETE"
LAST_EVENT_ID: Final = b"last-event-id"

_OWS: Final = b" \t"
_ORIGIN: Final = re.compile(rb"https?://(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")
_JSON: Final = re.compile(rb"application/json(?:[ \t]*;[ \t]*charset=\"?utf-8\"?)?", re.IGNORECASE)
_BEARER: Final = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_NO_WEIGHT: Final = re.compile(rb"q=0(?:\.0{0,3})?", re.IGNORECASE)
_VERSION: Final = b"mcp-protocol-version"
_METHOD: Final = b"mcp-method"
_NAME: Final = b"mcp-name"
_SESSION: Final = b"mcp-session-id"
_PARAM: Final = b"mcp-param-"
_NO_PARAMS: Final[Mapping[str, str]] = MappingProxyType({})
_NOTHING: Final[frozenset[bytes]] = frozenset()
_ONCE: Final = frozenset({_VERSION, _METHOD, _NAME, _SESSION, LAST_EVENT_ID})


class Head:
    """One request without its body, as it was sent.

    Attributes:
        headers: values by lower-case name; those of a name that came twice are joined with a comma (RFC 9110 §5.3).
        twice: the names that came more than once.
        repeats: header lines whose name had come before.
        keep: whether the connection may carry another request.
    """

    __slots__ = ("headers", "keep", "method", "repeats", "target", "twice", "version")

    def __init__(self) -> None:
        self.method = self.target = b""
        self.version = ""
        self.headers: dict[bytes, bytes] = {}
        self.twice: frozenset[bytes] = _NOTHING
        self.repeats = 0
        self.keep = False

    def again(self, name: bytes, value: bytes) -> None:
        """Note a header line whose name came before."""
        self.twice |= {name}
        self.repeats += 1
        self.headers[name] += b", " + value

    def one(self, name: bytes) -> bytes:
        """The value of a header that is there, blanks at its ends trimmed."""
        return self.headers[name].strip(_OWS)


class Rejection(NamedTuple):
    """A request that is not heard.

    Attributes:
        status, text: what the client is told.
        reason: set when the audit should know.
        stranger: who sent it has not shown the token.
        allow: the methods that would do, for 405.
    """

    status: int
    text: str
    reason: Reason | None = None
    stranger: bool = False
    allow: str | None = None


HEAD_TOO_LARGE: Final = Rejection(431, "The head of the request is too large", Reason.MALFORMED, stranger=True)
_TWO_LENGTHS: Final = Rejection(400, "The length of the body can be read two ways", Reason.MALFORMED)


def oversized(head: Head, most: int, lines: int) -> Rejection | None:
    """Why this head is not looked at, or None: more than `most` bytes, or more than `lines` header lines."""
    headers = head.headers
    # Four bytes stand between name and value, and at the end of the line.
    size = len(head.target) + sum(map(len, headers)) + sum(map(len, headers.values())) + 4 * len(headers)
    return HEAD_TOO_LARGE if size > most or len(headers) + head.repeats > lines else None


def unknown_caller(head: Head, hosts: frozenset[bytes], token: bytes) -> Rejection | None:
    """Why this is nobody we answer, or None: Host, Origin and bearer token.

    Args:
        head: the request.
        hosts: what Host may be, lower case.
        token: what the client must present.
    """
    headers, twice = head.headers, head.twice
    host = headers.get(b"host")
    if host is None or b"host" in twice or host.strip(_OWS).lower() not in hosts:
        return Rejection(403, "Host is not this proxy", Reason.HEADERS, stranger=True)
    if b"origin" in headers:
        origin = headers[b"origin"].strip(_OWS)
        if b"origin" in twice or _ORIGIN.fullmatch(origin) is None:
            return Rejection(403, "Origin is not this machine", Reason.HEADERS, stranger=True)
    match = _BEARER.fullmatch(headers.get(b"authorization", b"").strip(_OWS))
    shown = match[1] if match is not None and b"authorization" not in twice else b""
    if not hmac.compare_digest(shown, token):
        return Rejection(401, "The bearer token is not this handoff's", Reason.UNAUTHENTICATED, stranger=True)
    return None


def unfit_request(head: Head) -> Rejection | None:
    """Why this request of a known client is not heard, or None: address, method, framing, form."""
    # The path as it was sent: one that only decodes to ours is not ours.
    if head.target != PATH:
        return Rejection(404, "Not found")
    method = head.method
    if method == b"POST":
        return _unspoken(head) or _misframed(head) or _malformed(head)
    if method == b"GET":
        return _unspoken(head) or _misframed(head) or _no_stream(head)
    if method == b"DELETE":
        return _unspoken(head) or _misframed(head)
    return Rejection(405, f"Only {ALLOW} are served", allow=ALLOW)


def body_too_large() -> Rejection:
    return Rejection(413, f"More than {wire.MAX_BYTES // 1024 // 1024} MiB", Reason.MALFORMED)


def mcp_headers(head: Head) -> McpHeaders:
    """The MCP headers of a request, as the relay reads them."""
    headers, params = head.headers, _NO_PARAMS
    if head.twice:
        for key in head.twice:
            if key in _ONCE or key.startswith(_PARAM):
                return McpHeaders(twice=key.decode("ascii"))
    # Most requests have none, and this looks at all names at once; no name holds a blank.
    if _PARAM in b" ".join(headers):
        params = {
            key[len(_PARAM) :].decode("ascii"): value.strip(_OWS).decode("latin-1")
            for key, value in headers.items()
            if key.startswith(_PARAM)
        }
    return McpHeaders(_text(head, _VERSION), _text(head, _METHOD), _text(head, _NAME), _text(head, _SESSION), params)


def last_event_id(head: Head) -> str | None:
    """Where a stream that broke off should go on."""
    return _text(head, LAST_EVENT_ID)


def _text(head: Head, name: bytes) -> str | None:
    value = head.headers.get(name)
    return None if value is None else value.strip(_OWS).decode("latin-1")


def _unspoken(head: Head) -> Rejection | None:
    if head.version not in {"1.1", "1.0"}:
        return Rejection(505, "Only HTTP/1.1 is spoken")
    if b"upgrade" in head.headers:
        return Rejection(400, "No other protocol is spoken", Reason.MALFORMED)
    if b"expect" in head.headers and head.one(b"expect").lower() != b"100-continue":
        return Rejection(417, "Only 100-continue can be expected", Reason.MALFORMED)
    return None


def _misframed(head: Head) -> Rejection | None:
    headers, length = head.headers, b"0"
    if b"transfer-encoding" in headers:
        if b"content-length" in headers or head.version == "1.0" or b"transfer-encoding" in head.twice:
            return _TWO_LENGTHS
        if head.one(b"transfer-encoding").lower() != b"chunked":
            return Rejection(501, "Transfer-Encoding must be chunked", Reason.MALFORMED)
    elif b"content-length" in headers:
        length = head.one(b"content-length")
        if b"content-length" in head.twice or not length.isdigit():
            return _TWO_LENGTHS
        if _LENGTH.fullmatch(length) is None or int(length) > wire.MAX_BYTES:
            return body_too_large()
    if head.method != b"POST" and (b"transfer-encoding" in headers or length.strip(b"0")):
        return Rejection(400, "Only POST has a body", Reason.MALFORMED)
    return None


def _no_stream(head: Head) -> Rejection | None:
    if not accepts(head.headers.get(b"accept", b""), b"text/event-stream"):
        return Rejection(406, "Accept must admit text/event-stream", Reason.MALFORMED)
    if LAST_EVENT_ID in head.twice:
        return Rejection(400, "Last-Event-ID appears more than once", Reason.HEADERS)
    return None


def _malformed(head: Head) -> Rejection | None:
    headers, twice = head.headers, head.twice
    kind = headers.get(b"content-type")
    if kind is None or b"content-type" in twice or not _is_json(kind):
        return Rejection(415, "Content-Type must be application/json", Reason.MALFORMED)
    if b"content-encoding" in headers and (
        head.one(b"content-encoding").lower() != b"identity" or b"content-encoding" in twice
    ):
        return Rejection(415, "Content-Encoding is not accepted", Reason.MALFORMED)
    accept = headers.get(b"accept")
    if accept is not None and not _accepts_both(accept):
        return Rejection(406, "Accept must admit application/json and text/event-stream", Reason.MALFORMED)
    return None


@lru_cache(maxsize=16)
def _is_json(kind: bytes) -> bool:
    return _JSON.fullmatch(kind.strip(_OWS)) is not None


@lru_cache(maxsize=16)
def _accepts_both(accept: bytes) -> bool:
    return accepts(accept, b"application/json") and accepts(accept, b"text/event-stream")


def accepts(accept: bytes, kind: bytes) -> bool:
    """Whether an Accept header admits a media type (RFC 9110 §12.5.1): the most specific range that fits decides."""
    wanted = (kind, kind.partition(b"/")[0] + b"/*", b"*/*")
    best, admitted = len(wanted), False
    for item in accept.split(b","):
        essence, *parameters = (part.strip(_OWS) for part in item.split(b";"))
        rank = wanted.index(essence.lower()) if essence.lower() in wanted else len(wanted)
        if rank < best:
            best, admitted = rank, not _weightless(parameters)
    return admitted


def _weightless(parameters: Iterable[bytes]) -> bool:
    return any(_NO_WEIGHT.fullmatch(parameter) for parameter in parameters)
