"""Which planned times run, after however long nobody was there (F49)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.cron import Cron
from functions.ids import ScheduleId
from functions.schedule_spec import CatchUp
from scheduler.due_times import ON_TIME, DueTimes, Missed, due_times, spread

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
HOURLY, MINUTELY = Cron("@hourly", "UTC"), Cron("* * * * *", "UTC")


@pytest.mark.parametrize("catch_up", ["none", "one", "all"])
@pytest.mark.parametrize("late", [timedelta(0), timedelta(seconds=5), ON_TIME])
def test_one_time_that_is_dealt_with_within_a_minute_runs_whatever_is_said_of_catching_up(
    catch_up: CatchUp, late: timedelta
) -> None:
    assert due_times(HOURLY, catch_up, NOON, NOON + late) == DueTimes((NOON,), None, NOON + HOUR)


@pytest.mark.parametrize(
    ("catch_up", "run", "missed"),
    [
        ("none", (), Missed(NOON, NOON + 2 * HOUR, 3)),
        ("one", (NOON + 2 * HOUR,), Missed(NOON, NOON + HOUR, 2)),
        ("all", (NOON, NOON + HOUR, NOON + 2 * HOUR), None),
    ],
)
def test_a_scheduler_that_was_away_over_three_planned_times(
    catch_up: CatchUp, run: tuple[datetime, ...], missed: Missed | None
) -> None:
    now = NOON + 2 * HOUR + 10 * MINUTE
    assert due_times(HOURLY, catch_up, NOON, now) == DueTimes(run, missed, NOON + 3 * HOUR)


@pytest.mark.parametrize(
    ("catch_up", "run", "missed"),
    [
        ("none", (NOON + 2 * HOUR,), Missed(NOON, NOON + HOUR, 2)),
        ("one", (NOON + 2 * HOUR,), Missed(NOON, NOON + HOUR, 2)),
        ("all", (NOON, NOON + HOUR, NOON + 2 * HOUR), None),
    ],
)
def test_one_that_is_back_in_time_for_the_third_of_them(
    catch_up: CatchUp, run: tuple[datetime, ...], missed: Missed | None
) -> None:
    now = NOON + 2 * HOUR + timedelta(seconds=30)
    assert due_times(HOURLY, catch_up, NOON, now) == DueTimes(run, missed, NOON + 3 * HOUR)


def test_one_missed_time_alone() -> None:
    now = NOON + 10 * MINUTE
    assert due_times(HOURLY, "none", NOON, now) == DueTimes((), Missed(NOON, NOON, 1), NOON + HOUR)
    assert due_times(HOURLY, "one", NOON, now) == DueTimes((NOON,), None, NOON + HOUR)


def test_no_more_than_the_last_thousand_are_caught_up() -> None:
    now = NOON + 365 * 24 * HOUR
    found = due_times(MINUTELY, "all", NOON, now)
    assert (len(found.run), found.run[0], found.run[-1]) == (1000, now - 999 * MINUTE, now)
    assert found.missed == Missed(NOON, now - 1000 * MINUTE, None)
    assert due_times(MINUTELY, "one", NOON, now) == DueTimes((now,), Missed(NOON, now - MINUTE, None), now + MINUTE)
    assert due_times(MINUTELY, "all", NOON, NOON + 999 * MINUTE).missed is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "@hourly", "30 2 * * *"]),
    st.sampled_from(["none", "one", "all"]),
    st.lists(st.integers(1, 5000), min_size=1, max_size=6),
)
def test_every_planned_time_is_run_or_missed_once_however_rounds_fall(
    line: str, catch_up: CatchUp, pauses: list[int]
) -> None:
    """Rounds at random moments around a change of the clocks account for each time exactly once."""
    cron = Cron(line, "Europe/Berlin")
    now = datetime(2026, 10, 24, 20, tzinfo=UTC)
    begin = next_at = cron.after(now)
    accounted: list[datetime] = []
    assert begin is not None
    for pause in pauses:
        now += timedelta(seconds=13 * pause)
        if next_at is None or next_at > now:
            continue
        found = due_times(cron, catch_up, next_at, now)
        if (missed := found.missed) is not None:
            accounted += cron.up_to(missed.last, since=missed.first, most=10_000)
        accounted += found.run
        next_at = found.next_at
    assert accounted == list(cron.up_to(now, since=begin, most=10_000))


def test_jitter_spreads_jobs_evenly_and_always_in_the_same_way() -> None:
    jitter = timedelta(seconds=30)
    waits = [spread(ScheduleId(UUID(int=n)), NOON, jitter) for n in range(1000)]
    assert all(timedelta(0) <= wait < jitter for wait in waits)
    for third in range(3):
        assert 250 < sum(third * 10 <= wait.total_seconds() < third * 10 + 10 for wait in waits) < 420
    assert waits == [spread(ScheduleId(UUID(int=n)), NOON, jitter) for n in range(1000)]
    assert spread(ScheduleId(UUID(int=1)), NOON + MINUTE, jitter) != waits[1]
    assert spread(ScheduleId(UUID(int=1)), NOON, timedelta(0)) == timedelta(0)
