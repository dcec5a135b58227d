"""Operator approvals: a person's signature under one exact spec, for one surface and one mode, for a short time (H7).

An approval is bound to the digest of the spec, so that a spec edited afterwards is not approved. It holds no secret and
lies beside the spec as JSON (`handoff-spec.approvals.json`), where a reviewer can see it; the manifest records it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from agent_token_injector.clock import iso
from agent_token_injector.errors import ApprovalError, SettingsError, SignatureInvalid
from agent_token_injector.signing import SigningKey, VerifyKey
from agent_token_injector.spec import HandoffSpec
from agent_token_injector.strict_json import read_document, strict_json

APPROVAL_TYPE: Final = "agent_token_injector/approval/v1"

NEEDS_APPROVAL: Final[Mapping[str, str]] = {"stripe": "live", "alpaca": "live", "apple_iap": "production"}
"""The surfaces and modes that no task gets without a person's word (H7, ADR §12)."""


class Approval(BaseModel):
    """One operator's signed word that one spec may use one surface in one mode, until `expires_at`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["agent_token_injector/approval/v1"] = APPROVAL_TYPE
    spec_digest: str
    task_slug: str
    surface: str
    mode: str
    operator: str
    approved_at: AwareDatetime
    expires_at: AwareDatetime
    key_id: str
    signature: str

    def signed_part(self) -> dict[str, Any]:
        """What the signature is over: everything but itself."""
        document: dict[str, Any] = json.loads(self.model_dump_json(exclude={"signature"}))
        return document

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.model_dump_json())
        return document

    def problem(self, spec_digest: str, operators: Mapping[str, tuple[str, ...]], now: datetime) -> str | None:
        """Why this approval is not valid for the spec at `now`; None when it is."""
        key = next((key for key in _readable(operators.get(self.operator, ())) if key.key_id == self.key_id), None)
        if key is None:
            return f"{self.operator} with key {self.key_id} is not an operator that the configuration lists"
        try:
            key.verify(APPROVAL_TYPE, self.signed_part(), self.signature)
        except SignatureInvalid:
            return "its signature does not fit: it was altered after it was signed"
        if self.spec_digest != spec_digest:
            return "the spec was edited after it was approved"
        if now >= self.expires_at:
            return f"it expired {iso(self.expires_at)}"
        if now + timedelta(minutes=5) < self.approved_at:
            return f"it is dated in the future ({iso(self.approved_at)})"
        return None


def _readable(keys: Iterable[str]) -> Iterator[VerifyKey]:
    for key in keys:
        # A key that cannot be read has signed nothing; settings.py refuses it where an operator writes it.
        with suppress(SettingsError):
            yield VerifyKey.parse(key)


def required_approvals(spec: HandoffSpec) -> tuple[tuple[str, str], ...]:
    """The (surface, mode) pairs of the spec that a person must have approved."""
    found = []
    for surface, mode in NEEDS_APPROVAL.items():
        request = getattr(spec.surfaces, surface)
        if request is not None and mode in (getattr(request, "mode", None), getattr(request, "environment", None)):
            found.append((surface, mode))
    return tuple(found)


def sign_approval(
    spec: HandoffSpec, *, surface: str, mode: str, operator: str, key: SigningKey, now: datetime, valid_for: timedelta
) -> Approval:
    """Sign that `operator` approves exactly this spec's use of `surface` in `mode` until `now + valid_for`.

    Raises ApprovalError when the spec does not ask for it: an approval for later is an approval for anything.
    """
    if (surface, mode) not in required_approvals(spec):
        asked = ", ".join(f"{name} {wanted}" for name, wanted in required_approvals(spec)) or "nothing that needs one"
        raise ApprovalError(
            f"{surface} {mode} cannot be approved for {spec.task_slug}",
            cause=f"the spec asks for {asked}",
            hint="approve exactly what the spec asks for, after its last edit",
        )
    if not operator.strip():
        raise ApprovalError("an approval needs an operator's name", hint="pass --operator you@example.com")
    unsigned = Approval(
        spec_digest=spec.digest,
        task_slug=spec.task_slug,
        surface=surface,
        mode=mode,
        operator=operator,
        approved_at=now.replace(microsecond=0),
        expires_at=(now + valid_for).replace(microsecond=0),
        key_id=key.key_id,
        signature="",
    )
    return unsigned.model_copy(update={"signature": key.sign(APPROVAL_TYPE, unsigned.signed_part())})


def approvals_path(spec_path: Path) -> Path:
    """Where a spec's approvals lie: `x.json` -> `x.approvals.json`."""
    return spec_path.with_name(f"{spec_path.stem}.approvals.json")


def load_approvals(path: Path) -> tuple[Approval, ...]:
    """Read an approvals file. Raises SpecError or ApprovalError when it cannot be read or is not one."""
    return parse_approvals(read_document(path, what="the approvals file", hint="`handoff approve` writes such a file"))


def parse_approvals(text: str | bytes) -> tuple[Approval, ...]:
    """Read an approvals file, a JSON array. Raises SpecError or ApprovalError when it is not one."""
    document = strict_json(text, what="the approvals file")
    if not isinstance(document, list):
        raise ApprovalError("the approvals file is not a JSON array of approvals")
    try:
        return tuple(Approval.model_validate_json(json.dumps(item)) for item in document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ApprovalError("the approvals file holds something else", path=path, cause=first["msg"]) from None
