"""The built-in `vault` server: one tool, `get_secret`, which reads with the handoff's own identity and so inside its scope.

The vault decides what may be read; this server adds only what no agent may ask for at all (a path that is not one, the
handoff's own records). Each access is one `vault.read` event that names path and secret, on record before the value
leaves, and the proxy learns the value before the agent does, so that no later event or answer shows it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.audit import Decision
from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.errors import SecretNotFound, VaultError, VaultForbidden
from agent_token_injector.mcp_proxy.servers import BuiltinAnswer, BuiltinServer, BuiltinTool, Recorder
from agent_token_injector.names import VaultPath, check_secret_name, is_record

if TYPE_CHECKING:
    from agent_token_injector.clock import Clock
    from agent_token_injector.vaults.base import VaultSession

OUT_OF_SCOPE: Final = "not within this handoff's scope"
MAX_TEXT: Final = 4096
"""Longer arguments are refused by the tool's own schema, and so never leave the engine."""

_DEFINITION: Final[Mapping[str, Any]] = {
    "name": "get_secret",
    "description": "Read one secret of this handoff from the vault.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "maxLength": MAX_TEXT,
                "description": "The secret's name, such as STRIPE_RESTRICTED_KEY.",
            },
            "path": {
                "type": "string",
                "maxLength": MAX_TEXT,
                "description": "The folder it is in. Default: the handoff's own.",
            },
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False},
}


def vault_server(name: str, login: Callable[[], VaultSession], own: VaultPath, clock: Clock) -> BuiltinServer:
    """The built-in server under the name the spec gives it.

    Args:
        name: its name in `mcp_servers`.
        login: logs in as the handoff's identity; called again whenever the token has less than 30 s to live.
        own: the handoff's own folder, read when the agent names none.
        clock: tells when a token is about to end.
    """
    reader = _Reader(login, own, clock)
    return BuiltinServer(name, (BuiltinTool(_DEFINITION, reader.get_secret),))


class _Reader:
    def __init__(self, login: Callable[[], VaultSession], own: VaultPath, clock: Clock) -> None:
        self._login = login
        self._own = own
        self._clock = clock
        self._session: VaultSession | None = None
        self._lock = threading.Lock()

    def get_secret(self, arguments: Mapping[str, Any], record: Recorder) -> BuiltinAnswer:
        """Read one secret. Raises AuditUnavailable when the access cannot be put on record; then nothing is disclosed."""
        path, name = arguments.get("path", self._own.value), arguments["name"]
        target = f"{path}/{name}"

        def refused(reason: str, text: str) -> BuiltinAnswer:
            record("vault.read", decision=Decision.REFUSED, target=target, reason=reason)
            return BuiltinAnswer(text, is_error=True)

        try:
            # The ADR writes folders with a slash at their end, so one is taken; every other spelling is refused.
            folder = VaultPath(path if path == "/" else path.removesuffix("/"))
            target = f"{folder.value.rstrip('/')}/{check_secret_name(name)}"
        except ValueError:
            return refused("malformed", "path or name is not one of the vault's: no empty, dotted or encoded parts")
        if is_record(name):
            return refused("record", OUT_OF_SCOPE)
        try:
            value = self._live_session().read_secret(folder, name)
        except VaultForbidden:
            return refused("forbidden", OUT_OF_SCOPE)
        except SecretNotFound:
            return refused("not-found", "no such secret")
        except VaultError:
            return refused("unreachable", "the vault gave no answer; try again later")
        record("vault.read", decision=Decision.ALLOWED, target=target)
        return BuiltinAnswer(value)

    def _live_session(self) -> VaultSession:
        with self._lock:
            if self._session is None or self._session.expires_at - self._clock.now() <= LOCAL_EARLY:
                self._session = self._login()
            return self._session
