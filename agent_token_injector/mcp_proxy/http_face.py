"""The HTTP rules in front of the relay, as an ASGI application: who may ask, where, and in what form.

One address (`POST /mcp`, and `DELETE /mcp` to end a session), one bearer token, compared in constant time. Host and
Origin must be this machine's own, so that a web page that had its name pointed at 127.0.0.1 is refused (DNS rebinding).
Nothing is answered before the token was seen, and a body is read no further than its limit.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from pydantic import SecretStr

from agent_token_injector.mcp_proxy import wire
from agent_token_injector.mcp_proxy.eras import McpHeaders, Refused
from agent_token_injector.mcp_proxy.relay import Relay, Reply
from agent_token_injector.mcp_proxy.tool_policy import Reason

PATH: Final = "/mcp"
BODY_SECONDS: Final = 30.0
"""How long a client may take to send one body."""

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = dict[bytes, list[bytes]]

_ORIGIN: Final = re.compile(rb"https?://(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")
_JSON: Final = re.compile(rb"application/json(?:\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)
_BEARER: Final = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_ROUTING: Final = {
    b"mcp-protocol-version": "version",
    b"mcp-method": "method",
    b"mcp-name": "name",
    b"mcp-session-id": "session",
}


class _Rejected(Exception):
    """A request is answered with a bare status, before JSON-RPC; `reason` set when the audit should know."""

    def __init__(self, status: int, text: str, *, reason: Reason | None = None, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.reason = reason
        self.headers = headers


class HttpFace:
    """The ASGI application of one proxy.

    Args:
        relay: answers what comes through.
        token: what a client must present.
        port: the port it is served on, for the Host rule.
    """

    def __init__(self, relay: Relay, token: SecretStr, port: int) -> None:
        self._relay = relay
        self._token = token
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.strip(b" \t"))
        try:
            self._admit(scope, headers)
        except _Rejected as rejected:
            if rejected.reason is not None:
                await self._relay.refuse_stranger(_refusal(rejected, rejected.reason))
            await _send_text(send, rejected)
            return
        try:
            reply = await self._serve(scope, headers, receive)
        except _Rejected as rejected:
            if rejected.reason is not None:
                await self._relay.refuse(_refusal(rejected, rejected.reason), target="http")
            await _send_text(send, rejected)
            return
        await _send_reply(send, reply)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        host, origins = headers.get(b"host", []), headers.get(b"origin", [])
        if len(host) != 1 or host[0].lower() not in self._hosts:
            raise _Rejected(403, "Host is not this proxy", reason=Reason.HEADERS)
        if len(origins) > 1 or not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise _Rejected(403, "Origin is not this machine", reason=Reason.HEADERS)
        credentials = headers.get(b"authorization", [])
        match = _BEARER.fullmatch(credentials[0]) if len(credentials) == 1 else None
        shown = match[1] if match is not None else b""
        if not hmac.compare_digest(shown, self._token.get_secret_value().encode()):
            raise _Rejected(401, "The bearer token is not this handoff's", reason=Reason.UNAUTHENTICATED)
        # The path as it was sent: one that only decodes to ours is not ours.
        if scope["raw_path"] != PATH.encode() or scope["query_string"]:
            raise _Rejected(404, "Not found")
        if scope["method"] not in ("POST", "DELETE"):
            raise _Rejected(405, "Only POST and DELETE are served", allow="POST, DELETE")

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive) -> Reply:
        mcp = _mcp_headers(headers)
        if scope["method"] == "DELETE":
            return await self._relay.end_session(mcp.session)
        _check_form(headers)
        body = await _read_body(receive)

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        return await self._relay.handle(body, mcp, gone)


def _refusal(rejected: _Rejected, reason: Reason) -> Refused:
    return Refused(wire.INVALID_REQUEST, rejected.text, reason=reason)


def _check_form(headers: Headers) -> None:
    kinds = headers.get(b"content-type", [])
    if len(kinds) != 1 or not _JSON.fullmatch(kinds[0]):
        raise _Rejected(415, "Content-Type must be application/json", reason=Reason.MALFORMED)
    if headers.get(b"content-encoding", [b"identity"]) != [b"identity"]:
        raise _Rejected(415, "Content-Encoding is not accepted", reason=Reason.MALFORMED)
    declared = headers.get(b"content-length", [b"0"])[0]
    if not declared.isdigit() or len(declared) > 9 or int(declared) > wire.MAX_BYTES:
        raise _too_large()


async def _read_body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise _Rejected(400, "The body broke off")
                chunk = event.get("body", b"")
                size += len(chunk)
                if size > wire.MAX_BYTES:
                    raise _too_large()
                chunks.append(chunk)
                if not event.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise _Rejected(408, "The body took too long") from None


def _too_large() -> _Rejected:
    return _Rejected(413, f"More than {wire.MAX_BYTES // 1024 // 1024} MiB", reason=Reason.MALFORMED)


def _mcp_headers(headers: Headers) -> McpHeaders:
    found: dict[str, str] = {}
    for header, name in _ROUTING.items():
        values = headers.get(header, [])
        if len(values) > 1:
            return McpHeaders(twice=header.decode("ascii"))
        if values:
            found[name] = values[0].decode("latin-1")
    return McpHeaders(**found)


async def _send_text(send: Send, rejected: _Rejected) -> None:
    extra = [(name.encode(), value.encode()) for name, value in rejected.headers.items()]
    if rejected.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    # What is left of a body is not read: the connection goes with it.
    extra.append((b"connection", b"close"))
    await _send(send, rejected.status, str(rejected).encode("ascii"), b"text/plain", extra)


async def _send_reply(send: Send, reply: Reply) -> None:
    extra = [] if reply.session is None else [(b"mcp-session-id", reply.session.encode("ascii"))]
    await _send(send, reply.status, reply.body, b"application/json" if reply.body else None, extra)


async def _send(send: Send, status: int, body: bytes, kind: bytes | None, extra: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"cache-control", b"no-store"), (b"content-length", str(len(body)).encode()), *extra]
    if kind is not None:
        headers.append((b"content-type", kind))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
