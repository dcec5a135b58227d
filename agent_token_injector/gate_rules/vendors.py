"""Rules on each credential surface: what is the least privilege there, and what is never handed over (ADR §3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from agent_token_injector.approval import required_approvals
from agent_token_injector.gate_rules.case import Case, Finding, forbidden_name
from agent_token_injector.names import SecretGlob
from agent_token_injector.policy import STRIPE_ALIASES, Policy
from agent_token_injector.spec import AwsGrant

REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}", re.ASCII)


HOST_NAME: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}", re.ASCII)


APP_NAME: Final = re.compile(r"[a-z][a-z0-9-]{1,28}[a-z0-9]", re.ASCII)


BRANCH: Final = re.compile(r"[a-z0-9_](?:[a-z0-9._#-]|/(?=[a-z0-9_#-]))*", re.ASCII)


STAGE: Final = re.compile(r"[a-z][a-z-]{0,30}", re.ASCII)


NOT_STAGING: Final = re.compile(r"live|(?:.*[-_])?(?:prod|production)(?:[-_].*)?", re.ASCII | re.IGNORECASE)
"""A folder's segment that says that its secrets are live, whatever stands beside it."""


ARN: Final = re.compile(
    r"arn:aws[a-z-]*:(?P<service>[a-z0-9]+):[a-z0-9-]*:(?P<account>[0-9]{12}|):(?P<rest>.+)", re.ASCII
)

AWS_TREES: Final[Mapping[str, int]] = {"ssm": 3, "s3": 2}
"""Where a resource may be a prefix, and how many parts it has at least: `parameter/raxx/<task>`, `<bucket>/<prefix>`."""


def vault(case: Case) -> Iterator[Finding]:
    """What the vault identity may read beyond its own path (H1, ADR §3.1)."""
    own = case.layout.of(case.handoff)
    for text in case.spec.surfaces.infisical.read:
        glob = SecretGlob.parse(text)
        if glob.folder == own:
            continue
        if glob.folder.is_within(case.layout.handoffs) or glob.folder.is_within(case.layout.supplied):
            yield Finding(
                code="H1.vault-foreign-handoff",
                surface="infisical",
                what=f"{text} reaches into the path of another handoff",
                mend=f"a handoff reads its own path ({own}/) and staging paths, nothing of another's",
            )
        elif "staging" not in glob.folder.segments or any(map(NOT_STAGING.fullmatch, glob.folder.segments)):
            yield Finding(
                code="H1.vault-glob",
                surface="infisical",
                what=f"{text} is neither under the handoff's own path nor explicitly, and only, staging",
                mend=f"read from {own}/ or from a folder whose path has the segment `staging` and nothing of production",
            )
        elif glob.pattern == "*":
            yield Finding(
                code="H1.vault-glob-wide",
                severity="warn",
                surface="infisical",
                what=f"{text} covers every secret of that folder, those of tomorrow included",
                mend="name the secrets, or their common prefix",
            )


def github(case: Case) -> Iterator[Finding]:
    """One repository, three permissions, no protected branch (H1, ADR §5)."""
    request = case.spec.surfaces.github
    if request is None:
        return
    if not REPOSITORY.fullmatch(request.repository) or ".." in request.repository or request.repository.endswith("/."):
        every = "*" in request.repository or request.repository.lower() in {"all", "all-repositories"}
        yield Finding(
            code="H1.github-all-repositories" if every or "/" not in request.repository else "H1.github-repository",
            surface="github",
            what=f"{request.repository!r} is not exactly one repository",
            mend='name one: "repository": "owner/name"',
        )
    if not request.permissions:
        yield Finding(
            code="H1.github-no-permissions",
            surface="github",
            what="no permission is asked for, which GitHub takes as all that the App has",
            mend=f"ask for some of {', '.join(case.policy.github_permissions)}",
        )
    for name, level in request.permissions.items():
        yield from _github_permission(case.policy, name, level)
    for branch in request.push_branches:
        if _is_protected(branch, case.policy):
            yield Finding(
                code="H1.github-protected-push",
                surface="github",
                what=f"it means to push to {branch!r}, which is protected",
                mend="push to a branch of the task's own and open a pull request (ADR §5.1)",
            )


