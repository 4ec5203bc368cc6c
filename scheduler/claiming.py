"""A node takes ready jobs: the claim, one statement. Writes ``leases`` with it; owns ``pool_clocks``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from functions.db import Connection
from functions.ids import FunctionId, JobId, NodeId, ProjectId, VersionId
from scheduler.running_costs import limit_leases

CLAIM_JOBS = """
-- claim_jobs
WITH alive AS (
    SELECT 1 FROM nodes WHERE id = $1 AND state = 'ready'
), patient AS (
    -- A job too large for what is free would starve behind small ones: once it has waited long enough at the head of
    -- its class, the node takes nothing until it fits.
    SELECT 1 FROM unnest($2::bigint[]) p (pool) CROSS JOIN generate_series($3::int + 1, $4::int) c (cls)
     CROSS JOIN LATERAL (
        SELECT queued_at FROM ready_jobs
         WHERE pool = p.pool AND lane = 0 AND ready_jobs.cls = c.cls
           AND (least(ttl_at, cancel_at) > now()) IS NOT FALSE
         ORDER BY vt, job_id LIMIT 1) head
     WHERE head.queued_at < now() - $6::interval
), head AS (
    -- A node that costs nothing by the hour takes what asks for paid minutes (lane 1), too: after all the others.
    SELECT p.ord, l.lane, r.* FROM unnest($2::bigint[]) WITH ORDINALITY p (pool, ord)
     CROSS JOIN unnest($7::smallint[]) l (lane)
     CROSS JOIN generate_series(1, least($3::int, $4::int)) c (cls)
     CROSS JOIN LATERAL (
        SELECT project_id, job_id, vt, ready_jobs.cls AS size FROM ready_jobs
         WHERE pool = p.pool AND ready_jobs.lane = l.lane AND ready_jobs.cls = c.cls
           AND (least(ttl_at, cancel_at) > now()) IS NOT FALSE
         ORDER BY vt, job_id LIMIT $3::int / c.cls
           FOR UPDATE SKIP LOCKED) r
     WHERE EXISTS (SELECT 1 FROM alive) AND NOT EXISTS (SELECT 1 FROM patient)
), turns AS (
    -- Virtual times of two pools have nothing to do with each other: several pools take turns.
    SELECT *, row_number() OVER (PARTITION BY ord, lane ORDER BY vt, job_id) AS turn FROM head
), picked AS (
    SELECT project_id, job_id, sum(size) OVER (ORDER BY lane, turn, ord ROWS UNBOUNDED PRECEDING) AS used FROM turns
), here AS (
    -- Whoever drops an idle node locks its row first: then a job gets there before, or not at all.
    SELECT 1 FROM nodes WHERE id = $1 AND state = 'ready' FOR KEY SHARE
), taken AS (
    DELETE FROM ready_jobs USING picked
     WHERE ready_jobs.project_id = picked.project_id AND ready_jobs.job_id = picked.job_id
       AND picked.used <= least($3, $8::int)
       -- It names `picked` so that a look that finds nothing locks, and writes, nothing.
       AND (SELECT count(*) FROM here WHERE picked.used > 0) = 1
    RETURNING ready_jobs.*
), leased AS (
    INSERT INTO leases (job_id, token, node_id, pool, project_id, lane, cls, attempt, losses, queued_at, expires_at,
                        cancel_at, gates, head_start)
    SELECT job_id, gen_random_uuid(), $1, pool, project_id, lane, cls, attempt + 1, losses, queued_at,
           now() + $5::interval, cancel_at, gates, head_start
      FROM taken
    RETURNING job_id, token, attempt, cls
), started AS (
    -- From here on a rate counts it by its start, however the attempt ends.
    UPDATE slots SET until = clock_timestamp() + gates.per
      FROM taken CROSS JOIN LATERAL unnest(taken.gates) g (id) JOIN gates ON gates.id = g.id
     WHERE gates.per IS NOT NULL
       AND slots.gate_id = gates.id AND slots.job_id = taken.job_id AND slots.attempt = taken.attempt
)
SELECT leased.job_id, leased.token, leased.attempt, leased.cls AS slots, taken.vt, taken.pool, taken.lane,
       extract(epoch FROM taken.cancel_at - now())::float8 AS left_s,
       jobs.project_id, jobs.function_id, jobs.version_id, jobs.trigger, jobs.params,
       jobs.max_cost IS NOT NULL AS capped,
       -- Whether somebody may want to know that it starts; asked here, it costs nothing where nobody does.
       taken.attempt = 0 AND (
           'job.started' = ANY (jobs.callback_events)
           OR 'job.started' = ANY ((SELECT live_events FROM function_versions v WHERE v.id = jobs.version_id)::text[])
           OR EXISTS (SELECT 1 FROM callback_endpoints e
                       WHERE e.project_id = jobs.project_id AND 'job.started' = ANY (e.events)
                         AND coalesce(e.function_id, '00000000-0000-0000-0000-000000000000'::uuid)
                             = '00000000-0000-0000-0000-000000000000')) IS TRUE AS heard
  FROM leased JOIN taken ON taken.job_id = leased.job_id JOIN jobs ON jobs.id = leased.job_id
