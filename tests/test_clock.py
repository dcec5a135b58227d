"""The one clock, and times and spans as documents and people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_token_injector.clock import ManualClock, SystemClock, human_duration, iso, parse_iso
from tests.requirements import requirement

NOON = datetime(2026, 6, 20, 12, tzinfo=UTC)


@requirement("clock.iso")
@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_reads_back_to_the_second(at: datetime) -> None:
    assert parse_iso(iso(at)) == at.replace(microsecond=0)


@requirement("clock.iso")
def test_a_time_is_written_in_utc_with_a_z_whatever_its_zone() -> None:
    assert iso(NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))) == "2026-06-20T12:00:00Z"
    assert parse_iso("2026-06-20T14:00:00+02:00") == NOON
    assert parse_iso("2026-06-20T14:00:00+02:00").utcoffset() == timedelta(0)


@requirement("clock.iso")
@pytest.mark.parametrize("text", ["2026-06-20T12:00:00", "2026-06-20", "", "noon", "2026-02-30T00:00:00Z"])
def test_a_time_without_a_zone_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_iso(text)


@requirement("clock.manual")
def test_a_manual_clock_stands_still_until_it_is_moved_and_both_its_hands_move_together() -> None:
    clock = ManualClock(NOON)
    assert (clock.now(), clock.monotonic()) == (NOON, 0.0)
    clock.advance(timedelta(minutes=15, milliseconds=500))
    assert clock.now() - NOON == timedelta(seconds=900.5)
    assert clock.monotonic() == 900.5
    with pytest.raises(ValueError, match="forward"):
        clock.advance(timedelta(seconds=-1))
    assert clock.monotonic() == 900.5


@requirement("clock.manual")
@pytest.mark.parametrize("start", [datetime(2026, 6, 20), NOON.astimezone(timezone(timedelta(hours=1)))])  # noqa: DTZ001 -- refused
def test_a_manual_clock_starts_at_an_aware_utc_time(start: datetime) -> None:
    with pytest.raises(ValueError, match="UTC"):
        ManualClock(start)


@requirement("clock.system")
def test_the_machines_clock_is_aware_and_its_monotonic_hand_never_goes_back() -> None:
    clock = SystemClock()
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.monotonic() <= clock.monotonic()


@requirement("clock.human")
@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=45), "45 s"),
        (timedelta(minutes=1), "1 min"),
        (timedelta(seconds=90), "1 min 30 s"),
        (timedelta(minutes=59), "59 min"),
        (timedelta(hours=4), "4 h"),
        (timedelta(hours=1, minutes=30), "1 h 30 min"),
        (timedelta(days=2), "48 h"),
    ],
)
def test_a_span_reads_as_a_person_says_it(span: timedelta, text: str) -> None:
    assert human_duration(span) == text


@requirement("clock.human")
def test_a_span_just_over_a_ceiling_does_not_read_as_the_ceiling() -> None:
    assert human_duration(timedelta(hours=24, seconds=1)) != human_duration(timedelta(hours=24))
