"""The hot path: enqueue, claim, heartbeat, finish, retry, release, promote, cancel — one statement each, over arrays.

Owns ``jobs`` (written once), ``ready_jobs``, ``waiting_jobs``, ``leases``, ``outcomes``, ``job_attempts``,
``idempotency_keys``, ``pool_clocks`` and ``flows``. A job that is not finished stands in exactly one of ready_jobs,
waiting_jobs and leases. Claim order is start-time fair queuing: a job's virtual time is given when it becomes
claimable, so that a project that floods its account delays the others by one job, not by its backlog.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from functions.db import Connection
from functions.ids import BatchId, FunctionId, JobId, MessageId, NodeId, ProjectId, VersionId
from functions.queue_spec import GateSpec
from scheduler import gates
from scheduler.gates import GateId

ENQUEUE_JOBS = """
-- enqueue_jobs
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::uuid[], $10::text[], $11::int[], $12::interval[], $13::text[], $14::bytea[], $15::text[], $16::uuid[],
        $17::smallint[], $18::interval[], $19::interval[], $20::interval[], $21::text[]
    ) WITH ORDINALITY AS i (
        job_id, project_id, function_id, version_id, trigger, params, callback_url, callback_events,
        retried_from, traceparent, cls, delay, key, body_hash, key_id, batch_id, lane,
        head_start, ttl, cancel_after, gates, ord)
), keyed AS (
    INSERT INTO idempotency_keys (project_id, function_id, key, body_hash, job_id, expires_at)
    -- Jobs without a function share one scope.
    SELECT project_id, coalesce(function_id, '00000000-0000-0000-0000-000000000000'), key, body_hash, job_id,
           now() + interval '24 hours'
      FROM input WHERE key IS NOT NULL
     ORDER BY project_id, function_id, key   -- one order for all, or two statements wait for each other's keys
    ON CONFLICT DO NOTHING
    RETURNING job_id
), accepted AS (
    SELECT * FROM input WHERE key IS NULL OR job_id IN (SELECT job_id FROM keyed)
), written AS (
    INSERT INTO jobs (id, project_id, function_id, version_id, trigger, params, callback_url, callback_events,
                      retried_from, traceparent, key_id, batch_id)
    SELECT job_id, project_id, function_id, version_id, trigger::json, params::json, callback_url,
           string_to_array(callback_events, ','), retried_from, traceparent, key_id, batch_id
      FROM accepted
), placed AS (
    SELECT a.*, flows.pool, flows.weight, pool_clocks.v, greatest(flows.f, pool_clocks.v) AS behind,
           now() + coalesce(a.delay, '0') + a.ttl AS ttl_at, now() + a.cancel_after AS cancel_at,
           CASE WHEN a.delay IS NOT NULL THEN 'delayed'
                WHEN EXISTS (SELECT 1 FROM functions
                              WHERE functions.id = a.function_id AND functions.paused_at IS NOT NULL) THEN 'paused'
                WHEN a.gates IS NOT NULL THEN 'gated' END AS stage
      -- Outer joins: a project without its rows must fail the statement (vt is NULL), not lose the job.
      FROM accepted a
      LEFT JOIN flows ON flows.project_id = a.project_id
      LEFT JOIN pool_clocks ON pool_clocks.pool = flows.pool
), tagged AS (
    SELECT p.*,
           -- As if it had come so much earlier, and never before what is served now.
           CASE WHEN head_start IS NULL THEN behind
                ELSE greatest(v, (SELECT m.f FROM flow_marks m
                                   WHERE m.project_id = p.project_id AND m.at <= now() - p.head_start
                                   ORDER BY m.at DESC LIMIT 1)) END AS start,
           row_number() OVER (PARTITION BY project_id ORDER BY ord) AS turn
      FROM placed p WHERE stage IS NULL
), free AS (
    -- Skipping a locked flow costs a little fairness among requests of one instant; waiting for it costs 3 x the rate.
    SELECT project_id FROM flows WHERE project_id = ANY ($2) FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE flows SET f = greatest(flows.f, top.vt)
      FROM (SELECT project_id, max(behind + turn / weight) AS vt FROM tagged GROUP BY project_id) top
     WHERE flows.project_id = top.project_id AND flows.project_id IN (SELECT project_id FROM free)
), queued AS (
    INSERT INTO ready_jobs (job_id, vt, pool, project_id, lane, cls, attempt, losses, ttl_at, cancel_at, head_start)
    SELECT job_id, start + (turn - 1) / weight, pool, project_id, lane, cls, 0, 0, ttl_at, cancel_at, head_start
      FROM tagged
), waiting AS (
    INSERT INTO waiting_jobs (job_id, pool, project_id, lane, cls, attempt, losses, stage, due_at, ttl_at, cancel_at,
                              head_start, gates, gate_id, function_id, head, queued_at)
    SELECT job_id, pool, project_id, lane, cls, 0, 0, stage, now() + delay, ttl_at, cancel_at, head_start,
           gates::bigint[], CASE stage WHEN 'gated' THEN (gates::bigint[])[1] END,
           CASE stage WHEN 'paused' THEN function_id END,
           CASE WHEN delay IS NULL THEN now() - coalesce(head_start, '0') END, CASE WHEN delay IS NULL THEN now() END
      FROM placed WHERE stage IS NOT NULL
)
SELECT job_id, now() AS created_at, gates::bigint[] AS gates FROM accepted
"""

FIND_IDEMPOTENT = """
-- find_idempotent
SELECT job_id, body_hash, expires_at <= now() AS expired FROM idempotency_keys
 WHERE project_id = $1 AND function_id = $2 AND key = $3
