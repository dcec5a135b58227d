"""What the gate refuses on each credential surface (ADR §3.1)."""

from __future__ import annotations

from typing import Final

from agent_token_injector.policy import Policy
from tests.gate.good import ACCOUNT, Case, cases, spelled
from tests.gate.spellings import BYPASS_SPELLED, SECRETS_SPELLED

_GH: Final = "surfaces.github.permissions"


def _permissions(code: str, *names: str, level: str = "write") -> tuple[Case, ...]:
    return cases(code, "github", _GH, {f"{name}:{level}": {"contents": "write", name: level} for name in names})


GITHUB: Final = (
    *_permissions(
        "H1.github-administration", "administration", "Administration", "organization_administration", "admin"
    ),
    *_permissions("H1.github-administration", "administration", level="read"),
    *_permissions("H1.github-workflows", "workflows", "workflow", "Work-Flows"),
    *_permissions("H1.github-organization", "organization_projects", "organization-hooks", "members.organization"),
    *_permissions("H1.github-permission", "actions", "deployments", "environments", "packages", "pages", "Contents"),
    *_permissions("H1.github-permission", "metadata", "s3crets", level="read"),
    *_permissions("H1.github-level", "contents", "pull_requests", "issues", level="admin"),
    *cases("H1.github-no-permissions", "github", _GH, {"none": {}}),
    *cases(
        "H1.github-all-repositories",
        "github",
        "surfaces.github.repository",
        spelled("*", "*/*", "raxx/*", "raxx", "raxx%2fa", "all", "ALL", "all-repositories", "raxx/Trade*"),
    ),
    *cases(
        "H1.github-repository",
        "github",
        "surfaces.github.repository",
        spelled("raxx/..", "raxx/.", "raxx/a/b", "raxx/", "/a", "raxx/a b", "raxx/a\n", "raxx/\uff41", "a//b"),
    ),
    *cases(
        "H1.github-protected-push",
        "github",
        "surfaces.github.push_branches",
        {
            name: [name]
            for name in (
                *("main", "staging", "master", "production", "MAIN", "Main", " main ", "refs/heads/main", "heads/main"),
                *("REFS/HEADS/Staging", "refs/refs/heads/main", "origin/main", "refs/remotes/origin/staging"),
                *("*", "ma*", "refs/heads/*", "mai?", "[m]ain", "m\u0430in", "\uff4dain", "main\u200b"),
                *("HEAD:main", ":main", "+main", "+refs/heads/main:refs/heads/main", "main^{}", "main~0", "main@{0}"),
                *("-f", "main ; x", "./main", "main/", "a//main"),
            )
        },
    ),
)

FORBIDDEN_PERMISSIONS: Final = (
    *_permissions("H1.actions-secrets", *SECRETS_SPELLED),
    *_permissions("H1.actions-secrets", "secrets", "actions_secrets", level="read"),
    *_permissions("H1.protection-bypass", *BYPASS_SPELLED),
    *_permissions("H1.protection-bypass", "branch_protection", level="read"),
)


VAULT: Final = (
    *cases(
        "H1.vault-glob",
        "infisical",
        "surfaces.infisical.read",
        {
            text: [text]
            for text in (
                *("/MooseQuest/raptor/DB_*", "/MooseQuest/velvet/*", "/MooseQuest/queue/production/STRIPE_*", "/*"),
                *("/STAGING_*", "/MooseQuest/queue/staging-2/KEY", "/MooseQuest/queue/Staging/KEY", "/MooseQuest/*"),
                *("/MooseQuest/handoffs-nightly-report-20260620/KEY", "/MooseQuest/queue/not_staging/KEY"),
                *("/MooseQuest/production/staging/KEY", "/MooseQuest/staging/prod/KEY", "/live/staging/*"),
                *("/MooseQuest/staging/Production/KEY", "/MooseQuest/prod-eu/staging/KEY", "/staging/LIVE/KEY"),
                *("/MooseQuest/queue_prod/staging/KEY", "/MooseQuest/eu-production-2/staging/sub/KEY"),
            )
        },
    ),
    *cases(
        "H1.vault-foreign-handoff",
        "infisical",
        "surfaces.infisical.read",
        {
            text: [text]
            for text in (
                *(
                    "/MooseQuest/handoffs/founders-checkout-20260620/*",
                    "/MooseQuest/handoffs/nightly-report-20260619/*",
                ),
                *(
                    "/MooseQuest/handoffs/*",
                    "/MooseQuest/handoffs/staging/KEY",
                    "/MooseQuest/supplied/nightly-report/*",
                ),
                *("/MooseQuest/handoffs/nightly-report-20260620/sub/KEY", "/MooseQuest/supplied/staging/*"),
            )
        },
    ),
)

