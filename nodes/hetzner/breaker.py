"""Which offers not to ask for, for a while, after the cloud had none: a breaker for each type and location."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(slots=True)
class _Open:
    until: datetime
    times: int


class StockBreaker:
    """Opens for a minute, and twice as long each time it is closed in vain, up to a quarter of an hour."""

    def __init__(self, *, first: timedelta = timedelta(minutes=1), longest: timedelta = timedelta(minutes=15)) -> None:
        self._first = first
        self._longest = longest
        self._open: dict[tuple[str, str], _Open] = {}

    def trip(self, key: tuple[str, str], now: datetime) -> datetime:
        """A purchase failed: when the next one may be tried. Failures while it is open are of calls that were under way
        already and count once."""
        before = self._open.get(key)
        if before is not None and (still := self.again_at(key, now)) is not None:
            return still
        # Long after its last time it is another shortage.
        times = 0 if before is None or now - before.until > self._longest else before.times
        doubled: timedelta = self._first * 2 ** min(times, 20)
        until = now + min(doubled, self._longest)
        self._open[key] = _Open(until, times + 1)
        return until

    def succeeded(self, key: tuple[str, str]) -> None:
        self._open.pop(key, None)

    def again_at(self, key: tuple[str, str], now: datetime) -> datetime | None:
        """When it closes; None when it is closed."""
        found = self._open.get(key)
        # One that is open for longer than ever was opened by a clock that was wrong.
        return found.until if found is not None and now < found.until <= now + self._longest else None
