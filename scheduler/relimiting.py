"""Puts jobs that are there already at the limits of their function's current version, when that became another one.

A job enters the queue with the gates of the version that was current then. Those that have not started are moved to the
gates that they would pass now; running ones hold a slot of each, so that they count. Writes the ``gates`` of jobs in
``ready_jobs``, ``waiting_jobs`` and ``leases``, and their ``slots``.

Repeated until nothing is found, and safe to stop anywhere: a job is in one state or the other. Rows that somebody else
has in hand are passed over, so that nobody waits for anybody, and found again by the next look.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import asyncpg
import structlog

from functions import registry
from functions.artifacts import Store
from functions.db import Connection, Pool, Row
from functions.errors import NotFound, Unavailable
from functions.ids import FunctionId, JobId, ProjectId
from functions.queue_spec import GateSpec, gates_of
from functions.registry import ChangedLimits
from scheduler import gates, queue
from scheduler.gates import GateId, Wanted
from scheduler.limits import LOCK_LIMITS
from scheduler.spill import loaded, reference_of

log = structlog.get_logger(__name__)

AT_ONCE = 200
"""Jobs that one transaction moves: each may have 128 KiB of params."""
ON_THEIR_WAY = timedelta(seconds=30)
"""A request that has read the version before is in the queue by then, or has been given up."""

WAITING_OF_FUNCTION = """
-- waiting_of_function
SELECT w.job_id, w.gates, jobs.params, jobs.trigger FROM waiting_jobs w JOIN jobs ON jobs.id = w.job_id
 WHERE w.project_id = $1 AND jobs.function_id = $2 AND w.job_id > $3 ORDER BY w.project_id, w.job_id LIMIT $4
"""

READY_OF_FUNCTION = """
-- ready_of_function
SELECT r.job_id, r.gates, jobs.params, jobs.trigger FROM ready_jobs r JOIN jobs ON jobs.id = r.job_id
 WHERE r.project_id = $1 AND jobs.function_id = $2 AND r.job_id > $3 ORDER BY r.project_id, r.job_id LIMIT $4
"""

LEASED_OF_FUNCTION = """
-- leased_of_function
SELECT l.job_id, l.gates, jobs.params, jobs.trigger FROM leases l JOIN jobs ON jobs.id = l.job_id
 WHERE l.project_id = $1 AND jobs.function_id = $2 AND l.job_id > $3 ORDER BY l.job_id LIMIT $4
"""

# One that has no limit any more is due at once, and takes its place in the order.
MOVE_WAITING = """
-- move_waiting_to_limits
WITH mine AS (
    SELECT w.project_id, w.job_id, w.stage = 'gated' AND n.gates IS NULL AS free, n.gates::bigint[] AS new
      FROM unnest($2::uuid[], $3::text[]) n (job_id, gates)
      JOIN waiting_jobs w ON w.project_id = $1 AND w.job_id = n.job_id
       FOR UPDATE OF w SKIP LOCKED
)
UPDATE waiting_jobs w
   SET gates = mine.new,
       gate_id = CASE WHEN w.stage = 'gated' THEN mine.new[1] END,
       stage = CASE WHEN mine.free THEN 'retry' ELSE w.stage END,
       due_at = CASE WHEN mine.free THEN w.head + coalesce(w.head_start, '0') ELSE w.due_at END,
       head = CASE WHEN NOT mine.free THEN w.head END,
       queued_at = CASE WHEN NOT mine.free THEN w.queued_at END
  FROM mine WHERE w.project_id = mine.project_id AND w.job_id = mine.job_id
