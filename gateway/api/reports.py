"""/node/v1/jobs/{job}: what a node says of an attempt that it holds: its log, its files, its end."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from functions import artifacts, ids, versions
from functions.artifacts import NewFile
from functions.errors import FieldError, Invalid
from functions.ids import ArtifactId, JobId, NodeId
from gateway.advancing import advance
from gateway.api.leases import hint_outcome, lease_lost, lease_of, node_route, wire
from gateway.routes import Route, Scope, node_caller, read_body, read_headers, read_query, read_raw, services
from gateway.services import Services
from nodes.protocol import (
    LOG_CAP_BYTES,
    LOG_CHUNK_BYTES,
    RESULT_OUTPUT,
    RESULT_PATH,
    AttemptReport,
    CollectedFile,
    FinishAnswer,
    LogAnswer,
    Token,
    Upload,
    UploadAnswer,
    UploadRequest,
)
from scheduler import finishing, leasing, logs
from scheduler.finishing import Report
from scheduler.gates import GateId
from scheduler.wakeups import Topic

OCTETS = "application/octet-stream"
UPLOADS_CAP_BYTES = 8 * 1024 * 1024
"""A thousand files with the longest paths."""

_DIGEST = re.compile(r"(?:[^\s@]+@)?sha256:[0-9a-f]{64}")


class ChunkQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    position: Annotated[int, Field(ge=0, lt=2**53)]


class ChunkHeaders(BaseModel):
    lease: Token = Field(alias="RGrid-Lease", description="The lease's token.")


async def append_log(request: Request) -> Response:
    """POST /node/v1/jobs/{job}/logs: bytes at a position of the attempt's log; says where the next ones belong. Sent
    again, or not where the log ends, they change nothing."""
    query, headers = read_query(request, ChunkQuery), read_headers(request, ChunkHeaders)
    data = await read_raw(request, LOG_CHUNK_BYTES, media_types=(OCTETS,))
    opened, node = services(request), node_caller(request).node_id
    job, token = lease_of(request, headers.lease)
    async with opened.pool.acquire() as conn:
        position = await logs.append(
            conn, node, job, token, query.attempt, position=query.position, data=data, cap=LOG_CAP_BYTES
        )
    if data:
        opened.wakeups.hint(Topic.LOG)
    return wire(LogAnswer(next_position=position))


async def reserve_outputs(request: Request) -> Response:
    """POST /node/v1/jobs/{job}/outputs: a presigned PUT for each file. They count once the attempt has succeeded."""
    body = await read_body(request, UploadRequest, cap=UPLOADS_CAP_BYTES)
    opened, node = services(request), node_caller(request).node_id
    job, token = lease_of(request, body.token)
    async with opened.pool.acquire() as conn, conn.transaction():
        held = await leasing.find_held(conn, node, job, token)
        if held is None:
            raise lease_lost()
        version = (await versions.by_ids(conn, [held.version_id]))[held.version_id]
        files = _files(body.files, {output.name for output in version.manifest.spec.job.files.outputs})
        reserved = await artifacts.reserve(conn, held.project_id, job, held.attempt, files)
    uploads = []
    for each in reserved:
        url, headers = opened.store.presign_put(each.object_key, each.size, each.md5, each.sha256, each.content_type)
        uploads.append(Upload(artifact_id=ids.encode(ids.ARTIFACT, each.id), url=url, headers=headers))
    return wire(UploadAnswer(uploads=uploads))


def _files(collected: list[CollectedFile], names: set[str]) -> list[NewFile]:
    faults = []
    for index, file in enumerate(collected):
        if file.output not in names and (file.output, file.path) != (RESULT_OUTPUT, RESULT_PATH):
            faults.append(FieldError(f"/files/{index}/output", "the function has no such output"))
        if not file.path.startswith("/out/"):
            faults.append(FieldError(f"/files/{index}/path", "not below /out"))
    if faults:
        raise Invalid("these are not files of the function's outputs", errors=faults[:20])
    return [NewFile(file.output, file.path, file.content_type, file.size, file.sha256, file.md5) for file in collected]


async def finish(request: Request) -> Response:
    """POST /node/v1/jobs/{job}/finish: how the attempt ended. The store is asked for each file before it counts."""
    body = await read_body(request, AttemptReport)
    opened, node = services(request), node_caller(request).node_id
    job, token = lease_of(request, body.token)
    report = _report(body, token)
    if report.status == "succeeded":
        await _verify(opened, node, job, report)
    freed: set[GateId] = set()
    async with opened.hot_pool.acquire() as conn, conn.transaction():
        status = await finishing.finish(conn, node, job, report, opened.sizing, freed=freed)
    await advance(opened.hot_pool, opened.wakeups, freed)
    hint_outcome(opened)
    return wire(FinishAnswer(status=status))


async def _verify(opened: Services, node: NodeId, job: JobId, report: Report) -> None:
    """Raise ``Invalid`` unless every file of the report is in the store, and every required output has one.

    A report of a lease that is not held is let through: whether it was taken before is for ``finishing.finish`` to say.
    """
    async with opened.pool.acquire() as conn, conn.transaction():
        held = await leasing.find_held(conn, node, job, report.token)
        if held is None:
            return
        found = await artifacts.reserved(conn, held.project_id, held.job_id, held.attempt, report.artifacts)
        version = (await versions.by_ids(conn, [held.version_id]))[held.version_id]
    there = {artifact.name for artifact in found}
    outputs = version.manifest.spec.job.files.outputs
    if missing := [output.name for output in outputs if output.required and output.name not in there]:
        raise Invalid(f"the output {missing[0]} is required and was not uploaded", code="upload_mismatch")
    await artifacts.verify(opened.store, found)


def _report(body: AttemptReport, token: UUID) -> Report:
    """The report as the scheduler takes it; raises ``Invalid`` when its parts contradict each other."""
    failed = body.status in ("failed", "timed_out")
    result = None if body.result is None else json.dumps(body.result, ensure_ascii=False, separators=(",", ":"))
    faults = []
    if failed != (body.error is not None):
        faults.append(FieldError("/error", "goes with failed and timed_out, and only with them"))
    if body.status == "succeeded" and body.exit_code not in (None, 0):
        faults.append(FieldError("/exit_code", "not 0, and yet succeeded"))
    if body.status != "succeeded" and (body.artifacts or result is not None):
        faults.append(FieldError("/status", "files and a result go with succeeded only"))
    if body.image_digest is not None and not _DIGEST.fullmatch(body.image_digest):
        faults.append(FieldError("/image_digest", "neither name@sha256:… nor sha256:…"))
    wanted = [ids.decode(ids.ARTIFACT, each) for each in body.artifacts]
    faults += [FieldError(f"/artifacts/{at}", "not an id") for at, each in enumerate(wanted) if each is None]
    if faults:
        raise Invalid(f"{faults[0].pointer}: {faults[0].message}", errors=faults[:20])
    return Report(
        token,
        body.status,
        exit_code=body.exit_code,
        code=None if body.error is None else str(body.error.code),
        message="" if body.error is None else body.error.message,
        retryable=body.error is None or body.error.retryable,
        result=result,
        artifacts=tuple(ArtifactId(each) for each in wanted if each is not None),
        rejected=tuple({"path": each.path, "reason": each.reason} for each in body.rejected),
        timeline={str(stage): offset for stage, offset in body.timeline.items()},
        image_digest=body.image_digest,
        wish=None if body.retry_after_s is None else timedelta(seconds=body.retry_after_s),
    )


ROUTES = (
    Route(
        "POST", "/node/v1/jobs/{job}/logs", append_log, "Add to an attempt's log", Scope.NODE, body=(OCTETS,),
        query=ChunkQuery, headers=ChunkHeaders, answers={200: LogAnswer}, tag="node",
    ),
    node_route("jobs/{job}/outputs", reserve_outputs, "Upload files", UploadRequest, UploadAnswer),
    node_route("jobs/{job}/finish", finish, "Report an attempt's end", AttemptReport, FinishAnswer),
)  # fmt: skip
