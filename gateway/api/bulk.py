"""/v1/jobs/cancel and /v1/jobs/retry: all jobs that some filters fit.

Done in chunks, each a transaction of its own, for a bounded time: the answer says what is left, and the same call goes
on with it. What was done is not done again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids
from functions.errors import FieldError, Invalid
from functions.ids import JobId, ProjectId
from gateway.advancing import advance
from gateway.api.filtering import JobFilters
from gateway.api.models.bulk import BulkCancelled, BulkRetried
from gateway.routes import Route, Scope, caller, read_body, services
from gateway.services import Services
from scheduler import cancelling, listing, redrive
from scheduler.gates import GateId
from scheduler.listing import Filters
from scheduler.redrive import Changes, Redriven, Redriving
from scheduler.wakeups import Topic

CHUNK = 500
ENOUGH_S = 8.0
ERRORS = 20
"""No more refused jobs are named."""

UNFINISHED = ("scheduled", "queued", "running")
"""In the order in which a job passes them: one that moves on while its chunk is read is met again."""
UNDONE = ("failed", "timed_out", "expired")
"""What is retried unless a status is named: jobs that nobody wanted to end so."""


class BulkFilters(JobFilters):
    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(False, description="Change nothing: say how many jobs the filters fit.")

    def of(self, status: str | None, statuses: Sequence[str]) -> list[Filters]:
        """Filters of each status, or of the one that was named; raises ``Invalid`` if no filter is given at all."""
        if self.model_fields_set <= {"dry_run", "params", "version"}:
            raise Invalid(
                "name at least one filter: function, status, batch, trigger, since or until",
                errors=[FieldError("", "without a filter it would be every job")],
            )
        return [self.filters(each) for each in ((status,) if status is not None else statuses)]


class BulkCancel(BulkFilters):
    status: Literal["scheduled", "queued", "running"] | None = Field(None, description="Unless given, all three.")


class BulkRetry(BulkFilters):
    status: Literal["succeeded", "failed", "timed_out", "cancelled", "expired"] | None = Field(
        None, description="Unless given: failed, timed_out and expired."
    )
    params: dict[str, Any] | None = Field(
        None, description="Changes to the params of each, as a merge patch (RFC 7396)."
    )
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | Literal["current"] | None = Field(
        None, description="A version (then `function` must be given), or `current`; that of each job unless given."
    )


async def cancel(request: Request) -> Response:
    """POST /v1/jobs/cancel: queued and delayed jobs end at once, running ones when their node has stopped them."""
    body = await read_body(request, BulkCancel)
    wanted, project, opened = body.of(body.status, UNFINISHED), caller(request).project_id, services(request)
    if body.dry_run:
        matched = await _count(opened, project, wanted)
        return JSONResponse({"dry_run": True, "matched": matched, "cancelled": 0, "remaining": matched})
    cancelled, remaining = await cancel_all(opened, project, wanted)
    return JSONResponse(
        {"dry_run": False, "matched": cancelled + remaining, "cancelled": cancelled, "remaining": remaining}
    )


async def retry(request: Request) -> Response:
    """POST /v1/jobs/retry: a new job for each, with other params or of another version if that is asked.

    A job that was retried before is left alone, so that the call may be repeated.
    """
    body = await read_body(request, BulkRetry)
    wanted, who, opened = body.of(body.status, UNDONE), caller(request), services(request)
    if isinstance(body.version, int) and body.function is None:
        fault = FieldError("/function", "a version's number is one of a function: name it")
        raise Invalid("which function's version?", errors=[fault])
    changes = Changes(body.params, body.version)
    how = Redriving(opened.pool, opened.store, opened.sizing, opened.egress, changes, who.key_id)
    if not body.dry_run:
        await opened.budgets.require(who.project_id)
    done, remaining = Redriven(), 0
    enough_s = time.monotonic() + ENOUGH_S
    # What this call makes is newer than all that it looks at.
    async for found in _walk(opened, who.project_id, wanted, ids.new_uuid7()):
        looked: set[JobId] = set()
        if not body.dry_run and time.monotonic() < enough_s:
            async with aclosing(redrive.portions(who.project_id, found, how)) as portions:
                async for portion in portions:
                    chunk = await redrive.retry_portion(opened.hot_pool, who.project_id, portion, how)
                    await advance(opened.hot_pool, opened.wakeups, chunk.reached)
                    if chunk.retried:
                        opened.wakeups.hint(Topic.READY)
                    looked.update(portion.looked)
                    done.retried += chunk.retried
                    done.skipped += chunk.skipped
                    done.refused += chunk.refused
                    if time.monotonic() > enough_s:
                        break
        rest = [job for job in found if job not in looked]
        async with opened.hot_pool.acquire() as conn:
            left = len(await redrive.unretried(conn, who.project_id, rest)) if rest else 0
        done.skipped += len(rest) - left
        remaining += left
    matched = done.retried + len(done.refused) + remaining
    return JSONResponse(
        {
            "dry_run": body.dry_run,
            "matched": matched,
            "retried": done.retried,
            "skipped": done.skipped,
            "refused": len(done.refused),
            "remaining": remaining,
            "errors": [
                {"job": ids.encode(ids.JOB, job), "code": error.code, "message": error.message}
                for job, error in done.refused[:ERRORS]
            ],
        }
    )


async def cancel_all(opened: Services, project: ProjectId, wanted: Sequence[Filters]) -> tuple[int, int]:
    """Cancel what the filters fit; how many were, and how many are left because it took too long."""
    cancelled = remaining = 0
    enough_s = time.monotonic() + ENOUGH_S
    async for found in _walk(opened, project, wanted):
        if time.monotonic() > enough_s:
            remaining += len(found)
            continue
        freed: set[GateId] = set()
        async with opened.pool.acquire() as conn, conn.transaction():
            cancelled += await cancelling.cancel(conn, project, found, freed)
        await advance(opened.hot_pool, opened.wakeups, freed)
        opened.wakeups.hint(Topic.OUTCOME)
        opened.wakeups.hint(Topic.DELIVERY)
    return cancelled, remaining


async def _count(opened: Services, project: ProjectId, wanted: Sequence[Filters]) -> int:
    return sum([len(found) async for found in _walk(opened, project, wanted)])


async def _walk(
    opened: Services, project: ProjectId, wanted: Sequence[Filters], before: UUID | None = None
) -> AsyncIterator[list[JobId]]:
    """Jobs that the filters fit, in chunks, the newest first."""
    for filters in wanted:
        position = before
        while True:
            async with (opened.pool if filters.batch is None else opened.hot_pool).acquire() as conn:
                page = await listing.list_jobs(conn, project, filters, limit=CHUNK, before=position)
            if page.jobs:
                yield page.jobs
            if page.position is None:
                break
            position = page.position


ROUTES = (
    Route("POST", "/v1/jobs/cancel", cancel, "Cancel all jobs that filters fit", Scope.WRITE,
          body=BulkCancel, answers={200: BulkCancelled}, tag="jobs"),
    Route("POST", "/v1/jobs/retry", retry, "Run finished jobs again, as new ones", Scope.WRITE,
          body=BulkRetry, answers={200: BulkRetried}, tag="jobs"),
)  # fmt: skip
