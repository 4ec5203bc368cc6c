"""Leases on jobs: claim, heartbeat, finish, retry, requeue — one statement each, over arrays.

Owns ``leases``, ``job_attempts``, ``pool_clocks`` and, for jobs that ran, ``outcomes``. A lease is fenced by its token:
what comes with another one changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.endpoints import Listener, listener
from functions.ids import EndpointId, FunctionId, JobId, MessageId, NodeId, ProjectId, VersionId
from scheduler import gates
from scheduler.gates import GateId

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

HEARTBEAT = """
-- heartbeat
WITH seen AS (
    UPDATE nodes SET last_seen_at = now() WHERE id = $1 AND state <> 'gone'
), mine AS (
    -- An index is read in its order, also for an array: rows are locked by id, as a cancel locks them, or the two
    -- statements would wait for each other.
    SELECT job_id, progress FROM leases WHERE job_id = ANY ($3) FOR NO KEY UPDATE
)
UPDATE leases SET expires_at = now() + $2::interval, progress = r.progress, timeline = r.timeline::json
  FROM unnest($3::uuid[], $4::uuid[], $5::real[], $6::text[]) r (job_id, token, progress, timeline)
 WHERE leases.job_id = r.job_id AND leases.token = r.token AND leases.node_id = $1
   AND (SELECT count(*) FROM mine) > 0
RETURNING leases.job_id, leases.cancel_requested,
    -- Whether it got on and somebody may want to know: as with the start.
    leases.progress IS DISTINCT FROM (SELECT mine.progress FROM mine WHERE mine.job_id = leases.job_id)
    AND (SELECT 'job.progress' = ANY (jobs.callback_events)
                OR 'job.progress' = ANY ((SELECT live_events FROM function_versions v
                                           WHERE v.id = jobs.version_id)::text[])
                OR EXISTS (SELECT 1 FROM callback_endpoints e
                            WHERE e.project_id = jobs.project_id AND 'job.progress' = ANY (e.events)
                              AND coalesce(e.function_id, '00000000-0000-0000-0000-000000000000'::uuid)
                                  = '00000000-0000-0000-0000-000000000000')
           FROM jobs WHERE jobs.id = leases.job_id) IS TRUE AS heard
"""

HELD = """
-- held_leases
SELECT leases.job_id, leases.project_id, leases.attempt, leases.losses, leases.cancel_requested,
       (leases.cancel_at <= now()) IS TRUE AS overdue, jobs.version_id, jobs.callback_url, jobs.callback_events,
       -- Here, so that an outcome costs no statement more for endpoints that few projects have.
       (SELECT json_agg(json_build_object(
                   'id', e.id, 'function_id', e.function_id, 'url', e.url, 'events', e.events,
                   'functions', e.functions, 'enabled', e.disabled_at IS NULL))
          FROM callback_endpoints e
         WHERE e.project_id = leases.project_id
           AND coalesce(e.function_id, '00000000-0000-0000-0000-000000000000'::uuid)
               = ANY (ARRAY['00000000-0000-0000-0000-000000000000'::uuid, jobs.function_id])) AS listeners
  FROM leases JOIN jobs ON jobs.id = leases.job_id
 WHERE leases.job_id = $1 AND leases.token = $2 AND leases.node_id = $3
   FOR UPDATE OF leases
