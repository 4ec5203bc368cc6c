"""What a node is given to run: a claimed job, rendered from its version's manifest and its own params."""

from __future__ import annotations

import json

from functions import artifacts, ids
from functions.artifacts import Artifact, Store
from functions.db import Connection
from functions.errors import NotFound, RGridError
from functions.ids import ArtifactId, ProjectId
from functions.jobspec import JobSpec, RenderedInput, render
from functions.versions import Version
from nodes.protocol import Image, Input, JobLease, Output, Resources
from scheduler.queue import Claimed

ARTIFACT = "artifact:"


class InputUnavailable(RGridError):
    """A file that the job needs does not exist (any more)."""

    code = "input_unavailable"


async def job_lease(conn: Connection, store: Store, claimed: Claimed, version: Version, *, link_s: int) -> JobLease:
    """The lease as the node gets it. Files of our own store come as links that work for ``link_s``.

    Raises ``InputUnavailable``, or ``Invalid`` when the template cannot be filled in.
    """
    name = ids.encode(ids.JOB, claimed.job_id)
    rendered = render(
        version.manifest.spec,
        params=json.loads(claimed.params),
        trigger=json.loads(claimed.trigger),
        job_id=name,
        function=version.function_name,
        version=version.number,
    )
    job = version.manifest.spec.job
    return JobLease(
        job_id=name,
        token=str(claimed.token),
        attempt=claimed.attempt,
        slots=claimed.slots,
        function=version.function_name,
        version=version.number,
        image=Image(reference=job.image, pinned=version.image_digest),
        command=rendered.command,
        env=rendered.env,
        resources=Resources(cpu=job.resources.cpu, memory_bytes=job.resources.memory, disk_bytes=job.resources.disk),
        inputs=[await _input(conn, store, claimed.project_id, each, link_s) for each in rendered.inputs],
        outputs=_outputs(job),
        params=claimed.params,
        timeout_s=job.timeout.total_seconds(),
        grace_s=job.grace.total_seconds(),
        network=job.network,
        user=job.user,
    )


async def _input(conn: Connection, store: Store, project: ProjectId, rendered: RenderedInput, link_s: int) -> Input:
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
