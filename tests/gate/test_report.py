"""The gate as a function: pure, total, its report complete, and its checklist the ADR's §6.2."""

from __future__ import annotations

import ast
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from agent_token_injector import gate_rules, policy
from agent_token_injector.approval import NEEDS_APPROVAL
from agent_token_injector.errors import ExitCode, GateRefused, SpecError
from agent_token_injector.gate import GateReport, check
from agent_token_injector.names import Layout, VaultPath
from agent_token_injector.policy import Policy
from agent_token_injector.spec import HandoffSpec, InfisicalRequest, Surfaces
from tests.gate.cases import REFUSED, WARNED
from tests.gate.good import NOW, Case, spec_of
from tests.requirements import requirement
from tests.strategies import spec_documents

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
SPECS: Final = sorted(EXAMPLES.glob("*/handoff-spec.json"))
CONTEXT_LINES: Final = {
    "H3.lifetime": ("Handoff expires at (UTC)",),
    "H3.lifetime-positive": ("Handoff expires at (UTC)", "Expected runtime"),
    "H3.runtime": ("Expected runtime",),
    "H5.operator": ("Operator who approved",),
    "H5.card": ("Linked card",),
}


class _FaxSurfaces(Surfaces):
    """A surface that somebody added without writing down who ends it."""

    fax: InfisicalRequest = InfisicalRequest()


def fax_report() -> GateReport:
    spec = spec_of()
    surfaces = _FaxSurfaces(**{name: getattr(spec.surfaces, name) for name in Surfaces.model_fields})
    return check(spec.model_copy(update={"surfaces": surfaces}), Policy(), NOW)


def the_checklist_says_it_all(report: GateReport) -> None:
    """Assert that boxes are open exactly when something is refused, and that each refusal shows in one."""
    unticked = [item for item in report.checklist if item.mark == " "]
    assert bool(unticked) == (not report.ok)
    for finding in report.refusals:
        in_detail = any(f"({finding.code})" in line for item in unticked for line in item.detail)
        lines = [item.title for item in unticked if item.section == "Task context"]
        in_context = any(title.startswith(line) for title in lines for line in CONTEXT_LINES.get(finding.code, ()))
        assert in_detail or in_context, f"no box shows {finding}"


@requirement("gate.examples")
@pytest.mark.parametrize("path", SPECS, ids=[path.parent.name for path in SPECS])
def test_every_example_passes_the_gate(path: Path) -> None:
    report = check(HandoffSpec.load(path), Policy(), NOW)
    assert report.refusals == ()
    the_checklist_says_it_all(report)


@requirement("gate.checklist")
def test_the_checklist_has_the_adrs_boxes_in_the_adrs_order() -> None:
    report = check(spec_of(), Policy(), NOW)
    boxes = [item.title for item in report.checklist if item.section == "Surface checklist"]
    context = [item.title for item in report.checklist if item.section == "Task context"]
    starts = [
        "Infisical",
        "GitHub",
        "Cloud/CI",
        "MCP tools",
        "session_context",
        "Velvet",
        "Revocation path",
        "Audit path",
    ]
    assert len(boxes) == len(starts)
    assert all(title.startswith(start) for title, start in zip(boxes, starts, strict=True))
    assert context == [
        "Task slug: nightly-report",
        "Expected runtime: 20 min",
        "Handoff expires at (UTC): 2026-06-20T12:45:00Z",
        "Operator who approved: operator@example.com",
        "Linked card: #3206",
    ]


@requirement("gate.checklist")
def test_a_surface_that_the_task_does_not_touch_has_a_dash() -> None:
    spec = HandoffSpec.load(EXAMPLES / "minimal" / "handoff-spec.json")
    marks = {item.title.partition(":")[0]: item.mark for item in check(spec, Policy(), NOW).checklist}
    assert (marks["GitHub"], marks["Cloud/CI creds"], marks["Infisical"]) == ("-", "-", "x")


@requirement("H8.kill-switch")
def test_every_requested_surface_has_its_revocation_path_in_the_checklist() -> None:
    report = check(spec_of(), Policy(), NOW)
    box = next(item for item in report.checklist if item.title.startswith("Revocation path"))
    assert [line.partition(":")[0] for line in box.detail] == list(spec_of().surfaces.requested())


@requirement("H8.kill-switch", "H1.surface")
def test_a_surface_that_nobody_knows_how_to_end_is_refused() -> None:
    report = fax_report()
    assert [(finding.code, finding.surface) for finding in report.refusals] == [
        ("H1.surface", "fax"),
        ("H8.kill-switch", "fax"),
    ]
    the_checklist_says_it_all(report)


@requirement("gate.checklist")
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.code}: {case.name}")
def test_every_refusal_shows_in_the_checklist(case: Case) -> None:
    the_checklist_says_it_all(check(spec_of(case.change), case.policy, NOW))


@requirement("gate.checklist", "gate.total")
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(REFUSED + WARNED), min_size=1, max_size=6))
def test_any_combination_of_faults_is_reported_and_shows_in_the_checklist(found: list[Case]) -> None:
    try:
        spec = spec_of(*(case.change for case in found))
    except SpecError:
        # One case took out what another changes a part of: that is no spec at all.
        reject()
    policies = [case.policy for case in found if case.policy != Policy()]
    report = check(spec, policies[-1] if policies else Policy(), NOW)
    the_checklist_says_it_all(report)
    assert all(finding.mend and finding.what for finding in report.findings)


