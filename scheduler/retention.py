"""What finished jobs leave, and when it goes: logs, files, and at last the jobs themselves. Owns ``expiries``.

Deletes from every table that has rows of a job. A finished job gets a row in ``expiries`` from a round that goes over
the outcomes once, in the order of their ends, so that finishing costs nothing more; what is due is found by that row
alone, so that what is kept is never looked at. Unfinished jobs have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from functions import expiring
from functions.db import Connection, Pool
from functions.ids import JobId

SETTLED = timedelta(minutes=10)
"""A transaction that ends a job takes no longer: an outcome of that age will have no younger neighbour behind it."""
AGAIN = timedelta(minutes=10)
"""Until files that something still needs are looked at again."""
MOST_ROWS = 5000
"""Chunks of logs, or files, that go in one transaction."""

# Values of a version are read once for all of its jobs: a manifest is long. A job outlives its Idempotency-Keys.
NOTE_EXPIRIES = """
-- note_expiries
WITH cursor AS (
    SELECT finished_at, job_id FROM expiry_cursor FOR NO KEY UPDATE SKIP LOCKED
), page AS (
    SELECT o.* FROM cursor CROSS JOIN LATERAL (
        SELECT job_id, finished_at FROM outcomes
         WHERE (outcomes.finished_at, outcomes.job_id) > (cursor.finished_at, cursor.job_id)
           AND outcomes.finished_at < now() - $2::interval
         ORDER BY outcomes.finished_at, outcomes.job_id LIMIT $1) o
), owned AS (
    SELECT page.*, jobs.version_id FROM page JOIN jobs ON jobs.id = page.job_id
), kept AS MATERIALIZED (
    SELECT id, (rule ->> 'jobs')::interval AS jobs, (rule ->> 'artifacts')::interval AS artifacts,
           (rule ->> 'logs')::interval AS logs
      FROM (SELECT id, manifest #> '{spec,retention}' AS rule FROM function_versions
             WHERE id = ANY (ARRAY(SELECT DISTINCT version_id FROM owned))) v
), timed AS (
    SELECT owned.job_id, finished_at + coalesce(kept.jobs, $3::interval) AS jobs_at,
           finished_at + coalesce(kept.artifacts, $4::interval) AS artifacts_at,
           finished_at + coalesce(kept.logs, $5::interval) AS logs_at
      FROM owned LEFT JOIN kept ON kept.id = owned.version_id
), noted AS (
    INSERT INTO expiries (job_id, due_at, logs_at, artifacts_at, jobs_at)
    SELECT job_id, least(jobs_at, artifacts_at, logs_at), least(logs_at, jobs_at), least(artifacts_at, jobs_at), jobs_at
      FROM timed
    ON CONFLICT DO NOTHING
), moved AS (
    UPDATE expiry_cursor SET finished_at = last.finished_at, job_id = last.job_id
      FROM (SELECT finished_at, job_id FROM page ORDER BY finished_at DESC, job_id DESC LIMIT 1) last
)
SELECT count(*) FROM page
"""

# A job waits for the others of its batch: what that has come to is counted when all have ended.
DUE_EXPIRIES = """
-- due_expiries
SELECT job_id, coalesce(logs_at <= now(), false) AS logs, coalesce(artifacts_at <= now(), false) AS artifacts,
       jobs_at <= now() AS over,
       jobs_at <= now() AND NOT EXISTS (SELECT 1 FROM jobs JOIN batches ON batches.id = jobs.batch_id
                                         WHERE jobs.id = expiries.job_id AND batches.completed_at IS NULL) AS jobs
  FROM expiries WHERE due_at <= now() ORDER BY due_at LIMIT $1
   FOR UPDATE OF expiries SKIP LOCKED
"""

DELETE_LOGS = """
-- delete_logs
DELETE FROM log_chunks WHERE ctid = ANY (ARRAY(SELECT ctid FROM log_chunks WHERE job_id = ANY ($1) LIMIT $2))
"""

# A job that still has a file goes another time: its rows stay until its objects are gone.
DELETABLE = """
-- deletable_jobs
SELECT job_id FROM unnest($1::uuid[]) d (job_id)
 WHERE NOT EXISTS (SELECT 1 FROM artifacts a
                    WHERE a.job_id = d.job_id AND a.state IN ('pending', 'complete', 'expiring'))
   AND NOT EXISTS (SELECT 1 FROM artifacts a
                    WHERE a.params_of = d.job_id AND a.state IN ('pending', 'complete', 'expiring'))