"""

ADVANCE_CLOCK = """
-- advance_clock
UPDATE pool_clocks SET v = $2 WHERE pool = $1 AND v < $2
"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A lease as the queue gives it. ``trigger`` and ``params`` are JSON text; ``slots`` is what it fills."""

    job_id: JobId
    token: UUID
    attempt: int
    slots: int
    project_id: ProjectId
    function_id: FunctionId | None
    version_id: VersionId
    trigger: str
    params: str
    left_s: float | None = None
    """Until it is to be cancelled, wherever it is."""
    pays_s: float | None = None
    """For how long its ``max_cost`` is enough on this node; at most 0 if earlier attempts have used it up."""
    heard: bool = False
    """Whether somebody may want to be told that it starts."""


class VirtualClocks:
    """Moves each pool's virtual clock to what is being served, at most ten times a second: a write in every claim would
    make all claimers of an account wait for one row."""

    def __init__(self, interval_s: float = 0.1) -> None:
        self._interval_s = interval_s
        self._written: dict[int, float] = {}

    async def saw(self, conn: Connection, pool: int, vt: float) -> None:
        now = time.monotonic()
        if now - self._written.get(pool, -self._interval_s) >= self._interval_s:
            self._written[pool] = now
            await conn.execute(ADVANCE_CLOCK, pool, vt)


async def claim(
    conn: Connection,
    clocks: VirtualClocks,
    node: NodeId,
    *,
    pools: Sequence[int],
    free_slots: int,
    node_slots: int,
    lease: timedelta,
    patience: timedelta = timedelta(seconds=30),
    lanes: Sequence[int] = (0, 1),
    most: int | None = None,
) -> list[Claimed]:
    """Lease ready jobs to ``node`` that together fill at most ``free_slots``, fairest first; empty when none fits.

    ``pools`` take turns in the order given; each is named once. ``lease`` is how long the node may stay silent. A job
    that needs more slots than are free, and has waited for ``patience`` at the head of its class, makes the node wait
    for it. A draining node gets nothing. ``most`` is how many slots it may fill, if not all that are free.
    """
    rows = await conn.fetch(
        CLAIM_JOBS, node, list(pools), free_slots, node_slots, lease, patience, list(lanes),
        free_slots if most is None else most,
    )  # fmt: skip
    for pool in {row["pool"] for row in rows if row["lane"] == 0}:
        await clocks.saw(conn, pool, max(row["vt"] for row in rows if (row["pool"], row["lane"]) == (pool, 0)))
    capped = [row["job_id"] for row in rows if row["capped"]]
    pays_s = await limit_leases(conn, capped) if capped else {}
    return [
        Claimed(
            row["job_id"], row["token"], row["attempt"], row["slots"], row["project_id"], row["function_id"],
            row["version_id"], row["trigger"], row["params"], row["left_s"], pays_s.get(row["job_id"]), row["heard"],
        )
        for row in rows
    ]  # fmt: skip
