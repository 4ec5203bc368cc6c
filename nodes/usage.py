"""What projects used and what it cost, by day and function. Owns ``usage_days`` and ``usage_cursor``.

Money comes with each settled hour; jobs are counted by a round of its own, once each, in the order of their ends. Both
stay when the jobs themselves go. What that round has not come to yet is counted when it is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.ids import ProjectId
from nodes.receipts import Receipt

NO_FUNCTION = UUID(int=0)
SETTLED = timedelta(minutes=10)
"""A transaction that ends a job takes no longer: an outcome of that age will have no younger neighbour behind it."""

CHARGE = """
-- charge_usage
INSERT INTO usage_days (project_id, day, function_id, cost, idle)
SELECT * FROM unnest($1::bigint[], $2::date[], $3::uuid[], $4::numeric[], $5::numeric[])
ON CONFLICT (project_id, day, function_id)
DO UPDATE SET cost = usage_days.cost + excluded.cost, idle = usage_days.idle + excluded.idle
"""

COUNT_JOBS = """
-- count_jobs
WITH cursor AS (
    SELECT finished_at, job_id FROM usage_cursor FOR NO KEY UPDATE SKIP LOCKED
), page AS (
    SELECT o.* FROM cursor CROSS JOIN LATERAL (
        SELECT job_id, project_id, attempt, slots, leased_at, finished_at FROM outcomes
         WHERE (outcomes.finished_at, outcomes.job_id) > (cursor.finished_at, cursor.job_id)
           AND outcomes.finished_at < now() - $2::interval
         ORDER BY outcomes.finished_at, outcomes.job_id LIMIT $1) o
), used AS (
    SELECT page.project_id, (page.finished_at AT TIME ZONE 'UTC')::date AS day,
           coalesce(jobs.function_id, '00000000-0000-0000-0000-000000000000') AS function_id,
           coalesce(extract(epoch FROM finished_at - leased_at) * 1000 * coalesce(slots, 1), 0)
         + (SELECT coalesce(sum(extract(epoch FROM ended_at - leased_at) * 1000 * coalesce(slots, 1)), 0)
              FROM job_attempts WHERE job_attempts.job_id = page.job_id) AS slot_ms,
           (SELECT coalesce(sum(size), 0) FROM artifacts
             WHERE artifacts.job_id = page.job_id AND artifacts.attempt = page.attempt AND state <> 'pending') AS bytes
      FROM page JOIN jobs ON jobs.id = page.job_id
), counted AS (
    INSERT INTO usage_days (project_id, day, function_id, jobs, slot_ms, bytes)
    SELECT project_id, day, function_id, count(*), sum(slot_ms)::bigint, sum(bytes)::bigint
      FROM used GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (project_id, day, function_id)
    DO UPDATE SET jobs = usage_days.jobs + excluded.jobs, slot_ms = usage_days.slot_ms + excluded.slot_ms,
                  bytes = usage_days.bytes + excluded.bytes
), moved AS (
    UPDATE usage_cursor SET finished_at = last.finished_at, job_id = last.job_id
      FROM (SELECT finished_at, job_id FROM page ORDER BY finished_at DESC, job_id DESC LIMIT 1) last
)
SELECT count(*) FROM page
"""

USED = """
-- used
WITH used AS (
    SELECT day, function_id, jobs, slot_ms::numeric, bytes::numeric, cost, idle FROM usage_days
     WHERE project_id = $1 AND day BETWEEN $2 AND $3
    UNION ALL
    SELECT (o.finished_at AT TIME ZONE 'UTC')::date,
           coalesce(jobs.function_id, '00000000-0000-0000-0000-000000000000'), 1,
           coalesce(extract(epoch FROM o.finished_at - leased_at) * 1000 * coalesce(slots, 1), 0)
         + (SELECT coalesce(sum(extract(epoch FROM ended_at - leased_at) * 1000 * coalesce(slots, 1)), 0)
              FROM job_attempts WHERE job_attempts.job_id = o.job_id),
           (SELECT coalesce(sum(size), 0) FROM artifacts
             WHERE artifacts.job_id = o.job_id AND artifacts.attempt = o.attempt AND state <> 'pending'), 0, 0
      FROM usage_cursor CROSS JOIN LATERAL (
        SELECT job_id, attempt, slots, leased_at, finished_at FROM outcomes
         WHERE (outcomes.finished_at, outcomes.job_id) > (usage_cursor.finished_at, usage_cursor.job_id)
           AND outcomes.project_id = $1
           AND outcomes.finished_at >= $2::date::timestamp AT TIME ZONE 'UTC'
           AND outcomes.finished_at < ($3::date + 1)::timestamp AT TIME ZONE 'UTC') o
      JOIN jobs ON jobs.id = o.job_id
)
SELECT CASE WHEN $4 = 'day' THEN day END AS day, CASE WHEN $4 = 'function' THEN functions.name END AS function,
       sum(jobs)::bigint AS jobs, round(sum(slot_ms))::bigint AS slot_ms, sum(bytes)::bigint AS bytes,
       sum(cost) AS cost, sum(idle) AS idle
  FROM used LEFT JOIN functions ON functions.id = used.function_id AND functions.project_id = $1
 GROUP BY 1, 2
 ORDER BY 1 DESC NULLS LAST, sum(cost) DESC, 2 NULLS LAST
"""


class By(StrEnum):
    FUNCTION = "function"
    DAY = "day"
    PROJECT = "project"


@dataclass(frozen=True, slots=True)
class Used:
    """``function`` None, if they were asked for: jobs without one, and hours in which nothing ran. ``idle`` is the part
    of ``cost`` (EUR net) for time that nothing filled."""

    day: date | None
    function: str | None
    jobs: int
    slot_ms: int
    bytes: int
    cost: Decimal
    idle: Decimal


async def charge(conn: Connection, of_days: Iterable[tuple[date, Receipt]]) -> None:
    """Add receipts of hours that began on these days; in the transaction that makes them."""
    sums: dict[tuple[ProjectId, date, UUID], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    for day, receipt in of_days:
        of_row = sums[receipt.project, day, receipt.function or NO_FUNCTION]
        of_row[0] += receipt.amount
        of_row[1] += receipt.idle
    rows: Sequence[Any] = sorted(sums.items())  # in one order, whoever else does it at the same time
    await conn.execute(
        CHARGE, [key[0] for key, _ in rows], [key[1] for key, _ in rows], [key[2] for key, _ in rows],
        [cost for _, (cost, _) in rows], [idle for _, (_, idle) in rows],
    )  # fmt: skip


async def count_once(conn: Connection, *, limit: int, settled: timedelta = SETTLED) -> int:
    """Count up to ``limit`` jobs that have ended; how many. One statement, safe to repeat and beside others."""
    counted: int = await conn.fetchval(COUNT_JOBS, limit, settled)
    return counted


async def used(conn: Connection, project: ProjectId, first: date, last: date, *, by: By) -> list[Used]:
    """From the first to the last day (UTC), both of them included: the latest day, or the dearest, first."""
    return [Used(**row) for row in await conn.fetch(USED, project, first, last, by)]
