"""How often a tool may be called, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_token_injector.mcp_proxy.budgets import WINDOW_SECONDS, Budgets
from agent_token_injector.mcp_proxy.grants import Limits
from agent_token_injector.mcp_proxy.tool_policy import Reason
from tests.requirements import requirement

TIMES = st.lists(st.floats(0, 300), max_size=80).map(sorted)
LIMIT = st.none() | st.integers(1, 12)


@requirement("mcp.budgets")
def test_a_tool_may_be_called_so_often_and_no_more() -> None:
    budgets = Budgets({"t": Limits(calls=2)})
    assert [budgets.take("t", float(at)) for at in (0, 1, 2, 1000)] == [None, None, Reason.BUDGET, Reason.BUDGET]


@requirement("mcp.budgets")
def test_within_any_minute_so_often_and_no_more() -> None:
    budgets = Budgets({"t": Limits(per_minute=2)})
    taken = [budgets.take("t", at) for at in (0.0, 59.0, 59.999, 60.0, 60.1, 119.0, 119.1)]
    assert taken == [None, None, Reason.RATE, None, Reason.RATE, None, Reason.RATE]


@requirement("mcp.budgets")
def test_a_tool_without_limits_is_not_counted_and_one_tool_does_not_spend_anothers() -> None:
    budgets = Budgets({"a": Limits(calls=1), "b": Limits(calls=1), "free": Limits()})
    assert all(budgets.take(name, 0.0) is None for name in ("free", "free", "unknown", "a", "b"))
    assert budgets.take("a", 0.0) is Reason.BUDGET
    assert (budgets.left("free", 0.0), budgets.left("unknown", 0.0), budgets.left("b", 0.0)) == (None, None, 0)


@requirement("mcp.budgets")
def test_both_limits_hold_and_the_harder_one_is_named() -> None:
    budgets = Budgets({"t": Limits(calls=3, per_minute=2)})
    assert [budgets.take("t", 0.0) for _ in range(3)] == [None, None, Reason.RATE]
    assert [budgets.take("t", 60.0) for _ in range(2)] == [None, Reason.BUDGET]


@requirement("mcp.budgets")
def test_a_limit_of_nothing_or_less_allows_nothing() -> None:
    for limits in (Limits(calls=0), Limits(calls=-1), Limits(per_minute=0), Limits(per_minute=-1)):
        assert Budgets({"t": limits}).take("t", 0.0) is not None
    assert Budgets({"t": Limits(calls=2)}, used={"t": 5}).take("t", 0.0) is Reason.BUDGET


@requirement("mcp.budgets")
def test_a_clock_that_goes_backwards_opens_nothing() -> None:
    budgets = Budgets({"t": Limits(per_minute=1)})
    assert budgets.take("t", 100.0) is None
    assert budgets.take("t", 0.0) is Reason.RATE
    assert budgets.take("t", 159.9) is Reason.RATE


@requirement("mcp.budgets")
@given(times=TIMES, calls=LIMIT, per_minute=LIMIT)
def test_no_window_and_no_life_ever_holds_more_than_the_limits(
    times: list[float], calls: int | None, per_minute: int | None
) -> None:
    budgets = Budgets({"t": Limits(calls, per_minute)})
    made: list[float] = []
    for at in times:
        room = budgets.left("t", at)
        reason = budgets.take("t", at)
        assert room is None or (room > 0) == (reason is None)
        recent = [earlier for earlier in made if at - earlier < WINDOW_SECONDS]
        spent = calls is not None and len(made) >= calls
        expected = Reason.BUDGET if spent else None
        if expected is None and per_minute is not None and len(recent) >= per_minute:
            expected = Reason.RATE
        assert reason is expected
        if reason is None:
            made.append(at)


@requirement("mcp.budgets")
@given(times=TIMES, calls=LIMIT, per_minute=LIMIT, cut=st.integers(0, 80))
def test_a_restarted_proxy_that_is_told_what_was_used_goes_on_where_it_stopped(
    times: list[float], calls: int | None, per_minute: int | None, cut: int
) -> None:
    limits = {"t": Limits(calls, per_minute)}
    whole, first = Budgets(limits), Budgets(limits)
    expected = [whole.take("t", at) for at in times]
    before = [first.take("t", at) for at in times[:cut]]
    made = [at for at, reason in zip(times, before, strict=False) if reason is None]
    second = Budgets(limits, {"t": len(made)}, {"t": made})
    assert before + [second.take("t", at) for at in times[cut:]] == expected
