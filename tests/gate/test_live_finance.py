"""Live and production financial access: only with a listed operator's valid approval of this very spec (H7)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import pytest

from agent_token_injector.approval import Approval, sign_approval
from agent_token_injector.gate import check
from agent_token_injector.policy import Policy
from agent_token_injector.signing import SigningKey
from agent_token_injector.spec import HandoffSpec
from tests.gate.cases_vendors import PAPER_GATE
from tests.gate.good import NOW, spec_of
from tests.requirements import requirement

ANNA: Final = SigningKey.from_seed(b"a" * 32)
BEN: Final = SigningKey.from_seed(b"b" * 32)
POLICY: Final = Policy().with_operators(
    {"anna@example.com": (str(ANNA.public),), "ben@example.com": (str(BEN.public),)}
)
HOUR: Final = timedelta(hours=1)

LIVE: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "stripe": ({"surfaces.stripe.mode": "live"}, "live"),
    "alpaca": ({"surfaces.alpaca": {"mode": "live", "paper_gate": PAPER_GATE}}, "live"),
    "apple_iap": ({"surfaces.apple_iap.environment": "production", "task_slug": "iap-notif-handler"}, "production"),
}


def approved(spec: HandoffSpec, surface: str, mode: str = "live", **other: Any) -> Approval:
    asked = {"operator": "anna@example.com", "key": ANNA, "now": NOW, "valid_for": HOUR, **other}
    return sign_approval(spec, surface=surface, mode=mode, **asked)


@requirement("H7.stripe-live", "H7.alpaca-live", "H7.apple-iap-production")
@pytest.mark.parametrize("surface", LIVE)
def test_a_valid_approval_opens_the_gate_and_is_in_the_report_for_the_manifest(surface: str) -> None:
    change, mode = LIVE[surface]
    spec = spec_of(change)
    approval = approved(spec, surface, mode)
    report = check(spec, POLICY, NOW, approvals=[approval])
    assert report.ok
    assert report.approvals == (approval,)
    assert any("operator confirmation: anna@example.com" in line for item in report.checklist for line in item.detail)


@requirement("approval.listed-operator", "approval.spec-digest", "approval.expiry", "approval.max-age")
@pytest.mark.parametrize(
    ("why", "signed"),
    [
        ("is not an operator", {"operator": "mallory@example.com", "key": SigningKey.from_seed(b"m" * 32)}),
        ("is not an operator", {"operator": "anna@example.com", "key": SigningKey.from_seed(b"m" * 32)}),
        ("is not an operator", {"operator": "anna@example.com", "key": BEN}),
        ("expired", {"now": NOW - 2 * HOUR}),
        ("expired", {"now": NOW - HOUR}),
        ("dated in the future", {"now": NOW + HOUR}),
        ("more than 24 h", {"valid_for": timedelta(hours=24, seconds=1)}),
        ("more than 24 h", {"now": NOW - timedelta(days=364), "valid_for": timedelta(days=365)}),
    ],
)
def test_an_approval_that_is_not_valid_does_not_count_and_the_finding_says_why(
    why: str, signed: dict[str, Any]
) -> None:
    spec = spec_of(LIVE["stripe"][0])
    report = check(spec, POLICY, NOW, approvals=[approved(spec, "stripe", **signed)])
    assert [finding.code for finding in report.refusals] == ["H7.stripe-live"]
    assert why in report.refusals[0].what
    assert report.approvals == ()
    assert any("operator confirmation: ___" in line for item in report.checklist for line in item.detail)


@requirement("approval.spec-digest")
def test_a_spec_edited_after_it_was_approved_is_refused() -> None:
    spec = spec_of(LIVE["stripe"][0])
    edited = spec_of(LIVE["stripe"][0], {"surfaces.stripe.permissions.products": "write"})
    report = check(edited, POLICY, NOW, approvals=[approved(spec, "stripe")])
    assert "edited after it was approved" in report.refusals[0].what


@requirement("approval.surface-mode")
def test_an_approval_of_one_surface_is_none_of_another() -> None:
    spec = spec_of(LIVE["stripe"][0], LIVE["alpaca"][0])
    report = check(spec, POLICY, NOW, approvals=[approved(spec, "alpaca")])
    assert [finding.code for finding in report.refusals] == ["H7.stripe-live"]
    assert [approval.surface for approval in report.approvals] == ["alpaca"]


@requirement("approval.surface-mode")
def test_an_approval_relabelled_for_another_surface_does_not_count() -> None:
    spec = spec_of(LIVE["stripe"][0], LIVE["alpaca"][0])
    forged = approved(spec, "alpaca").model_copy(update={"surface": "stripe"})
    report = check(spec, POLICY, NOW, approvals=[forged])
    assert {finding.code for finding in report.refusals} == {"H7.stripe-live", "H7.alpaca-live"}


@requirement("gate.approvals")
def test_one_valid_approval_among_bad_ones_is_found_whatever_the_order() -> None:
    spec = spec_of(LIVE["stripe"][0])
    good = approved(spec, "stripe")
    bad = [approved(spec, "stripe", now=NOW - 2 * HOUR), good.model_copy(update={"operator": "ben@example.com"})]
    for approvals in ([*bad, good], [good, *bad]):
        assert check(spec, POLICY, NOW, approvals=approvals).approvals == (good,)


@requirement("gate.approvals")
def test_an_approval_that_the_spec_does_not_need_is_not_recorded() -> None:
    live = spec_of(LIVE["stripe"][0])
    report = check(spec_of(), POLICY, NOW, approvals=[approved(live, "stripe")])
    assert report.ok
    assert report.approvals == ()


@requirement("H7.alpaca-paper-gate")
@pytest.mark.parametrize(
    ("evidence", "policy"),
    [
        (None, POLICY),
        ({**PAPER_GATE, "passed_at": "2026-06-21T00:00:00Z"}, POLICY),
        (PAPER_GATE, POLICY.tightened({"alpaca_paper_cycles": 4})),
    ],
    ids=["none", "dated in the future", "too few cycles"],
)
def test_live_trading_without_the_paper_gates_evidence_is_refused_even_when_approved(
    evidence: dict[str, Any] | None, policy: Policy
) -> None:
    spec = spec_of({"surfaces.alpaca": {"mode": "live", "paper_gate": evidence}})
    report = check(spec, policy, NOW, approvals=[approved(spec, "alpaca")])
    assert [(finding.code, finding.surface) for finding in report.refusals] == [("H7.alpaca-paper-gate", "alpaca")]
    assert report.refusals[0].mend


@requirement("H7.apple-designated-task")
@pytest.mark.parametrize("slug", ["nightly-report", "iap-notif-handler-2", "my-iap-notif-handler"])
def test_apple_production_for_a_task_that_is_not_designated_is_refused_even_when_approved(slug: str) -> None:
    spec = spec_of({"surfaces.apple_iap.environment": "production", "task_slug": slug})
    report = check(spec, POLICY, NOW, approvals=[approved(spec, "apple_iap", "production")])
    assert [(finding.code, finding.surface) for finding in report.refusals] == [
        ("H7.apple-designated-task", "apple_iap")
    ]
    assert report.refusals[0].mend


@requirement("gate.total")
def test_a_key_that_cannot_be_read_in_a_policy_made_in_code_has_approved_nothing() -> None:
    spec = spec_of(LIVE["stripe"][0])
    approval = approved(spec, "stripe")
    unreadable = Policy(operators={"anna@example.com": ("ed25519:none",)})
    assert [finding.code for finding in check(spec, unreadable, NOW, approvals=[approval]).refusals] == [
        "H7.stripe-live"
    ]
    both = Policy(operators={"anna@example.com": ("ed25519:none", str(ANNA.public))})
    assert check(spec, both, NOW, approvals=[approval]).ok
