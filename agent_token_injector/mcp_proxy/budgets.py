"""How often each granted tool may still be called: in all, and in any sixty seconds.

Pure: no I/O, no clock; the caller brings the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final

from agent_token_injector.mcp_proxy.grants import Limits
from agent_token_injector.mcp_proxy.tool_policy import Reason

__all__ = ["WINDOW_SECONDS", "Budgets"]

WINDOW_SECONDS: Final = 60.0


class _Budget:
    __slots__ = ("left", "recent")

    def __init__(self, limits: Limits, used: int, recent: Iterable[float]) -> None:
        self.left = None if limits.calls is None else limits.calls - used
        self.recent: deque[float] | None = None
        if limits.per_minute is not None:
            self.recent = deque(recent, maxlen=max(limits.per_minute, 0))


class Budgets:
    """Counts the calls of one handoff's tools.

    Args:
        limits: by the name under which the agent sees the tool. A tool that is not in it, or has neither limit, is not
            counted.
        used: how many calls of each were made before, by an earlier proxy of this handoff: they count towards `calls`, so
            that a restarted proxy comes up in the same state.
        recent: when the latest of them were made, on the clock that `take` is given, oldest first: they count towards
            `per_minute`.
    """

    def __init__(
        self,
        limits: Mapping[str, Limits],
        used: Mapping[str, int] = MappingProxyType({}),
        recent: Mapping[str, Iterable[float]] = MappingProxyType({}),
    ) -> None:
        self._budgets = {
            name: _Budget(limit, used.get(name, 0), recent.get(name, ()))
            for name, limit in limits.items()
            if limit.calls is not None or limit.per_minute is not None
        }

    def take(self, name: str, monotonic: float) -> Reason | None:
        """Count one call of `name` at `monotonic` seconds. A reason means that it may not be made, and counts nothing.

        `Reason.BUDGET`: it has been called as often as it may. `Reason.RATE`: it was called as often as it may within
        the last sixty seconds; a clock that goes backwards opens nothing.
        """
        budget = self._budgets.get(name)
        if budget is None:
            return None
        if budget.left is not None and budget.left <= 0:
            return Reason.BUDGET
        recent = budget.recent
        if recent is not None:
            if len(recent) == recent.maxlen and not (recent and monotonic - recent[0] >= WINDOW_SECONDS):
                return Reason.RATE
            recent.append(monotonic)
        if budget.left is not None:
            budget.left -= 1
        return None

    def left(self, name: str, monotonic: float) -> int | None:
        """How many calls of `name` would be allowed right now; None when there is no limit."""
        budget = self._budgets.get(name)
        if budget is None:
            return None
        rooms = [] if budget.left is None else [max(budget.left, 0)]
        if budget.recent is not None:
            within = sum(monotonic - at < WINDOW_SECONDS for at in islice(budget.recent, None))
            rooms.append((budget.recent.maxlen or 0) - within)
        return min(rooms)
