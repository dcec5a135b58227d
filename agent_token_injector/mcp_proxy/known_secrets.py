"""What must be masked: the handoff's own secrets, and each value that the agent has read since (H6, D7)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.audit import AuditLog
    from agent_token_injector.masking import Redactor


class KnownSecrets:
    """Grows while the proxy runs. Safe to share between threads.

    Args:
        redactor: knows every secret of the handoff.
        audit: masks what is learnt in its own events as well.
    """

    def __init__(self, redactor: Redactor, audit: AuditLog) -> None:
        self._redactor = redactor
        self._audit = audit
        self._lock = threading.Lock()

    @property
    def redactor(self) -> Redactor:
        """Knows all that is known now. Ask again for every use."""
        return self._redactor

    def learn(self, secret: SecretStr) -> None:
        """From now on `secret` stands in no audit event and no masked answer. Call it before anybody is told."""
        with self._lock:
            self._audit.add_secrets([secret])
            self._redactor = self._redactor.with_secrets([secret])
