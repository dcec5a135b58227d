"""What the engine asks back: calls of built-in tools, and OAuth tokens for servers over HTTP.

Both wait for somebody else, a vault or an authorization server, so each kind has a worker thread, one question at a
time. A secret in an answer is known to every redactor before it leaves this process (H6), and an access is on record
before anything is disclosed (H5).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from agent_token_injector.audit import Decision
from agent_token_injector.errors import AuditUnavailable
from agent_token_injector.mcp_proxy.oauth import TokenRefused, TokenSource
from agent_token_injector.mcp_proxy.servers import BuiltinServer, HttpServer, Server

if TYPE_CHECKING:
    from agent_token_injector.audit import AuditLog
    from agent_token_injector.clock import Clock
    from agent_token_injector.mcp_proxy.known_secrets import KnownSecrets
    from agent_token_injector.names import HandoffId

SURFACE: Final = "mcp"
TARGET_LENGTH: Final = 300
"""How much of a target an audit event holds, in characters: a path and a name fit."""
MAX_READ: Final = 64 * 1024
MAX_WAITING: Final = 4096
"""Questions that may wait for a worker, of all kinds: as many as there may be calls in flight."""
UNMASKABLE: Final = "the value could not be kept out of the records; it was not disclosed"

Say = Callable[[Mapping[str, Any]], object]


class Answers:
    """Answers the engine's questions, in its own threads.

    Args:
        servers: the built-in ones' tools are run, the HTTP ones' tokens are got.
        secrets: is told every secret that an answer holds.
        audit: gets an event for each access of a built-in tool and each token; None where nothing is disclosed to an
            agent (provisioning lists tools).
        handoff: whose events they are.
        clock: tells when a token is about to end.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        secrets: KnownSecrets,
        audit: AuditLog | None,
        handoff: HandoffId,
        clock: Clock,
    ) -> None:
        self._tools = {
            (server.name, tool.definition["name"]): tool.run
            for server in servers
            if isinstance(server, BuiltinServer)
            for tool in server.tools
        }
        self._sources = {
            server.name: TokenSource(server.oauth, resource=server.url, clock=clock, redact=secrets.redact)
            for server in servers
            if isinstance(server, HttpServer) and server.oauth is not None
        }
        self._secrets = secrets
        self._audit = audit
        self._handoff = handoff
        self._workers = {
            "builtin": ThreadPoolExecutor(max_workers=1, thread_name_prefix="mcp-builtin"),
            "oauth": ThreadPoolExecutor(max_workers=1, thread_name_prefix="mcp-oauth"),
        }
        self._room = threading.BoundedSemaphore(MAX_WAITING)

    def take(self, question: Mapping[str, Any], say: Say) -> None:
        """Take one question; `say` is given the answer, from a worker thread, or at once when there can be none."""
        number, kind = question["id"], question["kind"]
        act = {"builtin": self._call, "oauth": self._token}.get(kind)
        if act is None or not self._room.acquire(blocking=False):
            say({"answer": _failed(number, "there is nobody to answer this" if act is None else "too many questions")})
            return
        try:
            self._workers[kind].submit(self._answer, act, dict(question), say)
        except RuntimeError:
            # Closed meanwhile: whoever asked is about to end as well.
            self._room.release()

    def close(self) -> None:
        """Wait for the question that is being answered, drop the others, and leave no thread. Safe to call twice."""
        for worker in self._workers.values():
            worker.shutdown(wait=True, cancel_futures=True)

    def record(self, event: str, *, decision: Decision, target: str, reason: str = "") -> None:
        """Write one audit event of the handoff, as `servers.Recorder` promises."""
        if self._audit is None:
            raise AuditUnavailable(f"there is no audit log for {event}", hint="list tools, and call none")
        shown = ascii(self._secrets.redact(target[:MAX_READ]))[1:-1][:TARGET_LENGTH]
        self._audit.record(self._handoff, event, decision=decision, surface=SURFACE, target=shown, reason=reason)

    def _answer(self, act: Callable[[dict[str, Any]], dict[str, Any]], question: dict[str, Any], say: Say) -> None:
        try:
            answer = act(question)
        except AuditUnavailable:
            answer = _failed(question["id"], "the access could not be put on record", audit=True)
        except TokenRefused as error:
            answer = _failed(question["id"], self._secrets.redact(str(error)))
        except Exception as error:  # noqa: BLE001 - a tool's own fault fails its call and nothing else; never its text
            answer = _failed(question["id"], f"it failed ({type(error).__name__})")
        self._room.release()
        say({"answer": answer})

    def _call(self, question: dict[str, Any]) -> dict[str, Any]:
        run = self._tools.get((str(question.get("server")), str(question.get("tool"))))
        arguments = question.get("arguments")
        if run is None or not isinstance(arguments, dict):
            return _failed(question["id"], "there is no such tool")
        found = run(arguments, self.record)
        if not isinstance(found.text, SecretStr):
            return _text(question["id"], found.text, is_error=found.is_error)
        if not self._learnt(found.text):
            return _failed(question["id"], UNMASKABLE)
        value = found.text.get_secret_value()
        return _text(question["id"], value, is_error=found.is_error, granted=True, learn=[value])

    def _token(self, question: dict[str, Any]) -> dict[str, Any]:
        source = self._sources.get(str(question.get("server")))
        if source is None:
            return _failed(question["id"], "there is no such server")
        target = str(question["server"])
        try:
            token, seconds = source.token(
                fresh=question.get("fresh") is True, before=lambda: self._note(Decision.ALLOWED, target)
            )
        except TokenRefused:
            self._note(Decision.FAILED, target)
            raise
        if not self._learnt(token):
            return _failed(question["id"], UNMASKABLE)
        value = token.get_secret_value()
        return {"id": question["id"], "token": value, "expires_in": seconds, "learn": [value]}

    def _note(self, decision: Decision, target: str) -> None:
        if self._audit is not None:
            self.record("oauth.token", decision=decision, target=target)

    def _learnt(self, secret: SecretStr) -> bool:
        try:
            self._secrets.learn(secret)
        except Exception:  # noqa: BLE001 - whatever keeps a value from being masked, it is not disclosed then
            return False
        return True


def _text(
    number: int, text: str, *, is_error: bool, granted: bool = False, learn: Sequence[str] = ()
) -> dict[str, Any]:
    return {"id": number, "text": text, "is_error": is_error, "granted": granted, "learn": list(learn)}


def _failed(number: int, why: str, *, audit: bool = False) -> dict[str, Any]:
    return {"id": number, "failed": why, "audit": audit}
