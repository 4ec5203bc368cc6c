"""Params that are too large for a row of ``jobs`` lie in the store, and the row has their artifact's uri in their
place: a JSON string, which params never are."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from types import TracebackType
from typing import Self

import structlog

from functions import artifacts, ids, uploads
from functions.artifacts import Artifact, Store
from functions.db import Connection, Pool
from functions.errors import NotFound
from functions.ids import ArtifactId, JobId, ProjectId
from functions.uploads import Announced, Upload
from scheduler.queue import NewJob

log = structlog.get_logger(__name__)

INLINE_BYTES = 128 * 1024
JSON = "application/json"
PREFIX = "artifact:"


def is_large(job: NewJob) -> bool:
    """Whether its params have to go to the store."""
    # A character is four bytes at most: of nearly every job this is all that it costs.
    if len(job.params) * 4 <= INLINE_BYTES or len(job.params.encode()) <= INLINE_BYTES:
        return False
    return reference_of(job.params) is None


async def spilled(pool: Pool, store: Store, job: NewJob) -> tuple[NewJob, Upload | None]:
    """The job as it goes into the queue, with the file of its params if they are large. ``discard`` that file if the
    job is not made after all."""
    if not is_large(job):
        return job, None
    data = job.params.encode()
    digest = hashlib.sha256(data).hexdigest()
    announced = Announced("params.json", JSON, len(data), digest)
    async with pool.acquire() as conn:
        upload = await uploads.announce(conn, job.project_id, None, announced, params_of=job.id)
    await store.put(upload.object_key, data, JSON)
    async with pool.acquire() as conn:
        upload = await uploads.complete(conn, upload, size=len(data), sha256=digest, shared=False)
    return replace(job, params=json.dumps(upload.uri)), upload


class Spilling:
    """Spills the params of many jobs. At its end the files of those jobs go again that are not ``made``."""

    def __init__(self, pool: Pool, store: Store) -> None:
        self._pool, self._store = pool, store
        self._files: dict[JobId, Upload] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._files:
            # Whoever cancels us must not leave files behind that nobody knows.
            await asyncio.shield(self._discard())

    async def spilled(self, job: NewJob) -> NewJob:
        """The job as it goes into the queue; raises ``Unavailable`` when the store does not take its params."""
        job, file = await spilled(self._pool, self._store, job)
        if file is not None:
            self._files[job.id] = file
        return job

    def made(self, jobs: Collection[JobId]) -> None:
        """Keep what these jobs need. To be said before their commit: when that breaks, nobody knows whether they are
        there, and retention takes the files of those that are not."""
        for job in jobs:
            self._files.pop(job, None)

    async def _discard(self) -> None:
        try:
            await uploads.discard(self._pool, self._store, *self._files.values())
        except Exception as error:
            log.warning("params of no job stay for retention", files=len(self._files), error=type(error).__name__)


def reference_of(params: str) -> str | None:
    """The uri that stands in the place of params; None for params."""
    return str(json.loads(params)) if params.startswith('"') else None


async def loaded(conn: Connection, store: Store, project: ProjectId, params: str) -> str:
    """Params as JSON text, from wherever they are; raises ``NotFound`` when they are kept no longer."""
    file = await file_of(conn, project, params)
    return params if file is None else await read_text(store, file)


async def file_of(conn: Connection, project: ProjectId, params: str) -> Artifact | None:
    """Where params lie that are too large for their row; raises ``NotFound`` when they are kept no longer."""
    reference = reference_of(params)
    if reference is None:
        return None
    artifact = ids.decode(ids.ARTIFACT, reference.removeprefix(PREFIX))
    if artifact is None:
        raise NotFound(f"there is no {reference}", code="artifact_not_found")
    return await artifacts.get(conn, project, ArtifactId(artifact))


async def read_text(store: Store, file: Artifact) -> str:
    async with store.read(file.object_key) as chunks:
        return b"".join([chunk async for chunk in chunks]).decode()
