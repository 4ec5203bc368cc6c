"""What schedulers agree on: who looks after the fleet, what the cloud refused, how its last list went. Owns ``fleet``.

The row is a lock and a fence. A step that changes the fleet begins with ``hold``, in its transaction: so steps come one
after the other, and one of a scheduler that was replaced meanwhile does nothing.
"""

from __future__ import annotations

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
RETURNING frozen_until, server_limit, limit_until, listed_at, reconciled_at, listed, unknown, problem, problem_at
"""

CLOCK = """
-- compare_clocks
UPDATE fleet SET ahead = $1::timestamptz - now() RETURNING ahead
"""

AHEAD = """
-- clocks_apart
SELECT now() + ahead AS now, ahead FROM fleet
"""

GET = """
-- get_fleet
SELECT frozen_until, server_limit, limit_until, listed_at, reconciled_at, listed, unknown, problem, problem_at
  FROM fleet
"""

FREEZE = """
-- freeze_fleet
UPDATE fleet SET frozen_until = greatest(frozen_until, $1)
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
UPDATE fleet SET problem = $1, problem_at = CASE WHEN $1::text IS NOT NULL THEN now() END
 WHERE problem IS DISTINCT FROM $1
"""


class Replaced(Conflict):
    """Another scheduler looks after the fleet by now."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """``reconciled_at`` and ``problem_at`` are by the database's clock, the other moments by the cloud's."""

    frozen_until: datetime | None
    server_limit: int | None
    limit_until: datetime | None
    listed_at: datetime | None
    reconciled_at: datetime | None
    listed: int
    unknown: int
    problem: str | None
    problem_at: datetime | None

    def limit(self, now: datetime) -> int | None:
        """How many servers the account may have, as far as is known now."""
        return self.server_limit if self.limit_until is not None and now < self.limit_until else None


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


async def compare_clocks(conn: Connection, now: datetime) -> timedelta:
    """How much the cloud's clock, that says ``now``, is ahead of the database's; others can ask for it then."""
    found: timedelta = await conn.fetchval(CLOCK, now)
    return found


async def clock(conn: Connection) -> tuple[datetime, timedelta]:
    """What the cloud's clock says now, and how much it is ahead of the database's, by the last round."""
    row: Any = await conn.fetchrow(AHEAD)
    return row["now"], row["ahead"]


async def get(conn: Connection) -> Fleet:
    row: Any = await conn.fetchrow(GET)
    return Fleet(**row)


async def freeze(conn: Connection, *, until: datetime) -> None:
    """Buy nothing before ``until``."""
    await conn.execute(FREEZE, until)


async def limit(conn: Connection, servers: int, *, until: datetime) -> None:
    """The account has no room for more than ``servers``; so it is taken to be until ``until``."""
    await conn.execute(LIMIT, servers, until)


async def listed(conn: Connection, servers: int, unknown: int, *, at: datetime) -> None:
    """A complete list was compared with the rows."""
    await conn.execute(LISTED, servers, unknown, at)


async def tell(conn: Connection, problem: str | None) -> None:
    """What the operator must know, in one sentence; None: nothing."""
    await conn.execute(TELL, problem)