RETURNING w.job_id
"""

# They have not started: as those of a function that is paused they leave the order, and get a place in it anew.
MOVE_READY = """
-- move_ready_to_limits
WITH mine AS (
    SELECT r.project_id, r.job_id, n.gates::bigint[] AS new
      FROM unnest($2::uuid[], $3::text[]) n (job_id, gates)
      JOIN ready_jobs r ON r.project_id = $1 AND r.job_id = n.job_id
       FOR UPDATE OF r SKIP LOCKED
), freed AS (
    UPDATE ready_jobs SET gates = NULL FROM mine
     WHERE ready_jobs.project_id = mine.project_id AND ready_jobs.job_id = mine.job_id AND mine.new IS NULL
), taken AS (
    DELETE FROM ready_jobs USING mine
     WHERE ready_jobs.project_id = mine.project_id AND ready_jobs.job_id = mine.job_id AND mine.new IS NOT NULL
    RETURNING ready_jobs.*, mine.new
), free AS (
    SELECT project_id, pool FROM flows WHERE project_id = $1 FOR NO KEY UPDATE SKIP LOCKED
), rewound AS (
    UPDATE flows SET f = greatest(flows.f - (SELECT count(*) FROM taken) / flows.weight, pool_clocks.v)
      FROM free JOIN pool_clocks ON pool_clocks.pool = free.pool
     WHERE flows.project_id = free.project_id AND EXISTS (SELECT 1 FROM taken)
), waiting AS (
    INSERT INTO waiting_jobs (job_id, pool, project_id, lane, cls, attempt, losses, stage, ttl_at, cancel_at, gates,
                              head_start, gate_id, head, queued_at)
    SELECT job_id, pool, project_id, lane, cls, attempt, losses, 'gated', ttl_at, cancel_at, new, head_start, new[1],
           queued_at - coalesce(head_start, '0'), queued_at
      FROM taken
)
SELECT job_id FROM mine
"""

# More may run than the limit lets in: then nobody is let in until enough of them have ended.
MOVE_LEASED = """
-- move_leased_to_limits
WITH mine AS (
    SELECT l.job_id, l.attempt - 1 AS attempt, l.leased_at, n.gates::bigint[] AS new
      FROM unnest($2::uuid[], $3::text[]) n (job_id, gates)
      JOIN leases l ON l.project_id = $1 AND l.job_id = n.job_id
       FOR UPDATE OF l SKIP LOCKED
), moved AS (
    UPDATE leases SET gates = mine.new FROM mine WHERE leases.job_id = mine.job_id
), freed AS (
    DELETE FROM slots USING mine
     WHERE slots.job_id = mine.job_id AND slots.until IS NULL AND (slots.gate_id = ANY (mine.new)) IS NOT TRUE
), given AS (
    INSERT INTO slots (gate_id, job_id, attempt, until)
    SELECT gates.id, mine.job_id, mine.attempt, mine.leased_at + gates.per
      FROM mine CROSS JOIN LATERAL unnest(mine.new) g (id) JOIN gates ON gates.id = g.id
    ON CONFLICT DO NOTHING
)
SELECT job_id FROM mine
"""

HAS_GATES = """
-- has_gates
SELECT EXISTS (SELECT 1 FROM gates WHERE function_id = $1)
"""

# In the order in which a job passes them: one that moves on meanwhile is met again.
STEPS = ((WAITING_OF_FUNCTION, MOVE_WAITING), (READY_OF_FUNCTION, MOVE_READY), (LEASED_OF_FUNCTION, MOVE_LEASED))


async def relimit_once(
    pool: Pool, store: Store, *, function: FunctionId | None = None, within_s: float = 5, limit: int = 20
) -> int:
    """Make the limits of functions, or of that one, hold that were changed lately; how many jobs became claimable.

    What does not fit into ``within_s`` for each, or comes too late to be seen, is done by the next call. On connections
    of the hot path.
    """
    ready = 0
    async with pool.acquire() as conn:
        for changed in await registry.changed_limits(conn, limit=limit, function=function):
            try:
                if await _relimit(conn, store, changed, time.monotonic() + within_s):
                    await registry.limits_hold(conn, changed, after=ON_THEIR_WAY)
                ready += await gates.advance_function(conn, changed.function)
            except (Unavailable, TimeoutError, asyncpg.PostgresError) as error:
                # The store, which has the params of some job, or a lock: the others must not wait for that.
                reason = str(error) or type(error).__name__
                log.warning("limits not changed for all jobs yet", function=str(changed.function), error=reason)
        # Those that wait for nothing any more: what a round does soon anyway.
        reached: set[GateId] = set()
        ready += await queue.promote(conn, limit=AT_ONCE, reached=reached)
        await gates.advance(conn, reached)
    return ready


async def _relimit(conn: Connection, store: Store, changed: ChangedLimits, enough_s: float) -> bool:
    """Whether it was done to the end."""
    limits = changed.version.limits
    await gates.set_limits(conn, changed.function, limits)
    if limits.concurrency is None and limits.rate is None and not await conn.fetchval(HAS_GATES, changed.function):
        return True
    return all([await _move_all(conn, store, changed, step, enough_s) for step in STEPS])


async def _move_all(
    conn: Connection, store: Store, changed: ChangedLimits, step: tuple[str, str], enough_s: float
) -> bool:
    read, move = step
    after, more = JobId(UUID(int=0)), True
    while more:
        if time.monotonic() > enough_s:
            return False
        rows = await conn.fetch(read, changed.project, changed.function, after, AT_ONCE)
        more = len(rows) == AT_ONCE
        if rows:
            after = rows[-1]["job_id"]
            wanted = await _gates_now(conn, store, changed, rows)
            await _move(conn, changed.project, {row["job_id"]: row["gates"] for row in rows}, wanted, move)
    return True


async def _move(
    conn: Connection,
    project: ProjectId,
    held: Mapping[JobId, Sequence[GateId] | None],
    wanted: Mapping[JobId, Sequence[GateId]],
    move: str,
) -> None:
    """Move those whose gates are not the wanted ones."""
    other = {job: passed for job, passed in wanted.items() if list(passed) != list(held[job] or ())}
    if not other:
        return
    texts = ["{" + ",".join(map(str, passed)) + "}" if passed else None for passed in other.values()]
    async with conn.transaction():
        # Slots are given to jobs that run: whoever counts meanwhile must see them.
        await conn.fetch(LOCK_LIMITS, list({gate for passed in other.values() for gate in passed}))
        moved = await conn.fetch(move, project, list(other), texts)
        if move != MOVE_LEASED:
            await gates.free(conn, [row["job_id"] for row in moved])


async def _gates_now(
    conn: Connection, store: Store, changed: ChangedLimits, rows: Sequence[Row]
) -> dict[JobId, list[GateId]]:
    """The gates that these jobs would pass if they came now; without those whose params are kept no longer."""
    limits = changed.version.limits

    def specs_of(row: Row, params: str) -> tuple[GateSpec, ...]:
        return gates_of(limits, params=json.loads(params), trigger=json.loads(row["trigger"]), foreign=True)

    def all_specs(rows: Sequence[Row]) -> dict[JobId, tuple[GateSpec, ...]]:
        return {row["job_id"]: specs_of(row, row["params"]) for row in rows}

    large = [row for row in rows if reference_of(row["params"]) is not None]
    # Others must not wait while a megabyte of params is read.
    specs = await asyncio.to_thread(all_specs, [row for row in rows if reference_of(row["params"]) is None])
    for row in large:
        with suppress(NotFound):
            specs[row["job_id"]] = specs_of(row, await loaded(conn, store, changed.project, row["params"]))
    wanted = {
        job: [Wanted(changed.project, changed.function, spec) for spec in passed] for job, passed in specs.items()
    }
    found = await gates.ensure(conn, [each for passed in wanted.values() for each in passed])
    return {job: [found[each.name] for each in passed] for job, passed in wanted.items()}
