"""HTTP to the vendors: the only module that makes httpx clients (D11).

What every request of ours keeps:

- A deadline on each phase and on the whole; a bound on the answer's size; no redirects, because a redirect would carry
  a credential to a host nobody named; no proxy or certificate setting from the environment.
- TLS, except to a loopback host.
- A request that may have been carried out is not sent twice. Only one marked `idempotent` is retried (429, 502, 503,
  504, a broken or missing answer), with jitter and honouring `Retry-After` within a bound. Any request is retried when
  no connection came about, for then nothing was sent.
- A mint ends in one of three ways (D3): `Accepted`, `Refused` (the vendor answered no, or nothing was sent) and
  `Unclear` (it left, and no usable answer came back).
- Nothing is logged that could hold a secret: httpx's own lines for our requests are dropped, ours name method, host,
  path and status. A vendor's text reaches an exception redacted, on one line and cut short.
"""

from __future__ import annotations

import contextvars
import email.utils
import functools
import ipaddress
import json as jsonlib
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import tenacity

from agent_token_injector.errors import HandoffError, SettingsError

MAX_ANSWER: Final = 8 * 1024 * 1024
MAX_VENDOR_TEXT: Final = 240
ATTEMPTS: Final = 4
MAX_PAUSE: Final = 15.0
"""Seconds. A vendor that asks for a longer pause gets its request given up instead."""

_RETRIED: Final = frozenset({429, 502, 503, 504})
_UNCLEAR: Final = frozenset({408, 425, 499})
"""4xx by number, but said by something on the way that does not know what the vendor did."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

logger = logging.getLogger(__name__)
_ours: contextvars.ContextVar[bool] = contextvars.ContextVar("agent_token_injector_request", default=False)


class TransportError(HandoffError):
    """A request got no usable answer. `sent` says whether the vendor may have carried it out."""

    code = "transport.no-answer"

    def __init__(self, what: str, *, sent: bool, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Timeout:
    """Seconds: for a connection, for each read, and for the request with all its retries."""

    connect: float = 5.0
    read: float = 20.0
    total: float = 60.0


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer. Its repr shows the status and nothing the vendor sent."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is not."""
        return jsonlib.loads(self.body)

    def document(self) -> dict[str, Any] | None:
        """The body as a JSON object, or None when it is anything else."""
        try:
            found = self.json()
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The vendor did it; `body` is its answer."""

    status: int
    body: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done: the vendor said no (`status`), or nothing was sent (`status` is 0)."""

    status: int
    why: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """It may have been done. Not to be sent again."""

    why: str


Outcome = Accepted | Refused | Unclear


