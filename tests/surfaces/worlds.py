"""Each surface with a world around it: the emulated vendor, the vault, a clock, and hands to make things go wrong.

A new surface joins the contract suite with one entry in `WORLDS`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent_token_injector.clock import ManualClock
from agent_token_injector.errors import VaultForbidden, VaultUnreachable
from agent_token_injector.names import HandoffId, IdentityName, Layout, SecretGlob, TaskSlug, VaultPath
from agent_token_injector.sandbox.github import SandboxGitHub
from agent_token_injector.sandbox.http_server import DROP, method
from agent_token_injector.sandbox.stripe import SandboxStripe
from agent_token_injector.spec import GitHubRequest, InfisicalRequest, StripeRequest
from agent_token_injector.surfaces.base import Minted, MintRequest, Surface
from agent_token_injector.surfaces.github import GitHubSurface
from agent_token_injector.surfaces.infisical import InfisicalSurface
from agent_token_injector.surfaces.stripe import StripeSurface
from agent_token_injector.vaults import IdentityCredentials, VaultSession
from agent_token_injector.vaults.embedded import EmbeddedVault

START = datetime(2026, 6, 20, 12, 0, tzinfo=UTC)
HANDOFF = HandoffId(TaskSlug("founders-checkout"), START.date())
LAYOUT = Layout()
MINT = method("POST", r"/app/installations/\d+/access_tokens")
ASKED = {"contents": "write", "pull_requests": "write"}
STRIPE_ASKED = {"checkout_sessions": "write", "subscriptions": "read", "webhook_endpoints": "read"}
STRIPE_HELD = ("checkout_session_write", "subscription_read", "webhook_read")


def until(true: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Return once `true()`; fail when it is not within the deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


class World(ABC):
    """One surface to be tested."""

    surface: Surface
    makes_requests = True
    """Whether minting asks the vendor for something."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.clock = ManualClock(START)
        self.vault = stack.enter_context(closing(EmbeddedVault(directory / "vault", clock=self.clock)))
        self.vault.create_folder(LAYOUT.of(HANDOFF))

    @abstractmethod
    def order(self) -> MintRequest: ...

    @abstractmethod
    def live(self) -> int:
        """How many credentials would still authenticate."""

    @abstractmethod
    def refuse_mints(self) -> None: ...

    def lose_answers(self) -> Callable[[], int]:
        """Let the vendor mint and its answer be lost; returns what counts the requests that did."""
        raise NotImplementedError

    @abstractmethod
    def widen(self) -> None:
        """Let what is minted from now on be wider than asked."""

    def person_ends_it(self, minted: Minted) -> None:  # noqa: B027  most surfaces need no person
        """What only a person does to end it."""

    def store(self, minted: Minted) -> None:
        """What provisioning does between `mint` and `verify`."""
        for name, value in minted.secrets.items():
            self.vault.create_secret(LAYOUT.of(HANDOFF), name, value)
        minted.recorded()

    def identity(self) -> IdentityName:
        return IdentityName(self.surface.facts.identity_prefix, HANDOFF)

    def _order(self, request: Any, **more: Any) -> MintRequest:
        return MintRequest(HANDOFF, self.identity(), request, START + timedelta(hours=4), **more)


