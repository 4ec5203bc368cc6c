"""Whether a new job's input files may be what its params say they are: asked before the job is accepted."""

from __future__ import annotations

from collections.abc import Sequence

from functions import artifacts, ids
from functions.db import Pool
from functions.documents import pointer
from functions.egress import EgressPolicy, EgressRefused, check_url
from functions.errors import FieldError, Invalid
from functions.expressions import Template
from functions.ids import ArtifactId
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
    refused = [fault for each in job.inputs if (fault := _url_fault(each, policy)) is not None]
    if refused:
        raise Invalid(f"an input: {refused[0].message}", code=EgressRefused.code, errors=refused)
    wanted = [(each, _artifact_of(each)) for each in job.inputs if each.url.startswith(ARTIFACT)]
    if not wanted:
        return
    async with pool.acquire() as conn:
        found = await artifacts.visible(conn, job.project_id, [known for _, known in wanted if known is not None])
    missing = [
        FieldError(each.pointer, "there is no such artifact, or its job has not succeeded")
        for each, known in wanted
        if known is None or known not in found
    ]
    if missing:
        raise Invalid(f"{missing[0].pointer}: {missing[0].message}", code="artifact_not_found", errors=missing)


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