"""

FORGET_IDEMPOTENT = """
-- forget_idempotent
DELETE FROM idempotency_keys WHERE project_id = $1 AND function_id = $2 AND key = $3 AND expires_at <= now()
"""

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
     CROSS JOIN (VALUES (0), (1)) l (lane)
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
), taken AS (
    DELETE FROM ready_jobs USING picked
     WHERE ready_jobs.project_id = picked.project_id AND ready_jobs.job_id = picked.job_id AND picked.used <= $3
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
       jobs.project_id, jobs.function_id, jobs.version_id, jobs.trigger, jobs.params
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
    SELECT 1 FROM leases WHERE job_id = ANY ($3) FOR NO KEY UPDATE
)
UPDATE leases SET expires_at = now() + $2::interval, progress = r.progress, timeline = r.timeline::json
  FROM unnest($3::uuid[], $4::uuid[], $5::real[], $6::text[]) r (job_id, token, progress, timeline)
 WHERE leases.job_id = r.job_id AND leases.token = r.token AND leases.node_id = $1
   AND (SELECT count(*) FROM mine) > 0
RETURNING leases.job_id, leases.cancel_requested
"""

HELD = """
-- held_leases
SELECT leases.job_id, leases.project_id, leases.attempt, leases.losses, leases.cancel_requested,
       (leases.cancel_at <= now()) IS TRUE AS overdue, jobs.version_id, jobs.callback_url, jobs.callback_events
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
              leases.queued_at, leases.leased_at, leases.gates, r.status, r.exit_code, r.error, r.result, r.timeline,
              r.rejected, r.reported, r.deliveries
), ended AS (
    INSERT INTO outcomes (job_id, project_id, status, attempt, losses, token, exit_code, error, result, node_id,
                          queued_at, leased_at, timeline, rejected)
    SELECT job_id, project_id, status, attempt, losses, CASE WHEN reported THEN token END, exit_code, error::json,
           result::json, node_id, queued_at, leased_at, timeline::json, rejected::json
      FROM held
), told AS (
    INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint)
    SELECT d.id, held.project_id, held.job_id, d.type, d.url, d.endpoint
      FROM held CROSS JOIN LATERAL json_to_recordset(held.deliveries::json)
        AS d (id uuid, type text, url text, endpoint text)
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
                              next_at, timeline)
    SELECT job_id, attempt, project_id, token, node_id, exit_code, error::json, queued_at, leased_at, now() + delay,
           reported_timeline::json
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
                              timeline)
    SELECT job_id, attempt, project_id, token, node_id, error::json, queued_at, leased_at, now(), timeline FROM held
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

EXPIRED_LEASES = """
-- expired_leases
SELECT leases.job_id, leases.token, leases.project_id, leases.node_id, leases.attempt, leases.losses,
       leases.cancel_requested, (leases.cancel_at <= now()) IS TRUE AS overdue, leases.timeline,
       (SELECT count(*) FROM job_attempts
         WHERE job_attempts.job_id = leases.job_id AND error ->> 'code' = 'node_lost') AS lost_before
  FROM leases WHERE expires_at < now() ORDER BY expires_at LIMIT $1
   FOR UPDATE SKIP LOCKED
