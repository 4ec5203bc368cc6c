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

LONGEST_WISH = timedelta(hours=24)
"""A job may ask for no longer a wait than this before its next attempt."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``retry`` of a manifest. ``attempts`` counts the first one too."""

    attempts: int
    on: frozenset[str]
    initial: timedelta
    factor: float
    max: timedelta


def retry_delay(
    policy: RetryPolicy,
    *,
    code: str,
    retryable: bool,
    attempts_made: int,
    jitter: float,
    exit_code: int | None = None,
    wish: timedelta | None = None,
    grows: bool = False,
) -> timedelta | None:
    """How long to wait for the next attempt; None when the job is over.

    ``attempts_made`` are those that count (lost nodes do not). ``wish`` is what the job itself asked for, in place of
    the policy's wait. ``grows``: the next attempt would be the first one with more memory, which it gets whatever the
    policy says. ``jitter`` in [0, 1) spreads the wait over ± 20 %, so that jobs which failed together do not come back
    together.
    """
    if not retryable:
        return None
    if not grows and (attempts_made >= policy.attempts or causes_of(code, exit_code).isdisjoint(policy.on)):
        return None
    if wish is not None:
        return min(max(wish, timedelta(0)), LONGEST_WISH)
    # The exponent is bounded: factor ** 100 overflows long before `max` would cut it.
    grown = policy.initial.total_seconds() * policy.factor ** min(attempts_made - 1, 60)
    return timedelta(seconds=min(grown, policy.max.total_seconds()) * (0.8 + 0.4 * jitter))


def causes_of(code: str, exit_code: int | None) -> set[str]:
    """The words of ``retry.on`` that mean this failure: ``exit:75`` is an ``error``, too."""
    cause = CAUSES.get(code, "error")
    return {cause, f"exit:{exit_code}"} if code == "exit_nonzero" and exit_code is not None else {cause}
