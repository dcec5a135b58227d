"""The vault, the one store of everything that outlives a process (D1), and its implementations.

`base` holds the contract. An implementation is imported when it is first named, so that importing this package loads
neither a database nor a cipher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_token_injector.vaults.base import (
    MAX_TOKEN_TTL,
    AccessEvent,
    Guard,
    IdentityCredentials,
    IdentityRecord,
    Vault,
    VaultSession,
)

if TYPE_CHECKING:
    from agent_token_injector.vaults.embedded import EmbeddedVault

__all__ = [
    "MAX_TOKEN_TTL",
    "AccessEvent",
    "EmbeddedVault",
    "Guard",
    "IdentityCredentials",
    "IdentityRecord",
    "Vault",
    "VaultSession",
]


def __getattr__(name: str) -> object:
    if name == "EmbeddedVault":
        from agent_token_injector.vaults.embedded import EmbeddedVault

        return EmbeddedVault
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
