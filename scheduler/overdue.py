"""Jobs whose time is over: not started within their ttl (they expire), or not finished within their Cancel-After.

Takes them out of ``ready_jobs`` and ``waiting_jobs``; of leased ones it notes that they are to be cancelled.
"""

from __future__ import annotations

from collections import defaultdict

from functions.db import Connection, Pool
from functions.ids import ProjectId
from scheduler import cancelling, gates, job_errors
from scheduler.gates import GateId
from scheduler.withdrawing import Unleased

# The index holds the earlier of the two times; what another transaction has in hand is left for the next round.
TAKE_OVERDUE = """
-- take_overdue
WITH due_ready AS (
    SELECT project_id, job_id FROM ready_jobs
     WHERE (ttl_at IS NOT NULL OR cancel_at IS NOT NULL) AND least(ttl_at, cancel_at) <= now()
     ORDER BY least(ttl_at, cancel_at) LIMIT $1 FOR UPDATE SKIP LOCKED
), due_waiting AS (
    SELECT project_id, job_id FROM waiting_jobs
     WHERE (ttl_at IS NOT NULL OR cancel_at IS NOT NULL) AND least(ttl_at, cancel_at) <= now()
     ORDER BY least(ttl_at, cancel_at) LIMIT $1 FOR UPDATE SKIP LOCKED
), ready AS (
    DELETE FROM ready_jobs USING due_ready d
     WHERE ready_jobs.project_id = d.project_id AND ready_jobs.job_id = d.job_id
    RETURNING ready_jobs.project_id, ready_jobs.job_id, attempt, losses, queued_at, gates, cancel_at
), waiting AS (
    DELETE FROM waiting_jobs USING due_waiting d
     WHERE waiting_jobs.project_id = d.project_id AND waiting_jobs.job_id = d.job_id
    RETURNING waiting_jobs.project_id, waiting_jobs.job_id, attempt, losses, queued_at, gates, cancel_at
), taken AS (
    SELECT * FROM ready UNION ALL SELECT * FROM waiting
)
SELECT project_id, job_id, attempt, losses, queued_at, gates, (cancel_at <= now()) IS TRUE AS cancelled FROM taken
"""

# There are no more leases than slots on nodes: no index has this. Ids in order, as a cancel and a heartbeat lock them.
CANCEL_OVERDUE = """
-- cancel_overdue
WITH held AS (
    SELECT job_id FROM leases WHERE cancel_at <= now() AND NOT cancel_requested ORDER BY job_id FOR NO KEY UPDATE
)
UPDATE leases SET cancel_requested = true WHERE job_id = ANY (ARRAY(SELECT job_id FROM held))
"""


async def end_overdue(pool: Pool, *, limit: int, freed: set[GateId] | None = None) -> int:
    """End up to ``limit`` jobs of each kind that wait in vain, and ask for overdue running ones to be cancelled.

    Returns how many ended. One transaction, safe beside others; ``freed`` gets the gates to be advanced after it.
    """
    async with pool.acquire() as conn:
        await conn.execute(CANCEL_OVERDUE)
        async with conn.transaction():
            return await _end_waiting(conn, limit, freed)


async def _end_waiting(conn: Connection, limit: int, freed: set[GateId] | None) -> int:
    rows = await conn.fetch(TAKE_OVERDUE, limit)
    await gates.free(conn, [row["job_id"] for row in rows if row["gates"]])
    gates.note(rows, freed)
    groups: dict[tuple[ProjectId, bool, int], list[Unleased]] = defaultdict(list)
    for row in rows:
        taken = Unleased(row["job_id"], row["attempt"], row["losses"], row["queued_at"])
        groups[row["project_id"], row["cancelled"], row["attempt"]].append(taken)
    for (project, cancelled, attempt), taken_out in groups.items():
        if cancelled:
            await cancelling.end_unleased(conn, project, "cancelled", job_errors.deadline_exceeded(attempt), taken_out)
        else:
            error = {"code": "deadline_exceeded", "message": "not started within its ttl", "attempt": attempt}
            await cancelling.end_unleased(conn, project, "expired", error, taken_out)
    return len(rows)
