"""The credential surfaces that a spec may ask for, one model each (ADR §3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from agent_token_injector.spec.parts import Access, FrozenMap, Line, Part, PermissionName, VaultGlob


class InfisicalRequest(Part):
    """Reads from the vault beyond the handoff's own path, which it always has."""

    read: tuple[VaultGlob, ...] = ()


class GitHubRequest(Part):
    """One repository and the permissions on it; by App installation token, or a fine-grained PAT as the fallback (ADR §5)."""

    repository: Annotated[str, StringConstraints(min_length=1, max_length=140)]
    permissions: FrozenMap[PermissionName, Access]
    method: Literal["app-installation", "fine-grained-pat"] = "app-installation"
    push_branches: tuple[Line, ...] = ()
    """Branches the task means to push to; none of them may be protected (ADR §5.1). Empty: any unprotected one."""
    expires_in: timedelta | None = None


class StripeRequest(Part):
    """A restricted key: permissions by resource name (`checkout_sessions`) or by Stripe's own (`checkout_session`)."""

    mode: Literal["test", "live"] = "test"
    permissions: FrozenMap[PermissionName, Access]
    expires_in: timedelta | None = None


class AwsGrant(Part):
    """One thing the session may do; typed, so that a policy cannot say more than the ADR allows."""

    action: Literal["ssm:GetParameter", "s3:GetObject", "s3:PutObject", "sqs:SendMessage"]
    resource: Line
    """A full ARN; for S3 and SSM it may end in `/*`, which means everything below that one prefix."""


class AwsRequest(Part):
    """An STS session of a role made for this task, at most an hour (ADR §3.1)."""

    account: Annotated[str, StringConstraints(pattern=r"^[0-9]{12}$")]
    grants: tuple[AwsGrant, ...] = Field(min_length=1)
    duration: timedelta = timedelta(minutes=15)


class CloudflareRequest(Part):
    """An account-owned token on one zone."""

    zone: Line
    permissions: FrozenMap[Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9 _:/-]{0,79}$")], Access]
    expires_in: timedelta | None = None


class HerokuRequest(Part):
    """Config vars of one app, or deploys to one pipeline stage (ADR §3.1)."""

    app: Line
    permissions: FrozenMap[PermissionName, Access]
    pipeline_stage: Line | None = None
    expires_in: timedelta | None = None


class PaperGate(Part):
    """The evidence that a flow passed the paper-first gate (ADR §3.1, §12)."""

    cycles: Annotated[int, Field(ge=1)]
    """How many paper cycles in a row were profitable."""
    passed_at: AwareDatetime
    reference: Line
    """Where the evidence can be read: a card, a report."""


class AlpacaRequest(Part):
    """Broker access: paper keys, and live only through approval and the paper gate."""

    mode: Literal["paper", "live"] = "paper"
    paper_gate: PaperGate | None = None
    expires_in: timedelta | None = None


class AppleIapRequest(Part):
    """StoreKit server access for one bundle id, as a token of minutes; the key stays with the provisioner."""

    environment: Literal["sandbox", "production"] = "sandbox"
    bundle_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+$", max_length=155)]
    expires_in: timedelta = timedelta(minutes=15)


class Surfaces(Part):
    """The credential surfaces a task asks for (ADR §3.1). A surface that is not asked for is not granted."""

    infisical: InfisicalRequest = InfisicalRequest()
    github: GitHubRequest | None = None
    stripe: StripeRequest | None = None
    aws: AwsRequest | None = None
    cloudflare: CloudflareRequest | None = None
    heroku: HerokuRequest | None = None
    alpaca: AlpacaRequest | None = None
    apple_iap: AppleIapRequest | None = None

    def requested(self) -> Mapping[str, Part]:
        """The surfaces asked for, in the order they are provisioned: the vault's identity first."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return MappingProxyType({name: request for name, request in found.items() if request is not None})
