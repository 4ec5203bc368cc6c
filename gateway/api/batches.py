"""/v1/functions/{name}/batch and /v1/batches: thousands of jobs from one request, all or none of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids, registry
from functions.db import Connection
from functions.documents import json_items, json_lines
from functions.errors import Conflict, LimitReached, NotFound, RGridError
from functions.grammar import BATCH_COMPLETED, JOB_EVENTS
from functions.ids import BatchId, JobId
from gateway.advancing import advance
from gateway.api import paging
from gateway.api.batch_body import Reading, read_jobs
from gateway.api.bulk import UNFINISHED, cancel_all
from gateway.api.invoke import JobHeaders, made_before, read_asked, split_events
from gateway.api.models import NothingMore
from gateway.api.models.batches import BatchList, BatchView
from gateway.api.paging import PageQuery
from gateway.body import JSON
from gateway.routes import Route, Scope, caller, content_type, read_body, read_headers, read_query, read_raw, services
from gateway.services import Services
from scheduler import batches, jobs, limits
from scheduler.batches import Batch, NewBatch, batch_object
from scheduler.gates import GateId
from scheduler.listing import Filters
from scheduler.preparing import Invocation
from scheduler.queue import NewJob
from scheduler.spill import Spilling
from scheduler.wakeups import Topic

NDJSON = "application/x-ndjson"
MOST_BYTES = 10 * 1024 * 1024
PATIENCE_S = 60.0
TOLD = (BATCH_COMPLETED, *JOB_EVENTS)
BUSY_S = 5
WRITTEN_AT_ONCE, WRITTEN_CHARACTERS = 1000, 4 * 1024 * 1024


def _events(text: str) -> str:
    if not text.strip() or any(event not in TOLD for event in split_events(text)):
        raise ValueError(f"takes a list of {', '.join(TOLD)}")
    return text


class BatchHeaders(JobHeaders):
    callback_url: str | None = Field(None, alias="X-Callback-Url", description="Told when the last job has ended.")
    callback_events: Annotated[str, AfterValidator(_events)] | None = Field(
        None,
        alias="X-Callback-Events",
        description="What it is told of instead of `batch.completed`; events of jobs, too, with commas between them.",
    )
    version: str | None = Field(
        None, alias="RGrid-Version", pattern=r"^[1-9][0-9]{0,8}$", description="Not the current version."
    )


async def make(request: Request) -> Response:
    """POST /v1/functions/{name}/batch: a job for each line of NDJSON, or for each item of a JSON array, in their order.

    Each is the params of one job. If one of them is not valid there are no jobs, and the first faults are listed, with
    pointers that begin with the job's index: `/17/width`.
    """
    headers = read_headers(request, BatchHeaders)
    asked = read_asked(request, headers)
    # What bodies take while they come is bounded, and so is what batches take that are read and written.
    async with _place(services(request).receiving):
        data = await read_raw(request, MOST_BYTES, media_types=(NDJSON, JSON), patience_s=PATIENCE_S)
        return await _make(request, headers, asked, data)


async def _make(request: Request, headers: BatchHeaders, asked: Invocation, data: bytes) -> Response:
    opened, who = services(request), caller(request)
    events = (BATCH_COMPLETED,) if asked.callback_events is None else asked.callback_events
    of_jobs = tuple(event for event in events if event in JOB_EVENTS)
    batch = BatchId(ids.new_uuid7())
    invocation = replace(
        asked,
        callback_url=asked.callback_url if of_jobs else None,
        callback_events=of_jobs or None,
        body_hash=hashlib.sha256(b"batch " + data).digest(),
        batch_id=batch,
    )
    items = json_items(data) if content_type(request) == JSON else json_lines(data)
    # What waited for its place would bring the limits of long ago.
    async with _place(opened.batching), Spilling(opened.pool, opened.store) as spilling:
        async with opened.pool.acquire() as conn:
            version = await registry.current(
                conn,
                who.project_id,
                request.path_params["name"],
                number=None if headers.version is None else int(headers.version),
            )
        if (first := await made_before(request, version, invocation)) is not None:
            return await _replay(request, first)
        await opened.budgets.require(who.project_id)
        await opened.budgets.require_typical(who.project_id, version.function_id, asked.max_cost)
        assert version.function_id is not None
        url = asked.callback_url if BATCH_COMPLETED in events else None
        new = await read_jobs(Reading(version, invocation, opened), items, spilling)
        row = NewBatch(batch, who.project_id, version.function_id, version.id, len(new), url, who.key_id)
        first = await _write(opened, row, new, spilling)
    if first is not None:
        return await _replay(request, first)
    if asked.delay is None:
        opened.wakeups.hint(Topic.READY)
    return await _answer(request, batch, {})


@asynccontextmanager
async def _place(places: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of a few; raises ``LimitReached`` when others keep all of them for too long."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await places.acquire()
    except TimeoutError:
        raise LimitReached("too many batches come at once: send it again", retry_after_s=BUSY_S) from None
    try:
        yield
    finally:
        places.release()


async def _write(opened: Services, batch: NewBatch, new: list[NewJob], spilling: Spilling) -> JobId | None:
    """Write the batch and its jobs in one transaction; or return the first job of the batch that had the key before."""
    reached: set[GateId] = set()
    async with opened.hot_pool.acquire() as conn:
        # Before the transaction, and all at once: two batches that make the same ones a part at a time would wait for
        # each other.
        await limits.make_gates(conn, new)
        transaction = conn.transaction()
        await transaction.start()
        try:
            await limits.lock_all(conn, new)
            await batches.add(conn, batch)
            for portion in _portions(new):
                for answer in await jobs.submit(conn, portion, reached):
                    if isinstance(answer, RGridError):
                        raise answer
                    if answer.created_at is None:  # the job with the key
                        await transaction.rollback()
                        return answer.job_id
        except BaseException:
            await transaction.rollback()
            raise
        spilling.made([job.id for job in new])
        await transaction.commit()
    await advance(opened.hot_pool, opened.wakeups, reached)
    return None


def _portions(new: list[NewJob]) -> Iterator[list[NewJob]]:
    """The jobs in their order, as one statement takes them: few enough, and with little enough in them."""
    portion: list[NewJob] = []
    size = 0
    for job in new:
        if portion and (len(portion) == WRITTEN_AT_ONCE or size + len(job.params) > WRITTEN_CHARACTERS):
            yield portion
            portion, size = [], 0
        portion.append(job)
        size += len(job.params)
    if portion:
        yield portion


async def list_batches(request: Request) -> Response:
    """GET /v1/batches: the newest first. One that is not complete is listed without its counts."""
    query = read_query(request, PageQuery)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        rows = await batches.list_batches(conn, caller(request).project_id, limit=query.limit + 1, before=before)
    return paging.page(request, rows, query, batch_object, lambda row: row.id)


async def get_batch(request: Request) -> Response:
    """GET /v1/batches/{id}: how many of its jobs have come how far."""
    async with services(request).hot_pool.acquire() as conn:
        return JSONResponse(batch_object(await _visible(request, conn, _named(request))))


async def cancel(request: Request) -> Response:
    """POST /v1/batches/{id}/cancel: every job that has not ended: 200 if none is left then, else 202 while nodes stop
    them."""
    await read_body(request, NothingMore)
    opened, project, batch = services(request), caller(request).project_id, _named(request)
    async with opened.hot_pool.acquire() as conn:
        await batches.read(conn, project, batch)
    await cancel_all(opened, project, [Filters(status=status, batch=batch) for status in UNFINISHED])
    async with opened.hot_pool.acquire() as conn:
        found = await batches.read(conn, project, batch)
    assert found.counts is not None
    left = any(found.counts.get(status) for status in UNFINISHED)
    return JSONResponse(batch_object(found), 202 if left else 200)


def _named(request: Request) -> BatchId:
    found = ids.decode(ids.BATCH, request.path_params["id"])
    if found is None:
        raise NotFound("there is no such batch", code="batch_not_found")
    return BatchId(found)


async def _visible(request: Request, conn: Connection, batch: BatchId) -> Batch:
    """A key that may only invoke sees the batches that it made."""
    who = caller(request)
    found = await batches.read(conn, who.project_id, batch)
    if who.only_own and found.key_id != who.key_id:
        raise NotFound(f"there is no batch {ids.encode(ids.BATCH, batch)}", code="batch_not_found")
    return found


async def _replay(request: Request, job: JobId) -> Response:
    async with services(request).pool.acquire() as conn:
        batch = await batches.of_job(conn, caller(request).project_id, job)
    if batch is None:
        raise Conflict("the batch that this Idempotency-Key made is not kept any more: send a new key")
    return await _answer(request, batch, {"Idempotent-Replayed": "true"})


async def _answer(request: Request, batch: BatchId, headers: dict[str, str]) -> Response:
    async with services(request).hot_pool.acquire() as conn:
        found = await batches.read(conn, caller(request).project_id, batch)
    headers |= {"Location": f"/v1/batches/{ids.encode(ids.BATCH, batch)}", "Retry-After": "1"}
    return JSONResponse(batch_object(found), 202, headers)


ROUTES = (
    Route("POST", "/v1/functions/{name}/batch", make, "Invoke a function many times", Scope.INVOKE,
          body=(NDJSON, JSON), headers=BatchHeaders, answers={202: BatchView}, tag="batches"),
    Route("GET", "/v1/batches", list_batches, "List batches", Scope.READ,
          query=PageQuery, answers={200: BatchList}, tag="batches"),
    Route("GET", "/v1/batches/{id}", get_batch, "Show a batch", Scope.READ,
          answers={200: BatchView}, tag="batches", own=True),
    Route("POST", "/v1/batches/{id}/cancel", cancel, "Cancel the jobs of a batch", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: BatchView, 202: BatchView}, tag="batches"),
)  # fmt: skip
