"""Whether a new job's input files may be what its params say they are: asked before the job is accepted."""

from __future__ import annotations

from collections.abc import Sequence

from functions import artifacts, expiring, ids
from functions.db import Connection, Pool
from functions.documents import pointer
from functions.egress import EgressPolicy, EgressRefused, check_url
from functions.errors import FieldError, Invalid
from functions.expressions import Template
from functions.ids import ArtifactId, JobId
from scheduler.queue import InputUrl, NewJob

ARTIFACT = "artifact:"


def pointer_of(template: Template, path: Sequence[str | int]) -> str:
    """Where a user finds an input's URL: the param that it comes from, or else its place in the manifest."""
    for lookup in template.lookups:
        if lookup.path[0] == "params":
            return pointer(*lookup.path[1:])
    return pointer(*path)


async def check_inputs(pool: Pool, job: NewJob, policy: EgressPolicy) -> None:
    """Raise ``Invalid`` for inputs that cannot be fetched: strange artifacts, addresses that may not be called.

    Costs no statement when no input is an artifact.
    """
    if any(each.url.startswith(ARTIFACT) for each in job.inputs):
        async with pool.acquire() as conn:
            refused = await refused_inputs(conn, [job], policy)
    else:
        refused = _refused_urls([job], policy)
    if refused:
        raise refused[job.id]


async def refused_inputs(conn: Connection, jobs: Sequence[NewJob], policy: EgressPolicy) -> dict[JobId, Invalid]:
    """Those of the jobs, all of one project, that have inputs which cannot be fetched; a statement or two where any
    is an artifact. The files are kept until the jobs are finished."""
    refused = _refused_urls(jobs, policy)
    wanted = [(job, each, _artifact_of(each)) for job in jobs for each in job.inputs if each.url.startswith(ARTIFACT)]
    if not wanted:
        return refused
    known = list({found for *_, found in wanted if found is not None})
    there = await artifacts.visible(conn, jobs[0].project_id, known)
    missing: dict[JobId, list[FieldError]] = {}
    for job, each, found in wanted:
        if found is None or found not in there:
            fault = FieldError(each.pointer, "there is no such artifact, or it is not kept (any more)")
            missing.setdefault(job.id, []).append(fault)
    for job_id, faults in missing.items():
        error = Invalid(f"{faults[0].pointer}: {faults[0].message}", code="artifact_not_found", errors=faults)
        refused.setdefault(job_id, error)
    uses = [(found, job.id) for job, _, found in wanted if found is not None and job.id not in refused]
    await expiring.note_uses(conn, uses)
    return refused


def _refused_urls(jobs: Sequence[NewJob], policy: EgressPolicy) -> dict[JobId, Invalid]:
    refused = {}
    for job in jobs:
        faults = [fault for each in job.inputs if (fault := _url_fault(each, policy)) is not None]
        if faults:
            refused[job.id] = Invalid(f"an input: {faults[0].message}", code=EgressRefused.code, errors=faults)
    return refused


def _url_fault(each: InputUrl, policy: EgressPolicy) -> FieldError | None:
    if each.url.startswith(ARTIFACT):
        return None
    try:
        check_url(each.url, policy)
    except EgressRefused as error:
        return FieldError(each.pointer, error.message)
    return None


def _artifact_of(each: InputUrl) -> ArtifactId | None:
    found = ids.decode(ids.ARTIFACT, each.url.removeprefix(ARTIFACT))
    return None if found is None else ArtifactId(found)
