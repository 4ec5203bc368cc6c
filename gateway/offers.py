"""What a node is given to run: a claimed job, rendered from its version's manifest and its own params."""

from __future__ import annotations

import json
from datetime import timedelta

from functions import artifacts, ids, saved_images, secrets
from functions.artifacts import Artifact, Store
from functions.db import Connection
from functions.errors import NotFound, RGridError
from functions.ids import ArtifactId, ProjectId
from functions.jobspec import JobSpec, RenderedInput, render
from functions.sealing import Sealer
from functions.versions import Version
from nodes.protocol import Archive, Image, Input, JobLease, Output, Resources
from scheduler import finishing
from scheduler.claiming import Claimed
from scheduler.spill import loaded

ARTIFACT = "artifact:"


class MoneyUsedUp(RGridError):
    """Earlier attempts have cost what the job may."""

    code = "budget_exceeded"


class InputUnavailable(RGridError):
    """A file that the job needs does not exist (any more)."""

    code = "input_unavailable"


async def job_lease(
    conn: Connection,
    store: Store,
    sealer: Sealer,
    claimed: Claimed,
    version: Version,
    *,
    link_s: int,
    slot_memory: int,
) -> JobLease:
    """The lease as the node gets it. Files of our own store come as links that work for ``link_s``; ``slot_memory`` is
    the bytes of a slot.

    Raises ``MoneyUsedUp``, ``InputUnavailable``, ``SecretMissing``, or ``Invalid`` when the template cannot be filled
    in.
    """
    name = ids.encode(ids.JOB, claimed.job_id)
    if claimed.pays_s is not None and claimed.pays_s <= 0:
        raise MoneyUsedUp("its earlier attempts have cost as much as its RGrid-Max-Cost allows")
    try:
        params = await loaded(conn, store, claimed.project_id, claimed.params)
    except NotFound:
        raise InputUnavailable("the job's params are not kept any more") from None
    rendered = render(
        version.manifest.spec,
        params=json.loads(params),
        trigger=json.loads(claimed.trigger),
        job_id=name,
        function=version.function_name,
        version=version.number,
    )
    job = version.manifest.spec.job
    opened = await secrets.values(conn, sealer, claimed.project_id, set(job.secret_places.values()))
    return JobLease(
        job_id=name,
        token=str(claimed.token),
        attempt=claimed.attempt,
        slots=claimed.slots,
        function=version.function_name,
        version=version.number,
        image=await image_of(
            conn,
            store,
            claimed.project_id,
            version,
            link_s=link_s,
            login=None if job.pull_secret is None else opened[job.pull_secret],
        ),
        command=rendered.command,
        env=rendered.env,
        secrets={secret: opened[secret] for secret in job.secrets},
        resources=Resources(
            cpu=job.resources.cpu,
            memory_bytes=await _memory(conn, claimed, job, slot_memory),
            disk_bytes=job.resources.disk,
        ),
        inputs=[await input_of(conn, store, claimed.project_id, each, link_s) for each in rendered.inputs],
        outputs=_outputs(job),
        params=params,
        timeout_s=_timeout_s(job.timeout, claimed),
        grace_s=job.grace.total_seconds(),
        network=job.network,
        user=job.user,
    )


def _timeout_s(timeout: timedelta, claimed: Claimed) -> float:
    """Of the attempt: no longer than until the job is to be cancelled, or than its money is enough."""
    ends = [each for each in (claimed.left_s, claimed.pays_s) if each is not None]
    return min([timeout.total_seconds(), *(max(each, 0.001) for each in ends)])


async def image_of(
    conn: Connection, store: Store, project: ProjectId, version: Version, *, link_s: int, login: str | None
) -> Image:
    reference = version.manifest.spec.job.image
    file, image_id = await saved_images.archive_of(conn, project, reference)
    archive = None
    if file is not None:
        url = store.presign_get(file.object_key, file.filename, file.content_type, link_s)
        archive = Archive(url=url, size=file.size, sha256=file.sha256)
    return Image(reference=reference, pinned=version.image_digest or image_id, archive=archive, login=login)


async def _memory(conn: Connection, claimed: Claimed, job: JobSpec, slot_memory: int) -> int:
    """More for an attempt after one that had too little, if the job has the slots for it."""
    grown = job.resources.grown_memory if claimed.attempt > 1 else None
    if grown is None or claimed.slots * slot_memory < grown:
        return job.resources.memory
    return grown if await finishing.ran_out_of_memory(conn, claimed.job_id) else job.resources.memory


async def input_of(conn: Connection, store: Store, project: ProjectId, rendered: RenderedInput, link_s: int) -> Input:
    if rendered.url is None or not rendered.url.startswith(ARTIFACT):
        return Input(path=rendered.path, url=rendered.url, content=rendered.content)
    artifact = await _artifact(conn, project, rendered)
    url = store.presign_get(artifact.object_key, artifact.filename, artifact.content_type, link_s)
    return Input(path=rendered.path, url=url, trusted=True, size=artifact.size, sha256=artifact.sha256)


async def _artifact(conn: Connection, project: ProjectId, rendered: RenderedInput) -> Artifact:
    assert rendered.url is not None
    found = ids.decode(ids.ARTIFACT, rendered.url.removeprefix(ARTIFACT))
    try:
        if found is None:
            raise NotFound("no such artifact")
        return await artifacts.get(conn, project, ArtifactId(found))
    except NotFound:
        raise InputUnavailable(f"{rendered.path}: there is no {rendered.url[:100]} (any more)") from None


def _outputs(job: JobSpec) -> list[Output]:
    return [
        Output(path=each.path, name=each.name, content_type=each.content_type, required=each.required)
        for each in job.files.outputs
    ]
