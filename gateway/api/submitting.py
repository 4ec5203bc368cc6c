"""Puts a job into the queue and answers with it, or with its outcome if the caller waits for that."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from functions import ids, uploads
from functions.errors import BudgetExceeded, Invalid, RGridError
from functions.ids import FunctionId, JobId, ProjectId
from functions.versions import Version
from gateway.prefer import Preference
from gateway.routes import caller, gone, services
from gateway.services import Services
from scheduler import jobs
from scheduler.jobs import Submitted
from scheduler.queue import NewJob
from scheduler.spill import spilled
from scheduler.views import JobRecord, job_object, new_record, read_jobs
from scheduler.wakeups import Topic

SOON_S = 1
LONGEST_PAUSE_S = 3600


async def submit(request: Request, new: NewJob, version: Version, preference: Preference) -> Response:
    """202 once the job is committed; 200 if it has ended while the caller waited."""
    answer, new = await enter(request, new)
    if answer.created_at is None:
        return await replay(request, answer.job_id, preference)
    # Nothing can be in the row that is not known here, so that it need not be read.
    return await answer_with(request, new_record(new, version, answer.created_at), preference, {})


async def enter(request: Request, new: NewJob) -> tuple[Submitted, NewJob]:
    """Put the job into the queue: it is committed then, as it is returned. Raises what keeps it out."""
    opened = services(request)
    if (before := await in_budget(opened, new)) is not None:
        return before, new
    new, params = await spilled(opened.pool, opened.store, new)
    # What waits for a limit's lock must neither hold up the others nor take their answers with it when it fails.
    submitter = opened.submitter if new.on_limit == "queue" else opened.picky
    answer = await submitter.submit(new)
    if params is not None and (isinstance(answer, RGridError) or answer.replayed):
        await uploads.discard(opened.pool, opened.store, params)
    if isinstance(answer, RGridError):
        raise answer
    if answer.created_at is not None and new.delay is None:
        opened.wakeups.hint(Topic.READY)
    return answer, new


async def in_budget(opened: Services, new: NewJob) -> Submitted | None:
    """Raises ``BudgetExceeded`` for what the project cannot pay, or what typically costs more than it may. A repeat
    costs nothing: its answer is returned."""
    try:
        await opened.budgets.require(new.project_id)
        await opened.budgets.require_typical(new.project_id, new.function_id, new.max_cost)
    except BudgetExceeded:
        if (before := await _made_before(opened, new)) is None:
            raise
        return before
    return None


async def _made_before(opened: Services, new: NewJob) -> Submitted | None:
    if new.idempotency_key is None or new.body_hash is None:
        return None
    scope = FunctionId(new.key_scope)
    async with opened.pool.acquire() as conn:
        before = await jobs.made_before(conn, new.project_id, scope, new.idempotency_key, new.body_hash)
    if isinstance(before, RGridError):
        raise before
    return before


async def replay(request: Request, job: JobId, preference: Preference) -> Response:
    """The answer to a request that had made this job before."""
    who = caller(request)
    record = await _read(request, who.project_id, job)
    if who.only_own and record.row["key_id"] != who.key_id:
        # Whoever guesses the key of somebody else's request must not be shown that one's job.
        raise Invalid(
            "this Idempotency-Key was used by somebody else in the last 24 hours: send a new key",
            code="idempotency_key_reused",
        )
    return await answer_with(request, record, preference, {"Idempotent-Replayed": "true"})


async def answer_with(
    request: Request, record: JobRecord, preference: Preference, headers: dict[str, str], *, unfinished: int = 202
) -> Response:
    """200 with the job if it has ended, or does while the caller waits; else ``unfinished``."""
    headers["Location"] = f"/v1/jobs/{ids.encode(ids.JOB, record.id)}"
    if preference.applied is not None:
        headers["Preference-Applied"] = preference.applied
    if preference.wait_s is not None:
        if not record.finished and await ended(request, record.id, preference.wait_s):
            record = await _read(request, record.row["project_id"], record.id)
        if record.finished:
            return JSONResponse(job_view(request, record), headers=headers)
    return JSONResponse(job_view(request, record), unfinished, headers | {"Retry-After": str(_pause_s(record))})


def _pause_s(record: JobRecord) -> int:
    """When it is worth asking for the job again: soon, or when a delayed one is due."""
    due: datetime | None = record.row["due_at"]
    if due is None:
        return SOON_S
    return min(max(math.ceil((due - datetime.now(UTC)).total_seconds()), SOON_S), LONGEST_PAUSE_S)


async def ended(request: Request, job: JobId, timeout_s: float) -> bool:
    """Wait for the job's outcome; False after ``timeout_s``, or when the process is stopping.

    Raises ``ClientDisconnect`` when there is nobody to be answered any more.
    """
    opened = services(request)
    waiting = asyncio.ensure_future(opened.waiters.wait(job, timeout_s, opened.stopping))
    leaving = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        waiting.cancel()
        leaving.cancel()


def job_view(request: Request, record: JobRecord) -> dict[str, Any]:
    return job_object(record, services(request).links)


async def _read(request: Request, project: ProjectId, job: JobId) -> JobRecord:
    async with services(request).pool.acquire() as conn:
        (record,) = await read_jobs(conn, project, [job])
    return record
