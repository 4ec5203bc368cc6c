"""What schedulers tell of themselves through the database: their rounds, and things that they count.

Owns ``rounds`` and ``tallies``.

Each process adds up what it did and writes it down now and then, so that a round costs no statement more. What was not
written when it dies is lost: good enough to watch by, not to reckon with.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from functions.db import Connection, Pool

TELL_S = 10
GIVEN_UP = timedelta(minutes=3)
"""A round that no scheduler has had for so long, while others told of theirs, is none any more: before the alert
RGridRoundLate is about it."""

TELL_ROUNDS = """
-- tell_rounds
INSERT INTO rounds (name, interval_s, succeeded_at, runs, failures, seconds, told_at)
SELECT name, interval_s, now() - ago, runs, failures, seconds, now()
  FROM unnest($1::text[], $2::float8[], $3::interval[], $4::bigint[], $5::bigint[], $6::float8[])
    r (name, interval_s, ago, runs, failures, seconds)
 ORDER BY name
ON CONFLICT (name) DO UPDATE
   SET interval_s = excluded.interval_s, succeeded_at = greatest(rounds.succeeded_at, excluded.succeeded_at),
       runs = rounds.runs + excluded.runs, failures = rounds.failures + excluded.failures,
       seconds = rounds.seconds + excluded.seconds, told_at = now()
"""

FORGET_ROUNDS = """
-- forget_rounds
DELETE FROM rounds WHERE told_at < now() - $1::interval
"""

ADD_TALLIES = """
-- add_tallies
INSERT INTO tallies (name, value)
SELECT name, value FROM unnest($1::text[], $2::bigint[]) t (name, value) ORDER BY name
ON CONFLICT (name) DO UPDATE SET value = tallies.value + excluded.value
"""

READ_ROUNDS = """
-- read_rounds
SELECT name, interval_s, succeeded_at, runs, failures, seconds, told_at FROM rounds ORDER BY name
"""

READ_TALLIES = """
-- read_tallies
SELECT name, value FROM tallies
"""


class Tally(StrEnum):
    """What is counted."""

    DELIVERIES_TAKEN = "deliveries_taken"
    DELIVERIES_FAILED = "deliveries_failed"
    DELIVERIES_EXHAUSTED = "deliveries_exhausted"
    LEASES_LOST = "leases_lost"
    CLOUD_CALLS = "cloud_calls"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """``succeeded_at`` is of whichever scheduler was the last; the rest is of all of them together."""

    name: str
    interval_s: float
    succeeded_at: datetime | None
    runs: int
    failures: int
    seconds: float
    told_at: datetime


@dataclass(slots=True)
class _Done:
    """What a round did that was not told yet. ``succeeded_s`` is by the process's clock."""

    interval_s: float
    succeeded_s: float | None = None
    runs: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Records:
    """One for a process."""

    clock: Callable[[], float] = time.monotonic
    _rounds: dict[str, _Done] = field(default_factory=dict)
    _tallies: Counter[Tally] = field(default_factory=Counter)

    def ran(self, name: str, *, interval_s: float, took_s: float, failed: bool) -> None:
        """A round has just ended."""
        done = self._rounds.setdefault(name, _Done(interval_s))
        done.runs += 1
        done.seconds += took_s
        if failed:
            done.failures += 1
        else:
            done.succeeded_s = self.clock()

    def count(self, what: Tally, times: int = 1) -> None:
        self._tallies[what] += times

    async def tell_once(self, pool: Pool) -> bool:
        """Write down what there is to tell; that is all, so False. When it fails it is told the next time."""
        done, tallies = {name: replace(each) for name, each in self._rounds.items()}, Counter(self._tallies)
        now_s = self.clock()
        async with pool.acquire() as conn, conn.transaction():
            await _tell(conn, done, tallies, now_s)
        # Only now, and only what was told: rounds went on meanwhile.
        for name, told in done.items():
            left = self._rounds[name]
            left.runs -= told.runs
            left.failures -= told.failures
            left.seconds -= told.seconds
        self._tallies.subtract(tallies)
        return False


async def _tell(conn: Connection, done: dict[str, _Done], tallies: Counter[Tally], now_s: float) -> None:
    of = list(done.values())
    await conn.execute(
        TELL_ROUNDS, list(done), [each.interval_s for each in of],
        [None if each.succeeded_s is None else timedelta(seconds=now_s - each.succeeded_s) for each in of],
        [each.runs for each in of], [each.failures for each in of], [each.seconds for each in of],
    )  # fmt: skip
    await conn.execute(FORGET_ROUNDS, GIVEN_UP)
    if counted := {what: times for what, times in tallies.items() if times}:
        await conn.execute(ADD_TALLIES, list(counted), list(counted.values()))


async def read_rounds(conn: Connection) -> Sequence[RoundRecord]:
    """By name."""
    return [RoundRecord(**row) for row in await conn.fetch(READ_ROUNDS)]


async def read_tallies(conn: Connection) -> dict[Tally, int]:
    """What was ever counted of each; those of another release are left out."""
    found = {row["name"]: row["value"] for row in await conn.fetch(READ_TALLIES)}
    return {what: found.get(what.value, 0) for what in Tally}