"""

PROMOTE_JOBS = """
-- promote_jobs
WITH due AS (
    SELECT project_id, job_id FROM waiting_jobs WHERE due_at <= now() ORDER BY due_at LIMIT $1
       FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM waiting_jobs USING due
     WHERE waiting_jobs.project_id = due.project_id AND waiting_jobs.job_id = due.job_id
    RETURNING waiting_jobs.*
), placed AS (
    SELECT m.*, jobs.function_id AS function,
           CASE WHEN functions.paused_at IS NOT NULL THEN 'paused'
                WHEN m.gates IS NOT NULL THEN 'gated' END AS next_stage
      FROM moved m JOIN jobs ON jobs.id = m.job_id LEFT JOIN functions ON functions.id = jobs.function_id
), waiting AS (
    INSERT INTO waiting_jobs (job_id, pool, project_id, lane, cls, attempt, losses, stage, ttl_at, cancel_at, gates,
                              head_start, gate_id, function_id, head, queued_at)
    SELECT job_id, pool, project_id, lane, cls, attempt, losses, next_stage, ttl_at, cancel_at, gates, head_start,
           CASE next_stage WHEN 'gated' THEN gates[1] END, CASE next_stage WHEN 'paused' THEN function END,
           due_at - coalesce(head_start, '0'), now()
      FROM placed WHERE next_stage IS NOT NULL
), tagged AS (
    SELECT p.*, greatest(flows.f, pool_clocks.v, 0) AS behind,
           CASE WHEN p.head_start IS NULL THEN greatest(flows.f, pool_clocks.v, 0)
                ELSE greatest(pool_clocks.v, 0, (
                    SELECT k.f FROM flow_marks k WHERE k.project_id = p.project_id AND k.at <= now() - p.head_start
                     ORDER BY k.at DESC LIMIT 1)) END AS start,
           row_number() OVER (PARTITION BY p.project_id ORDER BY p.due_at, p.job_id) AS turn,
           coalesce(flows.weight, 1) AS weight
      FROM placed p
      LEFT JOIN flows ON flows.project_id = p.project_id
      LEFT JOIN pool_clocks ON pool_clocks.pool = p.pool
     WHERE p.next_stage IS NULL
), top AS (
    SELECT project_id, max(behind + turn / weight) AS vt FROM tagged GROUP BY project_id
), free AS (
    SELECT project_id FROM flows WHERE project_id IN (SELECT project_id FROM top) FOR NO KEY UPDATE SKIP LOCKED
), pushed AS (
    UPDATE flows SET f = greatest(flows.f, top.vt) FROM top
     WHERE flows.project_id = top.project_id AND flows.project_id IN (SELECT project_id FROM free)
), ready AS (
    INSERT INTO ready_jobs (job_id, vt, pool, project_id, lane, cls, attempt, losses, ttl_at, cancel_at, head_start)
    SELECT job_id, start + (turn - 1) / weight, pool, project_id, lane, cls, attempt, losses, ttl_at, cancel_at,
           head_start
      FROM tagged
)
SELECT job_id, CASE next_stage WHEN 'gated' THEN gates END AS gates FROM placed
"""

CANCEL_JOBS = """
-- cancel_jobs
WITH mine AS (
    -- One cancel of a project at a time: two of them might take the same jobs in two orders, and wait for each other.
    SELECT project_id, pool FROM flows WHERE project_id = $1 FOR NO KEY UPDATE
), ready AS (
    DELETE FROM ready_jobs WHERE project_id = (SELECT project_id FROM mine) AND job_id = ANY ($2)
    RETURNING job_id, attempt, losses, queued_at, gates
), waiting AS (
    DELETE FROM waiting_jobs WHERE project_id = (SELECT project_id FROM mine) AND job_id = ANY ($2)
    RETURNING job_id, attempt, losses, queued_at, gates
), held AS (
    SELECT job_id FROM leases WHERE project_id = (SELECT project_id FROM mine) AND job_id = ANY ($2)
     ORDER BY job_id FOR NO KEY UPDATE
), leased AS (
    UPDATE leases SET cancel_requested = true WHERE job_id = ANY (ARRAY(SELECT job_id FROM held)) RETURNING job_id
), rewound AS (
    -- Jobs that were never served must not set the project back behind the others.
    UPDATE flows SET f = greatest(flows.f - (SELECT count(*) FROM ready) / flows.weight, pool_clocks.v)
      FROM mine JOIN pool_clocks ON pool_clocks.pool = mine.pool
     WHERE flows.project_id = mine.project_id AND EXISTS (SELECT 1 FROM ready)
)
SELECT job_id, attempt, losses, queued_at, gates, false AS leased FROM ready
UNION ALL SELECT job_id, attempt, losses, queued_at, gates, false FROM waiting
UNION ALL SELECT job_id, 0, 0, NULL, NULL, true FROM leased
"""

END_UNLEASED = """
-- end_unleased
WITH ended AS (
    INSERT INTO outcomes (job_id, project_id, status, attempt, losses, error, queued_at)
    SELECT e.job_id, $1, $2, e.attempt, e.losses, $3::json, e.queued_at
      FROM unnest($4::uuid[], $5::int[], $6::int[], $7::timestamptz[]) e (job_id, attempt, losses, queued_at)
)
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint)
SELECT d.id, $1, d.job_id, d.type, d.url, d.endpoint
  FROM unnest($8::uuid[], $9::uuid[], $10::text[], $11::text[], $12::text[]) d (id, job_id, type, url, endpoint)
