"""Batches: many jobs of one function from one request, and the moment when the last of them has its outcome.

Owns ``batches``. A batch is written with its jobs, in one transaction, and gets no others. Nothing of it is written
when a job ends, so that jobs which end together do not wait for each other: a round looks which batches have no job
without an outcome any more. Outcomes stay, so that each look goes on where the last one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from functions import ids, listening, versions
from functions.db import Connection, Row
from functions.errors import NotFound
from functions.grammar import BATCH_COMPLETED
from functions.ids import BatchId, FunctionId, JobId, ProjectId, VersionId
from scheduler import deliveries
from scheduler.callbacks import endpoints_of
from scheduler.views import rfc3339

ADD_BATCH = """
-- add_batch
INSERT INTO batches (id, project_id, function_id, version_id, total, callback_url, key_id)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""

READ_BATCHES = """
-- read_batches
SELECT batches.*, functions.name AS function, function_versions.number AS version
  FROM batches
  LEFT JOIN functions ON functions.id = batches.function_id
  LEFT JOIN function_versions ON function_versions.id = batches.version_id
 WHERE batches.project_id = $1 AND batches.id = ANY ($2)
 ORDER BY batches.id DESC
"""

LIST_BATCHES = """
-- list_batches
SELECT id FROM batches WHERE project_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3
"""

# One snapshot: each job is in one place in it.
COUNT_JOBS = """
-- count_jobs_of_batch
SELECT CASE WHEN outcomes.job_id IS NOT NULL THEN outcomes.status
            WHEN leases.job_id IS NOT NULL THEN 'running'
            WHEN waiting_jobs.stage IN ('delayed', 'retry') THEN 'scheduled'
            ELSE 'queued' END AS status,
       count(*) AS jobs
  FROM (SELECT id, project_id FROM jobs
         WHERE (batch_id, id) >= ($1, '00000000-0000-0000-0000-000000000000')
           AND (batch_id, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff') AND batch_id IS NOT NULL
         ORDER BY batch_id DESC, id DESC OFFSET 0) mine
  LEFT JOIN outcomes ON outcomes.job_id = mine.id
  LEFT JOIN leases ON leases.job_id = mine.id
  LEFT JOIN waiting_jobs ON waiting_jobs.project_id = mine.project_id AND waiting_jobs.job_id = mine.id
 GROUP BY 1
"""

BATCH_OF_JOB = """
-- batch_of_job
SELECT batch_id FROM jobs WHERE project_id = $1 AND id = $2
"""

# From the newest job on: jobs start in their order, so that one of the last is what is waited for.
LOOK_AT_BATCHES = """
-- look_at_batches
WITH open AS (
    SELECT id, looked_to FROM batches WHERE completed_at IS NULL AND id > $1 ORDER BY id LIMIT $2
       FOR UPDATE SKIP LOCKED
), looked AS (
    SELECT open.id, open.looked_to, (
        SELECT jobs.id FROM jobs
         WHERE (batch_id, jobs.id) <= (open.id, open.looked_to)
           AND (batch_id, jobs.id) >= (open.id, '00000000-0000-0000-0000-000000000000') AND batch_id IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM outcomes WHERE outcomes.job_id = jobs.id)
         ORDER BY batch_id DESC, jobs.id DESC LIMIT 1) AS pending
      FROM open
), moved AS (
    UPDATE batches SET looked_to = looked.pending FROM looked
     WHERE batches.id = looked.id AND looked.pending < looked.looked_to
)
SELECT id, pending FROM looked ORDER BY id
"""

COMPLETE_BATCH = """
-- complete_batch
WITH counted AS (
    SELECT outcomes.status, count(*) AS jobs, max(outcomes.finished_at) AS last
      FROM jobs JOIN outcomes ON outcomes.job_id = jobs.id
     WHERE jobs.batch_id = $1
     GROUP BY outcomes.status
)
UPDATE batches SET counts = (SELECT coalesce(json_object_agg(status, jobs), '{}') FROM counted),
                   completed_at = coalesce((SELECT max(last) FROM counted), now())
 WHERE id = $1
RETURNING project_id, function_id, version_id, callback_url
"""

STATUSES = ("scheduled", "queued", "running", "succeeded", "failed", "timed_out", "cancelled", "expired")
FIRST, LAST = BatchId(UUID(int=0)), UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """``callback_url`` hears of the batch's end; what its jobs' callbacks are is said at each of them."""

    id: BatchId
    project_id: ProjectId
    function_id: FunctionId
    version_id: VersionId
    total: int
    callback_url: str | None
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """``counts`` has every status; None where they were not asked for."""

    id: BatchId
    function: str | None
    version: int | None
    total: int
    counts: Mapping[str, int] | None
    callback_url: str | None
    key_id: str | None
    created_at: datetime
    completed_at: datetime | None


