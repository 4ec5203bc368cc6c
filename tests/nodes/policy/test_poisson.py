from __future__ import annotations

import math

import pytest

from nodes.policy.poisson import LARGE, quantile


@pytest.mark.parametrize("mean", [0.1, 1.0, 3.7, 40.0])
@pytest.mark.parametrize("probability", [0.01, 1 / 3, 0.5, 0.95])
def test_the_quantile_is_the_least_number_that_is_not_exceeded_with_its_probability(
    mean: float, probability: float
) -> None:
    n = quantile(probability, mean)
    assert _at_most(n, mean) >= probability
    assert n == 0 or _at_most(n - 1, mean) < probability


def test_large_means_go_on_where_small_ones_end() -> None:
    for probability in (0.05, 1 / 3, 0.95):
        assert quantile(probability, LARGE + 1) - quantile(probability, LARGE) in (0, 1, 2)
        assert quantile(probability, 1e6) == pytest.approx(1e6, rel=0.01)


def test_nothing_is_certain_but_that_none_is_none() -> None:
    assert quantile(0.0, 9.0) == quantile(0.9, 0.0) == 0
    assert quantile(1.0, 9.0) < 50


def _at_most(n: int, mean: float) -> float:
    return sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(n + 1))
