"""What the audit holds of a call to one granted tool: spelled once, filled in for each call.

Two events a call, as every access has: the decision before it, the outcome after it. What differs between calls are sizes,
a digest, milliseconds and how much was masked; none of these can hold a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_token_injector.audit.event import Decision, DetailValue, Draft
from agent_token_injector.audit.spelling import Gap, Template, literal
from agent_token_injector.mcp_proxy.ledger import SURFACE

if TYPE_CHECKING:
    from agent_token_injector.masking import Redactor
    from agent_token_injector.mcp_proxy.tool_policy import Allowed


class CallRows:
    """The rows of one tool's calls.

    Args:
        allowed: the tool.
        redactor: masks its names; when another secret is learnt other rows are made.
    """

    __slots__ = ("_call", "_result", "allowed", "redactor")

    def __init__(self, allowed: Allowed, redactor: Redactor) -> None:
        self.allowed = allowed
        self.redactor = redactor
        what: dict[str, DetailValue] = {"tool": allowed.name}
        call = Draft("tool.call", Decision.ALLOWED, SURFACE, allowed.target, "", what)
        result = Draft("tool.result", Decision.DONE, SURFACE, allowed.target, "", what)
        self._call = Template(call, {"arguments_sha256": Gap.TEXT, "request_bytes": Gap.NUMBER}, redactor)
        sizes = {"masked": Gap.NUMBER, "result_bytes": Gap.NUMBER}
        self._result = Template(result, {**sizes, "is_error": Gap.LITERAL, "ms": Gap.LITERAL}, redactor)

    def call(self, digest: str, size: int) -> bytes:
        """A call that was allowed; `digest` of its arguments in hexadecimal, their `size` in bytes."""
        return self._call.row(digest.encode(), size)

    def result(self, size: int, milliseconds: float, *, masked: int, is_error: bool) -> bytes:
        """Its answer: `size` in bytes as it goes back, how many places of it were masked."""
        return self._result.row(literal(is_error), masked, literal(round(milliseconds, 1)), size)
