"""The manifest: what was provisioned, signed; the commit point, the lock and the write-ahead intent of a handoff (D2, D6).

Three records in a handoff's vault folder tell its state. Each is created once and never changed, so that no vault needs more than
create-only writes for the life of a handoff to be safe from races:

    PROVISION_INTENT      before anything is minted: every identity's name, who provisions, until when   -> provisioning
    PROVISION_MANIFEST    the commit point: leases, digests of the secrets, grants, approvals, signed    -> provisioned
    REVOCATION_MARK       before anything is revoked; whatever else is there, nothing may start          -> revoking
    no folder                                                                                            -> gone

A fourth, MINT_BEGUN_<SURFACE>, is written right before a credential is asked for that only its holder can revoke: where
it is missing, no such credential was ever asked for.

Pure: reads no vault and no clock.
"""

from __future__ import annotations

import json
import secrets as random
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from agent_token_injector.approval import Approval
from agent_token_injector.clock import LOCAL_EARLY, iso
from agent_token_injector.errors import (
    ManifestExpired,
    SecretsMismatch,
    SignatureInvalid,
    SpecError,
    ToolsNotPinned,
)
from agent_token_injector.lease import Lease
from agent_token_injector.names import PROVISION_INTENT, PROVISION_MANIFEST, REVOCATION_MARK, HandoffId, is_record
from agent_token_injector.signing import SigningKey, VerifyKey, secret_digest
from agent_token_injector.spec import FrozenJson, HandoffSpec, thaw
from agent_token_injector.strict_json import MAX_JSON_BYTES, strict_json

MANIFEST_TYPE: Final = "agent_token_injector/manifest/v1"
INTENT_TYPE: Final = "agent_token_injector/intent/v1"
MARK_TYPE: Final = "agent_token_injector/revocation-mark/v1"
MAX_TOOLS_BYTES: Final = 256 * 1024
"""What the pinned definitions of a manifest may have together, as JSON; it is read back with this much more room."""

R = TypeVar("R", bound="_Record")


class ManifestState(StrEnum):
    """Where a handoff is in its life."""

    PROVISIONING = "provisioning"
    PROVISIONED = "provisioned"
    REVOKING = "revoking"
    GONE = "gone"


def state_of(names: Collection[str]) -> ManifestState:
    """The state that the records in a handoff's folder say it is in; an empty folder is debris of a provisioning."""
    if REVOCATION_MARK in names:
        return ManifestState.REVOKING
    if PROVISION_MANIFEST in names:
        return ManifestState.PROVISIONED
    return ManifestState.PROVISIONING


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: ClassVar[int] = MAX_JSON_BYTES
    """More than this is not read."""

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON."""
        document: dict[str, Any] = json.loads(self.model_dump_json())
        return document

    def to_secret(self) -> SecretStr:
        """The record as the vault stores it. It holds no secret; the vault's type says so of everything it stores."""
        return SecretStr(json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=True))

    @classmethod
    def from_secret(cls, stored: SecretStr) -> Self:
        """Read a record back. Raises SignatureInvalid when what is stored is not one: it cannot be trusted then."""
        try:
            strict_json(stored.get_secret_value(), what="the record", limit=cls.max_bytes)
            return cls.model_validate_json(stored.get_secret_value())
        except (ValidationError, SpecError):
            raise SignatureInvalid(
                f"the stored {cls.__name__} cannot be read as one",
                cause="it was altered, or written by another version",
                hint="revoke the handoff and provision it again",
            ) from None


class Holder(_Record):
    """The process that provisions: on its own machine it can be told whether it still runs."""

    boot: str
    pid: int
    started: int


class ProvisionIntent(_Record):
    """What is about to be minted, written before any of it is."""

    type: Literal["agent_token_injector/intent/v1"] = INTENT_TYPE
    handoff_id: str
    spec_digest: str
    identities: dict[str, str]
    """Surface -> the name of the identity that will exist on it."""
    begun_at: AwareDatetime
    deadline: AwareDatetime
    """After this the intent is debris: its provisioner has given up before."""
    holder: Holder
    nonce: str = Field(default_factory=lambda: random.token_hex(16))
    """Tells this provisioning from every other of the same handoff id; what one writes or deletes, it does for its own."""


