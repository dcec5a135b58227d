"""Operator approvals: one person's word, for one exact spec, surface and mode, for a short time (H7)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from agent_token_injector.approval import (
    APPROVAL_TYPE,
    Approval,
    approvals_path,
    load_approvals,
    parse_approvals,
    required_approvals,
    sign_approval,
)
from agent_token_injector.errors import ApprovalError, SpecError
from agent_token_injector.signing import SigningKey
from agent_token_injector.spec import SPEC_TYPE
from tests.gate.cases_vendors import PAPER_GATE
from tests.gate.good import NOW, spec_of
from tests.requirements import requirement

ANNA: Final = SigningKey.from_seed(b"a" * 32)
BEN: Final = SigningKey.from_seed(b"b" * 32)
OPERATORS: Final = {"anna@example.com": (str(ANNA.public),), "ben@example.com": (str(BEN.public),)}
HOUR: Final = timedelta(hours=1)
LIVE: Final = spec_of({"surfaces.stripe.mode": "live"})
GOOD: Final = sign_approval(
    LIVE, surface="stripe", mode="live", operator="anna@example.com", key=ANNA, now=NOW, valid_for=HOUR
)


def problem(approval: Approval, *, spec_digest: str = LIVE.digest, now: datetime = NOW) -> str | None:
    return approval.problem(spec_digest, OPERATORS, now)


@requirement("approval.signed")
def test_an_approval_says_who_approved_what_and_until_when() -> None:
    assert (GOOD.spec_digest, GOOD.task_slug) == (LIVE.digest, "nightly-report")
    assert (GOOD.surface, GOOD.mode, GOOD.operator) == ("stripe", "live", "anna@example.com")
    assert (GOOD.approved_at, GOOD.expires_at, GOOD.key_id) == (NOW, NOW + HOUR, ANNA.key_id)
    assert problem(GOOD) is None


@requirement("approval.expiry")
@pytest.mark.parametrize(
    ("at", "why"),
    [
        (NOW + HOUR - timedelta(seconds=1), None),
        (NOW + HOUR, "expired"),
        (NOW + timedelta(days=365), "expired"),
        # Two honest clocks may differ by a little.
        (NOW - timedelta(minutes=5), None),
        (NOW - timedelta(minutes=5, seconds=1), "future"),
        (datetime.min.replace(tzinfo=UTC), "future"),
    ],
)
def test_an_approval_holds_from_when_it_was_given_until_it_expires(at: datetime, why: str | None) -> None:
    found = problem(GOOD, now=at)
    assert found is None if why is None else why in (found or "")


@requirement("approval.spec-digest")
def test_an_approval_of_one_spec_is_none_of_another() -> None:
    edited = spec_of({"surfaces.stripe.mode": "live", "operator": "other@example.com"})
    assert "edited" in (problem(GOOD, spec_digest=edited.digest) or "")


@requirement("approval.listed-operator")
def test_an_operator_that_is_not_listed_has_approved_nothing() -> None:
    assert "not an operator" in (GOOD.problem(LIVE.digest, {}, NOW) or "")
    assert "not an operator" in (
        GOOD.problem(LIVE.digest, {"ben@example.com": OPERATORS["ben@example.com"]}, NOW) or ""
    )
    assert "not an operator" in (GOOD.problem(LIVE.digest, {"anna@example.com": ()}, NOW) or "")


@requirement("approval.listed-operator")
def test_one_operators_key_does_not_sign_in_anothers_name() -> None:
    forged = sign_approval(
        LIVE, surface="stripe", mode="live", operator="anna@example.com", key=BEN, now=NOW, valid_for=HOUR
    )
    assert "not an operator" in (problem(forged) or "")
    assert "altered" in (problem(forged.model_copy(update={"key_id": ANNA.key_id})) or "")


@requirement("approval.listed-operator")
def test_an_operator_may_have_several_keys() -> None:
    both = {"anna@example.com": (str(BEN.public), str(ANNA.public))}
    assert GOOD.problem(LIVE.digest, both, NOW) is None


@requirement("approval.altered")
@pytest.mark.parametrize("name", [name for name in Approval.model_fields if name != "type"])
def test_an_approval_altered_in_any_field_is_refused(name: str) -> None:
    value = getattr(GOOD, name)
    other = (
        value + HOUR / 2 if isinstance(value, datetime) else "ben@example.com" if name == "operator" else f"{value}0"
    )
    altered = GOOD.model_copy(update={name: other})
    # Whatever the field is, its bearer gains nothing: neither for the approved spec nor for the one it now names.
    assert problem(altered) is not None
    assert problem(altered, spec_digest=altered.spec_digest) is not None


@requirement("approval.altered")
@settings(max_examples=150)
@given(st.data())
def test_an_approvals_file_with_one_character_changed_is_unreadable_or_refused_or_says_the_same(
    data: st.DataObject,
) -> None:
    text = json.dumps([GOOD.to_dict()])
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(exclude_categories=["Cs"])) + text[at + 1 :]
    try:
        (found,) = parse_approvals(changed)
    except (SpecError, ValueError):
        return
    assert problem(found) is not None or found == GOOD


@requirement("approval.type-tag")
def test_a_signature_over_the_same_words_as_another_kind_of_document_does_not_count() -> None:
    part = GOOD.signed_part()
    for tag in (SPEC_TYPE, "agent_token_injector/approval/v2", "agent_token_injector/manifest/v1", ""):
        assert "altered" in (problem(GOOD.model_copy(update={"signature": ANNA.sign(tag, part)})) or "")
    assert problem(GOOD.model_copy(update={"signature": ANNA.sign(APPROVAL_TYPE, part)})) is None


@requirement("approval.surface-mode")
@pytest.mark.parametrize(
    ("surface", "mode"),
    [
        *(("stripe", "test"), ("stripe", "production"), ("alpaca", "live"), ("apple_iap", "production")),
        *(("github", "live"), ("", ""), ("Stripe", "live"), ("stripe", "LIVE"), ("*", "live")),
    ],
)
def test_what_the_spec_does_not_ask_for_cannot_be_approved(surface: str, mode: str) -> None:
    with pytest.raises(ApprovalError, match="cannot be approved") as caught:
        sign_approval(LIVE, surface=surface, mode=mode, operator="a", key=ANNA, now=NOW, valid_for=HOUR)
    assert "stripe live" in (caught.value.cause or "")


@requirement("approval.surface-mode")
def test_a_spec_in_test_mode_needs_and_takes_no_approval() -> None:
    assert required_approvals(spec_of()) == ()
    with pytest.raises(ApprovalError, match="cannot be approved"):
        sign_approval(spec_of(), surface="stripe", mode="live", operator="a", key=ANNA, now=NOW, valid_for=HOUR)


@requirement("approval.surface-mode")
def test_every_live_or_production_mode_needs_an_approval_of_its_own() -> None:
    spec = spec_of(
        {"surfaces.stripe.mode": "live", "surfaces.alpaca": {"mode": "live", "paper_gate": PAPER_GATE}},
        {"surfaces.apple_iap.environment": "production"},
    )
    assert required_approvals(spec) == (("stripe", "live"), ("alpaca", "live"), ("apple_iap", "production"))


@requirement("approval.listed-operator")
@pytest.mark.parametrize("operator", ["", " ", "\n"])
def test_nobody_cannot_approve(operator: str) -> None:
    with pytest.raises(ApprovalError, match="operator"):
        sign_approval(LIVE, surface="stripe", mode="live", operator=operator, key=ANNA, now=NOW, valid_for=HOUR)


@requirement("approval.file")
def test_an_approval_goes_to_its_file_and_back_and_still_holds() -> None:
    (found,) = parse_approvals(json.dumps([GOOD.to_dict()]))
    assert found == GOOD
    assert problem(found) is None
    assert parse_approvals(b"[]") == ()


@requirement("approval.file")
def test_approvals_lie_beside_the_spec() -> None:
    assert approvals_path(Path("a") / "handoff-spec.json") == Path("a") / "handoff-spec.approvals.json"


def written(**changes: Any) -> str:
    return json.dumps([{**GOOD.to_dict(), **changes}])


@requirement("approval.file")
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{}",
            "null",
            "[1]",
            "[[]]",
            '["x"]',
            "[null]",
            "[{}]",
            "[NaN]",
            "[1e999]",
            '["\\ud800"]',
            b"\xff",
            "[" * 500,
        ),
        *(
            written(extra=1),
            written(type="other"),
            written(expires_at="2026-06-20T13:00:00"),
            written(expires_at="never"),
        ),
        *(written(signature=None), written(operator=1), written(spec_digest=["x"]), '[{"type":"a","type":"b"}]'),
        *(json.dumps({"approvals": [GOOD.to_dict()]}), json.dumps(GOOD.to_dict()), json.dumps([[GOOD.to_dict()]])),
    ],
)
def test_what_is_not_an_approvals_file_is_refused(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        parse_approvals(text)


@requirement("spec.regular-file")
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/proc/self", "/nowhere/x.approvals.json"])
def test_an_approvals_file_that_is_no_file_is_refused_and_not_read(path: str) -> None:
    with pytest.raises(SpecError, match=path) as caught:
        load_approvals(Path(path))
    assert "handoff approve" in (caught.value.hint or "")


@requirement("approval.file")
def test_an_approvals_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.approvals.json"
    path.write_text(json.dumps([GOOD.to_dict()]))
    assert load_approvals(path) == (GOOD,)


@requirement("approval.altered")
def test_an_approval_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        GOOD.mode = "test"  # type: ignore[misc]


@requirement("H6.key-hidden")
def test_an_approval_holds_no_private_key() -> None:
    shown = repr(GOOD) + json.dumps(GOOD.to_dict())
    assert ANNA.seed().hex() not in shown
    assert "a" * 32 not in shown
