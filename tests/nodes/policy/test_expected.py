from __future__ import annotations

import random

import pytest

from nodes.policy.expected import UNKNOWN, Expected, expected


def test_half_of_the_jobs_outlast_the_median_and_a_fifth_the_other_quantile() -> None:
    some = Expected(p50=100.0, p80=300.0)
    assert some.outlasts(100) == pytest.approx(0.5)
    assert some.outlasts(300) == pytest.approx(0.2)
    assert some.outlasts(0) == 1


def test_a_job_that_ran_long_is_likelier_to_go_on() -> None:
    some = Expected(p50=100.0, p80=300.0)
    assert some.ends_within(60, 50) > some.ends_within(60, 1000) > some.ends_within(60, 100_000) > 0


def test_a_class_is_judged_by_the_quantiles_of_its_last_runs() -> None:
    chance = random.Random(1)
    found = expected([chance.lognormvariate(5, 1) for _ in range(2000)])
    assert found.p50 == pytest.approx(148, rel=0.1)
    assert found.mean == pytest.approx(245, rel=0.15)
    assert expected([]) == UNKNOWN
    assert expected([7.0]) == Expected(7.0, 7.0)


def test_no_class_is_too_even_or_too_wild_to_be_asked() -> None:
    for odd in (Expected(0.0, 0.0), Expected(1e-9, 1e9), Expected(1e6, 1e6)):
        for age in (0.0, 1.0, 1e7):
            assert 0 <= odd.ends_within(60, age) <= 1
