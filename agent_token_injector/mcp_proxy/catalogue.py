"""What the servers offer, held against what was granted and pinned, now and whenever it changes.

A granted tool whose definition is not the pinned one is withdrawn: to the agent it no longer exists. The audit says what
differs. It comes back when its definition does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent_token_injector.audit.event import Decision, Draft
from agent_token_injector.errors import SpawnRefused
from agent_token_injector.mcp_proxy.ledger import SURFACE, printable
from agent_token_injector.mcp_proxy.links import UpstreamError, UpstreamFailed
from agent_token_injector.mcp_proxy.pins import ToolPin, drift
from agent_token_injector.mcp_proxy.tool_policy import Allowed, ToolPolicy

if TYPE_CHECKING:
    from agent_token_injector.mcp_proxy.desk import Desk
    from agent_token_injector.mcp_proxy.grants import Grant, Places
    from agent_token_injector.mcp_proxy.upstream import Upstream

LIST_SECONDS: Final = 30.0
Definitions: TypeAlias = Sequence[Mapping[str, Any]]
Offered: TypeAlias = Mapping[str, Definitions]
_NOTHING: Final[Mapping[str, Any]] = {"inputSchema": {"type": "object"}}


class Catalogue:
    """The granted tools of one handoff, as they are pinned.

    Args:
        grants, excluded, places: of the spec.
        pins: of the manifest; None pins each tool as it is first seen.
    """

    def __init__(
        self, grants: Sequence[Grant], excluded: Sequence[str], places: Places, pins: Sequence[ToolPin] | None
    ) -> None:
        self._grants = grants
        self._excluded = excluded
        self._places = places
        self._pins = None if pins is None else {(one.server, one.tool): one for one in pins}
        self._granted: tuple[Allowed, ...] = ()
        self._offered: dict[str, Definitions] = {}
        self._withdrawn: dict[str, tuple[str, ...]] = {}

    def resolve(self, offered: Offered) -> ToolPolicy:
        """The policy of a start. Raises SpawnRefused when a grant cannot be honoured."""
        policy = self._compiled(offered)
        self._offered = dict(offered)
        self._granted = tuple(policy.allowed.values())
        if self._pins is None:
            self._pins = {
                (one.server, one.tool): ToolPin.of(one.server, one.tool, one.definition) for one in self._granted
            }
        return policy

    def judge(self, server: str, offered: Definitions, desk: Desk) -> bool:
        """Withdraw the tools of a server that are not as pinned, and take back those that are again.

        Every change goes on record. Returns whether there was one.
        """
        now = {one.get("name"): one for one in offered}
        changed = False
        for one in self._granted:
            if one.server != server:
                continue
            lines = self._difference(server, one.tool, now.get(one.tool), twice=_times(offered, one.tool) > 1)
            if lines and self._withdrawn.get(one.name) != lines:
                self._withdrawn[one.name] = lines
                self._record(desk, "tool.withdrawn", one.target, "definition-changed", lines)
                changed = True
            elif not lines and self._withdrawn.pop(one.name, None) is not None:
                self._record(desk, "tool.restored", one.target, "", ())
                changed = True
        self._offered[server] = offered
        if changed:
            desk.policy = self._recompiled().without(self._withdrawn.keys())
        return changed

    def _compiled(self, offered: Offered) -> ToolPolicy:
        return ToolPolicy.resolve(self._grants, self._excluded, offered, places=self._places)

    def _recompiled(self) -> ToolPolicy:
        """The policy over what is offered now, where what is not as pinned stands as it was pinned: it is withdrawn."""
        pinned = {name: self._as_pinned(name, offered) for name, offered in self._offered.items()}
        try:
            return self._compiled(pinned)
        except SpawnRefused:
            # A tool that nobody was granted has made a grant ambiguous; what was granted stands as it is.
            return self._compiled({name: self._as_pinned(name, ()) for name in self._offered})

    def _as_pinned(self, server: str, offered: Definitions) -> list[Mapping[str, Any]]:
        mine = {one.tool: one.name for one in self._granted if one.server == server}
        kept = [one for one in offered if one.get("name") not in mine and isinstance(one.get("name"), str)]
        now = {one.get("name"): one for one in offered}
        for tool, name in mine.items():
            pin = (self._pins or {}).get((server, tool))
            if name not in self._withdrawn and tool in now:
                kept.append(now[tool])
            elif pin is not None:
                kept.append(pin.definition)
            else:
                kept.append({**_NOTHING, "name": tool})
        return kept

    def _difference(
        self, server: str, tool: str, definition: Mapping[str, Any] | None, *, twice: bool
    ) -> tuple[str, ...]:
        pinned = None if self._pins is None else self._pins.get((server, tool))
        if pinned is None:
            return ("it was not pinned when the handoff was provisioned",)
        if definition is None:
            return ("it is not listed any more",)
        if twice:
            return ("it is listed twice",)
        return drift(pinned, definition)

    def _record(self, desk: Desk, action: str, target: str, reason: str, lines: Sequence[str]) -> None:
        shown = [printable(line, desk.redactor, 500) for line in lines]
        decision = Decision.REFUSED if reason else Decision.ALLOWED
        desk.ledger.note(Draft(action, decision, SURFACE, target, reason, {"changes": shown} if shown else {}))


def _times(offered: Definitions, tool: str) -> int:
    return sum(one.get("name") == tool for one in offered)


async def look_again(upstream: Upstream, catalogue: Catalogue, desk: Desk) -> None:
    """List a server's tools anew and judge them; one that does not list them in time, or at all, has none."""
    offered: Definitions = ()
    try:
        async with asyncio.timeout(LIST_SECONDS):
            offered = await upstream.definitions()
    except (UpstreamError, UpstreamFailed, TimeoutError):
        pass
    catalogue.judge(upstream.name, offered, desk)
    desk.unseen.discard(upstream.name)
