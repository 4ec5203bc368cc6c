"""The emulator's time: set and moved by the test, or running at a multiple of the real one."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)


class VirtualClock:
    """Stands still with ``speed`` 0. The shifts are what a cloud with a wrong clock says, of now and of creations."""

    def __init__(self, start: datetime = START, *, speed: float = 0.0) -> None:
        self._base = start
        self._real = time.monotonic()
        self.speed = speed
        self.date_shift = timedelta()
        self.created_shift = timedelta()

    def now(self) -> datetime:
        return self._base + timedelta(seconds=(time.monotonic() - self._real) * self.speed)

    def advance(self, by: timedelta) -> None:
        assert by >= timedelta(), "time goes one way"
        self._base += by