"""

UNFINISHED_OF_FUNCTION = """
-- unfinished_of_function
SELECT ready_jobs.job_id FROM ready_jobs JOIN jobs ON jobs.id = ready_jobs.job_id
 WHERE ready_jobs.project_id = $1 AND jobs.function_id = $2
UNION ALL
SELECT waiting_jobs.job_id FROM waiting_jobs JOIN jobs ON jobs.id = waiting_jobs.job_id
 WHERE waiting_jobs.project_id = $1 AND jobs.function_id = $2
"""

QUEUED_AFTER_DELETE = """
-- queued_after_delete
SELECT ready_jobs.project_id, ready_jobs.job_id FROM functions
  JOIN ready_jobs ON ready_jobs.project_id = functions.project_id AND ready_jobs.attempt = 0
  JOIN jobs ON jobs.id = ready_jobs.job_id AND jobs.function_id = functions.id
 WHERE functions.deleted_at > now() - $1::interval
UNION ALL
SELECT waiting_jobs.project_id, waiting_jobs.job_id FROM functions
  JOIN waiting_jobs ON waiting_jobs.project_id = functions.project_id AND waiting_jobs.stage = 'delayed'
  JOIN jobs ON jobs.id = waiting_jobs.job_id AND jobs.function_id = functions.id
 WHERE functions.deleted_at > now() - $1::interval
 LIMIT $2
