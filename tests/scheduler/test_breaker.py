"""How many messages an endpoint is sent at once."""

from __future__ import annotations

import pytest

from scheduler.breaker import (
    AT_ONCE,
    FIRST_REST_S,
    FORGET_S,
    IN_VAIN,
    LONGEST_REST_S,
    PER_PROJECT,
    PER_PROJECT_IN_VAIN,
    PROJECT_REST_S,
    TRUST,
    Breaker,
    Share,
    is_trouble,
    part_of,
)
from scheduler.deliveries import Exchanged
from scheduler.sending import IN_ALL


@pytest.mark.parametrize(
    ("exchanged", "trouble"),
    [
        (Exchanged(15_000, timed_out=True), True),
        (Exchanged(3, error="no connection"), True),
        *((Exchanged(3, status=status), True) for status in (429, 502, 503, 504)),
        *((Exchanged(3, status=status), False) for status in (200, 204, 301, 400, 404, 410, 500)),
        (Exchanged(9_000, status=500), True),
        (Exchanged(9_000, status=200), False),
    ],
)
def test_trouble_is_no_answer_too_much_or_a_slow_failure(exchanged: Exchanged, trouble: bool) -> None:
    assert is_trouble(exchanged) is trouble


def test_it_opens_after_five_failures_in_a_row_and_lets_one_through_after_each_rest() -> None:
    breaker = Breaker()
    for _ in range(TRUST):
        assert breaker.free(0) == AT_ONCE
        breaker.saw(True, 0)
    rests = []
    now_s = 0.0
    for _ in range(5):
        assert breaker.free(now_s) == 0
        rests.append(breaker.resting_until_s - now_s)
        now_s = breaker.resting_until_s
        assert breaker.free(now_s) == 1
        breaker.in_flight += 1
        assert breaker.free(now_s) == 0, "one at a time"
        breaker.in_flight -= 1
        breaker.saw(True, now_s)
    assert rests == [FIRST_REST_S, 20, 40, LONGEST_REST_S, LONGEST_REST_S]
    breaker.saw(False, now_s)
    assert breaker.free(now_s) == AT_ONCE


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker()
    for trouble in [True] * (TRUST - 1) + [False] + [True] * (TRUST - 1):
        breaker.saw(trouble, 0)
    assert breaker.free(0) == AT_ONCE


def test_who_is_well_or_was_not_called_for_long_is_forgotten() -> None:
    assert Breaker().forgettable(0)
    assert not Breaker(in_flight=1).forgettable(0)
    failing = Breaker()
    failing.saw(True, 0)
    assert not failing.forgettable(FIRST_REST_S + FORGET_S)
    assert failing.forgettable(FIRST_REST_S + FORGET_S + 1)


def test_a_project_whose_every_message_fails_is_slowed_down_until_one_does_not() -> None:
    share = Share(in_flight=4)
    for _ in range(IN_VAIN):
        assert share.free(0) == PER_PROJECT - 4
        share.saw(True, 0)
    assert share.free(0) == 0
    assert share.free(PROJECT_REST_S) == PER_PROJECT_IN_VAIN - 4
    share.saw(False, PROJECT_REST_S)
    assert share.free(PROJECT_REST_S) == PER_PROJECT - 4


@pytest.mark.parametrize("projects", [1, 2, 3, 24, 100])
def test_there_is_room_for_the_next_project_however_many_take_all_that_they_get(projects: int) -> None:
    in_flight = [0] * projects
    # Whoever came first has more, and gives it back as its messages end.
    for _ in range(500):
        for each in range(projects):
            in_flight[each] -= in_flight[each] > 0
            in_flight[each] += min(part_of(IN_ALL - sum(in_flight), in_flight[each]), PER_PROJECT - in_flight[each])
    assert part_of(IN_ALL - sum(in_flight), 0) > 0
    assert max(in_flight) - min(in_flight) <= 2
    assert sum(in_flight) >= min(projects * PER_PROJECT, IN_ALL // 2)
