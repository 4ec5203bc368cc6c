"""Files of jobs: rows of ``artifacts``, and the store that holds their bytes.

A row stands before its upload starts, so that no object in the store is unknown. An attempt's files become
visible when its outcome commits: ``complete`` is set in that transaction, and a reader also asks that the
attempt won. A losing attempt's files stay ``pending`` under a key of their own and are swept away.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from functions import ids
from functions.db import Connection, Pool, Row
from functions.errors import FieldError, Gone, Invalid, NotFound
from functions.ids import ArtifactId, JobId, ProjectId

RESERVED_CAP = 4000
"""Rows of one attempt. A node that keeps asking for uploads must not fill the table."""
HEADS_AT_ONCE = 16

FIND_RESERVED = """
-- find_reserved_artifacts
SELECT id, project_id, job_id, attempt, name, path, content_type, size, sha256, md5, object_key, link_token
  FROM artifacts WHERE project_id = $1 AND job_id = $2 AND attempt = $3 AND state = 'pending'
 ORDER BY position, id
"""

RESERVE = """
-- reserve_artifacts
INSERT INTO artifacts (id, project_id, job_id, attempt, position, name, path, content_type, size, sha256, md5,
                       object_key, link_token, state)
SELECT id, $1, $2, $3, position, name, path, content_type, size, sha256, md5, object_key, link_token,
       'pending'
  FROM unnest($4::uuid[], $5::int[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::text[],
              $11::text[], $12::text[], $13::text[])
    a (id, position, name, path, content_type, size, sha256, md5, object_key, link_token)
"""

MARK_COMPLETE = """
-- mark_artifacts_complete
UPDATE artifacts SET state = 'complete'
 WHERE project_id = $1 AND job_id = $2 AND attempt = $3 AND id = ANY ($4) AND state = 'pending'
RETURNING id
"""

OUTPUTS_OF = """
-- outputs_of_jobs
SELECT a.id, a.project_id, a.job_id, a.attempt, a.name, a.path, a.content_type, a.size, a.sha256, a.md5,
       a.object_key, a.link_token, a.state
  FROM artifacts a JOIN outcomes ON outcomes.job_id = a.job_id AND outcomes.attempt = a.attempt
 WHERE a.project_id = $1 AND a.job_id = ANY ($2) AND a.state <> 'pending'
 ORDER BY a.job_id, a.position, a.id
"""

GET_ARTIFACT = """
-- get_artifact
SELECT a.id, a.project_id, a.job_id, a.attempt, a.name, a.path, a.content_type, a.size, a.sha256, a.md5,
       a.object_key, a.link_token, a.state
  FROM artifacts a LEFT JOIN outcomes ON outcomes.job_id = a.job_id AND outcomes.attempt = a.attempt
 WHERE a.project_id = $1 AND a.id = $2 AND a.state <> 'pending'
   AND (a.job_id IS NULL OR outcomes.job_id IS NOT NULL)
"""

VISIBLE = """
-- visible_artifacts
SELECT a.id FROM artifacts a LEFT JOIN outcomes ON outcomes.job_id = a.job_id AND outcomes.attempt = a.attempt
 WHERE a.project_id = $1 AND a.id = ANY ($2) AND a.state = 'complete'
   AND (a.job_id IS NULL OR outcomes.job_id IS NOT NULL)
"""

ARTIFACT_BY_LINK = """
-- artifact_by_link
SELECT a.id, a.project_id, a.job_id, a.attempt, a.name, a.path, a.content_type, a.size, a.sha256, a.md5,
       a.object_key, a.link_token, a.state
  FROM artifacts a LEFT JOIN outcomes ON outcomes.job_id = a.job_id AND outcomes.attempt = a.attempt
 WHERE a.link_token = $1 AND a.state <> 'pending' AND (a.job_id IS NULL OR outcomes.job_id IS NOT NULL)
"""

RENEW_LINK = """
-- renew_artifact_link
UPDATE artifacts SET link_token = $3 WHERE project_id = $1 AND id = $2
"""

ABANDONED = """
-- abandoned_artifacts
SELECT a.id, a.object_key, a.upload_id FROM artifacts a
 WHERE a.state = 'pending' AND a.created_at < now() - $1::interval
   AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.job_id = a.job_id AND leases.attempt = a.attempt)
 ORDER BY a.created_at LIMIT $2
   FOR UPDATE OF a SKIP LOCKED
