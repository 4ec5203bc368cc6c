"""How many of many rare things happen in a span: of those that come by themselves, a Poisson number."""

from __future__ import annotations

import math
from statistics import NormalDist

LARGE = 500.0
"""From this mean on a normal number is as good, and the terms of the sum would underflow."""
SURE = 1 - 1e-9


def quantile(probability: float, mean: float) -> int:
    """The least n such that at most n happen with ``probability``, ``mean`` being expected; so fewer than n happen
    with less than that."""
    if probability <= 0 or mean <= 0:
        return 0
    wanted = min(probability, SURE)
    if mean > LARGE:
        return math.ceil(NormalDist(mean, math.sqrt(mean)).inv_cdf(wanted))
    n, term = 0, math.exp(-mean)
    total = term
    while total < wanted:
        n += 1
        term *= mean / n
        total += term
    return n