STRIPE: Final = (
    *cases(
        "H7.stripe-permission",
        "stripe",
        "surfaces.stripe.permissions",
        {
            **{
                f"{name}:write": {name: "write"}
                for name in (
                    *("charges", "refunds", "customers", "customer", "payouts", "transfers", "payment_intents"),
                    *("invoices", "disputes", "payment_methods", "setup_intents"),
                    *("webhook", "webhook_endpoints", "customer_portal", "billing_portal"),
                )
            },
            **{f"{name}:read": {name: "read"} for name in ("keys", "secrets", "ephemeral_keys", "everything", "all")},
            "admin": {"subscriptions": "admin"},
        },
    ),
    *cases("H1.stripe-no-permissions", "stripe", "surfaces.stripe.permissions", {"none": {}}),
)


def _resources(code: str, action: str, *resources: str) -> tuple[Case, ...]:
    return cases(
        code,
        "aws",
        "surfaces.aws.grants",
        {resource: [{"action": action, "resource": resource}] for resource in resources},
    )


_SSM: Final = f"arn:aws:ssm:eu-west-1:{ACCOUNT}:parameter"
AWS: Final = (
    *_resources(
        "H1.aws-wildcard",
        "ssm:GetParameter",
        *(f"{_SSM}/*", f"{_SSM}/raxx*", f"{_SSM}/raxx/*/key", f"{_SSM}/raxx/ke?", f"{_SSM}*", f"{_SSM}//*"),
        *(f"{_SSM}/raxx/${{aws:username}}/*", f"{_SSM}/raxx/**", f"arn:aws:ssm:eu-west-1:{ACCOUNT}:*"),
        *(f"{_SSM}/raxx/*", f"{_SSM}/raxx", f"{_SSM}/raxx/", f"{_SSM}/raxx//*", f"{_SSM}//raxx/*", f"{_SSM}/", _SSM),
    ),
    *_resources(
        "H1.aws-wildcard",
        "s3:GetObject",
        *("arn:aws:s3:::raxx-reports/*", "arn:aws:s3:::raxx-reports", "arn:aws:s3:::*", "arn:aws:s3:::raxx-*/a/*"),
        *("arn:aws:s3:::raxx-reports/", "arn:aws:s3:::raxx-reports//*", "arn:aws:s3:::*/*", "arn:aws:s3:::b/a?"),
    ),
    *_resources(
        "H1.aws-wildcard",
        "sqs:SendMessage",
        f"arn:aws:sqs:eu-west-1:{ACCOUNT}:*",
        f"arn:aws:sqs:eu-west-1:{ACCOUNT}:report-*",
        f"arn:aws:sqs:eu-west-1:{ACCOUNT}:report/*",
    ),
    *_resources(
        "H1.aws-resource",
        "ssm:GetParameter",
        *("*", "arn:aws:ssm:eu-west-1:999999999999:parameter/raxx/a", "arn:aws:ssm:eu-west-1::parameter/raxx/a"),
        *(
            "arn:aws:s3:::raxx-reports/a/*",
            f"arn:aws:ssm:*:{ACCOUNT}:parameter/raxx/a",
            "arn:aws:ssm:eu-west-1:*:parameter/a/b",
        ),
        *("/raxx/nightly-report/key", "arn:*", f"arn:aws:iam::{ACCOUNT}:role/admin"),
    ),
    *_resources(
        "H1.aws-resource",
        "ssm:GetParameter",
        *(f"arn:aws:ssm:eu-west-1:{ACCOUNT}:document/{name}" for name in ("raxx", "raxx/nightly-report/*")),
        *(f"arn:aws:ssm:eu-west-1:{ACCOUNT}:{name}/a/b" for name in ("Parameter", "parameters", "servicesetting")),
    ),
    *_resources(
        "H1.aws-resource",
        "s3:PutObject",
        "arn:aws:s3::999999999999:accesspoint/x/object/a",
        f"arn:aws:s3:eu-west-1:{ACCOUNT}:accesspoint/x/object/a",
        f"arn:aws:s3:eu-west-1:{ACCOUNT}:accesspoint/x/object/*",
        f"arn:aws:s3::{ACCOUNT}:accesspoint/x.mrap/object/a/*",
        "arn:aws:s3:::accesspoint/x/object/a",
        f"arn:aws:s3::{ACCOUNT}:raxx-reports/nightly-report/*",
    ),
    *_resources(
        "H1.aws-resource", "sqs:SendMessage", "arn:aws:sqs:eu-west-1:999999999999:dlq", "arn:aws:sqs:eu-west-1::dlq"
    ),
    Case(
        "an action the operator took away",
        {},
        "H1.aws-action",
        "aws",
        Policy().tightened({"aws_actions": ["ssm:GetParameter", "s3:GetObject"]}),
    ),
)

