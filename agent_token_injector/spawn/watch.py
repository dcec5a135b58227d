"""Whether a running handoff may go on: asked of the vault once a second, known to everybody else at once (H3, H8)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from agent_token_injector.clock import LOCAL_EARLY
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import VaultError
from agent_token_injector.manifest import PROVISION_MANIFEST, REVOCATION_MARK
from agent_token_injector.session_context import Admitted

POLL: Final = timedelta(seconds=1)
"""How often a running handoff asks the vault whether it has been revoked."""
MAX_BLIND: Final = timedelta(seconds=60)
"""How long the vault may be unreachable before the handoff is ended: it could have been revoked all the while."""


class Watch:
    """Knows whether a handoff may go on, from a state that is never much older than `POLL`; fails closed.

    `proxy_failed` says whether the MCP proxy has gone by itself: an agent without its tools cannot go on.
    """

    def __init__(
        self,
        admitted: Admitted,
        ctx: HandoffContext,
        on_end: Callable[[str], None],
        proxy_failed: Callable[[], bool],
    ) -> None:
        self._manifest, self._ctx, self._on_end = admitted.manifest, ctx, on_end
        self._proxy_failed = proxy_failed
        self._stored = admitted.stored
        self._reason: str | None = None
        self._seen = ctx.clock.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{admitted.manifest.handoff_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> str | None:
        """None while the handoff may go on, else the reason why not. Asks no one: safe to call for every message."""
        if self._reason is None and self._ctx.clock.now() >= self._manifest.expires_at - LOCAL_EARLY:
            self._reason = "expired"
        if self._reason is None and self._ctx.clock.monotonic() - self._seen > MAX_BLIND.total_seconds():
            self._reason = "vault-unreachable"
        if self._reason is None and self._proxy_failed():
            self._reason = "mcp-proxy-failed"
        return self._reason

    def close(self) -> None:
        self._done.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._done.wait(POLL.total_seconds()):
            self._look()
            reason = self.check()
            if reason is not None:
                self._on_end(reason)
                return

    def _look(self) -> None:
        try:
            folder = self._ctx.read_folder(self._manifest.handoff)
        except VaultError:
            return  # How long we may go on without an answer is `check`'s to say.
        self._seen = self._ctx.clock.monotonic()
        if folder is None or REVOCATION_MARK in folder or folder.get(PROVISION_MANIFEST) != self._stored:
            self._reason = "revoked"
