"""What time it is at the cloud, by the `Date` of its answers: hours are opened, and charged, by that.

One machine of the cloud's may be wrong for a while, and so may ours be. What is believed moves by little at once; an
answer that differs by more is believed if another clock of ours agrees, or when all have said the same for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from nodes.provider import CLOCKS_APART

# `Date` has whole seconds and is some milliseconds old: a smaller difference is no difference.
CLOCK_NOISE = timedelta(seconds=1.5)
HALF_SECOND = timedelta(seconds=0.5)
BELIEVED_AFTER = timedelta(minutes=10)


def steady_clock() -> Callable[[], datetime]:
    """A clock that never jumps: what the machine's said at first, and how long ago that was."""
    began, at = datetime.now(UTC), time.monotonic()
    return lambda: began + timedelta(seconds=time.monotonic() - at)


class CloudClock:
    """``clock`` is the machine's own."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._believed: timedelta | None = None
        self._said: timedelta | None = None
        self._ours: timedelta | None = None
        self._odd_since: datetime | None = None

    def now(self) -> datetime:
        return self._clock() + self.ahead

    @property
    def ahead(self) -> timedelta:
        """How much what is believed is ahead of the machine's own."""
        return self._believed or timedelta()

    def compare(self, ours: datetime, believed: datetime) -> None:
        """What it is by another clock of ours; and what was believed by that, which is where a new process begins."""
        self._ours = ours - self._clock()
        if self._believed is None:
            self._believed = believed - self._clock()

    def said(self) -> datetime | None:
        """What it is by the last answer, believed or not; None before the first."""
        return None if self._said is None else self._clock() + self._said

    def hear(self, date: datetime, at: datetime) -> None:
        """An answer of the moment ``at``, by the machine's clock, has this `Date`."""
        before, self._said = self._said, date + HALF_SECOND - at
        off = abs(self._said - self.ahead)
        agrees = self._ours is not None and abs(self._said - self._ours) <= CLOCKS_APART
        if off <= CLOCKS_APART or agrees or self._believed is None:
            self._odd_since = None
            self._believed = self._said if off > CLOCK_NOISE else self.ahead
            return
        if self._odd_since is None or before is None or abs(self._said - before) > CLOCKS_APART:
            self._odd_since = at
        if at - self._odd_since >= BELIEVED_AFTER:
            self._believed, self._odd_since = self._said, None
