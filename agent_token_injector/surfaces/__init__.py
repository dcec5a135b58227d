"""Credential surfaces: one module a vendor, all with the same five verbs (base.py).

`SUPPORTED` names those of this version. Importing this package imports no vendor's module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SUPPORTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "infisical": "agent_token_injector.surfaces.infisical:InfisicalSurface",
        "github": "agent_token_injector.surfaces.github:GitHubSurface",
        "stripe": "agent_token_injector.surfaces.stripe:StripeSurface",
    }
)
"""The surfaces that this version provisions, by the spec's name for them -> `module:class`."""
