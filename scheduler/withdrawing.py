"""Jobs that leave the queue before they are leased: cancelled, expired, or never to be let in.

Writes ``outcomes`` of such jobs, and takes them out of ``ready_jobs`` and ``waiting_jobs``; of leased ones it notes
that they are to be cancelled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from functions.db import Connection
from functions.ids import FunctionId, JobId, ProjectId
from scheduler import gates
from scheduler.gates import GateId
from scheduler.new_deliveries import NewDelivery

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
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, endpoint_id, secrets, state, ended_reason)
SELECT d.id, $1, d.job_id, d.type, d.url, d.endpoint, d.endpoint_id, d.secrets, d.state, d.ended_reason
  FROM json_to_recordset($8::json)
    AS d (id uuid, job_id uuid, type text, url text, endpoint text, endpoint_id uuid, secrets text[], state text,
          ended_reason text)
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
  JOIN waiting_jobs ON waiting_jobs.project_id = functions.project_id AND waiting_jobs.attempt = 0
  JOIN jobs ON jobs.id = waiting_jobs.job_id AND jobs.function_id = functions.id
 WHERE functions.deleted_at > now() - $1::interval
 LIMIT $2
"""

# They are let through no gate, so that they are looked for however long ago it was; one gate after another.
GATED_AFTER_DELETE = """
-- gated_after_delete
WITH RECURSIVE walk AS (
    (SELECT gate_id FROM waiting_jobs WHERE stage = 'gated' ORDER BY gate_id LIMIT 1)
    UNION ALL
    SELECT (SELECT gate_id FROM waiting_jobs WHERE stage = 'gated' AND gate_id > walk.gate_id
             ORDER BY gate_id LIMIT 1)
      FROM walk WHERE walk.gate_id IS NOT NULL
)
SELECT waiting_jobs.project_id, waiting_jobs.job_id FROM walk
  JOIN gates ON gates.id = walk.gate_id
  JOIN functions ON functions.id = gates.function_id AND functions.deleted_at IS NOT NULL
  JOIN waiting_jobs ON waiting_jobs.stage = 'gated' AND waiting_jobs.gate_id = walk.gate_id AND attempt = 0
 LIMIT $1
"""


@dataclass(frozen=True, slots=True)
class Unleased:
    """A job that a cancel took out before it was leased; ``queued_at`` None if it was not claimable."""

    job_id: JobId
    attempt: int
    losses: int
    queued_at: datetime | None


async def take_out(
    conn: Connection, project: ProjectId, jobs: Sequence[JobId], freed: set[GateId] | None = None
) -> tuple[list[Unleased], set[JobId]]:
    """Take jobs out of the queue, to be ended in the same transaction, and ask for the leased ones to be cancelled.

    Returns (taken out, leased). A job in neither is finished, or moved in this very moment: then ask again.
    """
    rows = await conn.fetch(CANCEL_JOBS, project, list(jobs))
    gates.note(rows, freed)
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
        json.dumps([new.as_json() for new in deliveries]),
    )  # fmt: skip


async def unfinished_of(conn: Connection, project: ProjectId, function: FunctionId) -> list[JobId]:
    """Jobs of a function that are not leased and not finished."""
    return [row["job_id"] for row in await conn.fetch(UNFINISHED_OF_FUNCTION, project, function)]


async def queued_after_delete(
    conn: Connection, *, within: timedelta, limit: int
) -> list[tuple[ProjectId, JobId]]:
    """Jobs that have not begun, of functions that were deleted no longer ago than ``within``; of those that wait for a
    limit, also of others."""
    rows = [*await conn.fetch(QUEUED_AFTER_DELETE, within, limit), *await conn.fetch(GATED_AFTER_DELETE, limit)]
    return sorted({(row["project_id"], row["job_id"]) for row in rows})[:limit]
