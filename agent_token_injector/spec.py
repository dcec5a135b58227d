"""The handoff spec: what one task asks for, as an operator writes it (`handoff-spec.json`).

This module knows what a spec can say; policy.py knows what a spec may ask for; gate.py holds the two together. So a
forbidden permission parses here (its name is well formed) and is refused there with the invariant that forbids it,
while a misspelt field, a duplicate key or a malformed name is a SpecError with the field's path.

Models are frozen all the way down, refuse unknown fields, and are published as JSON Schema (`handoff check --schema`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from agent_token_injector import names
from agent_token_injector.errors import SpecError
from agent_token_injector.signing import canonical, digest
from agent_token_injector.strict_json import MAX_JSON_BYTES, MAX_JSON_DEPTH, read_document, strict_json

__all__ = [
    "MAX_SPEC_BYTES",
    "MAX_SPEC_DEPTH",
    "SPEC_TYPE",
    "Access",
    "AlpacaRequest",
    "AppleIapRequest",
    "AwsGrant",
    "AwsRequest",
    "CloudflareRequest",
    "EnvName",
    "FrozenJson",
    "FrozenMap",
    "GitHubRequest",
    "HandoffSpec",
    "HerokuRequest",
    "InfisicalRequest",
    "Line",
    "McpServer",
    "PaperGate",
    "PermissionName",
    "Revocation",
    "RevokedByHand",
    "ServerName",
    "Slug",
    "StripeRequest",
    "Surfaces",
    "ToolGrant",
    "ToolName",
    "VaultGlob",
    "strict_json",
    "thaw",
]

SPEC_TYPE: Final = "agent_token_injector/handoff-spec/v1"
MAX_SPEC_BYTES: Final = MAX_JSON_BYTES
MAX_SPEC_DEPTH: Final = MAX_JSON_DEPTH

K = TypeVar("K")
V = TypeVar("V")

Access = Literal["read", "write", "admin"]
PermissionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_:.-]{0,79}$")]
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*$", max_length=40)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,500}$", strip_whitespace=True)]


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """A plain, mutable JSON copy of a frozen document."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


FrozenMap = Annotated[Mapping[K, V], AfterValidator(_freeze), PlainSerializer(thaw)]
FrozenJson = Annotated[
    Mapping[str, Any], AfterValidator(_freeze), PlainSerializer(thaw), WithJsonSchema({"type": "object"})
]


def _slug(text: str) -> str:
    return names.TaskSlug(text).value


def _glob(text: str) -> str:
    return str(names.SecretGlob.parse(text))


Slug = Annotated[
    str,
    AfterValidator(_slug),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": names.MAX_SLUG}),
]
VaultGlob = Annotated[
    str,
    AfterValidator(_glob),
    WithJsonSchema({"type": "string", "pattern": r"^(/[A-Za-z0-9_-]{1,100})*/[A-Z0-9_]{0,100}\*?$"}),
]
EnvName = Annotated[
    str,
    AfterValidator(names.check_env_name),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,99}$"}),
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class InfisicalRequest(_Part):
    """Reads from the vault beyond the handoff's own path, which it always has."""

    read: tuple[VaultGlob, ...] = ()


class GitHubRequest(_Part):
    """One repository and the permissions on it; by App installation token, or a fine-grained PAT as the fallback (ADR §5)."""

    repository: Annotated[str, StringConstraints(min_length=1, max_length=140)]
    permissions: FrozenMap[PermissionName, Access]
    method: Literal["app-installation", "fine-grained-pat"] = "app-installation"
    push_branches: tuple[Line, ...] = ()
    """Branches the task means to push to; none of them may be protected (ADR §5.1). Empty: any unprotected one."""
    expires_in: timedelta | None = None


class StripeRequest(_Part):
    """A restricted key: permissions by resource name (`checkout_sessions`) or by Stripe's own (`checkout_session`)."""

    mode: Literal["test", "live"] = "test"
    permissions: FrozenMap[PermissionName, Access]
    expires_in: timedelta | None = None


