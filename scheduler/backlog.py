"""How much waits, runs and goes out, of all projects together: for whoever watches the instance, not for decisions.

The queue may hold millions: no more than ``MOST`` rows of a kind are counted, along an index; beyond that PostgreSQL's
own estimate has to do. To be read through a pool of the hot path, whose plans do not go over whole tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from functions.db import Connection
from functions.queue_spec import LANES

MOST = 10_000
OF_AN_ADDRESS = 100

# state → the index that has its jobs and no others.
INDEXES = {
    "ready": "ready_jobs_id",
    "gated": "waiting_jobs_gated",
    "paused": "waiting_jobs_paused",
    "scheduled": "waiting_jobs_scheduled",
    "running": "leases_pkey",
}

COUNT_JOBS = """
-- count_jobs_by_state
SELECT (SELECT count(*) FROM (SELECT FROM ready_jobs ORDER BY project_id, job_id LIMIT $1) counted) AS ready,
       (SELECT count(*) FROM (SELECT FROM waiting_jobs WHERE stage = 'gated'
                               ORDER BY gate_id, head, job_id LIMIT $1) counted) AS gated,
       (SELECT count(*) FROM (SELECT FROM waiting_jobs WHERE stage = 'paused'
                               ORDER BY function_id, head, job_id LIMIT $1) counted) AS paused,
       (SELECT count(*) FROM (SELECT FROM waiting_jobs WHERE stage IN ('delayed', 'retry')
                               ORDER BY project_id, job_id LIMIT $1) counted) AS scheduled,
       (SELECT count(*) FROM (SELECT FROM leases ORDER BY job_id LIMIT $1) counted) AS running
"""

# As the planner does it: so many rows to a page as when it was last looked at, by today's pages.
ESTIMATE = """
-- estimate_rows
SELECT relname, reltuples / relpages * (pg_relation_size(oid) / current_setting('block_size')::int) AS rows
  FROM pg_class WHERE relname = ANY ($1) AND relkind = 'i' AND relpages > 0
   AND relnamespace = current_schema()::regnamespace
"""

# One probe for each account, lane and size that something waits in: the one that is next.
OLDEST = """
-- oldest_ready
WITH RECURSIVE heads AS (
    (SELECT pool, lane, cls, queued_at, 1 AS step FROM ready_jobs ORDER BY pool, lane, cls, vt, job_id LIMIT 1)
    UNION ALL
    SELECT next.*, heads.step + 1 FROM heads CROSS JOIN LATERAL (
        SELECT pool, lane, cls, queued_at FROM ready_jobs
         WHERE (ready_jobs.pool, ready_jobs.lane, ready_jobs.cls) > (heads.pool, heads.lane, heads.cls)
         ORDER BY pool, lane, cls, vt, job_id LIMIT 1) next
     WHERE heads.step < $1
)
SELECT lane, extract(epoch FROM now() - min(queued_at))::float8 AS age_s FROM heads GROUP BY lane
"""

OVERDUE = """
-- count_overdue_leases
SELECT count(*) FROM (SELECT expires_at FROM leases ORDER BY job_id LIMIT $1) counted WHERE expires_at < now()
"""

# One probe for each address, and few of what it is behind with: messages to one that is dead stay due, as it is only
# tried now and then.
DUE = """
-- count_due_deliveries
WITH RECURSIVE walk AS (
    (SELECT project_id, endpoint, due_at, 1 AS step FROM deliveries WHERE state = 'pending'
      ORDER BY project_id, endpoint, due_at LIMIT 1)
    UNION ALL
    SELECT next.*, walk.step + 1 FROM walk CROSS JOIN LATERAL (
        SELECT project_id, endpoint, due_at FROM deliveries
         WHERE state = 'pending' AND (project_id, endpoint) > (walk.project_id, walk.endpoint)
         ORDER BY project_id, endpoint, due_at LIMIT 1) next
     WHERE walk.step < $1
)
SELECT count(*) FROM (
    SELECT FROM walk CROSS JOIN LATERAL (
        SELECT FROM deliveries
         WHERE state = 'pending' AND project_id = walk.project_id AND endpoint = walk.endpoint AND due_at <= now()
         ORDER BY due_at LIMIT $2) late
     WHERE walk.due_at <= now() LIMIT $1) counted
"""

WAITING = """
-- count_waiting_deliveries
SELECT count(*) FROM (SELECT due_at FROM deliveries WHERE state = 'pending'
                       ORDER BY project_id, endpoint, due_at LIMIT $1) counted WHERE due_at > now()
"""

ENDED = """
-- count_ended
SELECT status, count(*) FROM (
    SELECT status FROM outcomes WHERE finished_at > now() - interval '1 minute'
     ORDER BY finished_at DESC, job_id DESC LIMIT $1) counted
 GROUP BY status
"""

STATUSES = ("succeeded", "failed", "timed_out", "cancelled", "expired")


@dataclass(frozen=True, slots=True)
class Backlog:
    """``jobs`` that are not finished, by state; more than ``MOST`` of a state are an estimate. ``oldest_s``, by lane:
    how long the longest waiting of those has been ready that are next to start; 0 where none waits. ``ended``:
    outcomes of the last minute, by status. ``overdue`` leases, deliveries and outcomes are counted up to ``MOST``, and
    deliveries that are due up to ``OF_AN_ADDRESS`` of each receiver's address."""

    jobs: Mapping[str, int]
    oldest_s: Mapping[str, float]
    overdue: int
    deliveries: Mapping[str, int]
    ended: Mapping[str, int]


async def read(conn: Connection, *, most: int = MOST) -> Backlog:
    oldest = {row["lane"]: max(row["age_s"], 0.0) for row in await conn.fetch(OLDEST, most)}
    ended = {row["status"]: row["count"] for row in await conn.fetch(ENDED, most)}
    overdue: int = await conn.fetchval(OVERDUE, most)
    due: int = await conn.fetchval(DUE, most, OF_AN_ADDRESS)
    waiting: int = await conn.fetchval(WAITING, most)
    return Backlog(
        jobs=await _jobs(conn, most),
        oldest_s={lane: oldest.get(number, 0.0) for lane, number in LANES.items()},
        overdue=overdue,
        deliveries={"due": due, "waiting": waiting},
        ended={status: ended.get(status, 0) for status in STATUSES},
    )


async def _jobs(conn: Connection, most: int) -> Mapping[str, int]:
    row = await conn.fetchrow(COUNT_JOBS, most)
    assert row is not None
    many = {INDEXES[state]: state for state, jobs in row.items() if jobs == most}
    estimates = await conn.fetch(ESTIMATE, list(many)) if many else ()
    return dict(row) | {many[each["relname"]]: max(most, round(each["rows"])) for each in estimates}
