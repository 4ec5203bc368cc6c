"""Params that are too large for a row of ``jobs`` lie in the store, and the row has their artifact's uri in their
place: a JSON string, which params never are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from functions import artifacts, ids, uploads
from functions.artifacts import Store
from functions.db import Connection, Pool
from functions.errors import NotFound
from functions.ids import ArtifactId, ProjectId
from functions.uploads import Announced, Upload
from scheduler.queue import NewJob

INLINE_BYTES = 128 * 1024
JSON = "application/json"
PREFIX = "artifact:"


async def spilled(pool: Pool, store: Store, job: NewJob) -> tuple[NewJob, Upload | None]:
    """The job as it goes into the queue, with the file of its params if they are large. ``discard`` that file if the
    job is not made after all."""
    # A character is four bytes at most: of nearly every job this is all that it costs.
    if len(job.params) * 4 <= INLINE_BYTES or len(data := job.params.encode()) <= INLINE_BYTES:
        return job, None
    if reference_of(job.params) is not None:
        return job, None
    digest = hashlib.sha256(data).hexdigest()
    announced = Announced("params.json", JSON, len(data), digest)
    async with pool.acquire() as conn:
        upload = await uploads.announce(conn, job.project_id, None, announced, params_of=job.id)
    await store.put(upload.object_key, data, JSON)
    async with pool.acquire() as conn:
        upload = await uploads.complete(conn, upload, size=len(data), sha256=digest, shared=False)
    return replace(job, params=json.dumps(upload.uri)), upload


def reference_of(params: str) -> str | None:
    """The uri that stands in the place of params; None for params."""
    return str(json.loads(params)) if params.startswith('"') else None


async def loaded(conn: Connection, store: Store, project: ProjectId, params: str) -> str:
    """Params as JSON text, from wherever they are; raises ``NotFound`` when they are kept no longer."""
    reference = reference_of(params)
    if reference is None:
        return params
    artifact = ids.decode(ids.ARTIFACT, reference.removeprefix(PREFIX))
    if artifact is None:
        raise NotFound(f"there is no {reference}", code="artifact_not_found")
    file = await artifacts.get(conn, project, ArtifactId(artifact))
    async with store.read(file.object_key) as chunks:
        return b"".join([chunk async for chunk in chunks]).decode()
