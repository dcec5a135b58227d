"""The policy: the ADR's ceilings as data, which an operator may lower and nobody may raise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from agent_token_injector.errors import ExitCode, SettingsError
from agent_token_injector.policy import (
    GITHUB_PERMISSIONS,
    GRANTED_NAMES,
    REVOCATION_PATHS,
    STRIPE_ALIASES,
    STRIPE_READABLE,
    STRIPE_WRITABLE,
    Policy,
    name_matches,
)
from agent_token_injector.signing import SigningKey
from agent_token_injector.spec import Surfaces
from tests.gate.cases_task import LOOSENED
from tests.requirements import requirement

LIFETIMES: Final = {name: span.total_seconds() for name, span in Policy().surface_lifetimes.items()}
BRANCHES: Final = ["main", "master", "staging", "production"]

# field -> (tighter values, looser values), as an operator's policy file writes them
FIELDS: Final[dict[str, tuple[list[Any], list[Any]]]] = {
    "max_lifetime": (["PT24H", "PT8H", "PT1S", 60], ["PT24H1S", "P30D", "PT0S", "-PT1H"]),
    "max_lifetime_without_enrolment": (["PT1H", "PT30M"], ["PT1H1S", "PT24H", "PT0S"]),
    "vault_token_ttl": (["PT15M", "PT5M"], ["PT15M1S", "PT1H", "PT0S", "-PT15M"]),
    "surface_lifetimes": (
        [LIFETIMES, {**LIFETIMES, "aws": "PT15M"}, dict.fromkeys(LIFETIMES, "PT15M")],
        [
            *({**LIFETIMES, "aws": "PT2H"}, {**LIFETIMES, "stripe": "PT0S"}, {**LIFETIMES, "fax": "PT1M"}, {}),
            *({"aws": "PT15M"}, {name: span for name, span in LIFETIMES.items() if name != "heroku"}),
        ],
    ),
    "surfaces": ([["infisical"], [], sorted(REVOCATION_PATHS)], [["infisical", "fax"], ["*"]]),
    "github_permissions": (
        [{"contents": "read"}, {}, dict(GITHUB_PERMISSIONS)],
        [{"secrets": "read"}, {"contents": "write", "administration": "read"}, {"*": "read"}],
    ),
    "protected_branches": ([BRANCHES, [*BRANCHES, "release"]], [["main"], [], ["main", "master", "staging"]]),
    "stripe_readable": ([["subscription"], []], [[*sorted(STRIPE_READABLE), "keys"], ["*"]]),
    "stripe_writable": ([["subscription"], []], [[*sorted(STRIPE_WRITABLE), "charge"], ["customer"]]),
    "aws_actions": ([["ssm:GetParameter"], []], [["ssm:GetParameter", "iam:PassRole"], ["*"], ["s3:*"]]),
    "cloudflare_permissions": (
        [{"dns": "read"}, {}],
        [{"zone": "write"}, {"zone settings": "read"}, {"bot management": "write"}],
    ),
    "heroku_permissions": ([{"deploy": "read"}, {}], [{"scale": "write"}, {"deploy": "write", "billing": "read"}]),
    "apple_production_tasks": ([[], ["iap-notif-handler"]], [["iap-notif-handler", "other"], ["*"]]),
    "alpaca_paper_cycles": ([1, 5], [0, -1]),
    "max_approval_age": (["PT24H", "PT10M"], ["PT24H1S", "P30D", "PT0S"]),
    "audit_retention_days": ([90, 365], [89, 0, -1]),
}
TIGHTER: Final = [(name, value) for name, (tighter, _) in FIELDS.items() for value in tighter]
LOOSER: Final = [(name, value) for name, (_, looser) in FIELDS.items() for value in looser]


@requirement("policy.adr-ceilings")
def test_the_defaults_are_the_adrs_own_numbers() -> None:
    adr = Policy()
    hour = timedelta(hours=1)
    assert (adr.max_lifetime, adr.max_lifetime_without_enrolment) == (24 * hour, hour)
    assert (adr.vault_token_ttl, adr.audit_retention_days) == (timedelta(minutes=15), 90)
    assert (adr.surface_lifetimes["github:app-installation"], adr.surface_lifetimes["aws"]) == (hour, hour)
    assert max(adr.surface_lifetimes.values()) == 24 * hour
    assert adr.github_permissions == {"contents": "write", "pull_requests": "write", "issues": "write"}
    assert {"main", "staging"} <= adr.protected_branches
    assert adr.apple_production_tasks == {"iap-notif-handler"}
    assert (adr.operators, adr.velvet_enrolment) == ({}, False)
    assert adr.loosened() == ()


@requirement("policy.adr-ceilings")
def test_the_policys_tables_speak_of_the_specs_surfaces() -> None:
    surfaces = set(Surfaces.model_fields)
    assert Policy().surfaces == set(REVOCATION_PATHS) == set(GRANTED_NAMES) == surfaces
    assert {name.partition(":")[0] for name in Policy().surface_lifetimes} == surfaces - {"infisical"}
    assert STRIPE_WRITABLE <= STRIPE_READABLE
    assert not {"charge", "customer", "payout", "transfer", "webhook", "customer_portal"} & STRIPE_WRITABLE
    assert not set(STRIPE_ALIASES) & set(STRIPE_ALIASES.values())


@requirement("policy.tighten-only")
def test_every_field_of_the_policy_is_tested_here_or_is_the_configurations_to_set() -> None:
    assert set(FIELDS) == set(Policy.model_fields) - {"operators", "velvet_enrolment"}
    assert {case.name.removesuffix(" looser") for case in LOOSENED} == set(FIELDS)


@requirement("policy.tighten-only")
@pytest.mark.parametrize(("name", "value"), TIGHTER, ids=str)
def test_a_tighter_value_is_accepted_and_is_not_counted_as_loosened(name: str, value: Any) -> None:
    tight = Policy().tightened({name: value})
    assert tight.loosened() == ()
    others = {field: getattr(tight, field) for field in Policy.model_fields if field != name}
    assert others == {field: getattr(Policy(), field) for field in others}
    same = getattr(tight, name) == getattr(Policy(), name)
    assert (tight.digest == Policy().digest) == same


@requirement("policy.tighten-only")
@pytest.mark.parametrize(("name", "value"), LOOSER, ids=str)
def test_a_looser_value_is_refused_with_its_field(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match="loosen") as caught:
        Policy().tightened({name: value})
    assert caught.value.path == name
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.hint


@requirement("policy.tighten-only")
@pytest.mark.parametrize("name", ["operators", "velvet_enrolment", "max_lifetme", "", "digest", "model_config"])
def test_a_field_that_the_policy_file_cannot_set_is_refused(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Policy().tightened({"max_lifetime": "PT1H", name: True})
    assert caught.value.path == name
    assert "max_lifetime" in (caught.value.hint or "")


@requirement("policy.tighten-only")
@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"max_lifetime": "soon"}, "max_lifetime"),
        ({"max_lifetime": None}, "max_lifetime"),
        ({"max_lifetime": "P99999999999D"}, "max_lifetime"),
        ({"github_permissions": {"contents": "admin"}}, "github_permissions.contents"),
        ({"github_permissions": ["contents"]}, "github_permissions"),
        ({"surface_lifetimes": {"aws": "x"}}, "surface_lifetimes.aws"),
        ({"surfaces": "infisical"}, "surfaces"),
        ({"audit_retention_days": "for ever"}, "audit_retention_days"),
        ({"alpaca_paper_cycles": 1.5}, "alpaca_paper_cycles"),
    ],
)
def test_a_value_that_is_not_one_is_refused_with_its_path(document: dict[str, Any], path: str) -> None:
    with pytest.raises(SettingsError, match="not usable") as caught:
        Policy().tightened(document)
    assert caught.value.path == path


@requirement("policy.tighten-only")
def test_what_was_tightened_is_not_loosened_again_not_even_back_to_the_adr() -> None:
    tight = Policy().tightened({"max_lifetime": "PT2H", "github_permissions": {"contents": "read"}})
    for document in ({"max_lifetime": "PT3H"}, {"github_permissions": {"contents": "write"}}):
        with pytest.raises(SettingsError, match="loosen"):
            tight.tightened(document)
    assert tight.tightened({"max_lifetime": "PT1H"}).max_lifetime == timedelta(hours=1)


@requirement("policy.tighten-only")
def test_one_looser_field_among_tighter_ones_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        Policy().tightened({"max_lifetime": "PT1H", "vault_token_ttl": "PT1H"})
    assert caught.value.path == "vault_token_ttl"


@requirement("policy.tighten-only")
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("github_permissions", lambda policy: policy.github_permissions.update(secrets="write")),
        ("surface_lifetimes", lambda policy: policy.surface_lifetimes.clear()),
        ("heroku_permissions", lambda policy: policy.heroku_permissions.update(scale="write")),
    ],
)
def test_a_policy_changed_in_place_is_seen_as_loosened_and_no_other_policy_changes(
    name: str, change: Callable[[Policy], None]
) -> None:
    policy = Policy()
    change(policy)
    assert policy.loosened() == (name,)
    assert Policy().loosened() == ()


@requirement("policy.digest")
def test_the_digest_does_not_depend_on_the_order_of_a_set() -> None:
    one = Policy().tightened({"surfaces": ["github", "infisical", "stripe"]})
    other = Policy().tightened({"surfaces": ["stripe", "infisical", "github"]})
    assert one.digest == other.digest != Policy().digest
    assert Policy().digest.startswith("sha256:")


@requirement("policy.operators")
def test_operators_come_from_the_configuration_and_change_the_digest() -> None:
    key = str(SigningKey.from_seed(b"a" * 32).public)
    policy = Policy().with_operators({"anna@example.com": (key,)})
    assert policy.operators == {"anna@example.com": (key,)}
    assert policy.digest != Policy().digest
    assert policy.loosened() == ()
    with pytest.raises(SettingsError):
        Policy().with_operators({"anna@example.com": (key, "ed25519:none")})


@requirement("D7.env-loader")
@pytest.mark.parametrize(
    ("name", "pattern", "found"),
    [
        ("LD_PRELOAD", "LD_*", True),
        ("ld_preload", "LD_*", True),
        ("XLD_PRELOAD", "LD_*", False),
        ("LD_", "LD_*", True),
        ("MY_ADMIN_X", "*ADMIN*", True),
        ("ADMIN", "*ADMIN*", True),
        ("DB_TOKEN", "*_TOKEN", True),
        ("TOKEN", "*_TOKEN", False),
        ("DB_TOKENS", "*_TOKEN", False),
        ("ENV", "ENV", True),
        ("ENVIRONMENT", "ENV", False),
    ],
)
def test_a_name_matches_a_pattern_at_either_end_in_any_case(name: str, pattern: str, found: bool) -> None:
    assert name_matches(name, (pattern,)) is found
    assert not name_matches(name, ())
