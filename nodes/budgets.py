"""What projects and all of them together may cost in a calendar month (UTC), and what is left. Owns ``budgets``.

What an hour costs counts from when it is reserved: first against whom it is reserved for, and once it is settled
against those whose jobs ran in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from functions.db import Connection
from functions.ids import ProjectId
from nodes.outlook import Left

# Hours of last month that are not settled yet count, too: it is for minutes.
LEFT = """
-- budgets_left
SELECT budgets.project_id, monthly,
       monthly - coalesce((SELECT sum(cost) FROM usage_days
                            WHERE usage_days.project_id = budgets.project_id AND day >= $1), 0)
               - coalesce((SELECT sum(amount) FROM reservations
                            WHERE reservations.project_id = budgets.project_id), 0) AS remaining
  FROM budgets
"""

SPENT = """
-- spent_in_month
SELECT coalesce((SELECT sum(cost) FROM usage_days WHERE day >= $1), 0)
     + coalesce((SELECT sum(server + ipv4) FROM server_hours WHERE settled_at IS NULL), 0)
"""

# A dear one that was bought for want of another shuts nobody out who can pay for a cheap one.
LEAST_PRICE = """
-- least_price
SELECT min(hourly) FROM (
    SELECT hourly FROM servers WHERE created_at IS NOT NULL AND reason <> 'unknown' ORDER BY node_id DESC LIMIT 20) late
"""

GET = """
-- get_budget
SELECT (SELECT monthly FROM budgets WHERE project_id = $1) AS monthly,
       coalesce((SELECT sum(cost) FROM usage_days WHERE project_id = $1 AND day >= $2), 0) AS spent,
       coalesce((SELECT sum(amount) FROM reservations WHERE project_id = $1), 0) AS reserved
"""

SET = """
-- set_budget
INSERT INTO budgets (project_id, monthly) VALUES ($1, $2)
ON CONFLICT (project_id) DO UPDATE SET monthly = excluded.monthly, updated_at = now(), warned_in = NULL
"""

WARN = """
-- warn_of_budgets
WITH used AS (
    SELECT budgets.project_id,
           coalesce((SELECT sum(cost) FROM usage_days
                      WHERE usage_days.project_id = budgets.project_id AND day >= $1), 0)
         + coalesce((SELECT sum(amount) FROM reservations
                      WHERE reservations.project_id = budgets.project_id), 0) AS amount
      FROM budgets WHERE warned_in IS DISTINCT FROM $1
)
UPDATE budgets SET warned_in = $1
  FROM used JOIN projects ON projects.id = used.project_id
 -- Again: another scheduler may have said it meanwhile.
 WHERE budgets.project_id = used.project_id AND warned_in IS DISTINCT FROM $1
   AND used.amount * 100 >= budgets.monthly * $2::int
RETURNING projects.slug AS project, budgets.monthly, used.amount AS used
"""

REMOVE = """
-- remove_budget
DELETE FROM budgets WHERE project_id = $1
"""


WARN_AT_PERCENT = 80
"""So much of a budget is used or reserved when its project is warned."""


@dataclass(frozen=True, slots=True)
class Budget:
    """EUR net of this month: ``spent`` is settled, ``reserved`` is for hours that are not yet. ``monthly`` None: no
    limit."""

    monthly: Decimal | None
    spent: Decimal
    reserved: Decimal

    @property
    def left(self) -> Decimal | None:
        return None if self.monthly is None else self.monthly - self.spent - self.reserved

    @property
    def used_percent(self) -> int | None:
        """Of the budget, spent or reserved; rounded down."""
        return int((self.spent + self.reserved) * 100 / self.monthly) if self.monthly else None

    @property
    def is_low(self) -> bool:
        return self.used_percent is not None and self.used_percent >= WARN_AT_PERCENT


@dataclass(frozen=True, slots=True)
class Low:
    """A project that has used, or reserved, most of its budget of this month. EUR net."""

    project: str
    monthly: Decimal
    used: Decimal


def month_of(now: datetime) -> date:
    """The first day of its month."""
    return now.date().replace(day=1)


async def left(conn: Connection, now: datetime, *, monthly: Decimal | None) -> Left:
    """What may still be spent this month: by each project that has a budget, and of ``monthly`` by all."""
    month = month_of(now)
    budgets = {ProjectId(row["project_id"]): row["remaining"] for row in await conn.fetch(LEFT, month)}
    return Left(budgets, None if monthly is None else monthly - await spent(conn, now))


async def spent(conn: Connection, now: datetime) -> Decimal:
    """By all of them this month, with what is reserved."""
    found: Decimal = await conn.fetchval(SPENT, month_of(now))
    return found


async def over(conn: Connection, now: datetime, percents: Sequence[int]) -> dict[int, int]:
    """How many projects have used up so many per cent of their budget, or more."""
    rows = await conn.fetch(LEFT, month_of(now))
    return {
        percent: sum(row["monthly"] - row["remaining"] >= row["monthly"] * percent / 100 for row in rows)
        for percent in percents
    }


async def exhausted(conn: Connection, now: datetime) -> frozenset[ProjectId]:
    """Projects that cannot pay for an hour of a node any more, by the price of the cheapest one bought of late: what
    is left is of no use to them."""
    rows = await conn.fetch(LEFT, month_of(now))
    price = await conn.fetchval(LEAST_PRICE) if rows else None
    return frozenset(
        ProjectId(row["project_id"]) for row in rows if row["remaining"] <= 0 or row["remaining"] < (price or 0)
    )


async def get(conn: Connection, project: ProjectId, now: datetime) -> Budget:
    row = await conn.fetchrow(GET, project, month_of(now))
    assert row is not None
    return Budget(**row)


async def put(conn: Connection, project: ProjectId, monthly: Decimal) -> None:
    await conn.execute(SET, project, monthly)


async def remove(conn: Connection, project: ProjectId) -> None:
    await conn.execute(REMOVE, project)


async def warn_once(conn: Connection, now: datetime) -> list[Low]:
    """Projects that have come to need a warning: each once a month, and again after its budget was changed."""
    return [Low(**row) for row in await conn.fetch(WARN, month_of(now), WARN_AT_PERCENT)]