class Http:
    """One vendor's API. Made by `client`; closed by `close` or at the end of a `with` block."""

    def __init__(
        self,
        inner: httpx.Client,
        *,
        host: str,
        timeout: Timeout,
        redact: Callable[[str], str],
        pause: Callable[[float], None],
    ) -> None:
        self._inner = inner
        self._host = host
        self._timeout = timeout
        self._redact = redact
        self._pause = pause

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._inner.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        data: Mapping[str, str] | None = None,
        idempotent: bool,
    ) -> Response:
        """The vendor's answer, whatever its status. Raises TransportError when there is none.

        Args:
            method: such as `GET`.
            path: absolute, already quoted.
            headers: beyond the client's own; credentials travel here and nowhere else.
            params: the query; never a secret.
            json: a body, sent as JSON.
            data: a body, sent as a form.
            idempotent: whether carrying it out twice is the same as once. Decides what is retried.
        """
        started = time.monotonic()
        request = self._inner.build_request(method, path, headers=headers, params=params, json=json, data=data)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(self._timeout.total),
            retry=tenacity.retry_if_exception(_worth_another)
            | tenacity.retry_if_result(lambda answer: idempotent and answer.status in _RETRIED and _pause_fits(answer)),
            wait=_wait,
            sleep=self._pause,
            retry_error_callback=_last,
        )
        return retrying(self._attempt, request, started + self._timeout.total, idempotent)

    def once(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        data: Mapping[str, str] | None = None,
        accepted: frozenset[int] = frozenset({200, 201}),
    ) -> Outcome:
        """Ask once for something that must not happen twice, and say in which of the three ways it ended (D3)."""
        try:
            answer = self.request(method, path, headers=headers, json=json, data=data, idempotent=False)
        except TransportError as error:
            return Unclear(str(error)) if error.sent else Refused(0, str(error))
        document = answer.document()
        if answer.status in accepted:
            if document is None:
                return Unclear(f"{method} {path} answered {answer.status} with a body that is not a JSON object")
            return Accepted(answer.status, document)
        if 400 <= answer.status < 500 and answer.status not in _UNCLEAR and document is not None:
            return Refused(answer.status, self.describe(method, path, answer))
        return Unclear(self.describe(method, path, answer))

    def describe(self, method: str, path: str, answer: Response, *, quote: bool = True) -> str:
        """`GET /x answered 403: <the vendor's own words>`, redacted and short; without the words when not `quote`."""
        said = f"{method} {path} answered {answer.status}"
        words = _vendor_words(answer.document()) if quote else ""
        return f"{said}: {clean(words, self._redact)}" if words else said

    def _attempt(self, request: httpx.Request, deadline: float, idempotent: bool) -> Response:
        name = f"{request.method} {self._host}{request.url.path}"
        token = _ours.set(True)
        try:
            answer = self._exchange(request, deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            logger.debug("%s: no connection", name)
            raise _Unsent(f"{name} could not be sent", cause=_kind(error)) from None
        except (httpx.TransportError, httpx.DecodingError, _BrokenAnswerError) as error:
            logger.debug("%s: no usable answer", name)
            raise (_Again if idempotent else _Lost)(f"{name} got no usable answer", cause=_kind(error)) from None
        finally:
            _ours.reset(token)
        logger.debug("%s: %d", name, answer.status)
        return answer

    def _exchange(self, request: httpx.Request, deadline: float) -> Response:
        response = self._inner.send(request, stream=True, follow_redirects=False)
        try:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER:
                    raise _BrokenAnswerError(f"the answer is larger than {MAX_ANSWER // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise _BrokenAnswerError("the answer did not end in time")
        finally:
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status_code, headers, bytes(body))


def client(
    base_url: str,
    *,
    timeout: Timeout | None = None,
    headers: Mapping[str, str] | None = None,
    transport: httpx.BaseTransport | None = None,
    redact: Callable[[str], str] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Http:
    """A client for one vendor's API. Raises SettingsError for a URL that is not https, or http to a loopback host.

    Args:
        base_url: scheme, host, port and path prefix; no user, query or fragment.
        timeout: its deadlines; a few seconds each unless told.
        headers: sent with every request; no credentials.
        transport: another way to carry requests, such as one that records them.
        redact: replaces known secrets in a text; applied to what a vendor says before it enters an exception.
        pause: waits between attempts, in seconds.
    """
    host = check_url(base_url)
    limits = timeout or Timeout()
    _quieten()
    inner = httpx.Client(
        base_url=base_url,
        headers={"User-Agent": "agent-token-injector", "Accept-Encoding": "identity", **(headers or {})},
        timeout=httpx.Timeout(limits.read, connect=limits.connect, pool=limits.connect),
        follow_redirects=False,
        trust_env=False,
        transport=transport,
        verify=_tls(secure=base_url.lower().startswith("https:")),
    )
    return Http(inner, host=host, timeout=limits, redact=redact or (lambda text: text), pause=pause)


def check_url(base_url: str) -> str:
    """The `host[:port]` of a URL that a credential may be sent to. Raises SettingsError otherwise."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise SettingsError("an API address is not a URL", hint="write it as https://host") from None
    host = parts.hostname or ""
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(
            "an API address is not usable",
            cause="it needs a host, and takes no user, query or fragment",
            hint="write it as https://host",
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and _loopback(host)):
        raise SettingsError(
            f"the API address of {host} is not https",
            cause="a credential would cross the network in the clear",
            hint="use https; http is only for a loopback host",
        )
    return host if port is None else f"{host}:{port}"


def clean(text: str, redact: Callable[[str], str] | None = None) -> str:
    """A vendor's text, fit for an exception: redacted first, then on one line and at most 240 characters."""
    redacted = redact(text) if redact is not None else text
    line = _CONTROL.sub(" ", redacted).strip()
    return line if len(line) <= MAX_VENDOR_TEXT else line[: MAX_VENDOR_TEXT - 1] + "…"


class _Unsent(TransportError):
    def __init__(self, what: str, *, cause: str) -> None:
        super().__init__(what, sent=False, cause=cause, hint="check the address and the network, then try again")


class _Lost(TransportError):
    def __init__(self, what: str, *, cause: str) -> None:
        super().__init__(what, sent=True, cause=cause)


class _Again(_Lost):
    """Lost, and harmless to send again."""


class _BrokenAnswerError(Exception):
    pass


def _worth_another(error: BaseException) -> bool:
    return isinstance(error, _Unsent | _Again)


def _last(state: tenacity.RetryCallState) -> Any:
    if state.outcome is None:
        raise TransportError("a request was not attempted", sent=False)
    return state.outcome.result()


_backoff = tenacity.wait_random_exponential(multiplier=0.3, max=5.0)  # full jitter


def _wait(state: tenacity.RetryCallState) -> float:
    outcome = state.outcome
    if outcome is not None and not outcome.failed:
        asked = _retry_after(outcome.result())
        if asked is not None:
            return asked
    return _backoff(state)


def _pause_fits(answer: Response) -> bool:
    asked = _retry_after(answer)
    return asked is None or asked <= MAX_PAUSE


def _retry_after(answer: Response) -> float | None:
    """`Retry-After` in seconds (RFC 9110 §10.2.3: seconds or a date), or None."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _vendor_words(document: dict[str, Any] | None) -> str:
    if document is None:
        return ""
    for candidate in (document.get("message"), document.get("error")):
        if isinstance(candidate, str):
            return candidate
        if isinstance(candidate, dict) and isinstance(candidate.get("message"), str):
            return str(candidate["message"])
    return ""


def _kind(error: Exception) -> str:
    """What went wrong without quoting it: httpx puts peer-supplied text into some messages."""
    if isinstance(error, _BrokenAnswerError):
        return str(error)
    names: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "the connection was not accepted in time",
        httpx.ReadTimeout: "no answer in time",
        httpx.WriteTimeout: "the request was not taken in time",
        httpx.PoolTimeout: "no connection was free in time",
        httpx.ConnectError: "no connection (refused, unreachable, or TLS failed)",
        httpx.RemoteProtocolError: "the connection ended before the answer did",
        httpx.ReadError: "the connection broke while reading",
        httpx.WriteError: "the connection broke while writing",
        httpx.DecodingError: "the answer's encoding is broken",
    }
    return names.get(type(error), type(error).__name__)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@functools.cache
def _tls(*, secure: bool) -> ssl.SSLContext:
    # Loading the certificate store takes longer than a loopback request; without it a handshake can only fail.
    return httpx.create_ssl_context(trust_env=False) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _DropOurs(logging.Filter):
    """httpx logs every URL and httpcore every header of an answer; ours are nobody's business."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  the signature is logging's
        return not _ours.get()


@functools.cache
def _quieten() -> None:
    for name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy"):
        logging.getLogger(name).addFilter(_DropOurs())