def _github_permission(policy: Policy, name: str, level: str) -> Iterator[Finding]:
    allowed = policy.github_permissions.get(name)
    if allowed is not None and (level in {"read", allowed}):
        return
    code, why = forbidden_name(name) or ("H1.github-permission", "handoffs get nothing but what §5.1 lists")
    if allowed is not None:
        code, why = "H1.github-level", f"{allowed} is the most a handoff gets"
    yield Finding(
        code=code,
        surface="github",
        what=f"the permission {name}:{level} is not for handoffs: {why}",
        mend="ask only for " + ", ".join(f"{key}:{value}" for key, value in policy.github_permissions.items()),
    )


def _is_protected(branch: str, policy: Policy) -> bool:
    name = re.sub(r"^(?:(?:refs|heads|remotes|origin)/)+", "", branch.strip().lower())
    # A pattern, a refspec (`HEAD:main`, `+main`) or a look-alike could mean a protected branch, so it is taken to.
    return name in policy.protected_branches or not BRANCH.fullmatch(name)


def live_finance(case: Case) -> Iterator[Finding]:
    """No live or production financial credential without a person's signed word (H7, ADR §12)."""
    for surface, mode in required_approvals(case.spec):
        if case.approved(surface, mode) is None:
            yield Finding(
                code=f"H7.{surface.replace('_', '-')}-{mode}",
                surface=surface,
                what=f"{mode} mode is asked for: {case.why_not_approved(surface, mode)}",
                mend=f"use the test mode, or have an operator run `handoff approve SPEC --surface {surface} --mode {mode}`",
            )
    alpaca, apple = case.spec.surfaces.alpaca, case.spec.surfaces.apple_iap
    if alpaca is not None and alpaca.mode == "live":
        gate = alpaca.paper_gate
        if gate is None or gate.cycles < case.policy.alpaca_paper_cycles or gate.passed_at > case.now:
            yield Finding(
                code="H7.alpaca-paper-gate",
                surface="alpaca",
                what="live trading is asked for without evidence that the flow passed the paper gate",
                mend=f'give "paper_gate" with at least {case.policy.alpaca_paper_cycles} profitable cycle(s) and a reference',
            )
    designated = case.policy.apple_production_tasks
    if apple is not None and apple.environment == "production" and case.spec.task_slug not in designated:
        yield Finding(
            code="H7.apple-designated-task",
            surface="apple_iap",
            what=f"production StoreKit access is only for {', '.join(sorted(designated)) or 'no task'}",
            mend="use the sandbox environment",
        )


def stripe(case: Case) -> Iterator[Finding]:
    """A restricted key that moves no money and makes no credential (H1, H7, ADR §8.2)."""
    request = case.spec.surfaces.stripe
    if request is None:
        return
    if not request.permissions:
        yield Finding(
            code="H1.stripe-no-permissions",
            surface="stripe",
            what="no permission is asked for",
            mend='name what the task needs: "permissions": {"checkout_sessions": "write"}',
        )
    for name, level in request.permissions.items():
        resource = STRIPE_ALIASES.get(name, name)
        allowed = case.policy.stripe_writable if level == "write" else case.policy.stripe_readable
        if level == "admin" or resource not in allowed:
            yield Finding(
                code="H7.stripe-permission",
                surface="stripe",
                what=f"{name}:{level} is not for handoffs: it moves money, writes customers, makes credentials, or is unknown",
                mend=f"{level} is allowed on: {', '.join(sorted(allowed))}"
                if level != "admin"
                else "ask for read or write",
            )


def aws(case: Case) -> Iterator[Finding]:
    """Named actions on named resources of one account (H1, ADR §3.1)."""
    request = case.spec.surfaces.aws
    if request is None:
        return
    for grant in request.grants:
        if grant.action not in case.policy.aws_actions:
            yield Finding(
                code="H1.aws-action",
                surface="aws",
                what=f"the action {grant.action} is not allowed by the operator's policy",
                mend="allowed are " + ", ".join(sorted(case.policy.aws_actions)),
            )
        yield from _aws_resource(grant, request.account)