class AwsGrant(_Part):
    """One thing the session may do; typed, so that a policy cannot say more than the ADR allows."""

    action: Literal["ssm:GetParameter", "s3:GetObject", "s3:PutObject", "sqs:SendMessage"]
    resource: Line
    """A full ARN; for S3 and SSM it may end in `/*`, which means everything below that one prefix."""


class AwsRequest(_Part):
    """An STS session of a role made for this task, at most an hour (ADR §3.1)."""

    account: Annotated[str, StringConstraints(pattern=r"^[0-9]{12}$")]
    grants: tuple[AwsGrant, ...] = Field(min_length=1)
    duration: timedelta = timedelta(minutes=15)


class CloudflareRequest(_Part):
    """An account-owned token on one zone."""

    zone: Line
    permissions: FrozenMap[Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9 _:/-]{0,79}$")], Access]
    expires_in: timedelta | None = None


class HerokuRequest(_Part):
    """Config vars of one app, or deploys to one pipeline stage (ADR §3.1)."""

    app: Line
    permissions: FrozenMap[PermissionName, Access]
    pipeline_stage: Line | None = None
    expires_in: timedelta | None = None


class PaperGate(_Part):
    """The evidence that a flow passed the paper-first gate (ADR §3.1, §12)."""

    cycles: Annotated[int, Field(ge=1)]
    """How many paper cycles in a row were profitable."""
    passed_at: AwareDatetime
    reference: Line
    """Where the evidence can be read: a card, a report."""


class AlpacaRequest(_Part):
    """Broker access: paper keys, and live only through approval and the paper gate."""

    mode: Literal["paper", "live"] = "paper"
    paper_gate: PaperGate | None = None
    expires_in: timedelta | None = None


class AppleIapRequest(_Part):
    """StoreKit server access for one bundle id, as a token of minutes; the key stays with the provisioner."""

    environment: Literal["sandbox", "production"] = "sandbox"
    bundle_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+$", max_length=155)]
    expires_in: timedelta = timedelta(minutes=15)


class Surfaces(_Part):
    """The credential surfaces a task asks for (ADR §3.1). A surface that is not asked for is not granted."""

    infisical: InfisicalRequest = InfisicalRequest()
    github: GitHubRequest | None = None
    stripe: StripeRequest | None = None
    aws: AwsRequest | None = None
    cloudflare: CloudflareRequest | None = None
    heroku: HerokuRequest | None = None
    alpaca: AlpacaRequest | None = None
    apple_iap: AppleIapRequest | None = None

    def requested(self) -> Mapping[str, _Part]:
        """The surfaces asked for, in the order they are provisioned: the vault's identity first."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return MappingProxyType({name: request for name, request in found.items() if request is not None})


class McpServer(_Part):
    """An MCP server behind the proxy: a command it starts over stdio, or one that is built in."""

    command: tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")], ...] = ()
    builtin: Literal["vault"] | None = None
    env: FrozenMap[EnvName, EnvName] = Field(default_factory=dict)
    """The server's variable -> the handoff's variable whose value it gets (`GH_TOKEN`). It gets no others."""
    plain_env: FrozenMap[EnvName, str] = Field(default_factory=dict)
    """Further variables with plain, not secret, values."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.command) == (self.builtin is not None):
            raise ValueError("give either a command or a builtin, and not both")
        if self.builtin is not None and (self.env or self.plain_env):
            raise ValueError("a builtin server takes no env: it reads with the handoff's own identity")
        return self