class MintBegun(_Record):
    """That a credential is about to be asked for which cannot be found by name."""

    surface: str
    identity: str
    at: AwareDatetime


class RevocationMark(_Record):
    """That the handoff is being revoked. It needs no signature: whoever wrote it, refusing is the safe reading."""

    type: Literal["agent_token_injector/revocation-mark/v1"] = MARK_TYPE
    handoff_id: str
    marked_at: AwareDatetime
    by: str
    reason: str


class SecretRecord(_Record):
    """One secret of the handoff: its name in the vault, in the environment, and a salted digest of its value."""

    name: str
    env: str
    surface: str
    salt: str
    digest: str

    @classmethod
    def of(cls, name: str, value: SecretStr, *, env: str, surface: str) -> Self:
        salt = random.token_hex(16)
        return cls(name=name, env=env, surface=surface, salt=salt, digest=secret_digest(value.get_secret_value(), salt))

    def fits(self, value: SecretStr) -> bool:
        return random.compare_digest(secret_digest(value.get_secret_value(), self.salt), self.digest)


class PinnedTool(_Record):
    """A granted tool as its server defined it at provisioning (mcp_proxy/pins.py): what `mcp_proxy` calls a ToolPin."""

    server: str
    tool: str
    """The server's own name for it."""
    digest: str = Field(pattern=r"\Asha256:[0-9a-f]{64}\z")
    definition: FrozenJson

    def to_plain(self) -> dict[str, Any]:
        """The pin as the proxy takes it: plain JSON, numbers as they were signed."""
        document = {"server": self.server, "tool": self.tool, "digest": self.digest}
        return {**document, "definition": thaw(self.definition)}


class AuditHead(_Record):
    """How far the audit chain had come when the manifest was signed: what is cut off before that shows."""

    seq: int
    digest: str


