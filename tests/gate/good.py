"""A good spec that asks for every surface, and how a case changes it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from agent_token_injector.policy import Policy
from agent_token_injector.spec import HandoffSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW: Final = datetime(2026, 6, 20, 12, tzinfo=UTC)
ACCOUNT: Final = "123456789012"
BY_HAND: Final = {"by_hand": {"who": "operator@example.com", "how": "handoff revoke at the end"}}

GOOD: Final[Mapping[str, Any]] = {
    "task_slug": "nightly-report",
    "card": "#3206",
    "operator": "operator@example.com",
    "expected_runtime": "PT20M",
    "expires_in": "PT45M",
    "surfaces": {
        "infisical": {"read": ["/MooseQuest/queue/staging/STRIPE_*"]},
        "github": {"repository": "raxx/TradeMasterAPI", "permissions": {"contents": "write", "pull_requests": "write"}},
        "stripe": {"mode": "test", "permissions": {"checkout_sessions": "write", "subscriptions": "read"}},
        "aws": {
            "account": ACCOUNT,
            "grants": [
                {
                    "action": "ssm:GetParameter",
                    "resource": f"arn:aws:ssm:eu-west-1:{ACCOUNT}:parameter/raxx/nightly-report/*",
                },
                {"action": "s3:GetObject", "resource": "arn:aws:s3:::raxx-reports/nightly-report/*"},
                {"action": "sqs:SendMessage", "resource": f"arn:aws:sqs:eu-west-1:{ACCOUNT}:report-dlq"},
            ],
        },
        "cloudflare": {"zone": "raxx.example", "permissions": {"DNS": "read", "Zone WAF": "read"}},
        "heroku": {"app": "raxx-api-staging", "permissions": {"config_vars": "read"}},
        "alpaca": {"mode": "paper"},
        "apple_iap": {"environment": "sandbox", "bundle_id": "com.raxx.queue.staging"},
    },
    "mcp_servers": {
        "github": {"command": ["github-mcp-server", "stdio"], "env": {"GITHUB_PERSONAL_ACCESS_TOKEN": "GH_TOKEN"}},
        "infisical": {"builtin": "vault"},
    },
    "mcp_tools": [
        {"name": "github_pr_create", "server": "github", "tool": "create_pull_request"},
        "infisical_get_secret",
    ],
    "mcp_tools_excluded": ["stripe_charge"],
    "env": {"REPORT_DAY": "monday"},
}

GONE: Final = "<gone>"
"""Put in place of a value, it takes the field out."""


@dataclass(frozen=True)
class Case:
    """One change to the good spec (dotted path -> value), and the one refusal or warning that must follow."""

    name: str
    change: Mapping[str, Any]
    code: str
    surface: str
    policy: Policy = field(default_factory=Policy)


def changed(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """The good spec as a document, with some fields changed."""
    document = copy.deepcopy(dict(GOOD))
    for change in changes:
        for path, value in change.items():
            *parents, leaf = path.split(".")
            at = document
            for parent in parents:
                at = at.setdefault(parent, {})
            if value is GONE:
                at.pop(leaf, None)
            else:
                at[leaf] = copy.deepcopy(value)
    return document


def spec_of(*changes: Mapping[str, Any]) -> HandoffSpec:
    """The good spec with some fields changed, read as an operator's file is."""
    return HandoffSpec.parse(json.dumps(changed(*changes)))


def cases(code: str, surface: str, path: str, values: Mapping[str, Any], **also: Any) -> tuple[Case, ...]:
    """One case a value of one field; `also` are further changes that all of them need."""
    return tuple(Case(name, {path: value, **also}, code, surface) for name, value in values.items())


def spelled(*values: Any) -> dict[str, Any]:
    """Values that are their own names."""
    return {str(value): value for value in values}
