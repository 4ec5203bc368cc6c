"""/v1/schedules: when functions run by the clock, and what came of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import faults, ids, registry, schedules, uploads
from functions.documents import load_json
from functions.errors import FieldError, Invalid, RGridError
from functions.faults import Fault
from functions.fields import INVALID
from functions.ids import ScheduleId
from functions.names import Name
from functions.quantities import format_duration
from functions.schedule_spec import ScheduleSpec, impossible_params
from functions.schedules import ScheduleRow
from gateway.advancing import advance
from gateway.api import paging
from gateway.api.models import NothingMore
from gateway.api.models.jobs import JobView
from gateway.api.models.schedules import RunList, RunState, ScheduleList, ScheduleView
from gateway.api.paging import PageQuery
from gateway.api.submitting import answer_with, in_budget, replay
from gateway.body import JSON
from gateway.prefer import read_prefer
from gateway.routes import (
    IdempotencyKey,
    Route,
    Scope,
    caller,
    read_body,
    read_headers,
    read_query,
    read_raw,
    services,
)
from gateway.services import Services
from scheduler import cron, jobs, schedule_runs
from scheduler.gates import GateId
from scheduler.inputs import check_inputs
from scheduler.jobs import Submitted
from scheduler.preparing import Invocation
from scheduler.queue import NewJob
from scheduler.schedule_runs import Run
from scheduler.spill import spilled
from scheduler.views import new_record, rfc3339
from scheduler.wakeups import Topic

NEXT_RUNS = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
LAST = datetime(9999, 1, 1, tzinfo=UTC)


class ScheduleRequest(ScheduleSpec):
    """A schedule as a manifest has it, and the function that it is for."""

    function: Name


class SchedulesQuery(PageQuery):
    function: str | None = Field(None, description="Of this function.")
    name: str | None = Field(None, description="Of this name.")


class RunsQuery(PageQuery):
    state: RunState | None = Field(None, description="Only times of which this came.")


class TriggerHeaders(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prefer: str | None = Field(None, alias="Prefer", description="`wait=N`, as at invoke.")
    idempotency_key: IdempotencyKey | None = Field(
        None, alias="Idempotency-Key", description="The same key within 24 hours: the same job."
    )


async def list_schedules(request: Request) -> Response:
    """GET /v1/schedules: the project's schedules, those of manifests and those of the API, the newest first."""
    query = read_query(request, SchedulesQuery)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        rows = await schedules.list_schedules(
            conn,
            caller(request).project_id,
            limit=query.limit + 1,
            before=None if before is None else ScheduleId(before),
            function=query.function,
            name=query.name,
        )
    return paging.page(request, rows, query, schedule_view, lambda row: row.id)


async def add_schedule(request: Request) -> Response:
    """POST /v1/schedules: give a function a schedule beside those of its manifest. Applies do not touch it."""
    function, spec = _read(load_json(await read_raw(request, media_types=(JSON,))))
    project = caller(request).project_id
    async with services(request).pool.acquire() as conn, conn.transaction():
        version = await registry.current(conn, project, function)
        impossible = impossible_params(spec, version.params_schema)
        faults.raise_all([Fault(at, said, "params_invalid") for at, said in impossible])
        row = await schedules.add(conn, project, function, spec)
    return JSONResponse(schedule_view(row), 201)


async def get_schedule(request: Request) -> Response:
    """GET /v1/schedules/{id}: the schedule, with the times that come next."""
    async with services(request).pool.acquire() as conn:
        row = await schedules.get(conn, caller(request).project_id, _named(request))
    return JSONResponse(schedule_view(row))


async def delete_schedule(request: Request) -> Response:
    """DELETE /v1/schedules/{id}: take away one that was made over the API; 409 for one of a manifest."""
    async with services(request).pool.acquire() as conn:
        await schedules.delete(conn, caller(request).project_id, _named(request))
    return Response(status_code=204)


async def pause_schedule(request: Request) -> Response:
    """POST /v1/schedules/{id}/pause: it makes no jobs until it is resumed. An apply does not change that."""
    return await _set_paused(request, paused=True)


async def resume_schedule(request: Request) -> Response:
    """POST /v1/schedules/{id}/resume: it goes on with the next time; those of the pause are not caught up."""
    return await _set_paused(request, paused=False)


async def _set_paused(request: Request, *, paused: bool) -> Response:
    await read_body(request, NothingMore)
    async with services(request).pool.acquire() as conn, conn.transaction():
        row = await schedules.set_paused(conn, caller(request).project_id, _named(request), paused=paused)
    return JSONResponse(schedule_view(row))


