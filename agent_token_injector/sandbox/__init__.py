"""Emulated vendors for local trials and tests: the same code paths, real loopback HTTP, and no account anywhere.

    with Sandbox(directory) as sandbox:
        os.environ.update(sandbox.environment())
        key = sandbox.operator_stripe_key(["checkout_session_write", "subscription_read"])

The emulators enforce scopes, expiry and revocation (D12), so what works here works for the same reasons as there, and
what is refused there is refused here. They are not a place for real credentials.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.clock import Clock

KEY_FILE: Final = "sandbox-github-app.pem"


class Sandbox:
    """GitHub and Stripe, emulated, and the configuration that points at them. Start it with `start` or a `with` block.

    Args:
        directory: gets the emulated App's private key (mode 0600), which is deleted on close.
        clock: decides expiry; the machine's unless given.
        repositories: the repositories of the organisation `raxx` that the emulated App is installed on.
    """

    def __init__(
        self, directory: Path, *, clock: Clock | None = None, repositories: Iterable[str] = ("TradeMasterAPI",)
    ) -> None:
        from agent_token_injector.clock import SystemClock
        from agent_token_injector.sandbox.github import SandboxGitHub
        from agent_token_injector.sandbox.stripe import SandboxStripe

        self._directory = directory
        clock = clock or SystemClock()
        self.github = SandboxGitHub(clock, repositories=repositories)
        self.stripe = SandboxStripe(clock)

    @property
    def key_file(self) -> Path:
        return self._directory / KEY_FILE

    def start(self) -> Self:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.key_file.unlink(missing_ok=True)
        handle = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(self.github.private_key.get_secret_value())
        self.github.start()
        self.stripe.start()
        return self

    def close(self) -> None:
        self.github.close()
        self.stripe.close()
        self.key_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """The operator's configuration (`HANDOFF_*`) that makes this the world; no secret in it."""
        return {
            "HANDOFF_GITHUB_API_URL": self.github.url,
            "HANDOFF_GITHUB_APP_CLIENT_ID": self.github.client_id,
            "HANDOFF_GITHUB_INSTALLATION_ID": str(self.github.installation_id),
            "HANDOFF_GITHUB_PRIVATE_KEY_FILE": str(self.key_file),
            "HANDOFF_STRIPE_API_URL": self.stripe.url,
        }

    def operator_stripe_key(self, permissions: Iterable[str], *, name: str = "") -> SecretStr:
        """What an operator would make in the Dashboard: a restricted test key with Stripe's permission names."""
        return self.stripe.dashboard_create_key(permissions, name=name)

    def live_credentials(self) -> dict[str, tuple[str, ...]]:
        """The digests of what would still authenticate, by vendor."""
        return {"github": self.github.live_credentials(), "stripe": self.stripe.live_credentials()}
