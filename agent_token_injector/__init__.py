"""Give every unattended agent run its own minted, least-privilege, time-bound, revocable identity, or refuse to start it.

    spec -> gate -> provision -> manifest -> session context -> spawn -> MCP proxy -> audit -> revoke

An orchestrator wraps whatever starts its agents:

    from agent_token_injector import spawn_handoff

    with spawn_handoff("founders-checkout-20260620", launcher) as handoff:
        handoff.wait()

`launcher` is a `ProcessLauncher`, or any callable that takes a `SessionContext`. Before anything is launched the signed
manifest is read from the vault and checked; without it nothing starts.

Provisioning, from a program rather than with `handoff provision`:

    from agent_token_injector import HandoffContext, HandoffSpec, provision, revoke

    with HandoffContext.from_settings() as ctx:
        manifest = provision(HandoffSpec.load("handoff-spec.json"), ctx)
        ...
        receipt = revoke(manifest.handoff_id, ctx)

`provision` mints every credential the spec asks for or leaves none behind; `revoke` ends every one, proves each dead,
and lists exactly what it could not. Every error is a `HandoffError` that says what happened, why, and what to do next.

What this package does not do: it does not isolate a local agent from other processes of the same user (run it as
another user, or in a container), and it cannot end a credential for which its vendor has no API (it says so instead).

Everything here is loaded when it is first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agent_token_injector.approval import Approval
    from agent_token_injector.context import HandoffContext
    from agent_token_injector.errors import (
        AuditUnavailable,
        GateRefused,
        HandoffError,
        ManifestError,
        ProvisionFailed,
        SpawnRefused,
        SpecError,
        SurfaceError,
        ToolDenied,
        VaultError,
    )
    from agent_token_injector.gate import GateReport, check
    from agent_token_injector.launchers.process import ProcessLauncher
    from agent_token_injector.lease import Lease
    from agent_token_injector.manifest import ProvisionManifest
    from agent_token_injector.policy import Policy
    from agent_token_injector.provisioning import provision
    from agent_token_injector.revocation import RevocationReceipt, revoke
    from agent_token_injector.session_context import SessionContext
    from agent_token_injector.spawn import Handoff, spawn_handoff
    from agent_token_injector.spec import HandoffSpec

__version__ = "0.1.0"

_HOME: Final = {
    "Approval": "approval",
    "AuditUnavailable": "errors",
    "GateRefused": "errors",
    "GateReport": "gate",
    "Handoff": "spawn",
    "HandoffContext": "context",
    "HandoffError": "errors",
    "HandoffSpec": "spec",
    "Lease": "lease",
    "ManifestError": "errors",
    "Policy": "policy",
    "ProcessLauncher": "launchers.process",
    "ProvisionFailed": "errors",
    "ProvisionManifest": "manifest",
    "RevocationReceipt": "revocation",
    "SessionContext": "session_context",
    "SpawnRefused": "errors",
    "SpecError": "errors",
    "SurfaceError": "errors",
    "ToolDenied": "errors",
    "VaultError": "errors",
    "check": "gate",
    "provision": "provisioning",
    "revoke": "revocation",
    "spawn_handoff": "spawn",
}

__all__ = [
    "Approval",
    "AuditUnavailable",
    "GateRefused",
    "GateReport",
    "Handoff",
    "HandoffContext",
    "HandoffError",
    "HandoffSpec",
    "Lease",
    "ManifestError",
    "Policy",
    "ProcessLauncher",
    "ProvisionFailed",
    "ProvisionManifest",
    "RevocationReceipt",
    "SessionContext",
    "SpawnRefused",
    "SpecError",
    "SurfaceError",
    "ToolDenied",
    "VaultError",
    "check",
    "provision",
    "revoke",
    "spawn_handoff",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
