"""Files whose time is over, and what the store and the database do not agree on.

Writes ``artifacts`` from ``complete`` on, ``artifact_uses`` and ``version_artifacts``. A file is marked first, so that
nobody is given it any more; then its object goes; then the row says so. Whoever dies in between, a round goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from functions import bucket_owner
from functions.artifacts import Store
from functions.bucket_owner import is_ours
from functions.db import Connection, Pool
from functions.ids import ArtifactId, JobId, VersionId

PAGE = 1000
"""Keys of one listing, by the protocol."""
PROMISED = timedelta(hours=1)
"""So long a job that is being submitted may take until it is there."""

NOTE_USES = """
-- note_artifact_uses
INSERT INTO artifact_uses (artifact_id, job_id) SELECT * FROM unnest($1::uuid[], $2::uuid[]) ON CONFLICT DO NOTHING
"""

NOTE_NAMED = """
-- note_version_artifacts
INSERT INTO version_artifacts (artifact_id, version_id) SELECT unnest($2::uuid[]), $1 ON CONFLICT DO NOTHING
"""

EXPIRE_OUTPUTS = """
-- expire_outputs
WITH found AS MATERIALIZED (
    -- Two index scans: an OR would be one of everything, and so may be one that knows of the state.
    SELECT id, state FROM artifacts WHERE job_id = ANY ($1)
    UNION ALL SELECT id, state FROM artifacts WHERE params_of = ANY ($2)
), page AS (
    SELECT id FROM found WHERE state = 'complete' LIMIT $3
)
UPDATE artifacts a SET state = 'expiring' FROM page
 WHERE a.id = page.id
   AND NOT EXISTS (SELECT 1 FROM version_artifacts n
                     JOIN function_versions v ON v.id = n.version_id LEFT JOIN functions f ON f.id = v.function_id
                    WHERE n.artifact_id = a.id AND f.deleted_at IS NULL)
   AND NOT EXISTS (SELECT 1 FROM artifact_uses u
                    WHERE u.artifact_id = a.id AND NOT EXISTS (SELECT 1 FROM outcomes WHERE job_id = u.job_id)
                      AND (u.at > now() - $4::interval OR EXISTS (SELECT 1 FROM jobs WHERE id = u.job_id)))
"""

UNEXPIRED_OUTPUTS = """
-- unexpired_outputs
WITH found AS MATERIALIZED (SELECT job_id, state FROM artifacts WHERE job_id = ANY ($1))
SELECT DISTINCT job_id FROM found WHERE state = 'complete'
"""

# Uploads that are used again count as new. Params of a job that was never made are nobody's.
EXPIRE_UPLOADS = """
-- expire_uploads
WITH page AS (
    SELECT id, created_at FROM artifacts
     WHERE state = 'complete' AND job_id IS NULL AND (created_at, id) > ($1, $2) AND created_at < now() - $5::interval
     ORDER BY created_at, id LIMIT $3
), gone AS (
    UPDATE artifacts a SET state = 'expiring' FROM page
     WHERE a.id = page.id AND a.created_at < now() - $5::interval
       AND (a.params_of IS NULL OR NOT EXISTS (SELECT 1 FROM jobs WHERE id = a.params_of))
       AND NOT EXISTS (SELECT 1 FROM version_artifacts n
                         JOIN function_versions v ON v.id = n.version_id LEFT JOIN functions f ON f.id = v.function_id
                        WHERE n.artifact_id = a.id AND f.deleted_at IS NULL)
       AND NOT EXISTS (SELECT 1 FROM artifact_uses u
                        WHERE u.artifact_id = a.id AND NOT EXISTS (SELECT 1 FROM outcomes WHERE job_id = u.job_id)
                          AND (u.at > now() - $4::interval OR EXISTS (SELECT 1 FROM jobs WHERE id = u.job_id)))
    RETURNING a.id
)
SELECT page.*, (SELECT count(*) FROM gone) AS gone FROM page ORDER BY created_at, id
"""

EXPIRING = """
-- expiring_artifacts
SELECT id, object_key FROM artifacts WHERE state = 'expiring' ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
"""

EXPIRED = """
-- expired_artifacts
WITH uses AS (DELETE FROM artifact_uses WHERE artifact_id = ANY ($1))
UPDATE artifacts SET state = 'expired' WHERE id = ANY ($1)
"""

FORGET_UPLOADS = """
-- forget_gone_uploads
DELETE FROM artifacts WHERE id = ANY (ARRAY(
    SELECT id FROM artifacts
     WHERE state IN ('expired', 'missing') AND job_id IS NULL AND id < $1
       AND (params_of IS NULL OR NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = params_of))
     ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED))
"""

KNOWN_KEYS = """
-- known_object_keys
SELECT object_key, state FROM artifacts WHERE object_key = ANY ($1)
"""

KEPT_BETWEEN = """
-- kept_between_keys
SELECT object_key FROM artifacts
 WHERE state = 'complete' AND object_key COLLATE "C" > $1 AND object_key COLLATE "C" <= $2 AND id < $3
 ORDER BY object_key COLLATE "C" LIMIT $4
