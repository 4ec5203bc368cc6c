"""Functions that are paused: their jobs stand aside until the function goes on. Running ones finish."""

from __future__ import annotations

from functions.db import Connection
from functions.ids import FunctionId, ProjectId
from scheduler import gates
from scheduler.gates import GateId

# The slots that they held are let go: a paused job passes its gates again.
PAUSE_JOBS = """
-- pause_jobs
WITH mine AS (
    SELECT ready_jobs.project_id, ready_jobs.job_id FROM ready_jobs JOIN jobs ON jobs.id = ready_jobs.job_id
     WHERE ready_jobs.project_id = $1 AND jobs.function_id = $2
     ORDER BY ready_jobs.job_id LIMIT $3 FOR UPDATE OF ready_jobs SKIP LOCKED
), taken AS (
    DELETE FROM ready_jobs USING mine
     WHERE ready_jobs.project_id = mine.project_id AND ready_jobs.job_id = mine.job_id
    RETURNING ready_jobs.*
), freed AS (
    DELETE FROM slots
     WHERE until IS NULL AND job_id = ANY (ARRAY(SELECT job_id FROM taken WHERE gates IS NOT NULL))
), free AS (
    SELECT project_id, pool FROM flows WHERE project_id = $1 FOR NO KEY UPDATE SKIP LOCKED
), rewound AS (
    -- They were not served, and will get their place in the order anew.
    UPDATE flows SET f = greatest(flows.f - (SELECT count(*) FROM taken) / flows.weight, pool_clocks.v)
      FROM free JOIN pool_clocks ON pool_clocks.pool = free.pool
     WHERE flows.project_id = free.project_id AND EXISTS (SELECT 1 FROM taken)
)
INSERT INTO waiting_jobs (job_id, pool, project_id, lane, cls, attempt, losses, stage, ttl_at, cancel_at, gates,
                          head_start, function_id, head, queued_at)
SELECT job_id, pool, project_id, lane, cls, attempt, losses, 'paused', ttl_at, cancel_at, gates, head_start, $2,
       queued_at - coalesce(head_start, '0'), queued_at
  FROM taken
"""

RESUME_JOBS = """
-- resume_jobs
WITH first AS (
    SELECT project_id, job_id FROM waiting_jobs WHERE stage = 'paused' AND function_id = $1
     ORDER BY head, job_id LIMIT $2 FOR UPDATE SKIP LOCKED
), gated AS (
    UPDATE waiting_jobs SET stage = 'gated', function_id = NULL, gate_id = gates[1] FROM first
     WHERE waiting_jobs.project_id = first.project_id AND waiting_jobs.job_id = first.job_id AND gates IS NOT NULL
    RETURNING gates
), out AS (
    DELETE FROM waiting_jobs USING first
     WHERE waiting_jobs.project_id = first.project_id AND waiting_jobs.job_id = first.job_id AND gates IS NULL
    RETURNING waiting_jobs.*
), placed AS (
    -- In the order of their heads, which head starts have gone into.
    SELECT o.*, greatest(flows.f, pool_clocks.v, 0) AS start, coalesce(flows.weight, 1) AS weight,
           row_number() OVER (PARTITION BY o.project_id ORDER BY o.head, o.job_id) AS turn
      FROM out o
      LEFT JOIN flows ON flows.project_id = o.project_id
      LEFT JOIN pool_clocks ON pool_clocks.pool = o.pool
), top AS (
    SELECT project_id, max(start + turn / weight) AS vt FROM placed GROUP BY project_id
), free AS (
    SELECT project_id FROM flows WHERE project_id IN (SELECT project_id FROM top) FOR NO KEY UPDATE SKIP LOCKED
), pushed AS (
    UPDATE flows SET f = greatest(flows.f, top.vt) FROM top
     WHERE flows.project_id = top.project_id AND flows.project_id IN (SELECT project_id FROM free)
), ready AS (
    INSERT INTO ready_jobs (job_id, vt, pool, project_id, lane, cls, attempt, losses, queued_at, ttl_at, cancel_at,
                            head_start)
    SELECT job_id, start + (turn - 1) / weight, pool, project_id, lane, cls, attempt, losses, queued_at, ttl_at,
           cancel_at, head_start
      FROM placed
)
SELECT gates FROM gated UNION ALL SELECT NULL FROM placed
"""

PAUSED_FUNCTIONS = """
-- paused_functions
SELECT id, project_id FROM functions WHERE paused_at IS NOT NULL AND deleted_at IS NULL
"""

# One function after another, however many jobs of each stand aside.
STRANDED = """
-- stranded_functions
WITH RECURSIVE walk AS (
    (SELECT function_id FROM waiting_jobs WHERE stage = 'paused' ORDER BY function_id LIMIT 1)
    UNION ALL
    SELECT (SELECT function_id FROM waiting_jobs WHERE stage = 'paused' AND function_id > walk.function_id
             ORDER BY function_id LIMIT 1)
      FROM walk WHERE walk.function_id IS NOT NULL
)
SELECT functions.id FROM walk JOIN functions ON functions.id = walk.function_id WHERE paused_at IS NULL
"""


async def pause(conn: Connection, project: ProjectId, function: FunctionId, *, limit: int) -> int:
    """Set up to ``limit`` claimable jobs of a paused function aside; how many."""
    return int((await conn.execute(PAUSE_JOBS, project, function, limit)).split()[-1])


async def resume(
    conn: Connection, function: FunctionId, *, limit: int, reached: set[GateId] | None = None
) -> int:
    """Let up to ``limit`` jobs go on that stood aside, in their order; how many. ``reached`` gets the gates that are to
    be advanced after the commit."""
    rows = await conn.fetch(RESUME_JOBS, function, limit)
    gates.note(rows, reached)
    return len(rows)


async def heal(conn: Connection, *, limit: int, reached: set[GateId]) -> int:
    """Move what a pause or a resume has missed: jobs that were being submitted, or all of them if its process died."""
    moved = 0
    for row in await conn.fetch(PAUSED_FUNCTIONS):
        moved += await pause(conn, row["project_id"], row["id"], limit=limit)
    for row in await conn.fetch(STRANDED):
        moved += await resume(conn, row["id"], limit=limit, reached=reached)
    return moved
