"""/v1/jobs: list, show, wait, cancel, retry, events."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids, versions
from functions.db import Connection
from functions.errors import Conflict, Invalid, NotFound, RGridError
from functions.ids import JobId
from gateway.advancing import advance
from gateway.api import paging
from gateway.api.filtering import JobFilters
from gateway.api.models import NothingMore, View
from gateway.api.models.jobs import EventList, JobList, JobView, Status
from gateway.api.paging import PageQuery
from gateway.api.submitting import ended, job_view, replay, submit
from gateway.prefer import LONGEST_S, read_prefer
from gateway.routes import (
    IdempotencyKey,
    Route,
    Scope,
    caller,
    read_body,
    read_headers,
    read_query,
    services,
)
from scheduler import cancelling, jobs, listing, redrive
from scheduler.gates import GateId
from scheduler.history import job_events
from scheduler.inputs import check_inputs
from scheduler.redrive import Changes, Redriving
from scheduler.views import JobRecord, read_jobs
from scheduler.wakeups import Topic

KEY_OF_JOB = """
-- key_of_job
SELECT key_id FROM jobs WHERE project_id = $1 AND id = $2
"""

class JobsQuery(PageQuery, JobFilters):
    status: Status | None = None


class JobQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait: int = Field(0, ge=0, le=LONGEST_S, description="Seconds to hold the answer until the job has ended.")


class RetryRequest(View):
    """Without any of it, the new job is as the old one was."""

    params: dict[str, Any] | None = Field(
        None, description="Changes to the params, as a merge patch (RFC 7396): keys given replace, null takes away."
    )
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | Literal["current"] | None = Field(
        None, description="A version of the function, or `current`; that of the old job unless given."
    )

    def changes(self) -> Changes:
        return Changes(self.params, self.version)


class RetryHeaders(BaseModel):
    prefer: str | None = Field(None, alias="Prefer", description="`wait=N`, as at invoke.")
    idempotency_key: IdempotencyKey | None = Field(
        None, alias="Idempotency-Key", description="The same key again within 24 hours: the same new job."
    )


async def list_jobs(request: Request) -> Response:
    """GET /v1/jobs: the newest first. A page may come short of `limit`: the list ends where `next_cursor` is null."""
    query = read_query(request, JobsQuery)
    before = paging.start(request, query)
    filters = query.filters(query.status)
    project = caller(request).project_id
    async with query.pool(services(request)).acquire() as conn:
        page = await listing.list_jobs(conn, project, filters, limit=query.limit, before=before)
        records = await read_jobs(conn, project, page.jobs)
    # One that has moved on between the two statements is another list's now.
    shown = [record for record in records if query.status in (None, record.status)]
    return JSONResponse(
        {
            "data": [job_view(request, record) for record in shown],
            "next_cursor": None if page.position is None else paging.cursor(request, page.position),
        }
    )


async def get_job(request: Request) -> Response:
    """GET /v1/jobs/{id}: the job; with `wait`, as soon as it has ended, else as it is then."""
    query, job = read_query(request, JobQuery), named(request)
    record = await _read(request, job)
    if query.wait and not record.finished and await ended(request, job, query.wait):
        record = await _read(request, job)
    return JSONResponse(job_view(request, record))


async def cancel(request: Request) -> Response:
    """POST /v1/jobs/{id}/cancel: 200 if it has ended, now or before; 202 while its node stops it."""
    await read_body(request, NothingMore)
    opened, project, job = services(request), caller(request).project_id, named(request)
    freed: set[GateId] = set()
    async with opened.pool.acquire() as conn:
        async with conn.transaction():
            before = await jobs.require(conn, project, job)
            if not before:
                await cancelling.cancel(conn, project, [job], freed)
        (record,) = await read_jobs(conn, project, [job])
    await advance(opened.hot_pool, opened.wakeups, freed)
    if record.finished and not before:
        opened.wakeups.hint(Topic.OUTCOME)
        opened.wakeups.hint(Topic.DELIVERY)
    return JSONResponse(job_view(request, record), 200 if record.finished else 202)


async def retry(request: Request) -> Response:
    """POST /v1/jobs/{id}/retry: a new job like a finished one, with other params or of another version if asked."""
    headers = read_headers(request, RetryHeaders)
    body = await read_body(request, RetryRequest)
    opened, who, job = services(request), caller(request), named(request)
    preference, key = read_prefer(headers.prefer), headers.idempotency_key
    body_hash = hashlib.sha256(b"retry " + job.bytes + _wanted(body)).digest()
    how = Redriving(opened.pool, opened.store, opened.sizing, opened.egress, body.changes(), who.key_id)
    try:
        new = await redrive.retry(who.project_id, job, how)
        async with opened.pool.acquire() as conn:
            version = (await versions.by_ids(conn, [new.version_id]))[new.version_id]
        await check_inputs(opened.pool, new, opened.egress)
    except (Conflict, Invalid):
        # A repeat has its answer, whatever has become of the function and of the files since.
        if key is None or (before := await _retried_before(request, job, key, body_hash)) is None:
            raise
        return await replay(request, before, preference)
    return await submit(request, replace(new, idempotency_key=key, body_hash=body_hash), version, preference)


def _wanted(body: RetryRequest) -> bytes:
    given = body.model_dump(exclude_unset=True)
    return json.dumps(given, sort_keys=True).encode() if given else b""


async def _retried_before(request: Request, job: JobId, key: str, body_hash: bytes) -> JobId | None:
    async with services(request).pool.acquire() as conn:
        before = await jobs.retried_before(conn, caller(request).project_id, job, key, body_hash)
    if isinstance(before, RGridError):
        raise before
    return None if before is None else before.job_id


async def list_events(request: Request) -> Response:
    """GET /v1/jobs/{id}/events: what happened to the job, the oldest first."""
    async with services(request).pool.acquire() as conn:
        job = await visible(request, conn)
        events = await job_events(conn, caller(request).project_id, job)
    return JSONResponse({"data": events})


def named(request: Request) -> JobId:
    """The job in the address, which need not exist; raises ``NotFound`` for what can be no job's id."""
    found = ids.decode(ids.JOB, request.path_params["id"])
    if found is None:
        raise NotFound("there is no such job", code="job_not_found")
    return JobId(found)


