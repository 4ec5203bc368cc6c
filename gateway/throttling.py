"""How often something may happen, counted in this process: a bucket for each key that fills with time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST_KEYS = 10_000


class Throttle:
    """``clock`` is in seconds. What has not been asked for longest is forgotten, which fills its bucket."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: Hashable, *, limit: float, per_s: float) -> float:
        """Take one of ``limit`` in ``per_s`` seconds: 0 if there was one, else how long until there is."""
        now, rate = self._clock(), limit / per_s
        left, seen = self._buckets.pop(key, (limit, now))
        left = min(limit, left + (now - seen) * rate)
        wait_s = 0.0 if left >= 1 else (1 - left) / rate
        self._buckets[key] = (left if wait_s else left - 1, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return wait_s
