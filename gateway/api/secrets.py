"""/v1/secrets: set, list and delete a project's secrets. No call shows what one holds."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import secrets
from functions.jobspec import check_secret_name
from functions.secrets import LARGEST_BYTES, Secret
from gateway.api import paging
from gateway.api.models import View
from gateway.api.paging import PageQuery
from gateway.routes import Route, Scope, caller, read_body, read_query, services
from scheduler.views import rfc3339


def _name(name: str) -> str:
    check_secret_name(name)
    return name


def _value(value: str) -> str:
    if len(value.encode()) > LARGEST_BYTES:
        raise ValueError(f"has more than {LARGEST_BYTES // 1024} KiB")
    return value


class SecretRequest(BaseModel):
    # A value must not come back in an error, nor stand in a log by way of its model.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_name)]
    value: Annotated[str, AfterValidator(_value), Field(min_length=1, repr=False)]


class SecretView(View):
    """``used_by``: functions that name it, in triggers and callbacks too; and ids of callbacks of the project."""

    name: str
    used_by: list[str]
    created_at: datetime
    updated_at: datetime


class SecretList(View):
    data: list[SecretView]
    next_cursor: str | None


async def put(request: Request) -> Response:
    """POST /v1/secrets: set a secret; one of this name is replaced, for every attempt that starts from now on."""
    body = await read_body(request, SecretRequest)
    opened = services(request)
    async with opened.pool.acquire() as conn:
        secret, created = await secrets.put(
            conn, opened.sealer, caller(request).project_id, body.name, body.value.encode()
        )
    return JSONResponse(secret_view(secret), 201 if created else 200)


async def list_secrets(request: Request) -> Response:
    """GET /v1/secrets: names, times and the functions that use them, the newest first; never values."""
    query = read_query(request, PageQuery)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        rows = await secrets.list_secrets(conn, caller(request).project_id, limit=query.limit + 1, before=before)
    return paging.page(request, rows, query, secret_view, lambda row: row.id)


async def delete(request: Request) -> Response:
    """DELETE /v1/secrets/{name}: forget a secret. Jobs that need it fail with `secret_missing` from now on."""
    async with services(request).pool.acquire() as conn:
        await secrets.delete(conn, caller(request).project_id, request.path_params["name"])
    return Response(status_code=204)


def secret_view(secret: Secret) -> dict[str, Any]:
    return {
        "name": secret.name,
        "used_by": list(secret.used_by),
        "created_at": rfc3339(secret.created_at),
        "updated_at": rfc3339(secret.updated_at),
    }


ROUTES = (
    Route("POST", "/v1/secrets", put, "Set a secret", Scope.WRITE,
          body=SecretRequest, answers={200: SecretView, 201: SecretView}, tag="secrets"),
    Route("GET", "/v1/secrets", list_secrets, "List secrets", Scope.WRITE,
          query=PageQuery, answers={200: SecretList}, tag="secrets"),
    Route("DELETE", "/v1/secrets/{name}", delete, "Delete a secret", Scope.WRITE,
          answers={204: None}, tag="secrets"),
)  # fmt: skip
