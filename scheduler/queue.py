"""Jobs enter the queue, and become claimable: one statement each, over arrays.

Owns ``jobs`` (written once), ``ready_jobs``, ``waiting_jobs`` and ``flows``. ``claiming`` takes jobs out of ready_jobs
and ``lease_ends`` brings some back; ``gates``, ``pauses``, ``overdue``, ``relimiting`` and ``withdrawing`` move them as
well, and set their project's place in ``flows``. A job that is not finished stands in exactly one of ready_jobs,
waiting_jobs and leases. Claim order is start-time fair
queuing: a job's virtual time is given when it becomes claimable, so that a project that floods its account delays the
others by one job, not by its backlog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID

from functions.db import Connection
from functions.ids import BatchId, FunctionId, JobId, ProjectId, VersionId
from functions.queue_spec import GateSpec
from scheduler import gates
from scheduler.gates import GateId
from scheduler.receipts import NewReceipt

ENQUEUE_JOBS = """
-- enqueue_jobs
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::uuid[], $10::text[], $11::int[], $12::interval[], $13::text[], $14::bytea[], $15::text[], $16::uuid[],
        $17::smallint[], $18::interval[], $19::interval[], $20::interval[], $21::text[],
        $22::uuid[], $23::uuid[], $24::text[], $25::bytea[], $26::numeric[]
    ) WITH ORDINALITY AS i (
        job_id, project_id, function_id, version_id, trigger, params, callback_url, callback_events,
        retried_from, traceparent, cls, delay, key, body_hash, key_id, batch_id, lane,
        head_start, ttl, cancel_after, gates, receipt_id, webhook_id, receipt_head, receipt_body, max_cost, ord)
), keyed AS (
    INSERT INTO idempotency_keys (project_id, function_id, key, body_hash, job_id, expires_at)
    -- What a webhook's sender calls a delivery (id:) is known for days: so long it may send it again. Jobs without a
    -- function share one scope.
    SELECT project_id, coalesce(webhook_id, function_id, '00000000-0000-0000-0000-000000000000'), key, body_hash,
           job_id,
           now() + CASE WHEN webhook_id IS NOT NULL AND key LIKE 'id:%' THEN interval '7 days'
                        ELSE interval '24 hours' END
      FROM input WHERE key IS NOT NULL
     -- One order for all, or two statements wait for each other's keys.
     ORDER BY project_id, coalesce(webhook_id, function_id), key
    ON CONFLICT DO NOTHING
    RETURNING job_id
), accepted AS (
    SELECT * FROM input WHERE key IS NULL OR job_id IN (SELECT job_id FROM keyed)
), written AS (
    INSERT INTO jobs (id, project_id, function_id, version_id, trigger, params, callback_url, callback_events,
                      retried_from, traceparent, key_id, batch_id, max_cost)
    SELECT job_id, project_id, function_id, version_id, trigger::json, params::json, callback_url,
           string_to_array(callback_events, ','), retried_from, traceparent, key_id, batch_id, max_cost
      FROM accepted
), received AS (
    INSERT INTO webhook_receipts (id, webhook_id, project_id, verdict, job_id, head, body)
    SELECT receipt_id, webhook_id, project_id, 'accepted', job_id, receipt_head::json, receipt_body
      FROM accepted WHERE receipt_id IS NOT NULL
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


NO_FUNCTION = FunctionId(UUID(int=0))
"""In whose place idempotency keys of jobs without a function stand."""


@dataclass(frozen=True, slots=True)
class InputUrl:
    """Where an input file comes from; ``pointer`` says which param (or place in the manifest) holds the URL."""

    pointer: str
    url: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """One job as it goes into the queue. ``trigger`` and ``params`` are JSON text; ``delay`` None is now.

    ``inputs`` are not stored: they are what ``check_inputs`` looks at first. ``gates`` are the limits that it passes,
    in order; ``ttl`` counts from when it may start, ``cancel_after`` from now. ``receipt`` is of the webhook's request
    that it comes from, and is written with it.
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
    receipt: NewReceipt | None = None
    max_cost: Decimal | None = None
    """EUR net that its running may cost: see ``running_costs``."""

    @property
    def key_scope(self) -> UUID:
        """Within what its idempotency key tells it from others: its webhook, its function, or the project's rest."""
        if self.receipt is not None:
            return self.receipt.webhook_id
        return self.function_id or NO_FUNCTION


async def enqueue(
    conn: Connection, jobs: Sequence[NewJob], reached: set[GateId] | None = None
) -> dict[JobId, datetime]:
    """Write jobs and make them claimable (or waiting, with a delay): one statement, durable when it returns.

    A job of a limited function waits at its first gate: ``reached`` gets its gates, to be advanced after the commit.

    Returns the ids that went in, and when. One that is missing carries an idempotency key that is in use: see
    ``idempotency.find``.
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
        [job.receipt and job.receipt.id for job in jobs], [job.receipt and job.receipt.webhook_id for job in jobs],
        [job.receipt and job.receipt.head for job in jobs], [job.receipt and job.receipt.body for job in jobs],
        [job.max_cost for job in jobs],
    )  # fmt: skip
    gates.note(rows, reached)
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


async def promote(conn: Connection, *, limit: int, reached: set[GateId] | None = None) -> int:
    """Make due delayed and retrying jobs claimable; how many. One statement, safe beside others.

    Those of a limited function wait at their first gate: ``reached`` gets it, to be advanced after the commit.
    """
    rows = await conn.fetch(PROMOTE_JOBS, limit)
    gates.note(rows, reached)
    return len(rows)


