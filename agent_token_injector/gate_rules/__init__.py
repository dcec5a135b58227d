"""The rules of the provisioning gate, one function a topic, each yielding what is wrong and how to mend it.

Pure: a rule is given a `Case` (the spec, the policy, the moment and what follows from them) and reads nothing else. A
finding's code is stable: `<invariant or topic>.<what>`. gate.py runs every rule and draws the checklist.
"""

from __future__ import annotations

from typing import Final

from agent_token_injector.gate_rules import task, tools, vendors
from agent_token_injector.gate_rules.case import Case, Finding, Rule

__all__ = ["RULES", "Case", "Finding", "Rule"]

RULES: Final[tuple[Rule, ...]] = (
    task.ceilings,
    task.task,
    task.lifetime,
    task.surfaces,
    vendors.vault,
    vendors.github,
    vendors.live_finance,
    vendors.stripe,
    vendors.aws,
    vendors.cloudflare,
    vendors.heroku,
    task.environment,
    tools.tools,
)
