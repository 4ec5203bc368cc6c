"""Whether there is another attempt, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler.retry import RetryPolicy, retry_delay

EVERY = frozenset({"error", "timeout", "oom"})


def seconds(
    made: int, *, code: str = "exit_nonzero", on: frozenset[str] = EVERY, attempts: int = 5, retryable: bool = True,
    jitter: float = 0.5, initial: float = 5, factor: float = 2, longest: float = 300,
) -> float | None:  # fmt: skip
    policy = RetryPolicy(attempts, on, timedelta(seconds=initial), factor, timedelta(seconds=longest))
    delay = retry_delay(policy, code=code, retryable=retryable, attempts_made=made, jitter=jitter)
    return None if delay is None else delay.total_seconds()


@pytest.mark.parametrize(("made", "wait"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, None), (6, None)])
def test_the_wait_grows_until_the_attempts_are_used_up(made: int, wait: float | None) -> None:
    assert seconds(made) == wait


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("exit_nonzero", "error"),
        ("timeout", "timeout"),
        ("oom_killed", "oom"),
        ("image_pull_failed", "error"),
        ("input_unavailable", "error"),
        ("output_missing", "error"),
        ("internal", "error"),
    ],
)
def test_each_code_has_one_cause(code: str, cause: str) -> None:
    assert seconds(1, code=code, on=frozenset({cause})) == 5
    assert seconds(1, code=code, on=EVERY - {cause}) is None


def test_what_another_attempt_cannot_help_gets_none() -> None:
    assert seconds(1, retryable=False) is None


def test_jitter_spreads_by_a_fifth_each_way() -> None:
    assert (seconds(1, jitter=0), seconds(1, jitter=0.999999)) == (4, pytest.approx(6))


def test_the_longest_wait_holds_before_jitter_also_where_powers_overflow() -> None:
    assert seconds(7, attempts=100) == 300
    assert seconds(99, attempts=100, factor=100) == 300


def test_one_attempt_is_all_by_default() -> None:
    assert seconds(1, attempts=1) is None
