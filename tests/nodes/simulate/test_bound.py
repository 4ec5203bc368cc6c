from __future__ import annotations

import itertools
import random

from nodes.simulate.bound import HOUR, Span, hours


def test_one_job_needs_its_hours() -> None:
    assert hours([(0, 10, 1)]) == 1
    assert hours([(0, HOUR, 1)]) == 1
    assert hours([(0, HOUR + 1, 1)]) == 2
    assert hours([]) == 0


def test_jobs_of_one_hour_share_it_and_slots_come_in_nodes() -> None:
    assert hours([(0, 10, 1), (20, 30, 1), (3500, 3590, 1)]) == 1
    assert hours([(0, 10, 1), (5, 15, 1), (5, 15, 1)], unit=2) == 2
    assert hours([(0, 10, 3)], unit=4) == 1


def test_an_hour_begins_only_when_it_is_needed() -> None:
    # Begun at 0, the second lease would end at 3600 and a third be needed; begun at 1800 it lasts to the end.
    assert hours([(0, 5000, 1), (1800, 5000, 1)]) == 3
    assert hours([(0, 100, 1), (3700, 3800, 1)]) == 2


def test_no_cover_has_fewer_hours() -> None:
    """Against all covers that begin hours at multiples of 20 minutes, for demands on that grid."""
    chance, step, length = random.Random(3), 1200.0, 9
    for _ in range(60):
        spans: list[Span] = []
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(length)
            spans.append((start * step, min(start + chance.randint(1, 4), length) * step, 1))
        need = [sum(a <= at * step < b for a, b, _ in spans) for at in range(length)]
        assert hours(spans) == _fewest(need)


def _fewest(need: list[int]) -> int:
    """By trying all numbers of hours begun in each third of an hour."""
    most = max(need)
    for total in itertools.count():
        for begun in _splits(total, len(need), most):
            if all(sum(begun[max(at - 2, 0) : at + 1]) >= wanted for at, wanted in enumerate(need)):
                return total
    raise AssertionError


def _splits(total: int, places: int, most: int) -> itertools.chain[tuple[int, ...]]:
    if places == 0:
        return itertools.chain([()] if total == 0 else [])
    return itertools.chain.from_iterable(
        ((first, *rest) for rest in _splits(total - first, places - 1, most)) for first in range(min(total, most) + 1)
    )
