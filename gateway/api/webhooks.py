"""/v1/webhooks: what may be called without a key, and what came in there."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import faults, ids, registry, secrets, webhooks
from functions.documents import load_json
from functions.errors import Conflict, FieldError, Invalid
from functions.faults import Fault
from functions.fields import INVALID
from functions.ids import ReceiptId, WebhookId
from functions.names import Name
from functions.verifying import Headers
from functions.webhook_ids import shortened
from functions.webhook_spec import WebhookSpec, impossible_params
from functions.webhooks import Called, WebhookRow
from gateway.api import paging
from gateway.api.models import NothingMore
from gateway.api.models.jobs import JobView
from gateway.api.models.webhooks import ReceiptList, ReceiptView, Verdict, WebhookList, WebhookView
from gateway.api.paging import PageQuery
from gateway.api.submitting import submit
from gateway.body import JSON
from gateway.hooking import Call, job_of, new_receipt
from gateway.prefer import read_prefer
from gateway.routes import (
    IdempotencyKey,
    Route,
    Scope,
    caller,
    query_values,
    read_body,
    read_headers,
    read_query,
    read_raw,
    services,
)
from scheduler import receipts
from scheduler.receipts import Receipt
from scheduler.views import rfc3339


class WebhookRequest(WebhookSpec):
    """A webhook as in a manifest, and the function that it is of."""

    function: Name


class WebhooksQuery(PageQuery):
    function: str | None = Field(None, description="Of this function.")
    name: str | None = Field(None, description="Of this name.")


class ReceiptsQuery(PageQuery):
    verdict: Verdict | None = Field(None, description="Only those of which this became.")


class ReplayHeaders(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prefer: str | None = Field(None, alias="Prefer", description="`wait=N`, as at invoke.")
    idempotency_key: IdempotencyKey | None = Field(
        None, alias="Idempotency-Key", description="The same key for the same receipt: the same new job."
    )


async def list_webhooks(request: Request) -> Response:
    """GET /v1/webhooks: the project's webhooks, those of manifests and those of the API, the newest first."""
    query = read_query(request, WebhooksQuery)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        rows = await webhooks.list_webhooks(
            conn,
            caller(request).project_id,
            limit=query.limit + 1,
            before=None if before is None else WebhookId(before),
            function=query.function,
            name=query.name,
        )
    return paging.page(request, rows, query, lambda row: webhook_view(request, row), lambda row: row.id)


async def add_webhook(request: Request) -> Response:
    """POST /v1/webhooks: give a function a webhook beside those of its manifest. Applies do not touch it."""
    given, spec = _read(load_json(await read_raw(request, media_types=(JSON,))))
    opened, project = services(request), caller(request).project_id
    async with opened.pool.acquire() as conn, conn.transaction():
        version = await registry.current(conn, project, given.function)
        faults.raise_all([Fault(at, said, "invalid") for at, said in impossible_params(spec, version.params_schema)])
        await secrets.require(conn, project, spec.secret_places)
        row = await webhooks.add(conn, project, given.function, spec)
    return JSONResponse(webhook_view(request, row), 201)


async def get_webhook(request: Request) -> Response:
    """GET /v1/webhooks/{id}: the webhook, with the address to give to its sender."""
    async with services(request).pool.acquire() as conn:
        row = await webhooks.get(conn, caller(request).project_id, _named(request))
    return JSONResponse(webhook_view(request, row))


async def delete_webhook(request: Request) -> Response:
    """DELETE /v1/webhooks/{id}: take away one that was made over the API; 409 for one of a manifest."""
    async with services(request).pool.acquire() as conn:
        await webhooks.delete(conn, caller(request).project_id, _named(request))
    return Response(status_code=204)


async def disable_webhook(request: Request) -> Response:
    """POST /v1/webhooks/{id}/disable: it answers 404 until it is enabled. An apply does not change that."""
    return await _set_enabled(request, enabled=False)


