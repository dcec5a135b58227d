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

    The engine has a redactor of its own, which is told the same values with the answers that hold them.

    Args:
        redactor: knows every secret of the handoff.
        audit: masks what is learnt in its own events as well; None where there is none.
    """

    def __init__(self, redactor: Redactor, audit: AuditLog | None) -> None:
        self._redactor = redactor
        self._audit = audit
        self._lock = threading.Lock()

    @property
    def redactor(self) -> Redactor:
        """Knows all that is known now. Ask again for every use."""
        return self._redactor

    def redact(self, text: str) -> str:
        """A text without all that is known now."""
        return self._redactor.text(text)

    def learn(self, secret: SecretStr) -> None:
        """From now on `secret` stands in no audit event and no masked answer. Call it before anybody is told."""
        with self._lock:
            if self._audit is not None:
                self._audit.add_secrets([secret])
            self._redactor = self._redactor.with_secrets([secret])
