"""Whether a failed attempt gets another one, and when: pure rules over values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

CAUSES = {
    "exit_nonzero": "error",
    "oom_killed": "oom",
    "timeout": "timeout",
}
"""Error code → the word that ``retry.on`` uses. Every other code is the platform's trouble and counts as ``error``."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``retry`` of a manifest. ``attempts`` counts the first one too."""

    attempts: int
    on: frozenset[str]
    initial: timedelta
    factor: float
    max: timedelta


def retry_delay(
    policy: RetryPolicy, *, code: str, retryable: bool, attempts_made: int, jitter: float
) -> timedelta | None:
    """How long to wait for the next attempt; None when the job is over.

    ``attempts_made`` are those that count (lost nodes do not). ``jitter`` in [0, 1) spreads the wait over ± 20 %, so
    that jobs which failed together do not come back together.
    """
    if not retryable or attempts_made >= policy.attempts or CAUSES.get(code, "error") not in policy.on:
        return None
    # The exponent is bounded: factor ** 100 overflows long before `max` would cut it.
    grown = policy.initial.total_seconds() * policy.factor ** min(attempts_made - 1, 60)
    return timedelta(seconds=min(grown, policy.max.total_seconds()) * (0.8 + 0.4 * jitter))
