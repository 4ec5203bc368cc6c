"""How a lease ends: with an outcome, with another attempt, or back in the queue. One statement each, over arrays.

Owns ``job_attempts`` and, for jobs that ran, ``outcomes``. A lease is fenced by its token: what comes with another one
changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.ids import JobId
from scheduler import gates
from scheduler.gates import GateId
from scheduler.new_deliveries import NewDelivery

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
       AND (leases.pays_until <= now()) IS NOT TRUE
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

    Those of a limited function pass their gates again, before those that wait there. Jobs with a cancel pending, or
    whose ``max_cost`` is used up, are left alone.
    """
    leases = sorted(leases, key=lambda each: each[0])
    await conn.execute(LOCK_LEASES, [job for job, *_ in leases])
    rows = await conn.fetch(
        REQUEUE_JOBS, [job for job, *_ in leases], [token for _, token, _ in leases],
        [json.dumps(error) for *_, error in leases],
    )  # fmt: skip
    gates.note(rows, freed)
    return {row["job_id"] for row in rows}
