"""Names under which Actions secrets and a bypass of branch protection have been, or could be, asked for."""

from __future__ import annotations

from typing import Final

SECRETS_SPELLED: Final = (
    *("secrets", "actions_secrets", "ActionsSecrets", "actions-secrets", "ACTIONS.SECRETS", "s_e_c_r_e_t_s"),
    *(
        "organization_secrets",
        "organization-secrets",
        "dependabot_secrets",
        "codespaces_secrets",
        "environment:secrets",
    ),
    *("secret_scanning_alerts", "repoSecret", "get_repository_secret"),
)
BYPASS_SPELLED: Final = (
    *("bypass_branch_protection", "branchProtection", "branch-protection", "branch_protection_rules", "BypassRules"),
    *("repository_rulesets", "rulesets", "update_ruleset", "protected_branches", "push.bypass", "by_pass"),
)