"""

MARK_STATE = """
-- mark_artifacts
UPDATE artifacts SET state = $3 WHERE object_key = ANY ($1) AND state = $2
"""

FIRST = datetime(1970, 1, 1, tzinfo=UTC), ArtifactId(UUID(int=0))
LAST_KEY = "\U0010ffff"
_NAMED = re.compile(r"artifact:art_([0-9a-f]{32})")


async def note_uses(conn: Connection, uses: Iterable[tuple[ArtifactId, JobId]]) -> None:
    """Keep these files until these jobs are finished. A job that does not come keeps nothing after an hour."""
    pairs = sorted(set(uses))
    if pairs:
        await conn.execute(NOTE_USES, [artifact for artifact, _ in pairs], [job for _, job in pairs])


async def note_named(conn: Connection, version: VersionId, manifest: str) -> None:
    """Keep the files that a version's manifest (as text) names as long as the version may run."""
    named = sorted({UUID(hex=found) for found in _NAMED.findall(manifest)})
    if named:
        await conn.execute(NOTE_NAMED, version, named)


async def expire_outputs(
    conn: Connection, jobs: Sequence[JobId], *, params_of: Sequence[JobId] = (), limit: int
) -> tuple[int, set[JobId]]:
    """Mark the files of finished jobs (and ``params_of`` some), so that they go. Returns how many were marked, and the
    jobs that still have files: those which unfinished jobs or manifests use, or more than ``limit``."""
    done = await conn.execute(EXPIRE_OUTPUTS, list(jobs), list(params_of), limit, PROMISED)
    left = await conn.fetch(UNEXPIRED_OUTPUTS, list(jobs))
    return int(done.split()[-1]), {row["job_id"] for row in left}


async def expire_uploads(
    conn: Connection, after: tuple[datetime, ArtifactId] | None, *, age: timedelta, limit: int
) -> tuple[int, tuple[datetime, ArtifactId] | None]:
    """Look at uploads older than ``age`` behind ``after`` and mark those that nothing needs. Returns how many, and
    where to go on; None at the end."""
    rows = await conn.fetch(EXPIRE_UPLOADS, *(after or FIRST), limit, PROMISED, age)
    gone = rows[0]["gone"] if rows else 0
    return gone, (rows[-1]["created_at"], ArtifactId(rows[-1]["id"])) if len(rows) == limit else None


async def remove_once(pool: Pool, store: Store, *, limit: int) -> int:
    """Remove the objects of up to ``limit`` marked files, and only then say so in their rows; how many."""
    async with pool.acquire() as conn, conn.transaction():
        rows = await conn.fetch(EXPIRING, limit)
        if rows:
            await store.delete([row["object_key"] for row in rows])
            await conn.execute(EXPIRED, [row["id"] for row in rows])
        return len(rows)


async def forget_uploads(conn: Connection, *, age: timedelta, limit: int) -> int:
    """Delete rows of uploads that are gone and were made longer ago than ``age``; how many."""
    return int((await conn.execute(FORGET_UPLOADS, first_id(age), limit)).split()[-1])


@dataclass(frozen=True, slots=True)
class Compared:
    """One page of the store beside the rows. ``after`` is where the next one begins; None at the end. ``foreign``: the
    bucket is another database's, and nothing was touched."""

    orphans: int
    missing: int
    after: str | None
    foreign: bool = False


async def compare_once(pool: Pool, store: Store, after: str | None, *, age: timedelta) -> Compared:
    """Go over the next thousand objects: remove those without a row, mark rows without an object.

    ``age`` must be longer than an upload takes: a younger object, or row, may be without the other for a moment.
    """
    # An empty database on the bucket of another one would take everything in it for orphans.
    async with pool.acquire() as conn:
        if not await bucket_owner.claim(conn, store):
            return Compared(0, 0, None, foreign=True)
    page = await store.list_objects(after or "", PAGE)
    ours = [each for each in page if is_ours(each.key)]
    upper = page[-1].key if len(page) == PAGE else LAST_KEY
    async with pool.acquire() as conn:
        known = {row["object_key"]: row["state"] for row in await conn.fetch(KNOWN_KEYS, [each.key for each in ours])}
        kept = await conn.fetch(KEPT_BETWEEN, after or "", upper, first_id(age), PAGE)
        before = datetime.now(UTC) - age
        orphans = [
            each.key for each in ours if known.get(each.key, "expired") == "expired" and each.modified_at < before
        ]
        listed = {each.key for each in page}
        # Not every store lists in the order of the protocol: it is asked again for each one.
        missing = [
            row["object_key"] for row in kept
            if row["object_key"] not in listed and await store.head(row["object_key"]) is None
        ]  # fmt: skip
        if orphans:
            await store.delete(orphans)
        if missing:
            await conn.execute(MARK_STATE, missing, "complete", "missing")
        if back := [key for key, state in known.items() if state == "missing"]:
            await conn.execute(MARK_STATE, back, "missing", "complete")
    return Compared(len(orphans), len(missing), upper if len(page) == PAGE else None)


def first_id(age: timedelta) -> UUID:
    """Smaller than every id that was made less than ``age`` ago."""
    at_ms = int((datetime.now(UTC) - age).timestamp() * 1000)
    return UUID(int=max(at_ms, 0) << 80)
