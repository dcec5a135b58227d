"""What the gate refuses about the task as a whole, and about the policy it is judged by."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from agent_token_injector.policy import Policy
from tests.gate.good import BY_HAND, GONE, GOOD, Case, cases, spelled

TASK: Final = (
    *cases(
        "H5.operator",
        "task",
        "operator",
        {"no operator": "", "blank operator": "  ", "invisible operator": "\u200b", "field left out": GONE},
    ),
    *cases(
        "H5.card",
        "task",
        "card",
        {
            "no card": "",
            "bare hash": "#",
            "hash and spaces": " # ",
            "invisible": "#\u200b",
            "dash": "-",
            "left out": GONE,
        },
    ),
)

LIFETIME: Final = (
    *cases(
        "H3.lifetime",
        "task",
        "expires_in",
        spelled("PT25H", "PT24H1S", "P2D", "P10000D", "P999999999D"),
        revocation=BY_HAND,
    ),
    *cases("H3.runtime", "task", "expected_runtime", spelled("PT45M1S", "PT2H", "P400D")),
    Case("nothing", {"expires_in": "PT0S", "expected_runtime": "PT0S"}, "H3.lifetime-positive", "task"),
    Case("less than nothing", {"expires_in": "-PT1H", "expected_runtime": "-PT2H"}, "H3.lifetime-positive", "task"),
    Case(
        "far in the past",
        {"expires_in": "-P999999999D", "expected_runtime": "-P999999999D"},
        "H3.lifetime-positive",
        "task",
    ),
    Case("no runtime", {"expected_runtime": "PT0S"}, "H3.lifetime-positive", "task"),
    *cases("H3.end-unattended", "velvet", "expires_in", spelled("PT1H1S", "PT24H")),
    *cases(
        "H3.end-unattended",
        "velvet",
        "revocation",
        {
            f"{who!r} by {how!r}": {"by_hand": {"who": who, "how": how}}
            for who, how in ((".", "-"), ("operator@example.com", "-"), ("?", "handoff revoke"), ("\u200b", "\u200b"))
        },
        expires_in="PT4H",
    ),
    Case("velvet, short", {"revocation": {"velvet": True}}, "H3.velvet-unavailable", "velvet"),
    Case("velvet, long", {"expires_in": "PT4H", "revocation": {"velvet": True}}, "H3.velvet-unavailable", "velvet"),
    Case(
        "velvet beside a person",
        {"expires_in": "PT4H", "revocation": {"velvet": True, **BY_HAND}},
        "H3.velvet-unavailable",
        "velvet",
    ),
)

SURFACE_LIFETIME: Final = (
    *cases("H3.surface-lifetime", "github", "surfaces.github.expires_in", spelled("PT1H1S", "PT24H", "PT0S", "-PT1H")),
    *cases(
        "H3.surface-lifetime",
        "github",
        "surfaces.github.expires_in",
        {"PAT PT24H1S": "PT24H1S", "PAT P90D": "P90D", "PAT PT0S": "PT0S"},
        **{"surfaces.github.method": "fine-grained-pat"},
    ),
    *(
        case
        for surface in ("stripe", "cloudflare", "heroku", "alpaca")
        for case in cases(
            "H3.surface-lifetime",
            surface,
            f"surfaces.{surface}.expires_in",
            spelled("PT24H1S", "P365D", "PT0S", "-PT1S"),
        )
    ),
    *cases("H3.surface-lifetime", "apple_iap", "surfaces.apple_iap.expires_in", spelled("PT15M1S", "PT1H", "PT0S")),
    *cases(
        "H3.surface-lifetime", "aws", "surfaces.aws.duration", spelled("PT1H1S", "PT12H", "PT14M59S", "PT0S", "-PT15M")
    ),
)

NOT_ALLOWED: Final = tuple(
    Case(
        f"{surface} taken away by the operator",
        {},
        "H1.surface",
        surface,
        Policy().tightened({"surfaces": sorted(Policy().surfaces - {surface})}),
    )
    for surface in GOOD["surfaces"]
)

_DAY: Final = timedelta(days=1)
LOOSENED: Final = tuple(
    Case(f"{name} looser", {}, "H5.audit" if name == "audit_retention_days" else "H1.policy-loosened", "policy", policy)
    for name, policy in {
        "max_lifetime": Policy(max_lifetime=timedelta(hours=25)),
        "max_lifetime_without_enrolment": Policy(max_lifetime_without_enrolment=timedelta(hours=2)),
        "vault_token_ttl": Policy(vault_token_ttl=timedelta(minutes=16)),
        "surface_lifetimes": Policy(surface_lifetimes={**Policy().surface_lifetimes, "aws": timedelta(hours=2)}),
        "surfaces": Policy(surfaces=Policy().surfaces | {"fax"}),
        "github_permissions": Policy(github_permissions={**Policy().github_permissions, "secrets": "read"}),
        "protected_branches": Policy(protected_branches=frozenset({"main"})),
        "stripe_readable": Policy(stripe_readable=Policy().stripe_readable | {"keys"}),
        "stripe_writable": Policy(stripe_writable=Policy().stripe_writable | {"charge"}),
        "aws_actions": Policy(aws_actions=Policy().aws_actions | {"iam:PassRole"}),
        "cloudflare_permissions": Policy(
            cloudflare_permissions={**Policy().cloudflare_permissions, "zone settings": "write"}
        ),
        "heroku_permissions": Policy(heroku_permissions={**Policy().heroku_permissions, "scale": "write"}),
        "apple_production_tasks": Policy(apple_production_tasks=frozenset({"iap-notif-handler", "nightly-report"})),
        "alpaca_paper_cycles": Policy(alpaca_paper_cycles=0),
        "max_approval_age": Policy(max_approval_age=_DAY * 2),
        "audit_retention_days": Policy(audit_retention_days=89),
    }.items()
)
