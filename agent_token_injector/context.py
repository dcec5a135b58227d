"""The context: the vault, the audit log, the surfaces, the keys, the policy and the clock that one call works with."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from agent_token_injector.clock import Clock, SystemClock
from agent_token_injector.errors import SecretNotFound, SettingsError
from agent_token_injector.names import HandoffId, Layout, TaskSlug, VaultPath
from agent_token_injector.policy import Policy
from agent_token_injector.settings import Settings, read_secret_file
from agent_token_injector.signing import SigningKey, VerifyKey
from agent_token_injector.surfaces.base import Surface

if TYPE_CHECKING:
    from pydantic import SecretStr

    from agent_token_injector.audit import AuditLog
    from agent_token_injector.vaults.base import Vault


class SurfaceTable(Mapping[str, Surface]):
    """Surfaces by name, each made when it is first used: dispatching needs no vendor's admin key, so it reads none."""

    def __init__(self, makers: Mapping[str, Callable[[], Surface]]) -> None:
        self._makers = MappingProxyType(dict(makers))
        self._made: dict[str, Surface] = {}

    def __getitem__(self, name: str) -> Surface:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class HandoffContext:
    """All that provisioning, dispatching and revoking need; one frozen bag, used as a context manager.

        with HandoffContext.from_settings() as ctx:
            provision(spec, ctx)

    A caller may make one by hand, with a vault, clock or surfaces of its own. Leaving the block closes the vault and
    the audit log.
    """

    vault: Vault
    audit: AuditLog
    surfaces: Mapping[str, Surface]
    trusted: Sequence[VerifyKey]
    """Whose manifests are dispatched."""
    policy: Policy = field(default_factory=Policy)
    clock: Clock = field(default_factory=SystemClock)
    layout: Layout = field(default_factory=Layout)
    signer: Callable[[], SigningKey] | None = None
    """Gives the provisioner's key; None on a host that only dispatches and revokes."""
    provision_deadline: timedelta = timedelta(minutes=10)
    actor: str = "handoff"

    @classmethod
    def from_settings(cls, settings: Settings | None = None, *, clock: Clock | None = None) -> Self:
        """The context that the operator's configuration describes. Raises SettingsError, VaultError."""
        from agent_token_injector.audit import AuditLog
        from agent_token_injector.vaults.embedded import EmbeddedVault

        settings = settings or Settings.load()
        clock = clock or SystemClock()
        actor = _actor()
        try:
            settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"the state directory {settings.state_dir} cannot be made",
                cause=error.strerror,
                hint="set HANDOFF_STATE_DIR to a directory of your own",
            ) from None
        policy = Policy().tightened(settings.policy_overrides()).with_operators(settings.operators())
        trusted = settings.trusted_keys()
        vault = EmbeddedVault(settings.state_dir / "vault", clock=clock)
        return cls(
            vault=vault,
            audit=AuditLog(
                settings.state_dir / "audit", clock=clock, actor=actor, durability=settings.audit_durability
            ),
            surfaces=SurfaceTable(_makers(settings, vault, clock, policy)),
            trusted=trusted,
            policy=policy,
            clock=clock,
            layout=settings.layout(),
            signer=settings.signing_key,
            provision_deadline=settings.provision_deadline,
            actor=actor,
        )

    def path_of(self, handoff: HandoffId) -> VaultPath:
        """The handoff's folder in the vault."""
        return self.layout.of(handoff)

    def read_folder(self, handoff: HandoffId) -> Mapping[str, SecretStr] | None:
        """Everything in the handoff's folder as of one instant, or None when there is no folder. Raises VaultUnreachable."""
        try:
            return self.vault.read_folder(self.path_of(handoff))
        except SecretNotFound:
            return None

    def supplied(self, slug: TaskSlug, name: str) -> SecretStr | None:
        """What an operator left in the vault for this task under a secret's name, or None."""
        try:
            return self.vault.read_secret(self.layout.supplied_for(slug), name)
        except SecretNotFound:
            return None

    def close(self) -> None:
        """Close the audit log and the vault. Raises AuditUnavailable when an event could not be brought to disk."""
        try:
            self.audit.close()
        finally:
            self.vault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.audit.__exit__(kind, error, trace)
        finally:
            self.vault.close()


def _actor() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"


def _makers(settings: Settings, vault: Vault, clock: Clock, policy: Policy) -> dict[str, Callable[[], Any]]:
    def infisical() -> Surface:
        from agent_token_injector.surfaces.infisical import InfisicalSurface

        return InfisicalSurface(vault, layout=settings.layout(), clock=clock, token_ttl=policy.vault_token_ttl)

    def github() -> Surface:
        from agent_token_injector.surfaces.github import GitHubSurface

        if settings.github is None:
            raise SettingsError(
                "the spec asks for GitHub and no GitHub App is configured",
                path="github",
                hint="set HANDOFF_GITHUB_APP_CLIENT_ID, HANDOFF_GITHUB_INSTALLATION_ID, HANDOFF_GITHUB_PRIVATE_KEY_FILE",
            )
        return GitHubSurface(
            api_url=_address("HANDOFF_GITHUB_API_URL", settings.github.api_url),
            app_client_id=settings.github.app_client_id,
            installation_id=settings.github.installation_id,
            private_key=read_secret_file(settings.github.private_key_file),
            clock=clock,
            keeper_dir=keeper_dir(settings.state_dir),
            protected_branches=sorted(policy.protected_branches),
        )

    def stripe() -> Surface:
        from agent_token_injector.surfaces.stripe import StripeSurface

        return StripeSurface(api_url=_address("HANDOFF_STRIPE_API_URL", settings.stripe_api_url), clock=clock)

    return {"infisical": infisical, "github": github, "stripe": stripe}


def _address(variable: str, url: str) -> str:
    from agent_token_injector.transport import check_url

    try:
        check_url(url)
    except SettingsError as error:
        raise SettingsError(f"{variable} is not usable", path=variable, cause=str(error), hint=error.hint) from None
    return url


def keeper_dir(state_dir: Path) -> Path:
    """Where the keepers of mints leave their outcomes, without secrets."""
    return state_dir / "keepers"
