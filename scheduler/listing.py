"""Which jobs a list shows: their ids, the newest first, however many millions there are.

Each source is read through an index that has the list's order. What the index does not know is checked row by row,
in chunks and for a bounded time: a page of filters that fit almost nothing may come short, with a position to go on
from.
Reads the queue's tables, writes none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from functions import ids
from functions.db import Connection
from functions.ids import BatchId, FunctionId, JobId, ProjectId

CHUNK = 1000
LOOK_S = 1.0
"""A request looks no longer for rows that fit."""
APART_MS = 60_000
"""How far a gateway's clock, which makes ids, may be from the database's, which makes ``created_at``."""

FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)

FUNCTIONS_NAMED = """
-- functions_named
SELECT id FROM functions WHERE project_id = $1 AND name = $2
"""

LIST_OF_PROJECT = """
-- list_jobs_of_project
SELECT id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7) AS fits
  FROM jobs WHERE project_id = $1 AND id < $2 AND id >= $3 ORDER BY id DESC LIMIT $4
"""

# A name that was deleted and applied again stands for several functions.
LIST_OF_FUNCTION = """
-- list_jobs_of_function
SELECT id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7)
           AND ($9::text IS NULL OR (SELECT status FROM outcomes WHERE outcomes.job_id = page.id) = $9) AS fits
  FROM (SELECT found.* FROM unnest($8::uuid[]) f (id) CROSS JOIN LATERAL (
            -- Both columns in comparison and order: else jobs_pkey is chosen, and read in vain for a rare function.
            SELECT jobs.id, project_id, trigger, created_at FROM jobs
             WHERE (function_id, jobs.id) < (f.id, $2) AND (function_id, jobs.id) >= (f.id, $3)
             ORDER BY function_id DESC, jobs.id DESC LIMIT $4) found
         WHERE found.project_id = $1
         ORDER BY found.id DESC LIMIT $4) page
 ORDER BY id DESC
"""

LIST_FINISHED = """
-- list_finished_jobs
SELECT jobs.id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7)
           AND ($8::uuid[] IS NULL OR function_id = ANY ($8)) AS fits
  FROM (SELECT job_id FROM outcomes
         WHERE project_id = $1 AND status = $9 AND job_id < $2 AND job_id >= $3
         ORDER BY job_id DESC LIMIT $4) page
  JOIN jobs ON jobs.id = page.job_id
 ORDER BY jobs.id DESC
"""

LIST_QUEUED = """
-- list_queued_jobs
SELECT jobs.id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7)
           AND ($8::uuid[] IS NULL OR function_id = ANY ($8)) AS fits
  FROM (SELECT job_id FROM (
            (SELECT job_id FROM ready_jobs WHERE project_id = $1 AND job_id < $2 AND job_id >= $3
              ORDER BY job_id DESC LIMIT $4)
            UNION ALL
            (SELECT job_id FROM waiting_jobs
              WHERE stage IN ('gated', 'paused') AND project_id = $1 AND job_id < $2 AND job_id >= $3
              ORDER BY job_id DESC LIMIT $4)) both_tables
         ORDER BY job_id DESC LIMIT $4) page
  JOIN jobs ON jobs.id = page.job_id
 ORDER BY jobs.id DESC
"""

LIST_SCHEDULED = """
-- list_scheduled_jobs
SELECT jobs.id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7)
           AND ($8::uuid[] IS NULL OR function_id = ANY ($8)) AS fits
  FROM (SELECT job_id FROM waiting_jobs
         WHERE stage IN ('delayed', 'retry') AND project_id = $1 AND job_id < $2 AND job_id >= $3
         ORDER BY job_id DESC LIMIT $4) page
  JOIN jobs ON jobs.id = page.job_id
 ORDER BY jobs.id DESC
"""

# No index has leases by project: there are no more of them than slots.
LIST_RUNNING = """
-- list_running_jobs
SELECT jobs.id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7)
           AND ($8::uuid[] IS NULL OR function_id = ANY ($8)) AS fits
  FROM (SELECT job_id FROM leases WHERE project_id = $1 AND job_id < $2 AND job_id >= $3
         ORDER BY job_id DESC LIMIT $4) page
  JOIN jobs ON jobs.id = page.job_id
 ORDER BY jobs.id DESC
