"""Everything that the gate refuses: one change to a good spec, and exactly one reason in the report."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from agent_token_injector.errors import SpecError
from agent_token_injector.gate import GateReport, check
from agent_token_injector.policy import GRANTED_NAMES, Policy
from tests.gate import cases, cases_task, cases_tools, cases_vendors
from tests.gate.good import ACCOUNT, NOW, Case, spec_of
from tests.gate.spellings import BYPASS_SPELLED, SECRETS_SPELLED
from tests.requirements import requirement


def each(found: Iterable[Case]) -> pytest.MarkDecorator:
    """Every case as a test of its own, tagged with the finding that it shows."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=f"{case.code}: {case.name}", marks=pytest.mark.requirement(case.code))
            for case in found
        ],
    )


def refused(case: Case) -> GateReport:
    """The gate's report on a case, once it is sure that it refuses for this one reason, and says how to mend it."""
    report = check(spec_of(case.change), case.policy, NOW)
    assert {(finding.code, finding.surface) for finding in report.refusals} == {(case.code, case.surface)}
    assert all(finding.mend.strip() and finding.what.strip() for finding in report.findings)
    assert not report.ok
    return report


@requirement("gate.good-spec")
def test_the_spec_that_every_case_changes_is_accepted_with_every_surface_and_every_box() -> None:
    report = check(spec_of(), Policy(), NOW)
    assert report.refusals == ()
    assert {item.mark for item in report.checklist} == {"x"}


@each(cases_task.TASK)
def test_a_handoff_that_nobody_answers_for_or_that_has_no_card_is_refused(case: Case) -> None:
    refused(case)


@each(cases_task.LIFETIME)
def test_a_lifetime_over_its_ceiling_or_that_nobody_ends_is_refused(case: Case) -> None:
    refused(case)


@each(cases_task.SURFACE_LIFETIME)
def test_a_credential_asked_for_longer_than_its_surface_allows_is_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.GITHUB)
def test_github_access_beyond_one_repository_three_permissions_and_unprotected_branches_is_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.FORBIDDEN_PERMISSIONS)
def test_actions_secrets_and_protection_bypass_are_refused_as_permissions_under_any_name(case: Case) -> None:
    refused(case)


@each(cases_tools.FORBIDDEN_TOOLS)
def test_actions_secrets_and_protection_bypass_are_refused_as_tools_under_any_name(case: Case) -> None:
    refused(case)


@requirement("H1.actions-secrets", "H1.protection-bypass")
@pytest.mark.parametrize("name", [*SECRETS_SPELLED, *BYPASS_SPELLED])
def test_actions_secrets_and_protection_bypass_are_refused_as_surfaces_under_any_name(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of({"surfaces": {name: {}}})
    assert caught.value.path == f"surfaces.{name}"


@requirement("H1.actions-secrets", "H1.protection-bypass")
@pytest.mark.parametrize(
    "path",
    [
        *("surfaces.github_actions_secrets", "surfaces.branchProtection", "surfaces.github.secrets"),
        *("surfaces.github.bypass_branch_protection", "surfaces.github.admin"),
    ],
)
def test_a_surface_that_is_forbidden_by_design_is_told_so_rather_than_called_a_typing_error(path: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of({path: {}})
    assert caught.value.path == path
    assert "forbidden by design" in str(caught.value)


@each(cases_vendors.VAULT)
def test_a_vault_glob_that_is_neither_the_handoffs_own_nor_staging_is_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.STRIPE)
def test_a_stripe_permission_that_moves_money_or_writes_customers_is_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.AWS)
def test_an_aws_wildcard_another_account_or_an_action_not_allowed_is_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.CLOUDFLARE)
def test_cloudflare_settings_bot_management_account_and_every_zone_are_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.HEROKU)
def test_heroku_scale_billing_add_ons_collaborators_and_a_second_purpose_are_refused(case: Case) -> None:
    refused(case)


@each(cases_vendors.LIVE_FINANCE)
def test_live_finance_without_an_approval_is_refused(case: Case) -> None:
    report = refused(case)
    assert "no operator has approved it" in report.refusals[0].what
    assert report.approvals == ()


@each(cases_tools.TOOLS)
def test_a_tool_list_that_is_empty_wide_or_contradicts_itself_is_refused(case: Case) -> None:
    refused(case)


@each(cases_tools.ENVIRONMENT)
def test_admin_loader_and_credential_names_and_secrets_in_plain_values_are_refused(case: Case) -> None:
    report = refused(case)
    if case.code == "H6.secret-in-spec":
        texts = report.model_dump_json()
        assert not any(value in texts for value in cases_tools.CREDENTIAL_VALUES.values())


@requirement("H1.env-admin")
@pytest.mark.parametrize("name", cases_tools.VENDOR)
def test_a_server_may_be_told_a_vendors_address_which_the_agents_own_environment_never_holds(name: str) -> None:
    assert check(spec_of({"mcp_servers.github.plain_env": {name: "x"}}), Policy(), NOW).ok


