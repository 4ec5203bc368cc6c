"""What schedulers agree on: who looks after the fleet, what the cloud refused, how its last list went. Owns ``fleet``.

The row is a lock and a fence. A step that changes the fleet begins with ``hold``, in its transaction: so steps come one
after the other, and one of a scheduler that was replaced meanwhile does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.errors import Conflict

LEAD = """
-- lead_fleet
UPDATE fleet SET epoch = epoch + CASE WHEN holder IS DISTINCT FROM $1 THEN 1 ELSE 0 END, holder = $1,
                 leads_until = now() + $2::interval
 WHERE holder = $1 OR leads_until < now()
RETURNING epoch
"""

LEAVE = """
-- leave_fleet
UPDATE fleet SET leads_until = '-infinity' WHERE holder = $1
"""

HOLD = """
-- hold_fleet
UPDATE fleet SET leads_until = greatest(leads_until, now() + $2::interval) WHERE epoch = $1
RETURNING frozen_until, server_limit, limit_until, listed_at, reconciled_at, listed, unknown, problem, problem_at,
          alarms, told_at
"""

RENEW = """
-- renew_lead
UPDATE fleet SET leads_until = greatest(leads_until, now() + $2::interval) WHERE epoch = $1 RETURNING true
"""

COMPARE = """
-- compare_clocks
UPDATE fleet SET ahead = $1::timestamptz - clock_timestamp(), doubt = $2 RETURNING ahead
"""

CLOCKS = """
-- both_clocks
SELECT clock_timestamp() AS ours, clock_timestamp() + ahead AS cloud, ahead FROM fleet
"""

SURE = """
-- sure_clock
SELECT now() + ahead - doubt AS now, ahead FROM fleet FOR UPDATE
"""

GET = """
-- get_fleet
SELECT frozen_until, server_limit, limit_until, listed_at, reconciled_at, listed, unknown, problem, problem_at,
       alarms, told_at
  FROM fleet
"""

FREEZE = """
-- freeze_fleet
UPDATE fleet SET frozen_until = CASE WHEN frozen_until < $1::timestamptz + $2::interval
                                     THEN greatest(frozen_until, $1) ELSE $1 END
"""

LIMIT = """
-- limit_fleet
UPDATE fleet SET server_limit = $1, limit_until = $2
"""

LISTED = """
-- fleet_listed
UPDATE fleet SET listed = $1, unknown = $2, listed_at = $3, reconciled_at = now()
"""

TELL = """
-- fleet_problem
UPDATE fleet SET problem = $1, alarms = $2, told_at = now(),
                 problem_at = CASE WHEN problem IS NOT DISTINCT FROM $1 THEN problem_at
                                   WHEN $1::text IS NOT NULL THEN now() END
 WHERE problem IS DISTINCT FROM $1 OR alarms <> $2 OR (told_at > now() - interval '10 s') IS NOT TRUE
"""

ALARMS = ("prepare", "list", "reconcile", "addresses", "buy", "boots", "offers", "delete", "clock", "refused")
"""What the operator may have to know something about."""


FARTHEST = timedelta(hours=2)
"""Nothing is put off for longer: a moment of the cloud's that is further ahead was told by a clock that was wrong."""


class Replaced(Conflict):
    """Another scheduler looks after the fleet by now."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """``reconciled_at``, ``problem_at`` and ``told_at`` (the last whole round) are by the database's clock, the other
    moments by the cloud's. ``alarms`` are kinds of what the operator must know."""

    frozen_until: datetime | None
    server_limit: int | None
    limit_until: datetime | None
    listed_at: datetime | None
    reconciled_at: datetime | None
    listed: int
    unknown: int
    problem: str | None
    problem_at: datetime | None
    alarms: Sequence[str]
    told_at: datetime | None

    def frozen(self, now: datetime) -> datetime | None:
        """Until when nothing is bought; None if something may be."""
        return self.frozen_until if _is_ahead(self.frozen_until, now) else None

    def limit(self, now: datetime) -> int | None:
        """How many servers the account may have, as far as is known now."""
        return self.server_limit if _is_ahead(self.limit_until, now) else None


def _is_ahead(moment: datetime | None, now: datetime) -> bool:
    return moment is not None and now < moment <= now + FARTHEST


async def lead(conn: Connection, holder: UUID, *, lease: timedelta) -> int | None:
    """The epoch in which ``holder`` looks after the fleet for ``lease``; None if another one does."""
    found: int | None = await conn.fetchval(LEAD, holder, lease)
    return found


async def leave(conn: Connection, holder: UUID) -> None:
    """Another one may look after the fleet from now on."""
    await conn.execute(LEAVE, holder)


async def hold(conn: Connection, epoch: int, *, lease: timedelta) -> Fleet:
    """Lock the fleet to the end of the transaction; raises ``Replaced``."""
    row: Any = await conn.fetchrow(HOLD, epoch, lease)
    if row is None:
        raise Replaced("another scheduler looks after the fleet by now")
    return Fleet(**row)


async def renew(conn: Connection, epoch: int, *, lease: timedelta) -> bool:
    """Say again who looks after the fleet; False if it is another one by now."""
    return await conn.fetchval(RENEW, epoch, lease) is not None


async def compare_clocks(conn: Connection, now: datetime, *, doubt: timedelta) -> timedelta:
    """How much the cloud's clock, that is taken to say ``now``, is ahead of the database's; others can ask for it then.
    ``doubt`` is how much less the slower one of both says."""
    found: timedelta = await conn.fetchval(COMPARE, now, doubt)
    return found


async def clocks(conn: Connection) -> tuple[datetime, datetime]:
    """What the database's clock says, and what the cloud's should by the last round."""
    row: Any = await conn.fetchrow(CLOCKS)
    return row["ours"], row["cloud"]


async def clock(conn: Connection) -> tuple[datetime, timedelta]:
    """What the cloud's clock says now, and how much it is ahead of the database's, by the last round."""
    row: Any = await conn.fetchrow(CLOCKS)
    return row["cloud"], row["ahead"]


async def sure_clock(conn: Connection) -> tuple[datetime, timedelta]:
    """As ``clock``, but no later than either of both says: for what is written down for good. Locks the fleet first, as
    whoever changes it does."""
    row: Any = await conn.fetchrow(SURE)
    return row["now"], row["ahead"]


async def get(conn: Connection) -> Fleet:
    row: Any = await conn.fetchrow(GET)
    return Fleet(**row)


async def freeze(conn: Connection, *, until: datetime) -> None:
    """Buy nothing before ``until``."""
    await conn.execute(FREEZE, until, FARTHEST)


async def limit(conn: Connection, servers: int, *, until: datetime) -> None:
    """The account has no room for more than ``servers``; so it is taken to be until ``until``."""
    await conn.execute(LIMIT, servers, until)


async def listed(conn: Connection, servers: int, unknown: int, *, at: datetime) -> None:
    """A complete list was compared with the rows."""
    await conn.execute(LISTED, servers, unknown, at)


async def tell(conn: Connection, alarms: Mapping[str, str]) -> None:
    """A round was whole. What the operator must know, a sentence for each thing that it is about: the first word of
    that is one of ``ALARMS``."""
    kinds = sorted({about.partition(" ")[0] for about in alarms})
    await conn.execute(TELL, next(iter(alarms.values()), None), kinds)
