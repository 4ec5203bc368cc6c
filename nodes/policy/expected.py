"""How long jobs of a class run, judged by those that have run: a lognormal through two quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

Z80 = 0.8416212335729143
"""Of the standard normal: 80 of 100 are below."""
NARROWEST, WIDEST = 0.05, 2.5
"""Bounds of sigma: no class is so even that nothing can be late, or so wild that an age says nothing."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Half of the jobs run up to ``p50`` seconds, 80 of 100 up to ``p80``."""

    p50: float
    p80: float

    def outlasts(self, span: float) -> float:
        """The probability that a job runs longer than ``span``."""
        if span <= 0:
            return 1.0
        mu, sigma = _normal(self.p50, self.p80)
        return 0.5 * math.erfc((math.log(span) - mu) / (sigma * math.sqrt(2)))

    def ends_within(self, span: float, age: float) -> float:
        """The probability that a job that has run for ``age`` ends within the next ``span``."""
        now, then = self.outlasts(age), self.outlasts(age + span)
        # Far beyond everything seen the model knows nothing: half of what is that old ends within its own age again.
        return 1 - then / now if now > 1e-6 else 1 - 0.5 ** (span / max(age, 1.0))

    @property
    def mean(self) -> float:
        mu, sigma = _normal(self.p50, self.p80)
        return math.exp(mu + sigma * sigma / 2)


@lru_cache(maxsize=4096)
def _normal(p50: float, p80: float) -> tuple[float, float]:
    """Mean and deviation of the logarithm. A round asks thousands of times about few classes."""
    median = max(p50, 1e-3)
    sigma = math.log(max(p80, 1e-3) / median) / Z80
    return math.log(median), min(max(sigma, NARROWEST), WIDEST)


UNKNOWN = Expected(p50=120.0, p80=300.0)
"""Before anything has run."""


def expected(runs: Sequence[float]) -> Expected:
    """Of a class whose last runs took so long, in seconds; ``UNKNOWN`` if there are none."""
    if not runs:
        return UNKNOWN
    ordered = sorted(runs)
    at = [ordered[min(int(q * len(ordered)), len(ordered) - 1)] for q in (0.5, 0.8)]
    return Expected(p50=at[0], p80=at[1])
