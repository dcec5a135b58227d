"""The session context: all that an agent is given, in the ADR's own shape (ADR §4.5).

The environment is built from nothing (D7): the secrets the manifest lists under the names an agent expects, what says
which handoff this is, and the spec's plain values. Nothing of the parent's environment is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from agent_token_injector.names import HandoffId

MASK = "********"


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


def _reveal(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