@requirement("H1.env-admin")
def test_no_plain_value_stands_where_a_minted_credential_would() -> None:
    for name in (name for granted in GRANTED_NAMES.values() for name in granted):
        for place in ("env", "mcp_servers.github.plain_env"):
            report = check(spec_of({place: {name: "x"}}), Policy(), NOW)
            assert [finding.code for finding in report.refusals] == ["H1.env-admin"]


@requirement("gate.innocent-names")
@pytest.mark.parametrize(
    "name",
    [
        *("PASSENGERS", "PASSED", "COMPASS", "BYPASS_CACHE", "MAX_TOKENS", "TOKENIZER", "PATTERN", "LOG_LEVEL"),
        *("REPORT_DAY", "MAKER", "VIMEO_USER", "TERMS", "ENVIRONMENT", "DATABASE_NAME", "REGION", "TF_VAR_REGION"),
    ],
)
def test_a_name_that_only_begins_or_ends_like_a_secrets_or_a_loaders_is_accepted(name: str) -> None:
    for place in ("env", "mcp_servers.github.plain_env"):
        assert check(spec_of({place: {name: "x"}}), Policy(), NOW).ok


@requirement("gate.innocent-names")
@pytest.mark.parametrize(
    "text",
    [
        *("https://api.example:8443/v1", "https://user@host.example/", "redis://cache.example:6379/0", "a:b@c.example"),
        *("global-settings-for-the-nightly-report", "task-" + "a" * 40, "npm_config_registry", "MSG." + "a" * 20),
        *("git@github.com:raxx/TradeMasterAPI.git", "https://a.example/x:y@z", "eyJust-a-word.eyJust"),
    ],
)
def test_a_text_that_only_resembles_a_credential_is_accepted(text: str) -> None:
    assert check(spec_of({"env": {"NOTE": text}}), Policy(), NOW).ok


@requirement("gate.linear")
@pytest.mark.parametrize(
    "text", ["://" + ":" * 60_000, "eyJ" * 20_000, "://:" * 15_000, "SG." * 20_000, "sk-" * 20_000]
)
def test_a_text_made_to_keep_the_gate_busy_does_not(text: str) -> None:
    arguments = {"properties": {"key": {"const": text}}}
    grant = {"name": "list", "server": "github", "tool": "list_issues", "arguments": arguments}
    spec = spec_of({"mcp_tools": [grant]})
    begun = time.process_time()
    assert check(spec, Policy(), NOW).ok
    assert time.process_time() - begun < 5


@requirement("H3.end-unattended")
def test_a_revocation_by_hand_that_names_nobody_is_not_shown_as_one() -> None:
    report = check(spec_of({"revocation": {"by_hand": {"who": ".", "how": "-"}}}), Policy(), NOW)
    assert report.ok
    assert not any("by hand" in line for item in report.checklist for line in item.detail)


@requirement("H1.aws-wildcard")
@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("ssm:GetParameter", f"arn:aws:ssm:eu-west-1:{ACCOUNT}:parameter/raxx/nightly-report/KEY"),
        ("ssm:GetParameter", f"arn:aws:ssm:eu-west-1:{ACCOUNT}:parameter/raxx/nightly-report"),
        ("ssm:GetParameter", f"arn:aws:ssm:eu-west-1:{ACCOUNT}:parameter/raxx/nightly-report/sub/*"),
        ("s3:PutObject", "arn:aws:s3:::raxx-reports/nightly-report/out.csv"),
    ],
)
def test_an_aws_path_of_the_tasks_own_is_accepted(action: str, resource: str) -> None:
    grants = [{"action": action, "resource": resource}]
    assert check(spec_of({"surfaces.aws.grants": grants}), Policy(), NOW).ok


@requirement("H7.stripe-permission")
@pytest.mark.parametrize("name", ["webhook_endpoints", "billing_portal", "webhook", "customer_portal"])
def test_what_answers_a_write_with_a_credential_may_still_be_read(name: str) -> None:
    assert check(spec_of({"surfaces.stripe.permissions": {name: "read"}}), Policy(), NOW).ok


@each(cases_task.NOT_ALLOWED)
def test_a_surface_that_the_operator_took_away_is_refused(case: Case) -> None:
    refused(case)


@each(cases_task.LOOSENED)
def test_a_policy_made_looser_in_code_is_refused_and_its_field_is_named(case: Case) -> None:
    report = refused(case)
    assert case.policy.loosened() == (case.name.removesuffix(" looser"),)
    assert case.policy.loosened()[0] in report.refusals[0].what


@each(cases.WARNED)
def test_what_is_only_doubtful_is_a_warning_and_leaves_the_gate_open(case: Case) -> None:
    report = check(spec_of(case.change), case.policy, NOW)
    assert report.ok
    assert (case.code, case.surface) in {(finding.code, finding.surface) for finding in report.warnings}


