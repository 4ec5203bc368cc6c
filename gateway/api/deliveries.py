"""/v1/deliveries: what became of callbacks, attempt by attempt, and sending one again."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids
from functions.errors import FieldError, Invalid, NotFound
from functions.grammar import BATCH_COMPLETED, JOB_EVENTS, SCHEDULE_MISSED
from functions.ids import EndpointId, MessageId
from gateway.api import paging
from gateway.api.filtering import Time
from gateway.api.models import NothingMore, View
from gateway.api.paging import PageQuery
from gateway.routes import Route, Scope, caller, read_body, read_query, services
from scheduler import delivery_log, redelivering
from scheduler.delivery_log import Attempt, Delivery, Filters
from scheduler.views import rfc3339
from scheduler.wakeups import Topic

State = Literal["pending", "delivered", "exhausted"]

SUBJECTS = {BATCH_COMPLETED: ("batch", ids.BATCH), SCHEDULE_MISSED: ("schedule", ids.SCHEDULE)} | dict.fromkeys(
    JOB_EVENTS, ("job", ids.JOB)
)
"""Of what a delivery of some type tells. The others tell of their own endpoint."""


class DeliveriesQuery(PageQuery):
    job: str | None = Field(None, description="Of this job.")
    batch: str | None = Field(None, pattern=r"^bat_[0-9a-f]{32}$", description="Of this batch's end.")
    callback: str | None = Field(None, pattern=r"^cb_[0-9a-f]{32}$", description="To this endpoint.")
    type: str | None = Field(None, max_length=64, description="Of this event.")
    state: State | None = None
    since: Time | None = Field(None, description="Of events at this time or later.")
    until: Time | None = Field(None, description="Of events before this time.")


class DeliveryAttempt(View):
    """``address`` is the one that was connected to, ``response`` the first 4 KiB of the answer's body."""

    attempt: int
    at: datetime
    address: str | None
    status: int | None
    duration_ms: int
    error: str | None
    response: str | None


class DeliveryView(View):
    """One event for one endpoint. ``callback`` is null for an address that a single job was given; ``reason`` says why
    it was given up, where no attempt does."""

    id: str
    callback: str | None
    job: str | None
    batch: str | None
    schedule: str | None
    type: str
    url: str
    state: State
    reason: str | None
    created_at: datetime
    next_at: datetime | None
    attempts: list[DeliveryAttempt]


class DeliveryList(View):
    data: list[DeliveryView]
    next_cursor: str | None


class Redelivered(View):
    id: str
    state: Literal["pending"]


async def list_deliveries(request: Request) -> Response:
    """GET /v1/deliveries: callbacks with every attempt to deliver them, the newest first."""
    query = read_query(request, DeliveriesQuery)
    before = paging.start(request, query)
    job = None if query.job is None else ids.decode(ids.JOB, query.job)
    if query.job is not None and job is None:
        raise NotFound("there is no such job", code="job_not_found")
    if job is not None and query.batch is not None:
        raise Invalid("a delivery is of a job or of a batch", errors=[FieldError("/query/batch", "goes without job")])
    endpoint = None if query.callback is None else ids.decode(ids.CALLBACK, query.callback)
    filters = Filters(
        job=job if query.batch is None else ids.decode(ids.BATCH, query.batch),
        endpoint=None if endpoint is None else EndpointId(endpoint),
        state=query.state,
        type=query.type,
        since=query.since,
        until=query.until,
    )
    async with services(request).pool.acquire() as conn:
        rows = await delivery_log.list_deliveries(
            conn,
            caller(request).project_id,
            filters,
            limit=query.limit + 1,
            before=None if before is None else MessageId(before),
        )
    return paging.page(request, rows, query, delivery_view, lambda row: row.id)


async def show_delivery(request: Request) -> Response:
    """GET /v1/deliveries/{id}: one callback with every attempt to deliver it."""
    async with services(request).pool.acquire() as conn:
        found = await delivery_log.read(conn, caller(request).project_id, _message(request))
    return JSONResponse(delivery_view(found))


async def redeliver(request: Request) -> Response:
    """POST /v1/deliveries/{id}/redeliver: send it again now, with the whole schedule before it."""
    await read_body(request, NothingMore)
    message = _message(request)
    opened = services(request)
    async with opened.pool.acquire() as conn, conn.transaction():
        await redelivering.redeliver(conn, caller(request).project_id, message)
    opened.wakeups.hint(Topic.DELIVERY)
    return JSONResponse({"id": request.path_params["id"], "state": "pending"}, 202)


def _message(request: Request) -> MessageId:
    found = ids.decode(ids.MESSAGE, request.path_params["id"])
    if found is None:
        raise NotFound("there is no such delivery", code="delivery_not_found")
    return MessageId(found)


def delivery_view(row: Delivery) -> dict[str, Any]:
    name, prefix = SUBJECTS.get(row.type, (None, ""))
    return {
        "id": ids.encode(ids.MESSAGE, row.id),
        "callback": None if row.endpoint_id is None else ids.encode(ids.CALLBACK, row.endpoint_id),
        **dict.fromkeys(("job", "batch", "schedule")),
        **({} if name is None else {name: ids.encode(prefix, row.job_id)}),
        "type": row.type,
        "url": row.url,
        "state": row.state,
        "reason": row.ended_reason,
        "created_at": rfc3339(row.occurred_at),
        "next_at": rfc3339(row.next_at),
        "attempts": [_attempt_view(attempt) for attempt in row.attempts],
    }


def _attempt_view(row: Attempt) -> dict[str, Any]:
    return {
        "attempt": row.attempt,
        "at": rfc3339(row.at),
        "address": row.address,
        "status": row.status,
        "duration_ms": row.duration_ms,
        "error": row.error,
        "response": row.response,
    }


ROUTES = (
    Route("GET", "/v1/deliveries", list_deliveries, "List deliveries of callbacks", Scope.READ,
          query=DeliveriesQuery, answers={200: DeliveryList}, tag="callbacks"),
    Route("GET", "/v1/deliveries/{id}", show_delivery, "Show a delivery", Scope.READ,
          answers={200: DeliveryView}, tag="callbacks"),
    Route("POST", "/v1/deliveries/{id}/redeliver", redeliver, "Send a callback again", Scope.WRITE,
          body=NothingMore, body_required=False, answers={202: Redelivered}, tag="callbacks"),
)  # fmt: skip
