"""Which of a schedule's planned times run now. Values only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from functions.cron import MOST_AT_ONCE, Cron
from functions.ids import ScheduleId
from functions.schedule_spec import CatchUp

ON_TIME = timedelta(minutes=1)
"""A planned time that nobody got to for so long is missed: schedules are said by the minute."""


@dataclass(frozen=True, slots=True)
class Missed:
    """Planned times that do not run, from ``first`` to ``last``; ``count`` is None when they are too many to count."""

    first: datetime
    last: datetime
    count: int | None


@dataclass(frozen=True, slots=True)
class DueTimes:
    """``run`` in order; ``next_at`` is the first time to come."""

    run: tuple[datetime, ...]
    missed: Missed | None
    next_at: datetime | None


def due_times(times: Cron, catch_up: CatchUp, next_at: datetime, now: datetime) -> DueTimes:
    """What becomes of the planned times from ``next_at``, the first that was not dealt with, up to ``now``.

    ``all`` runs each (the last thousand), ``one`` the last one, ``none`` the last one if it is on time.
    """
    following = times.after(next_at)
    passed: tuple[datetime, ...] = (next_at,)
    if following is not None and following <= now:
        # One more than may run, to know whether there are more.
        passed = times.up_to(now, since=next_at, most=MOST_AT_ONCE + 1)
        following = times.after(now)
    run = passed[-MOST_AT_ONCE:] if catch_up == "all" else passed[-1:]
    if catch_up == "none" and run and now - run[0] > ON_TIME:
        run = ()
    rest = passed[: len(passed) - len(run)]
    missed = None
    if rest:
        missed = Missed(next_at, rest[-1], len(rest) if len(passed) <= MOST_AT_ONCE else None)
    return DueTimes(run, missed, following)


def spread(schedule: ScheduleId, planned: datetime, jitter: timedelta) -> timedelta:
    """How much later than planned a job starts: always the same for one planned time, evenly below ``jitter``."""
    digest = hashlib.sha256(schedule.bytes + str(int(planned.timestamp())).encode()).digest()
    return jitter * (int.from_bytes(digest[:8]) / 2**64)
