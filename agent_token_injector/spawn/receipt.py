"""How a run ended, as a document and as a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent_token_injector.launchers.base import StopReport
from agent_token_injector.revocation import RevocationReceipt


@dataclass(frozen=True, slots=True)
class SpawnReceipt:
    """How a run ended: why, what the launcher reported, and the revocation where one was asked for."""

    handoff_id: str
    reason: str
    """`exited`, `left` (the block was left), `expired`, `revoked`, `vault-unreachable`, `mcp-proxy-failed`."""
    agent: StopReport | None
    """What our launcher reports of the process tree; None for a callable of the caller's own."""
    revocation: RevocationReceipt | None
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "handoff_id": self.handoff_id,
            "reason": self.reason,
            "agent": None if self.agent is None else self.agent.to_dict(),
            "revocation": None if self.revocation is None else self.revocation.to_dict(),
            "problems": list(self.problems),
        }


def describe_end(receipt: SpawnReceipt) -> str:
    """One line on how a run ended, for people."""
    agent = receipt.agent
    if agent is None:
        return f"{receipt.handoff_id} ended: {receipt.reason}"
    code = "" if agent.exit_code is None else f", exit code {agent.exit_code}"
    return f"{receipt.handoff_id} ended: {receipt.reason}{code}, {agent.survivors} survivors, {agent.milliseconds} ms"