@requirement("H2.revoked-by-a-person")
def test_every_surface_that_only_a_person_can_end_is_warned_of() -> None:
    report = check(spec_of(), Policy(), NOW)
    assert {finding.surface for finding in report.warnings} == {"stripe", "alpaca"}


@requirement("H3.surface-lifetime")
@pytest.mark.parametrize(
    ("path", "longest"),
    [
        *(("surfaces.github.expires_in", "PT1H"), ("surfaces.stripe.expires_in", "PT24H")),
        *(("surfaces.aws.duration", "PT1H"), ("surfaces.aws.duration", "PT15M"), ("surfaces.heroku.expires_in", "P1D")),
        *(("surfaces.cloudflare.expires_in", "PT24H"), ("surfaces.alpaca.expires_in", "PT24H")),
        *(("surfaces.apple_iap.expires_in", "PT15M"), ("expires_in", "PT1H")),
    ],
)
def test_a_lifetime_exactly_at_its_ceiling_is_accepted(path: str, longest: str) -> None:
    assert check(spec_of({path: longest}), Policy(), NOW).ok


@requirement("H3.end-unattended")
def test_a_day_is_accepted_when_a_person_is_named_who_ends_it() -> None:
    by_hand = {"who": "operator@example.com", "how": "handoff revoke"}
    assert check(spec_of({"expires_in": "PT24H", "revocation": {"by_hand": by_hand}}), Policy(), NOW).ok


@requirement("H3.velvet-unavailable")
def test_a_day_is_accepted_with_velvet_where_velvet_is_there() -> None:
    spec = spec_of({"expires_in": "PT24H", "revocation": {"velvet": True}})
    report = check(spec, Policy(velvet_enrolment=True), NOW)
    assert report.ok
    assert any("auto_revoke_after" in line for item in report.checklist for line in item.detail)


@requirement("H1.vault-glob")
@pytest.mark.parametrize(
    "glob",
    [
        *(
            "/MooseQuest/handoffs/nightly-report-20260620/*",
            "/MooseQuest/handoffs/nightly-report-20260620/GH_HANDOFF_TOKEN",
        ),
        *("/MooseQuest/queue/staging/STRIPE_KEY", "/MooseQuest/queue/staging/sub/APPLE_IAP_*", "/staging/KEY"),
        *("/MooseQuest/products/staging/KEY", "/MooseQuest/staging/PROD_*", "/delivery/staging/KEY"),
    ],
)
def test_a_vault_glob_on_the_handoffs_own_path_or_explicitly_staging_is_accepted(glob: str) -> None:
    assert check(spec_of({"surfaces.infisical.read": [glob]}), Policy(), NOW).ok


@requirement("H1.github-protected-push")
@pytest.mark.parametrize("branch", ["handoff/nightly-report", "fix_1.2", "refs/heads/handoff/main-page", "mainline"])
def test_a_branch_of_the_tasks_own_is_accepted(branch: str) -> None:
    assert check(spec_of({"surfaces.github.push_branches": [branch]}), Policy(), NOW).ok


@requirement("H1.actions-secrets")
@pytest.mark.parametrize(
    "grant", ["infisical_get_secret", {"name": "read_secret", "server": "infisical", "tool": "infisical_get_secret"}]
)
def test_the_built_in_vault_is_the_one_server_whose_tool_may_read_secrets(grant: object) -> None:
    assert check(spec_of({"mcp_tools": [grant]}), Policy(), NOW).ok


@requirement("H3.lifetime")
@pytest.mark.parametrize(
    ("tighter", "change", "code"),
    [
        ({"max_lifetime": "PT30M"}, {}, "H3.lifetime"),
        ({"max_lifetime_without_enrolment": "PT30M"}, {}, "H3.end-unattended"),
        ({"github_permissions": {"contents": "write"}}, {}, "H1.github-permission"),
        ({"github_permissions": {"contents": "read", "pull_requests": "write"}}, {}, "H1.github-level"),
        (
            {"protected_branches": ["main", "master", "staging", "production", "release"]},
            {"surfaces.github.push_branches": ["release"]},
            "H1.github-protected-push",
        ),
        ({"stripe_writable": []}, {}, "H7.stripe-permission"),
        ({"cloudflare_permissions": {"zone waf": "read"}}, {}, "H1.cloudflare-permission"),
        ({"heroku_permissions": {"deploy": "write"}}, {}, "H1.heroku-permission"),
    ],
)
def test_a_tightened_policy_refuses_what_the_adr_would_allow(
    tighter: dict[str, object], change: dict[str, object], code: str
) -> None:
    spec = spec_of(change)
    assert check(spec, Policy(), NOW).ok
    report = check(spec, Policy().tightened(tighter), NOW)
    assert [finding.code for finding in report.refusals] == [code]