"""

HELD_BY = """
-- held_by_node
SELECT job_id, token FROM leases WHERE node_id = $1
"""

FINISH_JOBS = """
-- finish_jobs
WITH report AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[], $8::text[],
                         $9::boolean[], $10::text[])
        r (job_id, token, status, exit_code, error, result, timeline, rejected, reported, deliveries)
), held AS (
    -- What was reported comes back with each lease: joining it again would be quadratic (hash joins are off here).
    DELETE FROM leases USING report r
     WHERE leases.job_id = r.job_id AND leases.token = r.token
    RETURNING leases.job_id, leases.project_id, leases.attempt, leases.losses, leases.token, leases.node_id,
              leases.queued_at, leases.leased_at, leases.cls, leases.gates, r.status, r.exit_code, r.error, r.result,
              r.timeline, r.rejected, r.reported, r.deliveries
), ended AS (
    INSERT INTO outcomes (job_id, project_id, status, attempt, losses, token, exit_code, error, result, node_id,
                          queued_at, leased_at, slots, timeline, rejected)
    SELECT job_id, project_id, status, attempt, losses, CASE WHEN reported THEN token END, exit_code, error::json,
           result::json, node_id, queued_at, leased_at, cls, timeline::json, rejected::json
      FROM held
), told AS (
    INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, endpoint_id, secrets, state, ended_reason)
    SELECT d.id, held.project_id, held.job_id, d.type, d.url, d.endpoint, d.endpoint_id, d.secrets, d.state,
           d.ended_reason
      FROM held CROSS JOIN LATERAL json_to_recordset(held.deliveries::json)
        AS d (id uuid, type text, url text, endpoint text, endpoint_id uuid, secrets text[], state text,
              ended_reason text)
     WHERE held.deliveries IS NOT NULL
), freed AS (
    DELETE FROM slots USING held
     WHERE held.gates IS NOT NULL AND slots.job_id = held.job_id AND slots.until IS NULL
)
SELECT job_id, gates FROM held
"""

RETRY_JOBS = """
-- retry_jobs
WITH report AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[], $6::interval[], $7::int[])
        r (job_id, token, exit_code, error, timeline, delay, needs)
), held AS (
    DELETE FROM leases USING report
     WHERE leases.job_id = report.job_id AND leases.token = report.token AND NOT leases.cancel_requested
    RETURNING leases.*, report.exit_code, report.error, report.timeline AS reported_timeline, report.delay, report.needs
), noted AS (
    INSERT INTO job_attempts (job_id, attempt, project_id, token, node_id, exit_code, error, queued_at, leased_at,
                              next_at, slots, timeline)
    SELECT job_id, attempt, project_id, token, node_id, exit_code, error::json, queued_at, leased_at, now() + delay,
           cls, reported_timeline::json
      FROM held
), waiting AS (
    INSERT INTO waiting_jobs (job_id, pool, project_id, lane, cls, attempt, losses, stage, due_at, cancel_at, gates,
                              head_start)
    SELECT job_id, pool, project_id, lane, coalesce(needs, cls), attempt, losses, 'retry', now() + delay, cancel_at,
           gates, head_start
      FROM held
), freed AS (
    DELETE FROM slots USING held
     WHERE held.gates IS NOT NULL AND slots.job_id = held.job_id AND slots.until IS NULL
)
SELECT job_id, gates FROM held
"""

REQUEUE_JOBS = """
-- requeue_jobs
WITH report AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[]) r (job_id, token, error)
), held AS (
    DELETE FROM leases USING report
     WHERE leases.job_id = report.job_id AND leases.token = report.token AND NOT leases.cancel_requested
    RETURNING leases.*, report.error
), noted AS (
    INSERT INTO job_attempts (job_id, attempt, project_id, token, node_id, error, queued_at, leased_at, next_at,
                              slots, timeline)
    SELECT job_id, attempt, project_id, token, node_id, error::json, queued_at, leased_at, now(), cls, timeline
      FROM held
), freed AS (
    DELETE FROM slots USING held
     WHERE held.gates IS NOT NULL AND slots.job_id = held.job_id AND slots.until IS NULL
), placed AS (
    SELECT held.*, jobs.function_id,
           CASE WHEN EXISTS (SELECT 1 FROM functions
                              WHERE functions.id = jobs.function_id AND functions.paused_at IS NOT NULL) THEN 'paused'
                WHEN held.gates IS NOT NULL THEN 'gated' END AS stage
      FROM held JOIN jobs ON jobs.id = held.job_id
), waiting AS (
    -- It has passed its gates once: it is the first to pass them again.
    INSERT INTO waiting_jobs (job_id, pool, project_id, lane, cls, attempt, losses, stage, cancel_at, gates, head_start,
                              gate_id, function_id, head, queued_at)
    SELECT job_id, pool, project_id, lane, cls, attempt, losses + 1, stage, cancel_at, gates, head_start,
           CASE stage WHEN 'gated' THEN gates[1] END, CASE stage WHEN 'paused' THEN function_id END,
           queued_at - coalesce(head_start, '0'), now()
      FROM placed WHERE stage IS NOT NULL
), ready AS (
    -- The virtual time of now: the job has had its turn in the order once, and it must not wait for the backlog again.
    INSERT INTO ready_jobs (job_id, vt, pool, project_id, lane, cls, attempt, losses, cancel_at, head_start)
    SELECT p.job_id, coalesce(pool_clocks.v, 0), p.pool, p.project_id, p.lane, p.cls, p.attempt, p.losses + 1,
           p.cancel_at, p.head_start
      FROM placed p LEFT JOIN pool_clocks ON pool_clocks.pool = p.pool
     WHERE p.stage IS NULL
)
SELECT job_id, gates FROM held
"""

# A statement of its own: what waits for a lease frees only those of its slots that it saw before.
LOCK_LEASES = """
-- lock_leases
SELECT job_id FROM leases WHERE job_id = ANY ($1) ORDER BY job_id FOR UPDATE
"""

EXPIRED_LEASES = """
-- expired_leases
SELECT leases.job_id, leases.token, leases.project_id, leases.node_id, leases.attempt, leases.losses,
       leases.cancel_requested, (leases.cancel_at <= now()) IS TRUE AS overdue, leases.timeline,
       (SELECT count(*) FROM job_attempts
         WHERE job_attempts.job_id = leases.job_id AND error ->> 'code' = 'node_lost') AS lost_before
  FROM leases WHERE expires_at < now() ORDER BY expires_at LIMIT $1
   FOR UPDATE SKIP LOCKED
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
    heard: bool = False
    """Whether somebody may want to be told that it starts."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that its node still holds, with what decides about its end."""

    job_id: JobId
    project_id: ProjectId
    attempt: int
    losses: int
    cancel_requested: bool
    overdue: bool
    version_id: VersionId
    callback_url: str | None
    callback_events: tuple[str, ...] | None
    listeners: tuple[Listener, ...] = ()
    """The endpoints of the project and of the job's function."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a leased attempt ended. ``result`` is JSON text; ``reported`` is False when no node said so; ``needs`` is how
    many slots the next attempt takes, None for as many as this one."""

    job_id: JobId
    token: UUID
    status: str
    exit_code: int | None = None
    error: Mapping[str, Any] | None = None
    result: str | None = None
    timeline: Mapping[str, int] | None = None
    rejected: Sequence[Mapping[str, str]] = ()
    reported: bool = True
    needs: int | None = None


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """One event for one endpoint, written with what it tells of. ``ended_reason`` is why it is not sent at all."""

    id: MessageId
    job_id: JobId
    type: str
    url: str
    endpoint: str
    endpoint_id: EndpointId | None = None
    secrets: tuple[str, ...] | None = None
    ended_reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "job_id": str(self.job_id),
            "type": self.type,
            "url": self.url,
            "endpoint": self.endpoint,
            "endpoint_id": None if self.endpoint_id is None else str(self.endpoint_id),
            "secrets": self.secrets,
            "state": "pending" if self.ended_reason is None else "exhausted",
            "ended_reason": self.ended_reason,
        }


