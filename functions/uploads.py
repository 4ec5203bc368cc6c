"""Files that users bring: rows of ``artifacts`` that are no job's output, from their announcement until they count.

As with outputs, a row stands before its bytes, so that no object in the store is unknown; one that nobody goes on
with is swept away by ``artifacts.sweep_once``. Above ``SINGLE_BYTES`` an upload comes in parts, and may go on where
it was cut off.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from functions import ids
from functions.artifacts import Artifact, Part, Store, uploaded_key
from functions.db import Connection, Pool, Row
from functions.errors import FieldError, Invalid, NotFound
from functions.ids import ArtifactId, JobId, ProjectId

MIB = 1024 * 1024
SINGLE_BYTES = 64 * MIB
"""Up to here one PUT does, and it is read back to be sure of its bytes."""
PART_BYTES = 16 * MIB
MOST_PARTS = 1000
"""Of one upload: their links are one answer."""

ANNOUNCE = """
-- announce_upload
INSERT INTO artifacts (id, project_id, key_id, name, content_type, size, sha256, object_key, link_token, params_of,
                       state)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'pending')
"""

# The newest sighting counts: an upload that is gone on with, and a file that is used again, are not old.
FIND_SAME = """
-- find_same_upload
UPDATE artifacts SET created_at = now()
 WHERE id = (SELECT id FROM artifacts
              WHERE project_id = $1 AND sha256 = $3 AND size = $4 AND params_of IS NULL
                AND ((state = 'complete' AND key_id IS NOT NULL AND (shared OR key_id = $2))
                     OR (state = 'pending' AND key_id = $2))
              ORDER BY state = 'complete' DESC, id DESC LIMIT 1
                FOR UPDATE SKIP LOCKED)
RETURNING id, project_id, key_id, name, content_type, size, sha256, object_key, link_token, upload_id, state
"""

FIND_UPLOAD = """
-- find_upload
UPDATE artifacts SET created_at = CASE WHEN state = 'pending' THEN now() ELSE created_at END
 WHERE project_id = $1 AND id = $2 AND key_id IS NOT NULL AND ($3::text IS NULL OR key_id = $3)
   AND state IN ('pending', 'complete')
RETURNING id, project_id, key_id, name, content_type, size, sha256, object_key, link_token, upload_id, state
"""

NOTE_PARTS = """
-- note_multipart_upload
UPDATE artifacts SET upload_id = $2 WHERE id = $1 AND upload_id IS NULL AND state = 'pending' RETURNING id
"""

FORGET_PARTS = """
-- forget_multipart_upload
UPDATE artifacts SET upload_id = NULL WHERE id = $1 AND upload_id = $2
"""

STILL_COMING = """
-- upload_still_coming
UPDATE artifacts SET created_at = now() WHERE id = $1
"""

COMPLETE = """
-- complete_upload
UPDATE artifacts SET state = 'complete', size = $2, sha256 = $3, md5 = $4, shared = $5
 WHERE id = $1 AND state = 'pending'
