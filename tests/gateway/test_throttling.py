"""How often something may happen."""

from __future__ import annotations

import pytest

from gateway.throttling import MOST_KEYS, Throttle


def test_a_throttle_gives_as_many_as_it_has_and_fills_with_time() -> None:
    now = 0.0
    throttle = Throttle(lambda: now)
    assert [throttle.wait_s("a", limit=2, per_s=10) for _ in range(3)] == [0, 0, 5]
    assert throttle.wait_s("b", limit=2, per_s=10) == 0
    now = 4.0
    assert throttle.wait_s("a", limit=2, per_s=10) == pytest.approx(1)
    now = 5.0
    assert [throttle.wait_s("a", limit=2, per_s=10) for _ in range(2)] == [0, 5]
    now = 1000.0
    assert [throttle.wait_s("a", limit=2, per_s=10) for _ in range(3)] == [0, 0, 5]
    for key in range(MOST_KEYS):
        throttle.wait_s(key, limit=2, per_s=10)
    assert throttle.wait_s("a", limit=2, per_s=10) == 0  # forgotten, so it is full
