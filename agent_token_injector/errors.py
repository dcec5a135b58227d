"""Every error this package raises on purpose.

    HandoffError
    |- SpecError                 the spec, or the configuration around it, is not usable
    |  |- SettingsError
    |  `- ApprovalError
    |- GateRefused               the provisioning gate said no; `.findings` says why
    |- VaultError
    |  |- VaultUnreachable
    |  |- VaultForbidden
    |  |- SecretNotFound
    |  `- AlreadyExists
    |- SurfaceError
    |  |- MintRefused            nothing was created
    |  |- MintAmbiguous          something may have been created
    |  |- ScopeTooWide           the credential can do more than was asked
    |  `- RevokeFailed
    |- ProvisionFailed           undone; `.residue` is exactly what could not be
    |- ManifestError
    |  |- ManifestMissing
    |  |- ManifestNotProvisioned
    |  |- SignatureInvalid
    |  |- ManifestExpired
    |  |- SecretsMismatch
    |  `- ToolsNotPinned
    |- SpawnRefused
    |- AuditUnavailable
    `- ToolDenied

An error says three things: what happened to which thing, why, and what to do next. It never holds a secret: the code
that raises it passes names, paths, codes and times, and nothing a vendor sent is quoted without passing a redactor.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class ExitCode(IntEnum):
    """What a command's exit status says (docs/architecture.md, "Exit codes")."""

    OK = 0
    USAGE = 2
    GATE_REFUSED = 3
    FAILED_CLEAN = 4
    RESIDUE = 5
    MANIFEST = 6
    AUDIT_UNAVAILABLE = 7
    VAULT_UNREACHABLE = 8


class HandoffError(Exception):
    """The root of the tree: `what` happened, its `cause`, and a `hint` at the next step.

    `code` is stable and dotted, for machines; the texts are for people and may be reworded.
    """

    code: ClassVar[str] = "handoff.error"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED_CLEAN

    def __init__(self, what: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.cause is None else f"{self.what}: {self.cause}"

    def diagnostics(self) -> str:
        """What happened, why, and what to do next, as a person should read it."""
        lines = [str(self)]
        if self.hint is not None:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The error as a command's `--json` prints it."""
        return {"error": self.code, "what": self.what, "cause": self.cause, "hint": self.hint}


class SpecError(HandoffError):
    """The handoff spec cannot be read as one. `path` is where in the document, dotted."""

    code = "spec.invalid"
    exit_code = ExitCode.USAGE

    def __init__(self, what: str, *, path: str = "", cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.path = path

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "path": self.path}


class SettingsError(SpecError):
    """The operator's configuration is missing something or contradicts itself."""

    code = "settings.invalid"


class ApprovalError(SpecError):
    """An approval cannot be made or read. One that is merely not valid for a spec is a finding of the gate."""

    code = "approval.invalid"


class GateRefused(HandoffError):
    """The provisioning gate refused the spec: no vendor was called, nothing was written (H4)."""

    code = "gate.refused"
    exit_code = ExitCode.GATE_REFUSED

    def __init__(self, what: str, *, findings: Sequence[object], hint: str | None = None) -> None:
        super().__init__(what, cause="; ".join(str(finding) for finding in findings), hint=hint)
        self.findings = tuple(findings)

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "findings": [str(finding) for finding in self.findings]}


class VaultError(HandoffError):
    """The vault did not do what was asked."""

    code = "vault.error"
    exit_code = ExitCode.VAULT_UNREACHABLE


class VaultUnreachable(VaultError):
    """The vault gave no answer that can be relied on. Callers fail closed."""

    code = "vault.unreachable"


class VaultForbidden(VaultError):
    """The vault knows the caller, or does not, and in either case says no."""

    code = "vault.forbidden"


class SecretNotFound(VaultError):
    """No such secret or no such folder."""

    code = "vault.not-found"
    exit_code = ExitCode.FAILED_CLEAN


