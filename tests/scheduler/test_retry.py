"""Whether there is another attempt, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler.retry import RetryPolicy, retry_delay

EVERY = frozenset({"error", "timeout", "oom"})


def seconds(
    made: int, *, code: str = "exit_nonzero", on: frozenset[str] = EVERY, attempts: int = 5, retryable: bool = True,
    jitter: float = 0.5, initial: float = 5, factor: float = 2, longest: float = 300, exit_code: int | None = None,
    wish: float | None = None, grows: bool = False,
) -> float | None:  # fmt: skip
    policy = RetryPolicy(attempts, on, timedelta(seconds=initial), factor, timedelta(seconds=longest))
    delay = retry_delay(
        policy, code=code, retryable=retryable, attempts_made=made, jitter=jitter, exit_code=exit_code,
        wish=None if wish is None else timedelta(seconds=wish), grows=grows,
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("on", "exit_code", "wait"),
    [
        ({"exit:75"}, 75, 5),
        ({"exit:75"}, 7, None),
        ({"exit:7"}, 75, None),
        ({"exit:75", "timeout"}, 1, None),
        ({"error"}, 75, 5),
        ({"exit:75"}, None, None),
    ],
)
def test_an_exit_code_may_be_a_cause_of_its_own(on: set[str], exit_code: int | None, wait: float | None) -> None:
    assert seconds(1, on=frozenset(on), exit_code=exit_code) == wait


def test_a_job_that_the_kernel_killed_did_not_choose_its_exit_code() -> None:
    assert seconds(1, code="oom_killed", on=frozenset({"exit:137"}), exit_code=137) is None


@pytest.mark.parametrize(("wish", "wait"), [(0, 0), (90, 90), (90_000, 86_400), (-5, 0)])
def test_a_job_says_how_long_to_wait_within_bounds(wish: float, wait: float) -> None:
    assert seconds(3, wish=wish, jitter=0.9) == wait


def test_a_wish_gives_no_attempt_that_the_policy_does_not() -> None:
    assert seconds(5, wish=1) is None
    assert seconds(1, wish=1, on=frozenset({"timeout"})) is None
    assert seconds(1, wish=1, retryable=False) is None


def test_more_memory_is_tried_once_whatever_the_policy_says() -> None:
    assert seconds(1, attempts=1, code="oom_killed", on=frozenset({"error"}), grows=True) == 5
    assert seconds(1, attempts=1, code="oom_killed", grows=False) is None