"""

FORGET = """
-- forget_artifacts
DELETE FROM artifacts WHERE id = ANY ($1)
"""


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What the store says it holds. ``sha256`` (hex) is None where the store keeps none."""

    size: int
    etag: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing names it."""

    key: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart upload, as the store has it. Numbers begin at 1."""

    number: int
    size: int
    etag: str


class Store(Protocol):
    """Where bytes are. ``presign_*`` only compute; the rest raises ``Unavailable`` when nothing answers."""

    async def ensure_bucket(self) -> None:
        """Make the bucket if it is missing; may be called by many at once."""

    async def check(self) -> None:
        """Return if the bucket answers."""

    def presign_put(
        self, key: str, size: int, md5_hex: str | None, sha256_hex: str, content_type: str
    ) -> tuple[str, dict[str, str]]:
        """A URL that stores exactly these bytes under this key, and the headers that must go with it. Not every store
        looks at the SHA-256."""

    def presign_get(
        self, key: str, filename: str, content_type: str, expires_s: int, *, method: str = "GET"
    ) -> str:
        """A URL that downloads the object as a file of that name, or (HEAD) tells of it."""

    def presign_part(self, key: str, upload_id: str, number: int, size: int) -> tuple[str, dict[str, str]]:
        """A URL that stores one part of a multipart upload, and the headers that must go with it."""

    async def begin_multipart(self, key: str, content_type: str) -> str:
        """Begin an upload in parts; its id."""

    async def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> Part:
        """Store one part."""

    async def parts(self, key: str, upload_id: str) -> Sequence[Part] | None:
        """The parts that are there; None when the upload is over: complete, or given up."""

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        """Make the object of its parts. Repeated, it changes nothing."""

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Give an upload in parts up, and drop what is there of it. One that is over is fine."""

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Store an object."""

    def read(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The object's bytes, in pieces; raises ``NotFound`` when it is entered."""

    async def head(self, key: str) -> ObjectHead | None:
        """What stands under the key; None for nothing."""

    async def list_objects(self, after: str, limit: int) -> list[StoredObject]:
        """The next objects behind the key ``after``, in the order of their keys; fewer than ``limit``: no more."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that do not exist are fine."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """An output that a node has read and hashed, not uploaded. ``path`` is where it lay in the container."""

    name: str
    path: str
    content_type: str
    size: int
    sha256: str
    md5: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """``name`` is the manifest's name of the output; several files of one glob share it."""

    id: ArtifactId
    project_id: ProjectId
    job_id: JobId | None
    attempt: int | None
    name: str
    path: str | None
    content_type: str
    size: int
    sha256: str
    md5: str
    object_key: str
    link_token: str
    kept: bool = True
    """False: its time is over, and it cannot be downloaded any more."""

    @property
    def filename(self) -> str:
        """What a download is called."""
        return (self.path or self.name).rsplit("/", 1)[-1]

    @property
    def file(self) -> NewFile:
        return NewFile(self.name, self.path or "", self.content_type, self.size, self.sha256, self.md5)


def object_key(project: ProjectId, job: JobId, attempt: int, artifact: ArtifactId) -> str:
    """Names and paths that users choose are never in a key; the attempt is, as the fence between attempts."""
    return f"{project}/{ids.encode(ids.JOB, job)}/{attempt}/{ids.encode(ids.ARTIFACT, artifact)}"


def uploaded_key(project: ProjectId, artifact: ArtifactId) -> str:
    """Where a file lies that a user has brought."""
    return f"{project}/uploads/{ids.encode(ids.ARTIFACT, artifact)}"


async def reserve(
    conn: Connection, project: ProjectId, job: JobId, attempt: int, files: Sequence[NewFile]
) -> list[Artifact]:
    """Rows for files about to be uploaded, in the order given; the caller has checked the lease.

    Asked again for the same files (the answer got lost, the URL ran out), it answers with the same rows.
    """
    rows = await conn.fetch(FIND_RESERVED, project, job, attempt)
    known = {each.file: each for each in map(_artifact, rows)}
    new = {
        file: (position, _reserved(project, job, attempt, file))
        for position, file in enumerate(files)
        if file not in known
    }
    if len(known) + len(new) > RESERVED_CAP:
        raise Invalid(f"an attempt may have {RESERVED_CAP} files at most", code="too_many_files")
    if new:
        made = [artifact for _, artifact in new.values()]
        await conn.execute(
            RESERVE, project, job, attempt, [a.id for a in made], [position for position, _ in new.values()],
            [a.name for a in made], [a.path for a in made], [a.content_type for a in made],
            [a.size for a in made], [a.sha256 for a in made], [a.md5 for a in made],
            [a.object_key for a in made], [a.link_token for a in made],
        )  # fmt: skip
    return [known[file] if file in known else new[file][1] for file in files]


def _reserved(project: ProjectId, job: JobId, attempt: int, file: NewFile) -> Artifact:
    artifact = ArtifactId(ids.new_uuid7())
    return Artifact(
        artifact, project, job, attempt, file.name, file.path, file.content_type, file.size, file.sha256,
        file.md5, object_key(project, job, attempt, artifact), secrets.token_urlsafe(24),
    )  # fmt: skip


async def reserved(
    conn: Connection, project: ProjectId, job: JobId, attempt: int, wanted: Sequence[ArtifactId]
) -> list[Artifact]:
    """Reserved rows of the attempt, in the order asked for; raises ``Invalid`` for an id that is not one."""
    rows = await conn.fetch(FIND_RESERVED, project, job, attempt)
    found = {each.id: each for each in map(_artifact, rows)}
    if missing := [each for each in wanted if each not in found]:
        raise _unknown(missing)
    return [found[each] for each in wanted]


async def verify(store: Store, artifacts: Sequence[Artifact]) -> None:
    """Raise ``Invalid`` (code ``upload_mismatch``) unless the store holds the very bytes that were announced.

    A SHA-256, or else a plain MD5 in the ETag, is compared where the store has one. Some have neither (the
    ETag of an encrypted object is no digest); the presigned URL had signed both.
    """
    gate = asyncio.Semaphore(HEADS_AT_ONCE)

    async def fault(artifact: Artifact) -> FieldError | None:
        async with gate:
            head = await store.head(artifact.object_key)
        reason = _mismatch(artifact, head)
        return None if reason is None else FieldError("", f"{artifact.path or artifact.name}: {reason}")

    faults = [each for each in await asyncio.gather(*map(fault, artifacts)) if each is not None]
    if faults:
        raise Invalid(f"{faults[0].message} ({len(faults)} file(s))", code="upload_mismatch", errors=faults)


def _mismatch(artifact: Artifact, head: ObjectHead | None) -> str | None:
    if head is None:
        return "it was not uploaded"
    if head.size != artifact.size:
        return f"{head.size} bytes were uploaded, {artifact.size} announced"
    etag = head.etag.strip('"').lower()
    plain_md5 = len(etag) == 32 and all(c in "0123456789abcdef" for c in etag)
    if head.sha256 is not None:
        return None if head.sha256 == artifact.sha256 else "other bytes were uploaded than announced"
    return "other bytes were uploaded than announced" if plain_md5 and etag != artifact.md5 else None


async def mark_complete(
    conn: Connection, project: ProjectId, job: JobId, attempt: int, artifacts: Sequence[ArtifactId]
) -> None:
    """Make an attempt's files count, in its outcome's transaction; raises ``Invalid`` for a strange id."""
    if not artifacts:
        return
    done = {row["id"] for row in await conn.fetch(MARK_COMPLETE, project, job, attempt, list(artifacts))}
    if missing := [each for each in artifacts if each not in done]:
        raise _unknown(missing)


def _unknown(missing: Sequence[ArtifactId]) -> Invalid:
    names = ", ".join(ids.encode(ids.ARTIFACT, each) for each in missing[:3])
    return Invalid(f"not reserved by this attempt: {names}", code="artifact_unknown")


async def outputs_of(
    conn: Connection, project: ProjectId, jobs: Sequence[JobId]
) -> Mapping[JobId, Sequence[Artifact]]:
    """The files of the jobs' winning attempts, in the manifest's order; jobs without any are left out."""
    found: dict[JobId, list[Artifact]] = {}
    for row in await conn.fetch(OUTPUTS_OF, project, list(jobs)):
        found.setdefault(row["job_id"], []).append(_artifact(row))
    return found


async def get(conn: Connection, project: ProjectId, artifact: ArtifactId) -> Artifact:
    """A visible file of the project; raises ``NotFound``."""
    row = await conn.fetchrow(GET_ARTIFACT, project, artifact)
    if row is None:
        name = ids.encode(ids.ARTIFACT, artifact)
        raise NotFound(f"there is no artifact {name}", code="artifact_not_found")
    return _kept(_artifact(row))


async def visible(conn: Connection, project: ProjectId, wanted: Sequence[ArtifactId]) -> set[ArtifactId]:
    """Those of the artifacts that are visible files of the project."""
    return {row["id"] for row in await conn.fetch(VISIBLE, project, list(wanted))}


async def renew_link(conn: Connection, project: ProjectId, artifact: ArtifactId) -> Artifact:
    """Give a visible file another link: the one that it had leads nowhere now. Raises ``NotFound``."""
    found = await get(conn, project, artifact)
    token = secrets.token_urlsafe(24)
    await conn.execute(RENEW_LINK, project, artifact, token)
    return replace(found, link_token=token)


async def by_link(conn: Connection, token: str) -> Artifact:
    """The visible file whose stable link carries ``token``; to hold it is enough. Raises ``NotFound``."""
    row = await conn.fetchrow(ARTIFACT_BY_LINK, token)
    if row is None:
        raise NotFound("this link does not exist, or its file is gone", code="artifact_not_found")
    return _kept(_artifact(row))


def _kept(artifact: Artifact) -> Artifact:
    if not artifact.kept:
        name = ids.encode(ids.ARTIFACT, artifact.id)
        raise Gone(f"{name} is not kept any more: its retention is over, or it was lost")
    return artifact


async def sweep_once(
    pool: Pool, store: Store, *, limit: int = 500, age: timedelta = timedelta(hours=2)
) -> int:
    """Discard files of attempts that are over and did not win, and uploads that nobody went on with, objects first;
    returns how many.

    ``age`` must be longer than an upload URL works, or an object may come back after its row is gone. Safe
    beside others and after a crash: rows stay until their objects are gone.
    """
    async with pool.acquire() as conn, conn.transaction():
        rows = await conn.fetch(ABANDONED, age, limit)
        if rows:
            for row in rows:
                if row["upload_id"] is not None:
                    await store.abort_multipart(row["object_key"], row["upload_id"])
            await store.delete([row["object_key"] for row in rows])
            await conn.execute(FORGET, [row["id"] for row in rows])
        return len(rows)


def _artifact(row: Row) -> Artifact:
    return Artifact(
        row["id"], row["project_id"], row["job_id"], row["attempt"], row["name"], row["path"],
        row["content_type"], row["size"], row["sha256"], row["md5"], row["object_key"], row["link_token"],
        row.get("state", "complete") in ("pending", "complete"),
    )  # fmt: skip