class AlreadyExists(VaultError):
    """A create-only write found its name taken. Nothing was changed."""

    code = "vault.already-exists"
    exit_code = ExitCode.FAILED_CLEAN


class SurfaceError(HandoffError):
    """A credential surface did not do what was asked. `surface` names it."""

    code = "surface.error"

    def __init__(self, what: str, *, surface: str, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.surface = surface

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "surface": self.surface}


class MintRefused(SurfaceError):
    """The surface refused to mint, and said so: no credential exists (D3)."""

    code = "mint.refused"


class MintAmbiguous(SurfaceError):
    """The surface may have minted: the request left and no usable answer came back (D3).

    Never retried. `live_until` bounds the life of whatever may exist; None when nothing bounds it.
    """

    code = "mint.ambiguous"

    def __init__(
        self,
        what: str,
        *,
        surface: str,
        live_until: datetime | None = None,
        cause: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, surface=surface, cause=cause, hint=hint)
        self.live_until = live_until


class ScopeTooWide(SurfaceError):
    """A credential was read back and can do more, or lives longer, than the spec asked for (D5)."""

    code = "scope.too-wide"


class RevokeFailed(SurfaceError):
    """A revocation was not confirmed. The credential must be taken to be alive."""

    code = "revoke.failed"


class ProvisionFailed(HandoffError):
    """Provisioning stopped and was undone; `residue` is exactly what could not be, one `Residue` each (D4)."""

    code = "provision.failed"

    def __init__(
        self,
        what: str,
        *,
        surface: str | None = None,
        residue: Sequence[object] = (),
        cause: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.surface = surface
        self.residue = tuple(residue)
        # The class promises "failed and clean"; an instance that left something behind says so to the shell.
        if self.residue:
            self.exit_code = ExitCode.RESIDUE  # type: ignore[misc]

    def diagnostics(self) -> str:
        lines = [super().diagnostics()]
        lines.extend(f"  still alive: {item}" for item in self.residue)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "surface": self.surface, "residue": [str(item) for item in self.residue]}


class ManifestError(HandoffError):
    """The manifest does not allow what was asked; nothing was spawned (H4, D6)."""

    code = "manifest.error"
    exit_code = ExitCode.MANIFEST


class ManifestMissing(ManifestError):
    """There is no manifest for this handoff id."""

    code = "manifest.missing"


class ManifestNotProvisioned(ManifestError):
    """The handoff is being provisioned, is debris, or is being revoked."""

    code = "manifest.not-provisioned"


class SignatureInvalid(ManifestError):
    """The manifest is not signed by a provisioner that this host trusts, or was altered after it was signed."""

    code = "manifest.signature"


class ManifestExpired(ManifestError):
    """The handoff's time is over."""

    code = "manifest.expired"


class SecretsMismatch(ManifestError):
    """The secrets in the vault are not exactly those that the manifest was signed over. `names` lists which."""

    code = "manifest.secrets"

    def __init__(self, what: str, *, names: Sequence[str], cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.names = tuple(names)


class ToolsNotPinned(ManifestError):
    """The manifest grants tools whose definitions were not signed with it. `names` lists which."""

    code = "manifest.tools"

    def __init__(self, what: str, *, names: Sequence[str], cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.names = tuple(names)


class SpawnRefused(HandoffError):
    """The manifest is good, and still the agent may not or cannot be started. Nothing was launched."""

    code = "spawn.refused"


class AuditUnavailable(HandoffError):
    """An audit event could not be written, so the action it speaks of was not taken (H5)."""

    code = "audit.unavailable"
    exit_code = ExitCode.AUDIT_UNAVAILABLE


class ToolDenied(HandoffError):
    """A tool call is not one of those the handoff was granted. `reason` is the audit's reason code."""

    code = "tool.denied"

    def __init__(self, what: str, *, reason: str, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, cause=cause, hint=hint)
        self.reason = reason
