"""How servers booted of late: how long that takes, and what is bought less for a while because it failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from functions.db import Connection
from nodes.offers import Offer

TIMES = """
-- boot_times
SELECT type, location, percentile_disc(0.9) WITHIN GROUP (
           ORDER BY extract(epoch FROM ready_at - created_at)::float8) AS seconds
  FROM servers WHERE ready_at > $1 AND ready_at - created_at BETWEEN '0' AND interval '1 hour'
 GROUP BY type, location HAVING count(*) >= 3
"""

FAILED = """
-- boots_failed
SELECT type, location, count(*) AS times, max(boot_failed_at) AS last FROM servers failed
 WHERE boot_failed_at BETWEEN $1 AND $2
   AND NOT EXISTS (SELECT 1 FROM servers since
                    WHERE since.ready_at > failed.boot_failed_at AND since.type = failed.type
                      AND since.location = failed.location)
 GROUP BY type, location
"""

# Judged by when they were bought: those of one purchase that fail do so minutes after the others have joined.
FAILED_IN_A_ROW = """
-- boots_failed_in_a_row
SELECT count(*) AS times, max(boot_failed_at) AS last,
       EXISTS (SELECT 1 FROM servers WHERE ended_at IS NULL AND state IN ('planned', 'creating', 'booting')) AS trying
  FROM servers
 WHERE boot_failed_at BETWEEN $1 AND $2
   AND created_at > coalesce((SELECT max(created_at) FROM (
        SELECT created_at FROM servers WHERE ready_at IS NOT NULL ORDER BY ready_at DESC LIMIT 50) joined), '-infinity')
"""

IN_A_ROW = 3
AHEAD = timedelta(minutes=5)
"""A boot that failed later than this from now did by a clock that was wrong."""


async def times(conn: Connection, *, now: datetime) -> dict[tuple[str, str], float]:
    """How long nine of ten servers of a type and location took to join, of the last week's."""
    return {
        (row["type"], row["location"]): row["seconds"] for row in await conn.fetch(TIMES, now - timedelta(days=7))
    }


async def without_bad(conn: Connection, offers: Sequence[Offer], *, now: datetime) -> tuple[Offer, ...]:
    """The offers, those whose servers failed to join of late not to be had for a while: longer each time."""
    rows = await conn.fetch(FAILED, now - timedelta(hours=1), now + AHEAD)
    pauses = {row: timedelta(minutes=min(2 ** (row["times"] - 1), 15)) for row in rows}
    until = {(row["type"], row["location"]): row["last"] + pause for row, pause in pauses.items()}
    return tuple(
        replace(offer, available=False, again_at=max(until[offer.key], offer.again_at or now))
        if until.get(offer.key, now) > now
        else offer
        for offer in offers
    )


@dataclass(frozen=True, slots=True)
class FailedBoots:
    """Servers of whatever type that never joined, ``times`` of them since one last did. Then it is not the cloud:
    the gateway is out of their reach, or what they are told is wrong, and the next ones would be money for nothing."""

    times: int
    until: datetime | None

    @property
    def alarm(self) -> str | None:
        if self.until is None:
            return None
        return f"the last {self.times} servers did not become nodes, fewer are bought: see the events of `rgrid nodes`"

    def hold(self, offers: Sequence[Offer], now: datetime) -> tuple[Offer, ...]:
        """The offers, none to be had until the next attempt."""
        if self.until is None or self.until <= now:
            return tuple(offers)
        return tuple(
            replace(offer, available=False, again_at=max(self.until, offer.again_at or now)) for offer in offers
        )


async def failed_in_a_row(conn: Connection, *, now: datetime) -> FailedBoots:
    """After three in a row one more round of purchases is tried at a time, with longer and longer pauses."""
    row = await conn.fetchrow(FAILED_IN_A_ROW, now - timedelta(hours=6), now + AHEAD)
    assert row is not None
    if row["times"] < IN_A_ROW:
        return FailedBoots(row["times"], None)
    until = row["last"] + timedelta(minutes=min(2 ** min(row["times"] - IN_A_ROW, 10), 30))
    return FailedBoots(row["times"], max(until, now + timedelta(minutes=1)) if row["trying"] else until)
