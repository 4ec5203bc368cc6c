"""How many calls the cloud may get from us: a bucket that all of them share, and what its answers say of its own."""

from __future__ import annotations

from datetime import datetime, timedelta

NONE = timedelta()
LIMIT_WINDOW_S = 3600


class CallBudget:
    """``take`` before each call, ``observe`` after; all moments by one clock.

    A part of our bucket and of the project's is kept for calls that save money or tell the truth (``essential``: lists
    and deletes): purchases must not use up what it takes to end them. The project's is large and fills at 1/s: a
    smaller part of it will do, for which purchases have to wait once others have emptied it.
    """

    def __init__(
        self,
        *,
        per_second: float = 0.5,
        burst: int = 60,
        reserved: float = 0.25,
        project_reserved: float = 0.05,
        pause: timedelta = timedelta(seconds=30),
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._reserved = reserved
        self._project_reserved = project_reserved
        self._pause = pause
        self._level = float(burst)
        self._filled_at: datetime | None = None
        self._ordinary_from: datetime | None = None
        self._all_from: datetime | None = None
        self._refusals = 0
        self.calls = 0
        """Ever sent, for metrics."""

    def take(self, now: datetime, *, essential: bool) -> datetime | None:
        """None: the call may be sent, and is counted. Else when to try again."""
        if self._filled_at is not None:
            passed = max(NONE, now - self._filled_at).total_seconds()
            self._level = min(float(self._burst), self._level + passed * self._per_second)
        self._filled_at = now
        held = self._all_from if essential else _later(self._all_from, self._ordinary_from)
        if held is not None and held > now:
            return held
        floor = 0.0 if essential else self._burst * self._reserved
        missing = floor + 1 - self._level
        if missing > 0:
            return now + timedelta(seconds=missing / self._per_second)
        self._level -= 1
        self.calls += 1
        return None

    def observe(self, now: datetime, *, limit: int, remaining: int) -> None:
        """What an answer's headers say of the project's own bucket, which others may use too."""
        missing = limit * self._project_reserved - remaining
        per_second = limit / LIMIT_WINDOW_S
        self._ordinary_from = now + timedelta(seconds=missing / per_second) if missing > 0 else None

    def answered(self) -> None:
        """A call was not refused for the rate."""
        self._refusals = 0

    def refused(self, now: datetime, reset_at: datetime | None) -> datetime:
        """Too many, says the cloud: leave it alone, longer each time, at most until its bucket is full again."""
        pause = now + min(self._pause * 2 ** min(self._refusals, 10), timedelta(seconds=LIMIT_WINDOW_S))
        self._refusals += 1
        self._all_from = pause if reset_at is None or reset_at <= now else min(pause, reset_at)
        return self._all_from


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return max(one, other)