async def add(conn: Connection, new: NewBatch) -> None:
    """Write the batch in the transaction that writes its jobs."""
    await conn.execute(
        ADD_BATCH, new.id, new.project_id, new.function_id, new.version_id, new.total, new.callback_url, new.key_id
    )


async def read(conn: Connection, project: ProjectId, batch: BatchId) -> Batch:
    """The batch with its counts; raises ``NotFound``. On a connection of the hot path: thousands of jobs come at once,
    and a plan that was made before them would read all of the queue for each."""
    row = await conn.fetchrow(READ_BATCHES, project, [batch])
    if row is None:
        raise NotFound(f"there is no batch {ids.encode(ids.BATCH, batch)}", code="batch_not_found")
    if row["counts"] is not None:
        return _batch(row, json.loads(row["counts"]))
    return _batch(row, {each["status"]: each["jobs"] for each in await conn.fetch(COUNT_JOBS, batch)})


async def read_all(conn: Connection, project: ProjectId, wanted: Sequence[BatchId]) -> list[Batch]:
    """Those of the batches that the project has; without counts where they are not complete."""
    if not wanted:
        return []
    return [
        _batch(row, None if row["counts"] is None else json.loads(row["counts"]))
        for row in await conn.fetch(READ_BATCHES, project, list(wanted))
    ]


async def list_batches(conn: Connection, project: ProjectId, *, limit: int, before: UUID | None) -> list[Batch]:
    """Batches of the project, the newest first. One that is not complete comes without counts: a page of them might be
    a million jobs."""
    found = [row["id"] for row in await conn.fetch(LIST_BATCHES, project, before or LAST, limit)]
    return await read_all(conn, project, found)


async def of_job(conn: Connection, project: ProjectId, job: JobId) -> BatchId | None:
    """The batch that a job belongs to, if it does."""
    found: BatchId | None = await conn.fetchval(BATCH_OF_JOB, project, job)
    return found


async def complete_once(conn: Connection, after: BatchId, *, limit: int) -> tuple[int, BatchId | None]:
    """Look at open batches behind ``after``, and complete those whose last job has its outcome: the counts and the
    deliveries of ``batch.completed`` are written together. Returns how many were completed, and where to go on; None at
    the end.

    One transaction, safe to repeat and beside others.
    """
    done = 0
    async with conn.transaction():
        looked = await conn.fetch(LOOK_AT_BATCHES, after, limit)
        for batch in [BatchId(row["id"]) for row in looked if row["pending"] is None]:
            row = await conn.fetchrow(COMPLETE_BATCH, batch)
            version = (await versions.by_ids(conn, [row["version_id"]]))[row["version_id"]]
            callbacks = version.manifest.spec.callbacks
            listeners = await listening.listeners(conn, row["project_id"], [row["function_id"]])
            told = endpoints_of(
                callbacks, row["callback_url"], (BATCH_COMPLETED,), BATCH_COMPLETED,
                listeners=listeners, function=version.function_name,
            )  # fmt: skip
            await deliveries.add(conn, row["project_id"], batch, BATCH_COMPLETED, told)
            done += 1
    return done, BatchId(looked[-1]["id"]) if len(looked) == limit else None


def batch_object(batch: Batch) -> dict[str, Any]:
    """The batch as users see it, in answers and in the callback."""
    name = ids.encode(ids.BATCH, batch.id)
    return {
        "id": name,
        "function": batch.function,
        "version": batch.version,
        "status": "running" if batch.completed_at is None else "completed",
        "total": batch.total,
        "counts": None if batch.counts is None else {status: batch.counts.get(status, 0) for status in STATUSES},
        "callback_url": batch.callback_url,
        "created_at": rfc3339(batch.created_at),
        "completed_at": rfc3339(batch.completed_at),
        "links": {
            "self": f"/v1/batches/{name}",
            "jobs": f"/v1/jobs?batch={name}",
            "cancel": f"/v1/batches/{name}/cancel",
        },
    }


def _batch(row: Row, counts: Mapping[str, int] | None) -> Batch:
    return Batch(
        row["id"], row["function"], row["version"], row["total"], counts, row["callback_url"], row["key_id"],
        row["created_at"], row["completed_at"],
    )  # fmt: skip
