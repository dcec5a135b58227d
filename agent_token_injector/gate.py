"""The provisioning gate: `check(spec, policy, now)` says whether a handoff may be provisioned, and why not (H4, ADR §6).

Pure and complete: it calls nobody, reads no clock, and reports every finding at once, each with a stable code. The
report also carries the ADR's §6.2 checklist with every box marked from those findings.

    report = check(HandoffSpec.load("handoff-spec.json"), Policy(), now)
    if not report.ok: ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from agent_token_injector.approval import Approval, required_approvals
from agent_token_injector.clock import human_duration, iso
from agent_token_injector.errors import GateRefused
from agent_token_injector.gate_rules import RULES, Case, Finding
from agent_token_injector.masking import MASK
from agent_token_injector.names import Layout
from agent_token_injector.policy import CREDENTIAL_SHAPES, REVOCATION_PATHS, Policy
from agent_token_injector.spec import HandoffSpec

__all__ = ["ChecklistItem", "Finding", "GateReport", "check"]

Mark = Literal["x", " ", "-"]


class ChecklistItem(BaseModel):
    """One box of the ADR's §6.2 checklist: `x` holds, ` ` does not, `-` the task does not touch it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    section: Literal["Surface checklist", "Task context"]
    title: str
    mark: Mark
    detail: tuple[str, ...] = ()