@dataclass(frozen=True, slots=True)
class Expired:
    job_id: JobId
    token: UUID
    project_id: ProjectId
    node_id: NodeId
    attempt: int
    losses: int
    cancel_requested: bool
    overdue: bool
    timeline: str
    lost_before: int


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
    return [
        Claimed(
            row["job_id"], row["token"], row["attempt"], row["slots"], row["project_id"], row["function_id"],
            row["version_id"], row["trigger"], row["params"], row["left_s"], row["heard"],
        )
        for row in rows
    ]  # fmt: skip


async def heartbeat(
    conn: Connection,
    node: NodeId,
    held: Sequence[tuple[JobId, UUID, float | None, Mapping[str, int]]],
    *,
    lease: timedelta,
    heard: set[JobId] | None = None,
) -> dict[JobId, bool]:
    """Renew a node's leases, noting (job, token, progress, timeline). Returns job → whether to cancel it.

    A job that is not in the answer is no longer this node's. ``heard`` gets those that got on, if somebody may want to
    be told.
    """
    rows = await conn.fetch(
        HEARTBEAT, node, lease, [job for job, *_ in held], [token for _, token, *_ in held],
        [progress for *_, progress, _ in held], [json.dumps(timeline) for *_, timeline in held],
    )  # fmt: skip
    if heard is not None:
        heard.update(row["job_id"] for row in rows if row["heard"])
    return {row["job_id"]: row["cancel_requested"] for row in rows}