"""

FORGET_KEYS = """
-- forget_keys
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
"""


@dataclass(frozen=True, slots=True)
class InputUrl:
    """Where an input file comes from; ``pointer`` says which param (or place in the manifest) holds the URL."""

    pointer: str
    url: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """One job as it goes into the queue. ``trigger`` and ``params`` are JSON text; ``delay`` None is now.

    ``inputs`` are not stored: they are what ``check_inputs`` looks at first. ``gates`` are the limits that it passes,
    in order; ``ttl`` counts from when it may start, ``cancel_after`` from now.
    """

    id: JobId
    project_id: ProjectId
    function_id: FunctionId | None
    version_id: VersionId
    trigger: str
    params: str
    slots: int
    callback_url: str | None = None
    callback_events: tuple[str, ...] | None = None
    retried_from: JobId | None = None
    traceparent: str | None = None
    delay: timedelta | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    key_id: str | None = None
    batch_id: BatchId | None = None
    inputs: tuple[InputUrl, ...] = ()
    gates: tuple[GateSpec, ...] = ()
    on_limit: str = "queue"
    lane: Literal[0, 1] = 0
    head_start: timedelta | None = None
    ttl: timedelta | None = None
    cancel_after: timedelta | None = None


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
    """One event for one endpoint, written with what it tells of."""

    id: MessageId
    job_id: JobId
    type: str
    url: str
    endpoint: str


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


@dataclass(frozen=True, slots=True)
class Unleased:
    """A job that a cancel took out before it was leased; ``queued_at`` None if it was not claimable."""

    job_id: JobId
    attempt: int
    losses: int
    queued_at: datetime | None


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


async def enqueue(
    conn: Connection, jobs: Sequence[NewJob], reached: set[GateId] | None = None
) -> dict[JobId, datetime]:
    """Write jobs and make them claimable (or waiting, with a delay): one statement, durable when it returns.

    A job of a limited function waits at its first gate: ``reached`` gets its gates, to be advanced after the commit.

    Returns the ids that went in, and when. One that is missing carries an idempotency key that is in use: see
    ``find_idempotent``.
    """
    passed = await _gates(conn, [job for job in jobs if job.gates])
    rows = await conn.fetch(
        ENQUEUE_JOBS,
        [job.id for job in jobs], [job.project_id for job in jobs], [job.function_id for job in jobs],
        [job.version_id for job in jobs], [job.trigger for job in jobs], [job.params for job in jobs],
        [job.callback_url for job in jobs],
        [None if job.callback_events is None else ",".join(job.callback_events) for job in jobs],
        [job.retried_from for job in jobs], [job.traceparent for job in jobs], [job.slots for job in jobs],
        [job.delay for job in jobs], [job.idempotency_key for job in jobs], [job.body_hash for job in jobs],
        [job.key_id for job in jobs], [job.batch_id for job in jobs],
        [job.lane for job in jobs], [job.head_start or None for job in jobs], [job.ttl for job in jobs],
        [job.cancel_after for job in jobs], [passed.get(job.id) for job in jobs],
    )  # fmt: skip
    _note(rows, reached)
    return {row["job_id"]: row["created_at"] for row in rows}


async def _gates(conn: Connection, limited: Sequence[NewJob]) -> dict[JobId, str]:
    """The gates of jobs, each as the text of an array: a list of lists cannot be unnested into lists."""
    if not limited:
        return {}
    wanted = {
        job.id: [gates.Wanted(job.project_id, job.function_id, spec) for spec in job.gates]
        for job in limited
        if job.function_id is not None
    }
    found = await gates.ensure(conn, [each for passed in wanted.values() for each in passed])
    return {job: "{" + ",".join(str(found[each.name]) for each in passed) + "}" for job, passed in wanted.items()}


def _note(rows: Sequence[Mapping[str, Any]], into: set[GateId] | None) -> None:
    if into is not None:
        into.update(gate for row in rows for gate in row["gates"] or ())


async def find_idempotent(
    conn: Connection, project: ProjectId, function: FunctionId, key: str
) -> tuple[JobId, bytes] | None:
    """The job that this key made first, and the hash of its body; None when the key is free, maybe again."""
    row = await conn.fetchrow(FIND_IDEMPOTENT, project, function, key)
    if row is None:
        return None
    if row["expired"]:
        await conn.execute(FORGET_IDEMPOTENT, project, function, key)
        return None
    return row["job_id"], row["body_hash"]


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
) -> list[Claimed]:
    """Lease ready jobs to ``node`` that together fill at most ``free_slots``, fairest first; empty when none fits.

    ``pools`` take turns in the order given; each is named once. ``lease`` is how long the node may stay silent. A job
    that needs more slots than are free, and has waited for ``patience`` at the head of its class, makes the node wait
    for it. A draining node gets nothing.
    """
    rows = await conn.fetch(CLAIM_JOBS, node, list(pools), free_slots, node_slots, lease, patience)
    for pool in {row["pool"] for row in rows if row["lane"] == 0}:
        await clocks.saw(conn, pool, max(row["vt"] for row in rows if (row["pool"], row["lane"]) == (pool, 0)))
    return [
        Claimed(
            row["job_id"], row["token"], row["attempt"], row["slots"], row["project_id"], row["function_id"],
            row["version_id"], row["trigger"], row["params"], row["left_s"],
        )
        for row in rows
    ]  # fmt: skip


async def heartbeat(
    conn: Connection,
    node: NodeId,
    held: Sequence[tuple[JobId, UUID, float | None, Mapping[str, int]]],
    *,
    lease: timedelta,
) -> dict[JobId, bool]:
    """Renew a node's leases, noting (job, token, progress, timeline). Returns job → whether to cancel it.

    A job that is not in the answer is no longer this node's.
    """
    rows = await conn.fetch(
        HEARTBEAT, node, lease, [job for job, *_ in held], [token for _, token, *_ in held],
        [progress for *_, progress, _ in held], [json.dumps(timeline) for *_, timeline in held],
    )  # fmt: skip
    return {row["job_id"]: row["cancel_requested"] for row in rows}


async def find_held(conn: Connection, node: NodeId, job: JobId, token: UUID) -> Held | None:
    """The lease of this job, if ``node`` still holds it by ``token``.

    It is locked until the transaction's end: of two equal reports the second one sees what became of the first.
    """
    row = await conn.fetchrow(HELD, job, token, node)
    if row is None:
        return None
    events = row["callback_events"]
    return Held(**{**row, "callback_events": None if events is None else tuple(events)})


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
    told: dict[JobId, list[dict[str, str]]] = {}
    for new in deliveries:
        row = {"id": str(new.id), "type": new.type, "url": new.url, "endpoint": new.endpoint}
        told.setdefault(new.job_id, []).append(row)
    rows = await conn.fetch(
        FINISH_JOBS,
        [end.job_id for end in endings], [end.token for end in endings], [end.status for end in endings],
        [end.exit_code for end in endings], [None if end.error is None else json.dumps(end.error) for end in endings],
        [end.result for end in endings], [json.dumps(end.timeline or {}) for end in endings],
        [json.dumps(end.rejected) for end in endings], [end.reported for end in endings],
        [json.dumps(told[end.job_id]) if end.job_id in told else None for end in endings],
    )  # fmt: skip
    _note(rows, freed)
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
    _note(rows, freed)
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
    rows = await conn.fetch(
        REQUEUE_JOBS, [job for job, *_ in leases], [token for _, token, _ in leases],
        [json.dumps(error) for *_, error in leases],
    )  # fmt: skip
    _note(rows, freed)
    return {row["job_id"] for row in rows}


async def expired(conn: Connection, *, limit: int) -> list[Expired]:
    """Lock and return leases that ran out. The caller owns the transaction and ends or requeues them in it."""
    return [Expired(**row) for row in await conn.fetch(EXPIRED_LEASES, limit)]


async def promote(conn: Connection, *, limit: int, reached: set[GateId] | None = None) -> int:
    """Make due delayed and retrying jobs claimable; how many. One statement, safe beside others.

    Those of a limited function wait at their first gate: ``reached`` gets it, to be advanced after the commit.
    """
    rows = await conn.fetch(PROMOTE_JOBS, limit)
    _note(rows, reached)
    return len(rows)


async def take_out(
    conn: Connection, project: ProjectId, jobs: Sequence[JobId], freed: set[GateId] | None = None
) -> tuple[list[Unleased], set[JobId]]:
    """Take jobs out of the queue, to be ended in the same transaction, and ask for the leased ones to be cancelled.

    Returns (taken out, leased). A job in neither is finished, or moved in this very moment: then ask again.
    """
    rows = await conn.fetch(CANCEL_JOBS, project, list(jobs))
    _note(rows, freed)
    await gates.free(conn, [row["job_id"] for row in rows if row["gates"]])
    taken = [
        Unleased(row["job_id"], row["attempt"], row["losses"], row["queued_at"]) for row in rows if not row["leased"]
    ]
    return taken, {row["job_id"] for row in rows if row["leased"]}


async def end_unleased(
    conn: Connection,
    project: ProjectId,
    jobs: Sequence[Unleased],
    *,
    status: str,
    error: Mapping[str, Any] | None = None,
    deliveries: Sequence[NewDelivery] = (),
) -> None:
    """Record the outcome of jobs that ``take_out`` returned, in its transaction."""
    await conn.execute(
        END_UNLEASED, project, status, None if error is None else json.dumps(error),
        [job.job_id for job in jobs], [job.attempt for job in jobs], [job.losses for job in jobs],
        [job.queued_at for job in jobs],
        [new.id for new in deliveries], [new.job_id for new in deliveries], [new.type for new in deliveries],
        [new.url for new in deliveries], [new.endpoint for new in deliveries],
    )  # fmt: skip


async def unfinished_of(conn: Connection, project: ProjectId, function: FunctionId) -> list[JobId]:
    """Jobs of a function that are not leased and not finished."""
    return [row["job_id"] for row in await conn.fetch(UNFINISHED_OF_FUNCTION, project, function)]


async def queued_after_delete(
    conn: Connection, *, within: timedelta, limit: int
) -> list[tuple[ProjectId, JobId]]:
    """Jobs that have not begun, of functions that were deleted no longer ago than ``within``."""
    rows = await conn.fetch(QUEUED_AFTER_DELETE, within, limit)
    return [(row["project_id"], row["job_id"]) for row in rows]


async def forget_keys(conn: Connection, *, limit: int) -> int:
    """Delete idempotency keys whose day is over; how many."""
    return int((await conn.execute(FORGET_KEYS, limit)).split()[-1])
