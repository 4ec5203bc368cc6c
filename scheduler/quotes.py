"""What a job of a function will take and cost, judged by its last ones. Reads the queue's tables, writes none."""

from __future__ import annotations

from typing import Any

from functions.db import Connection
from functions.ids import FunctionId, ProjectId

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
    SELECT greatest((timeline ->> 'exited')::int - (timeline ->> 'started')::int, 0) AS run_ms,
           greatest(extract(epoch FROM leased_at - queued_at) * 1000, 0)::int AS queue_ms
      FROM newest JOIN outcomes ON outcomes.job_id = newest.id
     WHERE outcomes.project_id = $1 AND status = 'succeeded' AND leased_at IS NOT NULL
       AND timeline ->> 'exited' IS NOT NULL AND timeline ->> 'started' IS NOT NULL
     ORDER BY outcomes.job_id DESC LIMIT $4
)
SELECT count(*) AS jobs, percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY run_ms) AS run_ms,
       percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY queue_ms) AS queue_ms
  FROM taken
"""


async def quote(conn: Connection, project: ProjectId, function: FunctionId) -> dict[str, Any]:
    """Median and 95th percentile of the run, of the wait for a node, and of the cost; None without a history."""
    row = await conn.fetchrow(QUOTE, project, function, LOOKED_AT, USED)
    assert row is not None
    if not row["jobs"]:
        return {"jobs": 0, "run_ms": None, "queue_ms": None, "cost": None}
    run_ms, queue_ms = ({"p50": row[name][0], "p95": row[name][1]} for name in ("run_ms", "queue_ms"))
    # Nodes of provider `local` are the user's own machine: they cost nothing by the hour.
    cost = {"currency": "EUR", "p50": "0.000000", "p95": "0.000000"}
    return {"jobs": row["jobs"], "run_ms": run_ms, "queue_ms": queue_ms, "cost": cost}