class ProvisionManifest(_Record):
    """Everything a host needs to dispatch, refuse or revoke a handoff, and no secret; signed by the provisioner (D6)."""

    max_bytes: ClassVar[int] = MAX_JSON_BYTES + MAX_TOOLS_BYTES

    type: Literal["agent_token_injector/manifest/v1"] = MANIFEST_TYPE
    handoff_id: str
    task_slug: str
    spec: FrozenJson
    """The spec as provisioned, whole: its tool grants, servers and plain environment apply at dispatch."""
    spec_digest: str
    policy_digest: str
    provisioned_at: AwareDatetime
    expires_at: AwareDatetime
    """The end of the handoff: no later than any of its credentials' own."""
    requested_until: AwareDatetime
    limited_by: str | None
    """The surface whose credential ends the handoff before `requested_until`; None when nothing does."""
    leases: tuple[Lease, ...]
    secrets: tuple[SecretRecord, ...]
    approvals: tuple[Approval, ...] = ()
    tools: tuple[PinnedTool, ...] = ()
    """One for each tool that the spec grants. The MCP proxy withdraws a tool whose definition is another by then."""
    audit_head: AuditHead
    key_id: str
    signature: str = ""

    @property
    def handoff(self) -> HandoffId:
        return HandoffId.parse(self.handoff_id)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON. Without pinned tools it has no `tools`, as before there were any."""
        document = super().to_dict()
        if not self.tools:
            del document["tools"]
        return document

    def read_spec(self) -> HandoffSpec:
        """The spec inside. Raises SignatureInvalid when it is not the one whose digest was signed."""
        try:
            spec = HandoffSpec.parse(json.dumps(self.to_dict()["spec"]))
        except SpecError:
            spec = None
        if spec is None or spec.digest != self.spec_digest:
            raise SignatureInvalid(f"the spec inside the manifest of {self.handoff_id} is not the one that was signed")
        return spec

    def signed_part(self) -> dict[str, Any]:
        """What the signature is over: everything but itself."""
        document = self.to_dict()
        del document["signature"]
        return document

    def sign(self, key: SigningKey) -> Self:
        """The manifest signed with `key`, whose id it must already name (ValueError)."""
        if key.key_id != self.key_id:
            raise ValueError("the manifest names another key")
        return self.model_copy(update={"signature": key.sign(MANIFEST_TYPE, self.signed_part())})

    def verify(self, handoff: HandoffId, trusted: Sequence[VerifyKey]) -> None:
        """Return when a trusted key signed this manifest for this handoff. Raises SignatureInvalid."""
        key = next((key for key in trusted if key.key_id == self.key_id), None)
        if key is None:
            raise SignatureInvalid(
                f"the manifest of {handoff} is signed with key {self.key_id}, which this host does not trust",
                hint="add the provisioner's public key to trusted_provisioners.json, or revoke the handoff",
            )
        key.verify(MANIFEST_TYPE, self.signed_part(), self.signature)
        if self.handoff_id != str(handoff):
            raise SignatureInvalid(
                f"the manifest stored for {handoff} is that of {self.handoff_id}",
                cause="it was copied from another handoff",
                hint="revoke both",
            )

    def check_time(self, now: datetime) -> None:
        """Return while the handoff lives, by a clock that may be late. Raises ManifestExpired (H3)."""
        if now >= self.expires_at - LOCAL_EARLY:
            raise ManifestExpired(
                f"{self.handoff_id} ended {iso(self.expires_at)}",
                cause=f"limited by its {self.limited_by} credential" if self.limited_by else "its time is over",
                hint="`handoff revoke` it and provision again",
            )

    def check_secrets(self, folder: Mapping[str, SecretStr]) -> None:
        """Return when a folder holds exactly the secrets that were signed over. Raises SecretsMismatch, naming them."""
        signed = {record.name: record for record in self.secrets}
        present = {name: value for name, value in folder.items() if not is_record(name)}
        problems = {
            "missing": sorted(signed.keys() - present.keys()),
            "not in the manifest": sorted(present.keys() - signed.keys()),
            "different": sorted(
                name for name in signed.keys() & present.keys() if not signed[name].fits(present[name])
            ),
        }
        wrong = [name for found in problems.values() for name in found]
        if wrong:
            listed = "; ".join(f"{what}: {', '.join(found)}" for what, found in problems.items() if found)
            raise SecretsMismatch(
                f"the vault path of {self.handoff_id} does not hold what was provisioned",
                names=wrong,
                cause=listed,
                hint="someone changed it: revoke the handoff and provision it again",
            )

    def check_tools(self) -> None:
        """Return when every tool that the spec grants is pinned. Raises ToolsNotPinned, naming those that are not.

        A tool that nobody has looked at is not served (H4): its server could say anything of it.
        """
        pinned = {(tool.server, tool.tool) for tool in self.tools}
        names = {name for server, tool in pinned for name in (tool, f"{server}_{tool}")}
        missing = [
            grant.name
            for grant in self.read_spec().mcp_tools
            if (grant.name not in names if grant.tool is None else (grant.server, grant.tool) not in pinned)
        ]
        if missing:
            raise ToolsNotPinned(
                f"{len(missing)} of the tools that {self.handoff_id} grants are not pinned",
                names=missing,
                cause=f"the manifest has no signed definition of {', '.join(missing[:10])}"
                + (f" and {len(missing) - 10} more" if len(missing) > 10 else ""),
                hint="it was provisioned by a version that did not ask the servers: revoke it and provision it again",
            )


def read_record(folder: Mapping[str, SecretStr], name: str, kind: type[R]) -> R | None:
    """One record of a folder, or None when it is not there. Raises SignatureInvalid when it is there and unreadable."""
    stored = folder.get(name)
    return None if stored is None else kind.from_secret(stored)


__all__ = [
    "PROVISION_INTENT",
    "PROVISION_MANIFEST",
    "REVOCATION_MARK",
    "AuditHead",
    "Holder",
    "ManifestState",
    "MintBegun",
    "PinnedTool",
    "ProvisionIntent",
    "ProvisionManifest",
    "RevocationMark",
    "SecretRecord",
    "read_record",
    "state_of",
]