@requirement("gate.total", "gate.checklist", "gate.pure")
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(spec_documents, st.datetimes(timezones=st.just(UTC)))
def test_whatever_a_spec_says_the_gate_answers_and_answers_the_same_again(
    document: dict[str, Any], now: datetime
) -> None:
    spec = HandoffSpec.parse(json.dumps(document))
    report = check(spec, Policy(), now)
    the_checklist_says_it_all(report)
    assert check(HandoffSpec.parse(json.dumps(document)), Policy(), now) == report
    assert GateReport.model_validate_json(report.model_dump_json()) == report


@requirement("gate.total")
@pytest.mark.parametrize("left_out", [*Policy().surface_lifetimes, "all"])
def test_a_policy_without_a_surfaces_ceiling_allows_that_surface_no_time_at_all(left_out: str) -> None:
    ceilings = {name: span for name, span in Policy().surface_lifetimes.items() if left_out not in (name, "all")}
    spec = spec_of(
        {f"surfaces.{name}.expires_in": "PT10M" for name in ("stripe", "github", "cloudflare", "heroku", "alpaca")},
        {"surfaces.github.method": "fine-grained-pat"} if left_out == "github:fine-grained-pat" else {},
    )
    codes = {
        (finding.code, finding.surface) for finding in check(spec, Policy(surface_lifetimes=ceilings), NOW).refusals
    }
    assert ("H1.policy-loosened", "policy") in codes
    surface = "aws" if left_out == "all" else left_out.partition(":")[0]
    assert ("H3.surface-lifetime", surface) in codes


@requirement("gate.pure")
def test_the_report_depends_on_the_moment_given_and_on_no_clock() -> None:
    first = check(spec_of(), Policy(), NOW)
    assert first == check(spec_of(), Policy(), NOW)
    later = check(spec_of(), Policy(), NOW + timedelta(days=1))
    assert (first.handoff_id, later.handoff_id) == ("nightly-report-20260620", "nightly-report-20260621")
    assert later.checked_at == NOW + timedelta(days=1)


@requirement("gate.pure")
def test_the_handoffs_own_path_is_of_the_day_and_under_the_configured_root() -> None:
    layout = Layout(VaultPath("/Other"))
    own = spec_of({"surfaces.infisical.read": ["/Other/handoffs/nightly-report-20260620/*"]})
    assert check(own, Policy(), NOW, layout=layout).ok
    assert not check(own, Policy(), NOW + timedelta(days=1), layout=layout).ok
    assert not check(own, Policy(), NOW).ok


@requirement("gate.report-json")
def test_the_report_goes_to_json_and_back() -> None:
    for case in (*REFUSED[::25], *WARNED):
        report = check(spec_of(case.change), case.policy, NOW)
        document = json.loads(json.dumps(report.to_dict()))
        assert document.pop("ok") is report.ok
        assert GateReport.model_validate_json(json.dumps(document)) == report


@requirement("gate.bound")
def test_the_report_names_the_spec_and_the_policy_that_it_judged() -> None:
    tight = Policy().tightened({"max_lifetime": "PT2H"})
    report = check(spec_of(), tight, NOW)
    assert (report.spec_digest, report.policy_digest) == (spec_of().digest, tight.digest)


@requirement("gate.refused-error")
def test_a_refusal_raises_with_every_finding_and_the_gates_exit_code() -> None:
    check(spec_of(), Policy(), NOW).raise_if_refused()
    report = check(spec_of({"operator": "", "card": "", "mcp_tools": []}), Policy(), NOW)
    with pytest.raises(GateRefused) as caught:
        report.raise_if_refused()
    assert caught.value.findings == report.refusals
    assert {"H5.operator", "H5.card", "mcp.empty"} == {finding.code for finding in report.refusals}
    assert caught.value.exit_code is ExitCode.GATE_REFUSED
    assert caught.value.hint == report.refusals[0].mend


@requirement("gate.codes")
def test_every_code_that_the_gate_can_give_is_shown_by_a_case_and_no_other_is() -> None:
    here = Path(gate_rules.__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (*here.glob("*.py"), Path(policy.__file__))]
    strings = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    known = {
        text
        for text in strings
        if isinstance(text, str) and re.fullmatch(r"(?:H[1-8]|D7|mcp)\.[a-z]+(?:-[a-z]+)*", text)
    }
    # The one code that is put together from its parts.
    known |= {f"H7.{surface.replace('_', '-')}-{mode}" for surface, mode in NEEDS_APPROVAL.items()}

    # These two need an approval beside the spec; test_live_finance.py shows them alone.
    live = spec_of({"surfaces.alpaca": {"mode": "live"}, "surfaces.apple_iap.environment": "production"})
    shown = {case.code for case in (*REFUSED, *WARNED)}
    shown |= {finding.code for finding in (*fax_report().refusals, *check(live, Policy(), NOW).refusals)}
    assert shown == known


@requirement("gate.total")
def test_a_moment_in_another_zone_is_judged_as_the_same_moment() -> None:
    shifted = NOW.astimezone(timezone(timedelta(hours=2)))
    assert check(spec_of(), Policy(), shifted).ok