"""

FORGET_UPLOADS = """
-- forget_uploads
DELETE FROM artifacts WHERE id = ANY ($1)
"""


@dataclass(frozen=True, slots=True)
class Announced:
    """A file that somebody is about to upload. ``sha256`` is hex; None while it is on its way through us."""

    name: str
    content_type: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Upload:
    """``upload_id`` is of its parts at the store; None for one PUT."""

    id: ArtifactId
    project_id: ProjectId
    key_id: str | None
    name: str
    content_type: str
    size: int
    sha256: str | None
    object_key: str
    link_token: str
    upload_id: str | None
    complete: bool

    @property
    def uri(self) -> str:
        return f"artifact:{ids.encode(ids.ARTIFACT, self.id)}"

    @property
    def in_parts(self) -> bool:
        return self.size > SINGLE_BYTES

    @property
    def part_size(self) -> int:
        """Bytes of every part but the last: whole MiB, and not too many parts."""
        return max(PART_BYTES, -(-self.size // MOST_PARTS // MIB) * MIB)

    @property
    def part_sizes(self) -> list[int]:
        """Of the parts 1, 2, …"""
        whole, rest = divmod(self.size, self.part_size)
        return [self.part_size] * whole + ([rest] if rest else [])

    @property
    def artifact(self) -> Artifact:
        """The file, once it is complete."""
        assert self.sha256 is not None
        return Artifact(
            self.id, self.project_id, None, None, self.name, None, self.content_type, self.size, self.sha256, "",
            self.object_key, self.link_token,
        )  # fmt: skip


async def announce(
    conn: Connection,
    project: ProjectId,
    key_id: str | None,
    announced: Announced,
    *,
    params_of: JobId | None = None,
) -> Upload:
    """The row of a new upload."""
    artifact = ArtifactId(ids.new_uuid7())
    upload = Upload(
        artifact, project, key_id, announced.name, announced.content_type, announced.size, announced.sha256,
        uploaded_key(project, artifact), secrets.token_urlsafe(24), None, False,
    )  # fmt: skip
    await conn.execute(
        ANNOUNCE, artifact, project, key_id, upload.name, upload.content_type, upload.size, upload.sha256,
        upload.object_key, upload.link_token, params_of,
    )  # fmt: skip
    return upload


async def find_same(conn: Connection, project: ProjectId, key_id: str, announced: Announced) -> Upload | None:
    """The upload of the same bytes, by SHA-256 and size, that need not be made again: a complete one, or the key's own
    that was cut off. It counts as new from now on.

    What a key uploaded that may not write is reused for that key only: the project's others would have to believe it.
    """
    row = await conn.fetchrow(FIND_SAME, project, key_id, announced.sha256, announced.size)
    return None if row is None else _upload(row)


async def find(conn: Connection, project: ProjectId, artifact: ArtifactId, key_id: str | None) -> Upload:
    """An upload of the project, and of the key unless that is None; raises ``NotFound``. It counts as new."""
    row = await conn.fetchrow(FIND_UPLOAD, project, artifact, key_id)
    if row is None:
        name = ids.encode(ids.ARTIFACT, artifact)
        raise NotFound(f"there is no upload {name}", code="artifact_not_found")
    return _upload(row)


async def begin_parts(pool: Pool, store: Store, upload: Upload) -> Upload:
    """Begin parts at the store, unless they are, and note their id: then a sweep finds them."""
    if upload.upload_id is not None:
        return upload
    upload_id = await store.begin_multipart(upload.object_key, upload.content_type)
    async with pool.acquire() as conn:
        if await conn.fetchval(NOTE_PARTS, upload.id, upload_id) is not None:
            return replace(upload, upload_id=upload_id)
        first = await find(conn, upload.project_id, upload.id, upload.key_id)  # another request was faster
    await store.abort_multipart(upload.object_key, upload_id)
    return first


async def parts_of(pool: Pool, store: Store, upload: Upload) -> tuple[Upload, Sequence[Part] | None]:
    """An upload with its parts begun, and those that are there; None when all of them are one object already."""
    begun = await begin_parts(pool, store, upload)
    assert begun.upload_id is not None
    there = await store.parts(begun.object_key, begun.upload_id)
    if there is None and await store.head(begun.object_key) is None:
        # The store gave it up, as a bucket's rule may tell it to: it begins anew.
        async with pool.acquire() as conn:
            await conn.execute(FORGET_PARTS, begun.id, begun.upload_id)
        begun, there = await begin_parts(pool, store, replace(begun, upload_id=None)), []
    return begun, there


async def still_coming(conn: Connection, upload: Upload) -> None:
    """Keep a long upload from being swept away."""
    await conn.execute(STILL_COMING, upload.id)


async def check(store: Store, upload: Upload) -> None:
    """Raise ``Invalid`` (code ``upload_mismatch``) unless the store holds what was announced; parts become one object.

    One PUT is read back and hashed: what a store says of a SHA-256 may be what the client said. Of larger files the
    size is compared, and the node that fetches one compares its SHA-256.
    """
    if upload.upload_id is not None:
        there = await store.parts(upload.object_key, upload.upload_id)
        if there is not None:
            _check_parts(upload, there)
            await store.complete_multipart(upload.object_key, upload.upload_id, there)
    head = await store.head(upload.object_key)
    if head is None:
        raise _mismatch("it was not uploaded")
    if head.size != upload.size:
        raise _mismatch(f"{head.size} bytes were uploaded, {upload.size} announced")
    if not upload.in_parts:
        digest = hashlib.sha256()
        async with store.read(upload.object_key) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
        if digest.hexdigest() != upload.sha256:
            await store.delete([upload.object_key])
            raise _mismatch("other bytes were uploaded than announced")


def _check_parts(upload: Upload, there: Sequence[Part]) -> None:
    found = {part.number: part.size for part in there}
    wanted = dict(enumerate(upload.part_sizes, start=1))
    faults = [
        FieldError(f"/parts/{number}", "missing" if number not in found else f"has {found[number]} bytes, not {size}")
        for number, size in wanted.items()
        if found.get(number) != size
    ]
    faults += [FieldError(f"/parts/{number}", "was not announced") for number in sorted(found.keys() - wanted.keys())]
    if faults:
        parts = "part" if len(faults) == 1 else "parts"
        raise Invalid(f"{len(faults)} {parts} to be uploaded (again)", code="upload_mismatch", errors=faults[:20])


def _mismatch(message: str) -> Invalid:
    return Invalid(f"{message}: upload it again", code="upload_mismatch", errors=[FieldError("", message)])


async def complete(
    conn: Connection, upload: Upload, *, size: int, sha256: str, md5: str | None = None, shared: bool
) -> Upload:
    """Make the file count: it can be an input from now on. May be repeated."""
    await conn.execute(COMPLETE, upload.id, size, sha256, md5, shared)
    return replace(upload, size=size, sha256=sha256, complete=True)


async def discard(pool: Pool, store: Store, *uploads: Upload) -> None:
    """Remove uploads with all that is there of them, the objects first."""
    for upload in uploads:
        if upload.upload_id is not None:
            await store.abort_multipart(upload.object_key, upload.upload_id)
    await store.delete([upload.object_key for upload in uploads])
    async with pool.acquire() as conn:
        await conn.execute(FORGET_UPLOADS, [upload.id for upload in uploads])


def _upload(row: Row) -> Upload:
    return Upload(
        row["id"], row["project_id"], row["key_id"], row["name"], row["content_type"], row["size"], row["sha256"],
        row["object_key"], row["link_token"], row["upload_id"], row["state"] == "complete",
    )  # fmt: skip