async def enable_webhook(request: Request) -> Response:
    """POST /v1/webhooks/{id}/enable: it may be called again."""
    return await _set_enabled(request, enabled=True)


async def _set_enabled(request: Request, *, enabled: bool) -> Response:
    await read_body(request, NothingMore)
    async with services(request).pool.acquire() as conn:
        row = await webhooks.set_enabled(conn, caller(request).project_id, _named(request), enabled=enabled)
    return JSONResponse(webhook_view(request, row))


async def list_receipts(request: Request) -> Response:
    """GET /v1/webhooks/{id}/receipts: requests that came in and what became of them, the newest first."""
    query, project, webhook = read_query(request, ReceiptsQuery), caller(request).project_id, _named(request)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        await webhooks.get(conn, project, webhook)
        rows = await receipts.list_receipts(
            conn,
            project,
            webhook,
            limit=query.limit + 1,
            before=None if before is None else ReceiptId(before),
            verdict=None if query.verdict is None else receipts.Verdict(query.verdict),
        )
    return paging.page(request, rows, query, receipt_summary, lambda row: row.id)


async def get_receipt(request: Request) -> Response:
    """GET /v1/webhooks/{id}/receipts/{receipt}: one request, with headers and body."""
    opened = services(request)
    _, receipt = await _receipt(request)
    body: bytes | None
    try:
        body = await receipts.body_of(opened.pool, opened.store, receipt)
    except Conflict:
        body = receipt.body  # its beginning, or nothing
    return JSONResponse(receipt_view(receipt, body))


async def replay_receipt(request: Request) -> Response:
    """POST /v1/webhooks/{id}/receipts/{receipt}/replay: a new job of a request that came before, through webhook and
    function as they are now. Filter and signature are not asked again: what was never verified cannot be replayed.
    """
    headers = read_headers(request, ReplayHeaders)
    preference = read_prefer(headers.prefer)
    await read_body(request, NothingMore)
    opened, who = services(request), caller(request)
    row, receipt = await _receipt(request)
    if not receipt.verified:
        raise Conflict("this request was never verified: nobody knows who sent it", code="receipt_not_verified")
    body = await receipts.body_of(opened.pool, opened.store, receipt)
    async with opened.pool.acquire() as conn:
        version = await registry.current(conn, who.project_id, row.function)
    called = Called(row.id, who.project_id, row.spec, row.enabled, version, ())
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in receipt.head["headers"]]
    query = receipt.head["query"].encode("latin-1")
    fresh = replace(
        new_receipt(called, pairs, query, body),
        artifact=receipt.head.get("artifact"),
        delivery=receipt.head.get("delivery"),
        replay_of=receipt.id,
    )
    parameters = {name: value for name, value in query_values(query).items() if name != "wait"}
    call = Call(called, Headers(pairs), parameters, body, fresh)
    key = None if headers.idempotency_key is None else shortened(f"replay:{receipt.id.hex}:{headers.idempotency_key}")
    new = await job_of(opened, call, call.values(), key=key, key_id=who.key_id)
    return await submit(request, new, version, preference)


