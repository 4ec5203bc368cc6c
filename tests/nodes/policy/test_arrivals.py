from __future__ import annotations

import pytest

from functions.ids import AccountId
from nodes.policy.arrivals import WINDOW_S, Arrivals

ONE, TWO = AccountId(1), AccountId(2)


def arrivals(*times: float, slots: int = 1) -> Arrivals:
    came = Arrivals()
    for at in times:
        came.add(ONE, at, jobs=1, slots=slots)
    return came


def test_arrivals_that_have_stopped_are_forgotten_soon() -> None:
    came = arrivals(*range(60, 1801, 60))
    assert came.rates(1810)[ONE] == pytest.approx(1 / 60)
    assert came.rates(2400)[ONE] == pytest.approx(1 / 600, rel=0.01)
    assert came.rates(1800 + WINDOW_S + 1) == {}


def test_large_jobs_count_by_their_slots_and_stop_counting_as_soon_as_small_ones() -> None:
    small, large = arrivals(*range(0, 1800, 100)), arrivals(*range(0, 1800, 100), slots=4)
    for now in (1701, 1800, 2400):
        assert large.rates(now)[ONE] == pytest.approx(4 * small.rates(now)[ONE])


def test_a_flood_is_as_fast_as_it_is() -> None:
    came = Arrivals()
    came.add(ONE, 0, jobs=9000, slots=9000)
    came.add(TWO, 0, jobs=1, slots=1)
    assert came.rates(0) == {ONE: 5.0, TWO: 1 / WINDOW_S}
