"""A tool is what it was when it was granted, or it is not there."""

from __future__ import annotations

from typing import Any

import pytest

from agent_token_injector.audit import Draft
from agent_token_injector.masking import Redactor
from agent_token_injector.mcp_proxy.catalogue import Catalogue
from agent_token_injector.mcp_proxy.grants import Grant, Places
from agent_token_injector.mcp_proxy.pins import ToolPin
from agent_token_injector.mcp_proxy.tool_policy import Allowed, ToolPolicy
from tests.requirements import requirement

GOOD = {
    "name": "read",
    "description": "reads",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}},
}
EVIL = {**GOOD, "description": "EVIL", "inputSchema": {"type": "object"}}
OTHER = {"name": "other", "description": "another", "inputSchema": {"type": "object"}}


class Kept:
    """A ledger that keeps what it is told, and nothing else of a desk but its policy."""

    def __init__(self, policy: ToolPolicy) -> None:
        self.policy = policy
        self.redactor = Redactor()
        self.ledger = self
        self.drafts: list[Draft] = []

    def note(self, draft: Draft) -> None:
        self.drafts.append(draft)

    @property
    def actions(self) -> list[str]:
        return [draft.action for draft in self.drafts]


def started(offered: list[dict[str, Any]], *, pins: list[ToolPin] | None) -> tuple[Catalogue, Any]:
    catalogue = Catalogue([Grant("read"), Grant("other")], [], Places(), pins)
    desk: Any = Kept(catalogue.resolve({"server": offered}))
    catalogue.judge("server", offered, desk)
    return catalogue, desk


PINS = [ToolPin.of("server", "read", GOOD), ToolPin.of("server", "other", OTHER)]


@requirement("mcp.pin-withdrawn")
@pytest.mark.parametrize("pins", [PINS, None], ids=["pinned", "pinned when first seen"])
def test_a_tool_that_changes_is_withdrawn_and_comes_back_as_it_was_pinned(pins: list[ToolPin] | None) -> None:
    catalogue, desk = started([GOOD, OTHER], pins=pins)
    assert desk.actions == []
    assert catalogue.judge("server", [EVIL, OTHER], desk)
    assert desk.policy.tools == ("other",)
    assert not isinstance(desk.policy.decide("read", {}), Allowed)
    assert desk.actions == ["tool.withdrawn"]
    assert any("'reads' -> 'EVIL'" in line for line in desk.drafts[0].detail["changes"])
    assert not catalogue.judge("server", [EVIL, OTHER], desk)
    assert catalogue.judge("server", [GOOD, OTHER], desk)
    assert desk.actions == ["tool.withdrawn", "tool.restored"]
    assert [one["description"] for one in desk.policy.definitions()] == ["reads", "another"]
    assert isinstance(desk.policy.decide("read", {"n": 1}), Allowed)
    assert not isinstance(desk.policy.decide("read", {"n": "x"}), Allowed)


@requirement("mcp.pin-withdrawn")
def test_a_tool_that_differs_from_the_start_is_served_as_pinned_once_it_is_again() -> None:
    catalogue, desk = started([EVIL, OTHER], pins=PINS)
    assert desk.policy.tools == ("other",)
    catalogue.judge("server", [GOOD, OTHER], desk)
    assert [one["description"] for one in desk.policy.definitions()] == ["reads", "another"]
    assert not isinstance(desk.policy.decide("read", {"n": "x"}), Allowed)


@requirement("mcp.pin-withdrawn")
@pytest.mark.parametrize(
    ("offered", "why"),
    [([OTHER], "not listed any more"), ([GOOD, OTHER, EVIL], "listed twice"), ([GOOD, GOOD, OTHER], "listed twice")],
    ids=["gone", "twice", "twice alike"],
)
def test_a_tool_that_is_gone_or_there_twice_is_withdrawn(offered: list[dict[str, Any]], why: str) -> None:
    catalogue, desk = started([GOOD, OTHER], pins=PINS)
    catalogue.judge("server", offered, desk)
    assert desk.policy.tools == ("other",)
    assert why in desk.drafts[0].detail["changes"][0]


@requirement("mcp.pin-withdrawn")
def test_a_new_tool_of_a_confusing_name_changes_nothing_that_was_granted() -> None:
    catalogue, desk = started([GOOD, OTHER], pins=PINS)
    catalogue.judge("server", [EVIL, OTHER, {"name": "server_other", "inputSchema": {"type": "object"}}], desk)
    assert desk.policy.tools == ("other",)
    allowed = desk.policy.decide("other", {})
    assert isinstance(allowed, Allowed)
    assert allowed.target == "server/other"
    assert not isinstance(desk.policy.decide("server_other", {}), Allowed)