def webhook_view(request: Request, row: WebhookRow) -> dict[str, Any]:
    spec = row.spec.stored()
    place = f"/hooks/{caller(request).project}/{row.function}/{row.spec.name}"
    return {
        "id": ids.encode(ids.WEBHOOK, row.id),
        "function": row.function,
        "name": row.spec.name,
        "url": services(request).settings.base_url + place,
        "origin": row.origin,
        "enabled": row.enabled,
        "verify": row.spec.verify,
        "secret": list(row.spec.secret or ()),
        **{key: spec.get(key) for key in ("header", "algorithm", "encoding", "prefix", "params", "dedupe", "rate")},
        "filter": spec["filter"],
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def receipt_summary(row: Receipt) -> dict[str, Any]:
    return {
        "id": ids.encode(ids.RECEIPT, row.id),
        "webhook": ids.encode(ids.WEBHOOK, row.webhook_id),
        "verdict": str(row.verdict),
        "reason": row.head.get("reason"),
        "job": None if row.job_id is None else ids.encode(ids.JOB, row.job_id),
        "delivery": row.head.get("delivery"),
        "replay_of": row.head.get("replay_of"),
        "size": row.head["size"],
        "at": rfc3339(row.at),
    }


def receipt_view(row: Receipt, body: bytes | None) -> dict[str, Any]:
    try:
        text = None if body is None else body.decode()
    except UnicodeDecodeError:
        text = None
    binary = body is not None and text is None
    return receipt_summary(row) | {
        "headers": row.head["headers"],
        "query": row.head["query"],
        "body": text,
        "body_base64": base64.b64encode(body or b"").decode() if binary else None,
        "truncated": body is not None and len(body) < row.head["size"],
    }


def _read(document: Any) -> tuple[WebhookRequest, WebhookSpec]:
    """What is wished for; raises ``Invalid`` with pointers into the body."""
    if not isinstance(document, dict):
        raise Invalid("a webhook is an object with function, name and verify", errors=[FieldError("", "not an object")])
    try:
        given = WebhookRequest.model_validate(document)
    except ValidationError as error:
        found = faults.of_pydantic(error, WebhookRequest)
        faults.raise_all([replace(each, code="invalid") if each.code == INVALID else each for each in found])
        raise
    return given, WebhookSpec.model_validate({key: value for key, value in document.items() if key != "function"})


def _named(request: Request) -> WebhookId:
    found = ids.decode(ids.WEBHOOK, request.path_params["id"])
    if found is None:
        raise webhooks.not_found()
    return WebhookId(found)


async def _receipt(request: Request) -> tuple[WebhookRow, Receipt]:
    project, webhook = caller(request).project_id, _named(request)
    found = ids.decode(ids.RECEIPT, request.path_params["receipt"])
    async with services(request).pool.acquire() as conn:
        row = await webhooks.get(conn, project, webhook)
        if found is None:
            raise receipts.not_found()
        return row, await receipts.get(conn, project, webhook, ReceiptId(found))


ROUTES = (
    Route("GET", "/v1/webhooks", list_webhooks, "List webhooks", Scope.READ,
          query=WebhooksQuery, answers={200: WebhookList}, tag="webhooks"),
    Route("POST", "/v1/webhooks", add_webhook, "Add a webhook to a function", Scope.WRITE,
          body=WebhookRequest, answers={201: WebhookView}, tag="webhooks"),
    Route("GET", "/v1/webhooks/{id}", get_webhook, "Show a webhook", Scope.READ,
          answers={200: WebhookView}, tag="webhooks"),
    Route("DELETE", "/v1/webhooks/{id}", delete_webhook, "Delete a webhook", Scope.WRITE,
          answers={204: None}, tag="webhooks"),
    Route("POST", "/v1/webhooks/{id}/disable", disable_webhook, "Let a webhook answer 404", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: WebhookView}, tag="webhooks"),
    Route("POST", "/v1/webhooks/{id}/enable", enable_webhook, "Let a webhook be called again", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: WebhookView}, tag="webhooks"),
    Route("GET", "/v1/webhooks/{id}/receipts", list_receipts, "List what came in", Scope.READ,
          query=ReceiptsQuery, answers={200: ReceiptList}, tag="webhooks"),
    Route("GET", "/v1/webhooks/{id}/receipts/{receipt}", get_receipt, "Show what came in", Scope.READ,
          answers={200: ReceiptView}, tag="webhooks"),
    Route("POST", "/v1/webhooks/{id}/receipts/{receipt}/replay", replay_receipt, "Run a request once more",
          Scope.WRITE, body=NothingMore, body_required=False, headers=ReplayHeaders,
          answers={200: JobView, 202: JobView}, tag="webhooks"),
)  # fmt: skip