def _aws_resource(grant: AwsGrant, account: str) -> Iterator[Finding]:
    match = ARN.fullmatch(grant.resource)
    service = grant.action.partition(":")[0]
    # A bucket's ARN names no account; an access point's does, and leads to a bucket that it does not name.
    owner = "" if service == "s3" else account
    if match is None or match["service"] != service or match["account"] != owner:
        yield Finding(
            code="H1.aws-resource",
            surface="aws",
            what=f"{grant.resource!r} is not an ARN of {service} in account {account}",
            mend="write the resource's full ARN",
        )
        return
    below = match["rest"].removesuffix("/*") if service in AWS_TREES else match["rest"]
    if "*" in below or "?" in below or "${" in grant.resource or not below.strip("/"):
        yield Finding(
            code="H1.aws-wildcard",
            surface="aws",
            what=f"{grant.resource!r} has a wildcard",
            mend="name one resource; for SSM and S3 one prefix that ends in /*",
        )
    elif service in AWS_TREES:
        yield from _aws_path(grant.resource, below, service)


def _aws_path(resource: str, below: str, service: str) -> Iterator[Finding]:
    parts = below.split("/")
    # A document runs commands, and an access point is another way into a bucket.
    if parts[0] == "accesspoint" or (service == "ssm" and parts[0] != "parameter"):
        yield Finding(
            code="H1.aws-resource",
            surface="aws",
            what=f"{resource!r} is no parameter and no object of a bucket",
            mend="name the parameter (parameter/raxx/task/NAME) or the object (bucket/task/NAME) that the task needs",
        )
    elif len(parts) < AWS_TREES[service] or not all(parts):
        yield Finding(
            code="H1.aws-wildcard",
            surface="aws",
            what=f"{resource!r} is a whole bucket or every task's parameters, not a path in it",
            mend="name the task's own path, such as parameter/raxx/task/* or arn:aws:s3:::bucket/task/*",
        )


def cloudflare(case: Case) -> Iterator[Finding]:
    """One zone, and neither its settings nor its bot management (H1, ADR §3.1)."""
    request = case.spec.surfaces.cloudflare
    if request is None:
        return
    if not HOST_NAME.fullmatch(request.zone):
        yield Finding(
            code="H1.cloudflare-zone",
            surface="cloudflare",
            what=f"{request.zone!r} is not exactly one zone",
            mend='name one: "zone": "example.com"',
        )
    if not request.permissions:
        yield Finding(
            code="H1.cloudflare-permission",
            surface="cloudflare",
            what="no permission is asked for",
            mend='name what the task needs: "permissions": {"dns": "read"}',
        )
    for name, level in request.permissions.items():
        allowed = case.policy.cloudflare_permissions.get(" ".join(re.split(r"[\s_:/-]+", name.lower())))
        if allowed is None or (level not in {"read", allowed}):
            yield Finding(
                code="H1.cloudflare-permission",
                surface="cloudflare",
                what=f"{name} {level} is not for handoffs: no zone settings, no bot management, no account (ADR §3.1)",
                mend="allowed are "
                + ", ".join(f"{key} up to {value}" for key, value in case.policy.cloudflare_permissions.items()),
            )


def heroku(case: Case) -> Iterator[Finding]:
    """One app's config vars, or deploys to one stage (H1, ADR §3.1)."""
    request = case.spec.surfaces.heroku
    if request is None:
        return
    if not APP_NAME.fullmatch(request.app):
        yield Finding(
            code="H1.heroku-app",
            surface="heroku",
            what=f"{request.app!r} is not exactly one app",
            mend='name one: "app": "raxx-api-staging"',
        )
    for name, level in request.permissions.items():
        allowed = case.policy.heroku_permissions.get(name)
        if allowed is None or (level not in {"read", allowed}):
            yield Finding(
                code="H1.heroku-permission",
                surface="heroku",
                what=f"{name}:{level} is not for handoffs: no scaling, billing, add-ons or collaborators (ADR §3.1)",
                mend="ask for config_vars, or for deploy with a pipeline_stage",
            )
    deploys, configures = "deploy" in request.permissions, "config_vars" in request.permissions
    stage = request.pipeline_stage
    if deploys == configures or deploys != (stage is not None) or (stage is not None and not STAGE.fullmatch(stage)):
        yield Finding(
            code="H1.heroku-one-purpose",
            surface="heroku",
            what="a key is for config vars of one app, or for deploys to one named pipeline stage, and not for both",
            mend='ask for one of them; "pipeline_stage" goes with deploy and only with it',
        )
