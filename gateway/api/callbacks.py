"""/v1/callbacks/secret and /v1/deliveries: what a receiver verifies callbacks with, and what became of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids
from functions.errors import FieldError, Invalid, NotFound
from functions.grammar import BATCH_COMPLETED
from functions.ids import JobId, MessageId
from gateway.api import paging
from gateway.api.models import CallbackSecret, DeliveryList, NothingMore, Redelivered
from gateway.api.paging import PageQuery
from gateway.routes import Route, Scope, caller, read_body, read_query, services
from scheduler import deliveries
from scheduler.deliveries import Attempt, Delivery
from scheduler.views import rfc3339
from scheduler.wakeups import Topic

SEALED_KEY = """
-- sealed_callback_key
SELECT callback_secret FROM projects WHERE id = $1
"""


class DeliveriesQuery(PageQuery):
    job: str | None = Field(None, description="Of this job.")
    batch: str | None = Field(None, pattern=r"^bat_[0-9a-f]{32}$", description="Of this batch's end.")
    state: Literal["pending", "delivered", "exhausted"] | None = None


async def read_secret(request: Request) -> Response:
    """GET /v1/callbacks/secret: the key that the project's callbacks are signed with."""
    opened = services(request)
    async with opened.pool.acquire() as conn:
        sealed = await conn.fetchval(SEALED_KEY, caller(request).project_id)
    return JSONResponse({"secret": opened.sealer.open(sealed).decode()})


async def list_deliveries(request: Request) -> Response:
    """GET /v1/deliveries: callbacks with every attempt to deliver them, the newest first."""
    query = read_query(request, DeliveriesQuery)
    before = paging.start(request, query)
    job = None if query.job is None else ids.decode(ids.JOB, query.job)
    if query.job is not None and job is None:
        raise NotFound("there is no such job", code="job_not_found")
    about = job if query.batch is None else ids.decode(ids.BATCH, query.batch)
    if job is not None and query.batch is not None:
        raise Invalid("a delivery is of a job or of a batch", errors=[FieldError("/query/batch", "goes without job")])
    async with services(request).pool.acquire() as conn:
        rows = await deliveries.list_deliveries(
            conn,
            caller(request).project_id,
            job=None if about is None else JobId(about),
            state=query.state,
            limit=query.limit + 1,
            before=None if before is None else MessageId(before),
        )
    return paging.page(request, rows, query, delivery_view, lambda row: row.id)


async def redeliver(request: Request) -> Response:
    """POST /v1/deliveries/{id}/redeliver: send it again now, with the whole schedule before it."""
    await read_body(request, NothingMore)
    opened = services(request)
    found = ids.decode(ids.MESSAGE, request.path_params["id"])
    if found is None:
        raise NotFound("there is no such delivery", code="delivery_not_found")
    async with opened.pool.acquire() as conn:
        await deliveries.redeliver(conn, caller(request).project_id, MessageId(found))
    opened.wakeups.hint(Topic.DELIVERY)
    return JSONResponse({"id": request.path_params["id"], "state": "pending"}, 202)


def delivery_view(row: Delivery) -> dict[str, Any]:
    of_batch = row.type == BATCH_COMPLETED
    return {
        "id": ids.encode(ids.MESSAGE, row.id),
        "job": None if of_batch else ids.encode(ids.JOB, row.job_id),
        "batch": ids.encode(ids.BATCH, row.job_id) if of_batch else None,
        "type": row.type,
        "url": row.url,
        "state": row.state,
        "created_at": rfc3339(row.occurred_at),
        "next_at": rfc3339(row.next_at),
        "attempts": [_attempt_view(attempt) for attempt in row.attempts],
    }


def _attempt_view(row: Attempt) -> dict[str, Any]:
    return {
        "attempt": row.attempt,
        "at": rfc3339(row.at),
        "status": row.status,
        "duration_ms": row.duration_ms,
        "error": row.error,
        "response": row.response,
    }


ROUTES = (
    Route("GET", "/v1/callbacks/secret", read_secret, "Show the key of signatures", Scope.WRITE,
          answers={200: CallbackSecret}, tag="callbacks"),
    Route("GET", "/v1/deliveries", list_deliveries, "List deliveries of callbacks", Scope.READ,
          query=DeliveriesQuery, answers={200: DeliveryList}, tag="callbacks"),
    Route("POST", "/v1/deliveries/{id}/redeliver", redeliver, "Send a callback again", Scope.WRITE,
          body=NothingMore, body_required=False, answers={202: Redelivered}, tag="callbacks"),
)  # fmt: skip
