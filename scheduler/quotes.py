"""What a job of a function will take and cost, judged by its last ones. Reads the queue's tables, writes none."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from functions.db import Connection
from functions.ids import FunctionId, ProjectId
from functions.money import CURRENCY, euros
from scheduler.costs import costs_of

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
    """Median and 95th percentile of the run, of the wait for a node, and of the cost; None without a history."""
    row = await conn.fetchrow(QUOTE, project, function, LOOKED_AT, USED)
    assert row is not None
    if not row["jobs"]:
        return {"jobs": 0, "run_ms": None, "queue_ms": None, "cost": None}
    run_ms, queue_ms = ({"p50": row[name][0], "p95": row[name][1]} for name in ("run_ms", "queue_ms"))
    amounts = sorted(each.amount for each in (await costs_of(conn, project, row["job_ids"])).values())
    cost = {"currency": CURRENCY, "p50": euros(_of_hundred(amounts, 50)), "p95": euros(_of_hundred(amounts, 95))}
    return {"jobs": row["jobs"], "run_ms": run_ms, "queue_ms": queue_ms, "cost": cost}


def _of_hundred(amounts: Sequence[Decimal], part: int) -> Decimal:
    """The smallest one that so many of a hundred do not exceed."""
    return amounts[-(-len(amounts) * part // 100) - 1]