class GateReport(BaseModel):
    """What the gate found. `ok` is whether the handoff may be provisioned; warnings do not refuse it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    handoff_id: str
    spec_digest: str
    policy_digest: str
    checked_at: datetime
    findings: tuple[Finding, ...]
    checklist: tuple[ChecklistItem, ...]
    approvals: tuple[Approval, ...]
    """The approvals that were needed and are valid: the manifest records these."""

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "refuse")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warn")

    @property
    def ok(self) -> bool:
        return not self.refusals

    def raise_if_refused(self) -> None:
        """Return when the gate is open; raise GateRefused with every refusal otherwise."""
        if not self.ok:
            count = len(self.refusals)
            raise GateRefused(
                f"the gate refuses {self.handoff_id} for {count} reason{'s' if count > 1 else ''}",
                findings=self.refusals,
                hint=self.refusals[0].mend,
            )

    def to_dict(self) -> dict[str, Any]:
        """The report as `handoff check --json` prints it."""
        return {"ok": self.ok, **self.model_dump(mode="json")}


def check(
    spec: HandoffSpec,
    policy: Policy,
    now: datetime,
    *,
    approvals: Sequence[Approval] = (),
    layout: Layout | None = None,
) -> GateReport:
    """Judge a spec against a policy at a moment: every invariant H1..H8 and every box of the ADR's checklist.

    `now` is aware UTC. `approvals` may hold any approvals; only valid ones for this very spec count (H7). Raises nothing:
    a refusal is a report whose `ok` is false.
    """
    case = Case(
        spec=spec,
        policy=policy,
        now=now,
        handoff=spec.handoff_id(now),
        layout=layout or Layout(),
        approvals=tuple(approvals),
    )
    findings = tuple(finding for rule in RULES for finding in rule(case))
    used = [case.approved(surface, mode) for surface, mode in required_approvals(spec)]
    return GateReport(
        handoff_id=str(case.handoff),
        spec_digest=spec.digest,
        policy_digest=policy.digest,
        checked_at=now,
        findings=findings,
        checklist=tuple(_checklist(case, [finding for finding in findings if finding.severity == "refuse"])),
        approvals=tuple(approval for approval in used if approval is not None),
    )


CLOUD: Final = ("aws", "heroku", "stripe", "cloudflare", "alpaca", "apple_iap")


def _checklist(case: Case, refusals: Sequence[Finding]) -> Iterator[ChecklistItem]:
    """The boxes of §6.2, in its order and words."""
    spec, policy = case.spec, case.policy

    def box(title: str, concerns: tuple[str, ...], *detail: str, touched: bool = True) -> ChecklistItem:
        wrong = [finding for finding in refusals if finding.surface in concerns or finding.code in concerns]
        mark: Mark = " " if wrong else "x" if touched else "-"
        notes = tuple(f"{finding.what} ({finding.code})" for finding in wrong)
        return ChecklistItem(section="Surface checklist", title=title, mark=mark, detail=(*detail, *notes))

    reads = ", ".join(spec.surfaces.infisical.read)
    yield box(
        f"Infisical: per-handoff read-only identity at {case.layout.of(case.handoff)}/",
        ("infisical",),
        f"reads its own path{' and ' + reads if reads else ' and nothing else'}; "
        f"{human_duration(policy.vault_token_ttl)} access tokens",
    )
    github = spec.surfaces.github
    yield box(
        "GitHub: fine-grained PAT or scoped App install",
        ("github",),
        *_github_detail(case),
        touched=github is not None,
    )
    cloud = [name for name in CLOUD if getattr(spec.surfaces, name) is not None]
    yield box(
        "Cloud/CI creds: task-specific, test/sandbox by default",
        CLOUD,
        *(_cloud_detail(case, name) for name in cloud),
        touched=bool(cloud),
    )
    yield box(
        "MCP tools: explicit allowlist defined, excluded tools listed",
        ("mcp",),
        f"allowed: {', '.join(grant.name for grant in spec.mcp_tools) or 'none'}",
        f"excluded: {', '.join(spec.mcp_tools_excluded) or 'none'}",
    )
    places = (
        "env",
        *(
            f"mcp_servers.{name}.{part}"
            for name in spec.mcp_servers
            for part in ("env", "plain_env", "command", "url", "headers", "oauth", "allow")
        ),
    )
    yield box(
        "session_context / env: only the above scoped credentials injected, no admin env vars",
        places,
        f"plain values: {', '.join(spec.env) or 'none'}",
    )
    long = spec.expires_in > policy.max_lifetime_without_enrolment
    yield box("Velvet enrollment, or a person who revokes", ("velvet",), _ending(case, long=long))
    yield box(
        "Revocation path documented: for each surface, who deletes what and where",
        ("H8.kill-switch", "H1.surface"),
        *(
            f"{name}: {REVOCATION_PATHS[name].format(identity=f'*-handoff-{case.handoff}')}"
            for name in spec.surfaces.requested()
            if name in REVOCATION_PATHS
        ),
    )
    yield box(
        f"Audit path confirmed: access logs retained {policy.audit_retention_days} days",
        ("H5.audit",),
        "every access is recorded under the task slug before it happens",
    )
    loosened = [finding for finding in refusals if finding.surface == "policy"]
    if loosened:
        yield box("Policy: at least as tight as the ADR", ("policy",))
    yield from _context(case, {finding.code for finding in refusals})


def _github_detail(case: Case) -> tuple[str, ...]:
    request = case.spec.surfaces.github
    if request is None:
        return ()
    permissions = ", ".join(f"{name}:{level}" for name, level in request.permissions.items())
    ceiling = request.expires_in or case.policy.ceiling(f"github:{request.method}")
    return (
        f"{request.repository}: {permissions or 'nothing'}; {request.method}, {human_duration(ceiling)} at most",
        f"protected-branch push disabled: {', '.join(sorted(case.policy.protected_branches))}",
    )


def _cloud_detail(case: Case, name: str) -> str:
    request = getattr(case.spec.surfaces, name)
    mode = getattr(request, "mode", None) or getattr(request, "environment", None)
    detail = f"{name}: {mode or 'task-specific'}"
    if (name, mode) in required_approvals(case.spec):
        approval = case.approved(name, str(mode))
        detail += f" (operator confirmation: {approval.operator if approval else '___'})"
    permissions = getattr(request, "permissions", None)
    if permissions:
        detail += ", " + ", ".join(f"{key}:{level}" for key, level in permissions.items())
    return detail


def _ending(case: Case, *, long: bool) -> str:
    by_hand = case.by_hand
    if case.spec.revocation.velvet:
        return "enrolled in subscription-manifest.yml with auto_revoke_after"
    if by_hand is not None:
        return f"{_shown(by_hand.who)} revokes by hand: {_shown(by_hand.how)}"
    if long:
        return "nobody is named who revokes it"
    return "under one hour: revoked on task completion"


def _shown(text: str) -> str:
    """A text of the spec for people; a report does not repeat what looks like a credential (H6)."""
    return MASK if CREDENTIAL_SHAPES.search(text) else text


def _context(case: Case, codes: set[str]) -> Iterator[ChecklistItem]:
    spec = case.spec

    def line(title: str, value: str, *bad: str) -> ChecklistItem:
        mark: Mark = " " if codes.intersection(bad) else "x"
        return ChecklistItem(section="Task context", title=f"{title}: {_shown(value) or '______'}", mark=mark)

    yield line("Task slug", spec.task_slug)
    yield line("Expected runtime", human_duration(spec.expected_runtime), "H3.runtime", "H3.lifetime-positive")
    # A span that no calendar holds is refused by H3.lifetime, and leaves the line blank.
    room = datetime.min.replace(tzinfo=UTC) - case.now < spec.expires_in < datetime.max.replace(tzinfo=UTC) - case.now
    expires = iso(case.now + spec.expires_in) if room else ""
    yield line("Handoff expires at (UTC)", expires, "H3.lifetime", "H3.lifetime-positive")
    yield line("Operator who approved", spec.operator, "H5.operator")
    yield line("Linked card", spec.card, "H5.card")