class ToolGrant(_Part):
    """One tool the agent may call, with what its arguments must satisfy on top of the tool's own schema."""

    name: ToolName
    """The name under which the agent sees it."""
    server: ServerName | None = None
    tool: ToolName | None = None
    """The server's own name for it; with neither, `name` is `<server>_<tool>` or a tool that exactly one server has."""
    arguments: FrozenJson | None = None
    """JSON Schema (2020-12)."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.server is None) != (self.tool is None):
            raise ValueError("give server and tool together, or neither")
        return self


class _OrItsName:
    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 128}, handler(core)]}


class RevokedByHand(_Part):
    """Who ends what outlives the task when nothing does so by itself (ADR §4.4, §6.2)."""

    who: Line
    how: Line


class Revocation(_Part):
    """How a handoff of more than an hour is sure to end: Velvet acts on its expiry, or a named person does."""

    velvet: bool = False
    by_hand: RevokedByHand | None = None


class HandoffSpec(_Part):
    """Everything one unattended task is to be given, and nothing that it is not.

    Read one with `HandoffSpec.load(path)` or `HandoffSpec.parse(text)`; both raise SpecError with the path of every
    field that is wrong. `digest` is stable under reordering and spacing, and changes with any meaning.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        title="Handoff spec",
        json_schema_extra={"$schema": "https://json-schema.org/draft/2020-12/schema"},
    )

    task_slug: Slug
    card: Annotated[str, StringConstraints(max_length=200)] = ""
    operator: Annotated[str, StringConstraints(max_length=200)] = ""
    expected_runtime: timedelta
    expires_in: timedelta
    surfaces: Surfaces = Surfaces()
    mcp_servers: FrozenMap[ServerName, McpServer] = Field(default_factory=dict)
    mcp_tools: tuple[Annotated[ToolGrant, _OrItsName], ...] = ()
    mcp_tools_excluded: tuple[ToolName, ...] = ()
    env: FrozenMap[EnvName, Annotated[str, StringConstraints(max_length=8192, pattern=r"^[^\x00]*$")]] = Field(
        default_factory=dict
    )
    """Plain values for the agent's environment. Secrets never stand here."""
    revocation: Revocation = Revocation()

    @property
    def slug(self) -> names.TaskSlug:
        return names.TaskSlug(self.task_slug)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over the RFC 8785 form: what approvals and manifests are bound to."""
        return digest(SPEC_TYPE, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON, defaults written out."""
        document: dict[str, Any] = json.loads(self.model_dump_json())
        return document

    def handoff_id(self, now: datetime) -> names.HandoffId:
        """The id of a handoff of this task provisioned at `now`."""
        return names.HandoffId(self.slug, now.date())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a spec from a regular file. Raises SpecError when it cannot be read or is not one."""
        return cls.parse(read_document(path, what="the spec", hint="`handoff init` writes one to start from"))

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read a spec from JSON text. Raises SpecError: duplicate keys, NaN, bad UTF-8 and unknown fields included."""
        document = strict_json(text, what="the spec")
        try:
            plain = canonical(document)
            # Twice: 2^53 as a float is written as an integer, which is then too large to have a digest.
            canonical(json.loads(plain))
            return cls.model_validate_json(plain)
        except ValidationError as error:
            raise _spec_error(error) from None
        except ValueError as error:
            raise SpecError("the spec is not plain JSON", cause=str(error)) from None


_FORBIDDEN_BY_DESIGN: Final = re.compile(r"secret|protection|bypass|admin")


def _spec_error(error: ValidationError) -> SpecError:
    problems = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(str(part) for part in item["loc"]) or "(top level)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            leaf = str(item["loc"][-1]).lower()
            message = "is not a field of a handoff spec"
            if item["loc"][0] == "surfaces" and _FORBIDDEN_BY_DESIGN.search(re.sub(r"[^a-z]", "", leaf)):
                message = "is forbidden by design, under this and every other name (ADR §3.1)"
        problems.append((path, message))
    first = problems[0][0]
    listed = "; ".join(f"{path}: {message}" for path, message in problems)
    return SpecError(
        f"the spec has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
        path=first,
        cause=listed,
        hint="`handoff check --schema` prints what a spec may hold",
    )