async def list_runs(request: Request) -> Response:
    """GET /v1/schedules/{id}/runs: planned times and what came of each, the newest first."""
    query, project, schedule = read_query(request, RunsQuery), caller(request).project_id, _named(request)
    before = paging.start(request, query)
    async with services(request).hot_pool.acquire() as conn:  # one schedule's of many: never by reading all of them
        await schedules.get(conn, project, schedule)
        rows = await schedule_runs.list_runs(
            conn,
            project,
            schedule,
            limit=query.limit + 1,
            before=LAST if before is None else EPOCH + before.int * TICK,
            state=query.state,
        )
    return paging.page(request, rows, query, run_view, lambda row: UUID(int=(row.planned_at - EPOCH) // TICK))


async def trigger(request: Request) -> Response:
    """POST /v1/schedules/{id}/trigger: one job now, with the schedule's params, whether or not it is paused. Its times
    and its `overlap` have no part in it."""
    headers = read_headers(request, TriggerHeaders)
    preference = read_prefer(headers.prefer)
    await read_body(request, NothingMore)
    opened, who = services(request), caller(request)
    async with opened.pool.acquire() as conn:
        row = await schedules.get(conn, who.project_id, _named(request))
        version = await registry.current(conn, who.project_id, row.function)
        now = await schedules.clock(conn)
    asked = Invocation(
        params={},
        trigger={},
        idempotency_key=headers.idempotency_key,
        body_hash=None if headers.idempotency_key is None else hashlib.sha256(b"schedule" + row.id.bytes).digest(),
        key_id=who.key_id,
    )
    # Never on the minute: that is a planned time's.
    at = now if now.microsecond else now + TICK
    new = cron.job_of(row.id, row.spec, at, version=version, sizing=opened.sizing, asked=asked)
    if (before := await in_budget(opened, new)) is not None:
        return await replay(request, before.job_id, preference)
    await check_inputs(opened.pool, new, opened.egress)
    new, submitted = await _enter(opened, row, at, new)
    if submitted.created_at is None:
        return await replay(request, submitted.job_id, preference)
    return await answer_with(request, new_record(new, version, submitted.created_at), preference, {})


async def _enter(opened: Services, row: ScheduleRow, at: datetime, new: NewJob) -> tuple[NewJob, Submitted]:
    """The job and the schedule's word of it, in one transaction; raises what keeps it out."""
    new, params = await spilled(opened.pool, opened.store, new)
    reached: set[GateId] = set()
    async with opened.hot_pool.acquire() as conn, conn.transaction():
        await schedules.hold(conn, new.project_id, row.id)
        (answer,) = await jobs.submit(conn, [new], reached)
        if isinstance(answer, Submitted) and not answer.replayed:
            run = Run(row.id, at, new.project_id, "submitted", manual=True, job_id=new.id)
            await schedule_runs.record(conn, [run])
    if params is not None and (isinstance(answer, RGridError) or answer.replayed):
        await uploads.discard(opened.pool, opened.store, params)
    await advance(opened.hot_pool, opened.wakeups, reached)
    if isinstance(answer, RGridError):
        raise answer
    opened.wakeups.hint(Topic.READY)
    return new, answer


def schedule_view(row: ScheduleRow) -> dict[str, Any]:
    return {
        "id": ids.encode(ids.SCHEDULE, row.id),
        "function": row.function,
        "name": row.spec.name,
        "origin": row.origin,
        "cron": row.spec.cron,
        "timezone": row.spec.timezone,
        "params": row.spec.params,
        "overlap": row.spec.overlap,
        "catchUp": row.spec.catch_up,
        "jitter": format_duration(row.spec.jitter),
        "paused": row.paused,
        "next_runs": [rfc3339(at) for at in row.next_runs(NEXT_RUNS)],
        "last_run": None
        if row.last is None
        else {
            "planned_at": rfc3339(row.last.planned_at),
            "state": row.last.state,
            "job": None if row.last.job_id is None else ids.encode(ids.JOB, row.last.job_id),
        },
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def run_view(run: Run) -> dict[str, Any]:
    return {
        "planned_at": rfc3339(run.planned_at),
        "state": run.state,
        "manual": run.manual,
        "job": None if run.job_id is None else ids.encode(ids.JOB, run.job_id),
        "error": run.error,
        "until": rfc3339(run.until_at),
        "count": run.count,
    }


def _read(document: Any) -> tuple[str, ScheduleSpec]:
    """What is wished for; raises ``Invalid`` with pointers into the body."""
    if not isinstance(document, dict):
        message = "a schedule is an object with function, name and cron"
        raise Invalid(message, errors=[FieldError("", "not an object")])
    try:
        given = ScheduleRequest.model_validate(document)
    except ValidationError as error:
        found = faults.of_pydantic(error, ScheduleRequest)
        faults.raise_all([replace(each, code="invalid") if each.code == INVALID else each for each in found])
        raise
    return given.function, ScheduleSpec.model_validate(
        {key: value for key, value in document.items() if key != "function"}
    )


def _named(request: Request) -> ScheduleId:
    found = ids.decode(ids.SCHEDULE, request.path_params["id"])
    if found is None:
        raise schedules.not_found()
    return ScheduleId(found)


ROUTES = (
    Route("GET", "/v1/schedules", list_schedules, "List schedules", Scope.READ,
          query=SchedulesQuery, answers={200: ScheduleList}, tag="schedules"),
    Route("POST", "/v1/schedules", add_schedule, "Add a schedule to a function", Scope.WRITE,
          body=ScheduleRequest, answers={201: ScheduleView}, tag="schedules"),
    Route("GET", "/v1/schedules/{id}", get_schedule, "Show a schedule", Scope.READ,
          answers={200: ScheduleView}, tag="schedules"),
    Route("DELETE", "/v1/schedules/{id}", delete_schedule, "Delete a schedule", Scope.WRITE,
          answers={204: None}, tag="schedules"),
    Route("POST", "/v1/schedules/{id}/pause", pause_schedule, "Let a schedule make no jobs", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: ScheduleView}, tag="schedules"),
    Route("POST", "/v1/schedules/{id}/resume", resume_schedule, "Let a schedule go on", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: ScheduleView}, tag="schedules"),
    Route("POST", "/v1/schedules/{id}/trigger", trigger, "Run a schedule's job now", Scope.WRITE,
          body=NothingMore, body_required=False, headers=TriggerHeaders,
          answers={200: JobView, 202: JobView}, tag="schedules"),
    Route("GET", "/v1/schedules/{id}/runs", list_runs, "List what came of a schedule's times", Scope.READ,
          query=RunsQuery, answers={200: RunList}, tag="schedules"),
)  # fmt: skip
