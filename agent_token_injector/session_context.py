"""The session context: all that an agent is given, in the ADR's own shape (ADR §4.5).

The environment is built from nothing (D7): the secrets the manifest lists under the names an agent expects, what says
which handoff this is, and the spec's plain values. Nothing of the parent's environment is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from agent_token_injector.clock import iso
from agent_token_injector.context import HandoffContext
from agent_token_injector.errors import ManifestMissing, ManifestNotProvisioned, SpawnRefused
from agent_token_injector.manifest import PROVISION_MANIFEST, ManifestState, ProvisionManifest, state_of
from agent_token_injector.masking import MASK
from agent_token_injector.names import HandoffId
from agent_token_injector.spec import HandoffSpec


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What a launcher starts an agent with. Its repr holds no value.

    `env` maps names to plain strings and to SecretStr. `mcp_tools` is the allowlist, `mcp_tools_excluded` what is
    refused by name. `mcp_config` is a client's `mcpServers` document, which refers to the bearer token by variable and
    does not hold it; None when the handoff has no MCP tools.
    """

    handoff: HandoffId
    expires_at: datetime
    env: Mapping[str, str | SecretStr] = field(repr=False)
    mcp_tools: tuple[str, ...] = ()
    mcp_tools_excluded: tuple[str, ...] = ()
    mcp_config: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", MappingProxyType(dict(self.env)))

    def reveal_env(self) -> dict[str, str]:
        """The environment block with its values in the clear: for the call that starts the agent, and nothing else."""
        return {name: _reveal(value) for name, value in self.env.items()}

    def to_json(self) -> dict[str, Any]:
        """The ADR's §4.5 document, values in the clear: `env`, `mcp_tools`, `mcp_tools_excluded`.

        Hand it to what spawns the agent. Never log it or write it down; `masked()` is for people.
        """
        return {
            "env": self.reveal_env(),
            "mcp_tools": list(self.mcp_tools),
            "mcp_tools_excluded": list(self.mcp_tools_excluded),
        }

    def masked(self) -> dict[str, Any]:
        """The same document with every secret replaced by asterisks."""
        return {
            **self.to_json(),
            "env": {name: MASK if isinstance(value, SecretStr) else value for name, value in self.env.items()},
        }

    def secrets(self) -> tuple[SecretStr, ...]:
        """Every secret in the environment, for a redactor."""
        return tuple(value for value in self.env.values() if isinstance(value, SecretStr))


@dataclass(frozen=True, slots=True)
class McpEndpoint:
    """Where the agent finds the handoff's MCP proxy, and the bearer made for it alone.

    `socket` is where `handoff-mcp` connects, for clients that speak stdio; None without one.
    """

    url: str
    token: SecretStr = field(repr=False)
    socket: Path | None = None

    def variables(self) -> dict[str, str | SecretStr]:
        """What `handoff-mcp` and any other client finds in its environment."""
        where = {} if self.socket is None else {"HANDOFF_MCP_SOCKET": str(self.socket)}
        return {"HANDOFF_MCP_URL": self.url, "HANDOFF_MCP_TOKEN": self.token, **where}

    def client_config(self) -> dict[str, Any]:
        """A client's `mcpServers` document: it names the token's variable and does not hold the token."""
        server = {"type": "http", "url": self.url, "headers": {"Authorization": "Bearer ${HANDOFF_MCP_TOKEN}"}}
        return {"mcpServers": {"handoff": server}}


@dataclass(frozen=True, slots=True)
class Admitted:
    """A handoff that may be dispatched: its manifest, checked, and the secrets it was checked against."""

    manifest: ProvisionManifest
    spec: HandoffSpec
    secrets: Mapping[str, SecretStr] = field(repr=False)
    stored: SecretStr = field(repr=False)
    """The manifest as the vault holds it: another one in its place is another handoff."""


def admit(handoff: HandoffId, ctx: HandoffContext) -> Admitted:
    """Read a handoff from the vault and check all that D6 asks, or refuse: nothing may be spawned without this.

    Raises ManifestMissing, ManifestNotProvisioned, SignatureInvalid, ManifestExpired, SecretsMismatch, ToolsNotPinned,
    VaultUnreachable.
    """
    folder = ctx.read_folder(handoff)
    if folder is None:
        raise ManifestMissing(
            f"there is no handoff {handoff}",
            cause=f"the vault has no {ctx.path_of(handoff)}/",
            hint="provision it first: `handoff provision SPEC`; no task runs before its identity set is in place (H4)",
        )
    state = state_of(folder)
    if state is not ManifestState.PROVISIONED:
        why = {
            ManifestState.PROVISIONING: "its provisioning has not finished, or was killed",
            ManifestState.REVOKING: "it has been revoked",
        }
        raise ManifestNotProvisioned(
            f"{handoff} is {state}",
            cause=why[state],
            hint=f"`handoff revoke {handoff}`, then provision it again",
        )
    manifest = ProvisionManifest.from_secret(folder[PROVISION_MANIFEST])
    manifest.verify(handoff, ctx.trusted)
    manifest.check_time(ctx.clock.now())
    manifest.check_secrets(folder)
    manifest.check_tools()
    return Admitted(
        manifest=manifest,
        spec=manifest.read_spec(),
        secrets={record.env: folder[record.name] for record in manifest.secrets},
        stored=folder[PROVISION_MANIFEST],
    )


def build_session_context(
    admitted: Admitted, ctx: HandoffContext, *, mcp: McpEndpoint | None = None, tools: tuple[str, ...] = ()
) -> SessionContext:
    """The session context of an admitted handoff (ADR §4.5): its secrets, what says which handoff it is, plain values.

    `tools` is the allowlist as the MCP proxy resolved it; without a proxy it is the spec's own. Raises SpawnRefused when
    two sources give one name.
    """
    manifest, spec = admitted.manifest, admitted.spec
    about: dict[str, str | SecretStr] = {
        "INFISICAL_SECRET_PATH": f"{ctx.path_of(manifest.handoff)}/",
        "HANDOFF_TASK_SLUG": manifest.task_slug,
        "HANDOFF_EXPIRES_AT": iso(manifest.expires_at),
    }
    if mcp is not None:
        about |= mcp.variables()
    env: dict[str, str | SecretStr] = {}
    for source in (admitted.secrets, about, spec.env):
        twice = sorted(env.keys() & source.keys())
        if twice:
            raise SpawnRefused(
                f"{twice[0]} is given twice in the environment of {manifest.handoff_id}",
                hint="take it out of the spec's env; nothing was launched",
            )
        env |= source
    return SessionContext(
        handoff=manifest.handoff,
        expires_at=manifest.expires_at,
        env=env,
        mcp_tools=tools or tuple(grant.name for grant in spec.mcp_tools),
        mcp_tools_excluded=spec.mcp_tools_excluded,
        mcp_config=None if mcp is None else mcp.client_config(),
    )


def _reveal(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