"""

# A batch has at most some thousands of jobs: their statuses are looked up one by one. Scalar subqueries, as EXISTS may
# be done by reading all of the other table once for each page.
LIST_OF_BATCH = """
-- list_jobs_of_batch
SELECT page.id, ($5::text IS NULL OR trigger ->> 'kind' = $5) AND ($6::timestamptz IS NULL OR created_at >= $6)
           AND ($7::timestamptz IS NULL OR created_at < $7)
           AND ($9::uuid[] IS NULL OR function_id = ANY ($9))
           AND coalesce(CASE
               WHEN $10::text IS NULL THEN true
               WHEN $10 = 'running' THEN (SELECT true FROM leases WHERE leases.job_id = page.id)
               WHEN $10 = 'queued' THEN coalesce(
                   (SELECT true FROM ready_jobs WHERE ready_jobs.project_id = $1 AND ready_jobs.job_id = page.id),
                   (SELECT stage NOT IN ('delayed', 'retry') FROM waiting_jobs
                     WHERE waiting_jobs.project_id = $1 AND waiting_jobs.job_id = page.id))
               WHEN $10 = 'scheduled' THEN (
                   SELECT stage IN ('delayed', 'retry') FROM waiting_jobs
                    WHERE waiting_jobs.project_id = $1 AND waiting_jobs.job_id = page.id)
               ELSE (SELECT status = $10 FROM outcomes WHERE outcomes.job_id = page.id) END, false) AS fits
  FROM (SELECT id, project_id, function_id, trigger, created_at FROM jobs
         WHERE (batch_id, id) < ($8, $2) AND (batch_id, id) >= ($8, $3) AND batch_id IS NOT NULL
         ORDER BY batch_id DESC, id DESC LIMIT $4) page
 WHERE page.project_id = $1
 ORDER BY page.id DESC
"""

UNFINISHED = {"queued": LIST_QUEUED, "scheduled": LIST_SCHEDULED, "running": LIST_RUNNING}


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list shows; None is everything. ``since`` counts itself in, ``until`` does not."""

    function: str | None = None
    status: str | None = None
    trigger: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    batch: BatchId | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """``position`` is where the next page starts; None when there is none."""

    jobs: list[JobId]
    position: JobId | None


async def list_jobs(
    conn: Connection, project: ProjectId, filters: Filters, *, limit: int, before: UUID | None = None
) -> Page:
    """Up to ``limit`` jobs that fit, older than ``before``. Fewer, or none, do not mean the end: ``position`` does."""
    functions: list[FunctionId] | None = None
    if filters.function is not None:
        functions = [row["id"] for row in await conn.fetch(FUNCTIONS_NAMED, project, filters.function)]
        if not functions:
            return Page([], None)
    statement, own, exact = _source(filters, functions)
    rest = (filters.trigger, filters.since, filters.until, *own)
    chunk = limit + 1 if exact and rest[:3] == (None, None, None) else CHUNK
    upper = min(before or LAST, LAST if filters.until is None else ids.first_of(filters.until, later_ms=APART_MS))
    lower = FIRST if filters.since is None else ids.first_of(filters.since, later_ms=-APART_MS)
    found: list[JobId] = []
    enough_s = time.monotonic() + LOOK_S
    while True:
        rows = await conn.fetch(statement, project, upper, lower, chunk, *rest)
        found += [JobId(row["id"]) for row in rows if row["fits"]]
        if len(found) > limit:
            return Page(found[:limit], found[limit - 1])
        if len(rows) < chunk:
            return Page(found, None)
        upper = rows[-1]["id"]
        if time.monotonic() > enough_s:
            return Page(found, JobId(upper))


def _source(
    filters: Filters, functions: Sequence[FunctionId] | None
) -> tuple[str, tuple[object, ...], bool]:
    """A statement, the arguments that only it has, and whether its index knows function and status."""
    if filters.batch is not None:
        return LIST_OF_BATCH, (filters.batch, functions, filters.status), (functions, filters.status) == (None, None)
    if filters.status in UNFINISHED:
        return UNFINISHED[filters.status], (functions,), functions is None
    # Most jobs succeed: a function's own are fewer than the project's that did.
    if functions is not None and filters.status in (None, "succeeded"):
        return LIST_OF_FUNCTION, (functions, filters.status), filters.status is None
    if filters.status is not None:
        return LIST_FINISHED, (functions, filters.status), functions is None
    return LIST_OF_PROJECT, (), True