async def find_held(conn: Connection, node: NodeId, job: JobId, token: UUID) -> Held | None:
    """The lease of this job, if ``node`` still holds it by ``token``.

    It is locked until the transaction's end: of two equal reports the second one sees what became of the first.
    """
    row = await conn.fetchrow(HELD, job, token, node)
    if row is None:
        return None
    events, listening = row["callback_events"], row["listeners"]
    return Held(
        **{
            **row,
            "callback_events": None if events is None else tuple(events),
            "listeners": () if listening is None else tuple(listener(each) for each in json.loads(listening)),
        }
    )


async def held_by(conn: Connection, node: NodeId) -> list[tuple[JobId, UUID]]:
    """Every lease that the node holds: job and token."""
    return [(row["job_id"], row["token"]) for row in await conn.fetch(HELD_BY, node)]


async def finish(
    conn: Connection,
    endings: Sequence[Ending],
    deliveries: Sequence[NewDelivery] = (),
    freed: set[GateId] | None = None,
) -> set[JobId]:
    """Record outcomes and what they cause to be delivered: one statement. Returns the jobs whose token still held.

    A job that is missing was offered to another node: its report must be refused. Here and below, ``freed`` gets the
    gates that may have room now: they are to be advanced after the commit.
    """
    told: dict[JobId, list[dict[str, Any]]] = {}
    for new in deliveries:
        told.setdefault(new.job_id, []).append(new.as_json())
    rows = await conn.fetch(
        FINISH_JOBS,
        [end.job_id for end in endings], [end.token for end in endings], [end.status for end in endings],
        [end.exit_code for end in endings], [None if end.error is None else json.dumps(end.error) for end in endings],
        [end.result for end in endings], [json.dumps(end.timeline or {}) for end in endings],
        [json.dumps(end.rejected) for end in endings], [end.reported for end in endings],
        [json.dumps(told[end.job_id]) if end.job_id in told else None for end in endings],
    )  # fmt: skip
    gates.note(rows, freed)
    return {row["job_id"] for row in rows}


async def retry(
    conn: Connection, ending: Ending, delay: timedelta, freed: set[GateId] | None = None
) -> bool:
    """End a leased attempt and let the job wait ``delay`` for the next one.

    False if the token no longer held, or if a cancel has come meanwhile.
    """
    rows = await conn.fetch(
        RETRY_JOBS, [ending.job_id], [ending.token], [ending.exit_code], [json.dumps(ending.error)],
        [json.dumps(ending.timeline or {})], [delay], [ending.needs],
    )  # fmt: skip
    gates.note(rows, freed)
    return bool(rows)


async def requeue(
    conn: Connection,
    leases: Sequence[tuple[JobId, UUID, Mapping[str, Any]]],
    freed: set[GateId] | None = None,
) -> set[JobId]:
    """Make leased jobs (job, token, error) ready again at once: the attempt counts as lost, not as one of the user's.

    Those of a limited function pass their gates again, before those that wait there. Jobs with a cancel pending are
    left alone.
    """
    leases = sorted(leases, key=lambda each: each[0])
    await conn.execute(LOCK_LEASES, [job for job, *_ in leases])
    rows = await conn.fetch(
        REQUEUE_JOBS, [job for job, *_ in leases], [token for _, token, _ in leases],
        [json.dumps(error) for *_, error in leases],
    )  # fmt: skip
    gates.note(rows, freed)
    return {row["job_id"] for row in rows}


async def expired(conn: Connection, *, limit: int) -> list[Expired]:
    """Lock and return leases that ran out. The caller owns the transaction and ends or requeues them in it."""
    return [Expired(**row) for row in await conn.fetch(EXPIRED_LEASES, limit)]