async def visible(request: Request, conn: Connection) -> JobId:
    """The job in the address, for calls that a key may make about its own jobs; raises ``NotFound`` for others'."""
    who, job = caller(request), named(request)
    if who.only_own and await conn.fetchval(KEY_OF_JOB, who.project_id, job) != who.key_id:
        raise _not_found(job)
    return job


async def _read(request: Request, job: JobId) -> JobRecord:
    who = caller(request)
    async with services(request).pool.acquire() as conn:
        records = await read_jobs(conn, who.project_id, [job])
    if not records or (who.only_own and records[0].row["key_id"] != who.key_id):
        raise _not_found(job)
    return records[0]


def _not_found(job: JobId) -> NotFound:
    return NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")


ROUTES = (
    Route("GET", "/v1/jobs", list_jobs, "List jobs", Scope.READ,
          query=JobsQuery, answers={200: JobList}, tag="jobs"),
    Route("GET", "/v1/jobs/{id}", get_job, "Show a job, or wait for its end", Scope.READ,
          query=JobQuery, answers={200: JobView}, tag="jobs", own=True),
    Route("POST", "/v1/jobs/{id}/cancel", cancel, "Cancel a job", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: JobView, 202: JobView}, tag="jobs"),
    Route("POST", "/v1/jobs/{id}/retry", retry, "Run a finished job again, as a new one", Scope.WRITE,
          body=RetryRequest, body_required=False, headers=RetryHeaders,
          answers={200: JobView, 202: JobView}, tag="jobs"),
    Route("GET", "/v1/jobs/{id}/events", list_events, "What happened to a job", Scope.READ,
          answers={200: EventList}, tag="jobs", own=True),
)  # fmt: skip