CLOUDFLARE: Final = (
    *cases(
        "H1.cloudflare-permission",
        "cloudflare",
        "surfaces.cloudflare.permissions",
        {
            f"{name}:{level}": {name: level}
            for name, level in (
                *(("Zone Settings", "write"), ("zone_settings", "read"), ("ZoneSettings", "write"), ("Zone", "write")),
                *(
                    ("Bot Management", "write"),
                    ("bot_management", "read"),
                    ("Account Settings", "read"),
                    ("DNS", "admin"),
                ),
                *(("Account", "read"), ("API Tokens", "write"), ("DNS Write", "read"), ("all", "read")),
            )
        },
    ),
    *cases("H1.cloudflare-permission", "cloudflare", "surfaces.cloudflare.permissions", {"none": {}}),
    *cases(
        "H1.cloudflare-zone",
        "cloudflare",
        "surfaces.cloudflare.zone",
        spelled(
            "*", "all", "*.raxx.example", "raxx.*", "com.cloudflare.api.account.zone.*", "raxx", "r\u0430xx.example"
        )
        | spelled("raxx.example,other.example", "raxx.example/other"),
    ),
)

HEROKU: Final = (
    *cases(
        "H1.heroku-permission",
        "heroku",
        "surfaces.heroku.permissions",
        {
            name: {"config_vars": "read", name: "write"}
            for name in (
                "scale",
                "dyno",
                "dynos",
                "formation",
                "billing",
                "addons",
                "add-ons",
                "collaborators",
                "account",
            )
        }
        | {"config_vars:admin": {"config_vars": "admin"}},
    ),
    *cases(
        "H1.heroku-app", "heroku", "surfaces.heroku.app", spelled("*", "all apps", "raxx-*", "a,b", "Raxx", "r\u0430xx")
    ),
    Case("nothing", {"surfaces.heroku.permissions": {}}, "H1.heroku-one-purpose", "heroku"),
    Case(
        "both purposes",
        {
            "surfaces.heroku.permissions": {"config_vars": "read", "deploy": "write"},
            "surfaces.heroku.pipeline_stage": "staging",
        },
        "H1.heroku-one-purpose",
        "heroku",
    ),
    Case("deploy anywhere", {"surfaces.heroku.permissions": {"deploy": "write"}}, "H1.heroku-one-purpose", "heroku"),
    Case("a stage for nothing", {"surfaces.heroku.pipeline_stage": "staging"}, "H1.heroku-one-purpose", "heroku"),
    *cases(
        "H1.heroku-one-purpose",
        "heroku",
        "surfaces.heroku.pipeline_stage",
        {"every stage": "*", "two stages": "staging,production"},
        **{"surfaces.heroku.permissions": {"deploy": "write"}},
    ),
)

PAPER_GATE: Final = {"cycles": 3, "passed_at": "2026-06-19T00:00:00Z", "reference": "#3100"}
LIVE_FINANCE: Final = (
    Case("stripe live", {"surfaces.stripe.mode": "live"}, "H7.stripe-live", "stripe"),
    Case(
        "alpaca live with evidence and no approval",
        {"surfaces.alpaca": {"mode": "live", "paper_gate": PAPER_GATE}},
        "H7.alpaca-live",
        "alpaca",
    ),
    Case(
        "apple production for the designated task and no approval",
        {"surfaces.apple_iap.environment": "production", "task_slug": "iap-notif-handler"},
        "H7.apple-iap-production",
        "apple_iap",
    ),
)