class GitHubWorld(World):
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.github = stack.enter_context(SandboxGitHub(self.clock))
        self.keeper_dir = directory / "keepers"
        self.surface = self.make()
        stack.callback(self._no_failures)

    def make(self, **changes: Any) -> GitHubSurface:
        return GitHubSurface(
            **{
                "api_url": self.github.url,
                "app_client_id": self.github.client_id,
                "installation_id": self.github.installation_id,
                "private_key": self.github.private_key,
                "clock": self.clock,
                "keeper_dir": self.keeper_dir,
                "patience": timedelta(seconds=2),
                **changes,
            }
        )

    def order(self) -> MintRequest:
        return self._order(GitHubRequest(repository="raxx/TradeMasterAPI", permissions=ASKED))

    def order_for(self, **changes: Any) -> MintRequest:
        request = {"repository": "raxx/TradeMasterAPI", "permissions": ASKED, **changes}
        return replace(self.order(), request=GitHubRequest(**request))

    def live(self) -> int:
        return len(self.github.live_credentials())

    def refuse_mints(self) -> None:
        del self.github.permissions["contents"]

    def lose_answers(self) -> Callable[[], int]:
        self.github.hook(MINT, after=lambda _request, _reply: DROP)
        return lambda: self.github.count(MINT)

    def widen(self) -> None:
        self.github.over_grant = {"actions": "write"}

    def _no_failures(self) -> None:
        assert not self.github.failures


class StripeWorld(World):
    makes_requests = False

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.stripe = stack.enter_context(SandboxStripe(self.clock))
        self.surface = StripeSurface(api_url=self.stripe.url, clock=self.clock)
        self.held: tuple[str, ...] = STRIPE_HELD
        self.refusing = False
        stack.callback(self._no_failures)

    def order(self) -> MintRequest:
        supplied = SecretStr("sk_test_" + "A" * 40) if self.refusing else self.stripe.dashboard_create_key(self.held)
        return self.order_with(supplied)

    def order_with(self, supplied: SecretStr | None, **changes: Any) -> MintRequest:
        request = StripeRequest(**{"mode": "test", "permissions": STRIPE_ASKED, **changes})
        return self._order(request, supplied=supplied)

    def live(self) -> int:
        return len(self.stripe.live_credentials())

    def refuse_mints(self) -> None:
        self.refusing = True

    def widen(self) -> None:
        self.held = (*STRIPE_HELD, "charge_write")

    def person_ends_it(self, minted: Minted) -> None:
        for value in minted.secrets.values():
            self.stripe.dashboard_delete_key(value)

    def _no_failures(self) -> None:
        assert not self.stripe.failures


class UnreliableVault(EmbeddedVault):
    """An embedded vault whose identities go wrong on demand; everything else is the real thing."""

    refusing = losing = widening = False
    created = 0
    login_as: tuple[str, SecretStr] | None = None

    def login(self, client_id: str, client_secret: SecretStr) -> VaultSession:
        return super().login(*(self.login_as or (client_id, client_secret)))

    def create_identity(
        self, name: str, *, read: Any, token_ttl: timedelta, expires_at: datetime
    ) -> IdentityCredentials:
        if self.refusing:
            raise VaultForbidden("the administrator may not create identities")
        self.created += 1
        globs = (*read, SecretGlob.parse("/MooseQuest/prod/*")) if self.widening else read
        made = super().create_identity(name, read=globs, token_ttl=token_ttl, expires_at=expires_at)
        if self.losing:
            raise VaultUnreachable("the vault's answer was lost")
        return made


class InfisicalWorld(World):
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.unreliable = stack.enter_context(closing(UnreliableVault(directory / "vault", clock=self.clock)))
        self.surface = InfisicalSurface(self.unreliable, layout=LAYOUT, clock=self.clock)
        self.vault.create_folder(VaultPath("/MooseQuest/queue/staging"))

    def order(self) -> MintRequest:
        return self._order(InfisicalRequest(read=("/MooseQuest/queue/staging/STRIPE_*",)))

    def live(self) -> int:
        return len(self.vault.find_identities(str(self.identity())))

    def refuse_mints(self) -> None:
        self.unreliable.refusing = True

    def lose_answers(self) -> Callable[[], int]:
        self.unreliable.losing = True
        return lambda: self.unreliable.created

    def widen(self) -> None:
        self.unreliable.widening = True


WORLDS: Mapping[str, Callable[[Path, ExitStack], World]] = {
    "infisical": InfisicalWorld,
    "github": GitHubWorld,
    "stripe": StripeWorld,
}