"""

DELETE_JOBS = """
-- delete_jobs
WITH files AS (
    DELETE FROM artifacts WHERE job_id = ANY ($1)
), params AS (
    DELETE FROM artifacts WHERE params_of = ANY ($1)
), uses AS (
    DELETE FROM artifact_uses WHERE job_id = ANY ($1)
), told AS (
    DELETE FROM deliveries WHERE job_id = ANY ($1)
), caused AS (
    DELETE FROM chains WHERE job_id = ANY ($1)
), attempts AS (
    DELETE FROM job_attempts WHERE job_id = ANY ($1)
), costs AS (
    DELETE FROM receipts WHERE job_id = ANY ($1)
), ended AS (
    DELETE FROM outcomes WHERE job_id = ANY ($1)
), noted AS (
    DELETE FROM expiries WHERE job_id = ANY ($1)
)
DELETE FROM jobs WHERE id = ANY ($1)
"""

# Two that delete the last jobs of a batch beside each other would each find the other's jobs still there.
LOCK_BATCHES = """
-- lock_batches_of_jobs
SELECT id FROM batches
 WHERE id = ANY (ARRAY(SELECT batch_id FROM jobs WHERE id = ANY ($1) AND batch_id IS NOT NULL))
 ORDER BY id FOR UPDATE
"""

DELETE_BATCHES = """
-- delete_empty_batches
WITH gone AS (
    DELETE FROM batches WHERE id = ANY ($1) AND completed_at IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.batch_id = batches.id)
    RETURNING id
)
DELETE FROM deliveries WHERE job_id IN (SELECT id FROM gone)
"""

GO_ON = """
-- postpone_expiries
UPDATE expiries SET logs_at = CASE WHEN e.logs THEN NULL ELSE logs_at END,
       artifacts_at = CASE WHEN e.artifacts THEN NULL ELSE artifacts_at END,
       due_at = greatest(
           now() + CASE WHEN e.waits THEN $5::interval ELSE interval '0' END,
           least(CASE WHEN NOT e.logs THEN logs_at END, CASE WHEN NOT e.artifacts THEN artifacts_at END, jobs_at))
  FROM unnest($1::uuid[], $2::boolean[], $3::boolean[], $4::boolean[]) e (job_id, logs, artifacts, waits)
 WHERE expiries.job_id = e.job_id
"""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long the operator keeps what manifests say nothing of, after a job's end."""

    jobs: timedelta
    artifacts: timedelta
    logs: timedelta


@dataclass(frozen=True, slots=True)
class Expired:
    """What one round did. ``looked``: jobs of which something was due."""

    looked: int = 0
    logs: int = 0
    artifacts: int = 0
    jobs: int = 0


async def note_once(conn: Connection, keeping: Keeping, *, limit: int, settled: timedelta = SETTLED) -> int:
    """Give up to ``limit`` finished jobs the times at which what they left goes; how many. One statement, safe to
    repeat and beside others."""
    noted: int = await conn.fetchval(NOTE_EXPIRIES, limit, settled, keeping.jobs, keeping.artifacts, keeping.logs)
    return noted


async def expire_once(pool: Pool, *, limit: int) -> Expired:
    """Delete what is due of up to ``limit`` jobs, in one transaction. Files are only marked here: ``remove_once`` takes
    their objects, and the job goes when those are gone. Safe to repeat and beside others."""
    async with pool.acquire() as conn, conn.transaction():
        rows = await conn.fetch(DUE_EXPIRIES, limit)
        if not rows:
            return Expired()
        # A job that goes takes its logs and files along, whatever became of their own times.
        of_logs = [row["job_id"] for row in rows if row["logs"] or row["jobs"]]
        of_files = [row["job_id"] for row in rows if row["artifacts"] or row["jobs"]]
        over = [row["job_id"] for row in rows if row["jobs"]]
        chunks = await _delete_logs(conn, of_logs)
        logs_left = chunks == MOST_ROWS
        marked, with_files = await expiring.expire_outputs(conn, of_files, params_of=over, limit=MOST_ROWS)
        gone = [] if logs_left else await _delete_jobs(conn, over)
        left = [row for row in rows if row["job_id"] not in set(gone)]
        await conn.execute(
            GO_ON,
            [row["job_id"] for row in left],
            [bool(row["logs"]) and not logs_left for row in left],
            [bool(row["artifacts"]) and row["job_id"] not in with_files for row in left],
            # Files that are needed, or whose objects are to go first; and other jobs of the batch.
            [row["job_id"] in with_files or (row["over"] and not logs_left) for row in left],
            AGAIN if marked == 0 else timedelta(seconds=1),
        )
    return Expired(len(rows), chunks, marked, len(gone))


async def _delete_logs(conn: Connection, jobs: Sequence[JobId]) -> int:
    if not jobs:
        return 0
    return int((await conn.execute(DELETE_LOGS, jobs, MOST_ROWS)).split()[-1])


async def _delete_jobs(conn: Connection, jobs: Sequence[JobId]) -> list[JobId]:
    if not jobs:
        return []
    gone = [JobId(row["job_id"]) for row in await conn.fetch(DELETABLE, jobs)]
    batches = [row["id"] for row in await conn.fetch(LOCK_BATCHES, gone)]
    await conn.execute(DELETE_JOBS, gone)
    if batches:
        await conn.execute(DELETE_BATCHES, batches)
    return gone
