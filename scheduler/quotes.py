"""What a job of a function will take and cost, judged by its last ones. Reads the queue's tables, writes none."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from functions.db import Connection, Row
from functions.ids import FunctionId, ProjectId
from functions.money import CURRENCY, euros
from scheduler.costs import costs_of
from scheduler.running_costs import running_costs

LOOKED_AT = 1000
"""A function's newest jobs; those of them that succeeded are what counts."""
USED = 200

# Both columns in comparison and order, as in a list of jobs: the function's own index is read from its end.
QUOTE = """
-- quote
WITH newest AS (
    SELECT id FROM jobs
     WHERE (function_id, id) >= ($2, '00000000-0000-0000-0000-000000000000')
       AND (function_id, id) <= ($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
     ORDER BY function_id DESC, id DESC LIMIT $3
), taken AS (
    SELECT outcomes.job_id, greatest((timeline ->> 'exited')::int - (timeline ->> 'started')::int, 0) AS run_ms,
           greatest(extract(epoch FROM leased_at - queued_at) * 1000, 0)::int AS queue_ms
      FROM newest JOIN outcomes ON outcomes.job_id = newest.id
     WHERE outcomes.project_id = $1 AND status = 'succeeded' AND leased_at IS NOT NULL
       AND timeline ->> 'exited' IS NOT NULL AND timeline ->> 'started' IS NOT NULL
     ORDER BY outcomes.job_id DESC LIMIT $4
)
SELECT count(*) AS jobs, percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY run_ms) AS run_ms,
       percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY queue_ms) AS queue_ms, array_agg(job_id) AS job_ids
  FROM taken
"""


async def quote(conn: Connection, project: ProjectId, function: FunctionId) -> dict[str, Any]:
    """Median and 95th percentile of the run, of the wait for a node, of the cost, and of the part of it that an
    RGrid-Max-Cost limits; None without a history."""
    row = await _last_jobs(conn, project, function)
    if not row["jobs"]:
        return {"jobs": 0, "run_ms": None, "queue_ms": None, "cost": None, "running_cost": None}
    run_ms, queue_ms = ({"p50": row[name][0], "p95": row[name][1]} for name in ("run_ms", "queue_ms"))
    costs = await costs_of(conn, project, row["job_ids"])
    return {
        "jobs": row["jobs"],
        "run_ms": run_ms,
        "queue_ms": queue_ms,
        "cost": _spread([each.amount for each in costs.values()]),
        "running_cost": _spread(await running_costs(conn, project, row["job_ids"])),
    }


async def typical_cost(conn: Connection, project: ProjectId, function: FunctionId) -> Decimal | None:
    """What running a job of the function costs (EUR net, median); None without a history."""
    row = await _last_jobs(conn, project, function)
    return _of_hundred(await running_costs(conn, project, row["job_ids"]), 50) if row["jobs"] else None


async def _last_jobs(conn: Connection, project: ProjectId, function: FunctionId) -> Row:
    row = await conn.fetchrow(QUOTE, project, function, LOOKED_AT, USED)
    assert row is not None
    return row


def _spread(amounts: Sequence[Decimal]) -> dict[str, str]:
    return {"currency": CURRENCY, "p50": euros(_of_hundred(amounts, 50)), "p95": euros(_of_hundred(amounts, 95))}


def _of_hundred(amounts: Sequence[Decimal], part: int) -> Decimal:
    """The smallest one that so many of a hundred do not exceed."""
    return sorted(amounts)[-(-len(amounts) * part // 100) - 1]
