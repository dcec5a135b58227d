"""The handoff spec: what one task asks for, as an operator writes it (`handoff-spec.json`).

This module knows what a spec can say; policy.py knows what a spec may ask for; gate.py holds the two together. So a
forbidden permission parses here (its name is well formed) and is refused there with the invariant that forbids it,
while a misspelt field, a duplicate key or a malformed name is a SpecError with the field's path.

    parts      the base model and the forms of names
    surfaces   the credential surfaces
    mcp        MCP servers and tool grants

Models are frozen all the way down, refuse unknown fields, and are published as JSON Schema (`handoff check --schema`).
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from agent_token_injector import names
from agent_token_injector.errors import SpecError
from agent_token_injector.signing import canonical, digest
from agent_token_injector.spec.mcp import (
    HeaderName,
    HeaderValue,
    HttpUrl,
    McpServer,
    OAuthClientCredentials,
    OrItsName,
    ServerAllow,
    ToolGrant,
    ToolLimits,
)
from agent_token_injector.spec.parts import (
    Access,
    EnvName,
    FrozenJson,
    FrozenMap,
    Line,
    Part,
    PermissionName,
    ServerName,
    Slug,
    ToolName,
    VaultGlob,
    thaw,
)
from agent_token_injector.spec.surfaces import (
    AlpacaRequest,
    AppleIapRequest,
    AwsGrant,
    AwsRequest,
    CloudflareRequest,
    GitHubRequest,
    HerokuRequest,
    InfisicalRequest,
    PaperGate,
    StripeRequest,
    Surfaces,
)
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
    "HeaderName",
    "HeaderValue",
    "HerokuRequest",
    "HttpUrl",
    "InfisicalRequest",
    "Line",
    "McpServer",
    "OAuthClientCredentials",
    "PaperGate",
    "PermissionName",
    "Revocation",
    "RevokedByHand",
    "ServerAllow",
    "ServerName",
    "Slug",
    "StripeRequest",
    "Surfaces",
    "ToolGrant",
    "ToolLimits",
    "ToolName",
    "VaultGlob",
    "strict_json",
    "thaw",
]

SPEC_TYPE: Final = "agent_token_injector/handoff-spec/v1"
MAX_SPEC_BYTES: Final = MAX_JSON_BYTES
MAX_SPEC_DEPTH: Final = MAX_JSON_DEPTH


class RevokedByHand(Part):
    """Who ends what outlives the task when nothing does so by itself (ADR §4.4, §6.2)."""

    who: Line
    how: Line


class Revocation(Part):
    """How a handoff of more than an hour is sure to end: Velvet acts on its expiry, or a named person does."""

    velvet: bool = False
    by_hand: RevokedByHand | None = None


class HandoffSpec(Part):
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
    mcp_tools: tuple[Annotated[ToolGrant, OrItsName], ...] = ()
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
