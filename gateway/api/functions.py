"""/v1/functions: apply, read, delete, versions, rollback."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import registry, versions
from functions.errors import FieldError, Invalid
from functions.ids import FunctionId
from functions.manifest import LARGEST_BYTES, Manifest, parse_manifest
from functions.registry import FunctionRow
from functions.versions import Version
from gateway.api import paging
from gateway.api.models import AppliedView, FunctionList, FunctionView, VersionList
from gateway.api.paging import PageQuery
from gateway.body import JSON
from gateway.routes import Route, Scope, caller, content_type, read_body, read_query, read_raw, services
from gateway.services import Services
from scheduler import jobs, queue
from scheduler.views import rfc3339
from scheduler.wakeups import Topic

YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
CANCELLED_AT_ONCE = 1000


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=2**31 - 1)


async def apply(request: Request) -> Response:
    """PUT /v1/functions/{name}: make the function, or a new version of it if its spec changed."""
    opened, who = services(request), caller(request)
    data = await read_raw(request, LARGEST_BYTES, media_types=(JSON, *YAML))
    # A large manifest takes a while, and other requests must not wait for it.
    manifest = await asyncio.to_thread(_parse, opened, data, content_type(request) != JSON)
    if manifest.metadata.name != request.path_params["name"]:
        fault = FieldError("/metadata/name", f"is not {request.path_params['name'][:63]}, as the address says")
        raise Invalid("the manifest is another function's", errors=[fault])
    async with opened.pool.acquire() as conn, conn.transaction():
        applied = await registry.apply(conn, who.project_id, manifest)
    body = function_view(applied.function) | {"changed": applied.changed}
    return JSONResponse(body, 201 if applied.created else 200)


def _parse(opened: Services, data: bytes, yaml: bool) -> Manifest:
    manifest = parse_manifest(data, yaml=yaml, policy=opened.egress)
    manifest.slots(opened.sizing.slot_memory, opened.sizing.max_slots)
    return manifest


async def list_functions(request: Request) -> Response:
    """GET /v1/functions: the project's functions, the newest first."""
    query = read_query(request, PageQuery)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        rows = await registry.list_functions(
            conn,
            caller(request).project_id,
            limit=query.limit + 1,
            before=None if before is None else FunctionId(before),
        )
    return paging.page(request, rows, query, function_view, lambda row: row.id)


async def get_function(request: Request) -> Response:
    """GET /v1/functions/{name}: the function with its current version."""
    async with services(request).pool.acquire() as conn:
        row = await registry.get(conn, caller(request).project_id, request.path_params["name"])
    return JSONResponse(function_view(row))


async def delete(request: Request) -> Response:
    """DELETE /v1/functions/{name}: queued jobs end cancelled, running ones finish, history stays."""
    opened, project = services(request), caller(request).project_id
    async with opened.pool.acquire() as conn, conn.transaction():
        function = await registry.delete(conn, project, request.path_params["name"])
        waiting = await queue.unfinished_of(conn, project, function)
        for first in range(0, len(waiting), CANCELLED_AT_ONCE):
            await jobs.cancel(conn, project, waiting[first : first + CANCELLED_AT_ONCE])
    if waiting:
        opened.wakeups.hint(Topic.OUTCOME)
        opened.wakeups.hint(Topic.DELIVERY)
    return Response(status_code=204)


async def list_versions(request: Request) -> Response:
    """GET /v1/functions/{name}/versions: every version, the newest first."""
    query = read_query(request, PageQuery)
    before = paging.start(request, query)
    async with services(request).pool.acquire() as conn:
        rows = await versions.list_versions(
            conn,
            caller(request).project_id,
            request.path_params["name"],
            limit=query.limit + 1,
            before=None if before is None else before.int,
        )
    return paging.page(request, rows, query, version_view, lambda version: UUID(int=version.number))


async def rollback(request: Request) -> Response:
    """POST /v1/functions/{name}/rollback: make an earlier version the current one again."""
    body = await read_body(request, RollbackRequest)
    async with services(request).pool.acquire() as conn, conn.transaction():
        row = await registry.rollback(
            conn, caller(request).project_id, request.path_params["name"], body.version
        )
    return JSONResponse(function_view(row))


def function_view(row: FunctionRow) -> dict[str, Any]:
    manifest = row.version.manifest
    return {
        "name": row.name,
        "description": manifest.metadata.description or "",
        "labels": manifest.metadata.labels,
        "version": row.version.number,
        "manifest": manifest.normalised(),
        "image_digest": row.version.image_digest,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


def version_view(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "image": version.manifest.spec.job.image,
        "image_digest": version.image_digest,
        "created_at": rfc3339(version.created_at),
    }


ROUTES = (
    Route("PUT", "/v1/functions/{name}", apply, "Apply a manifest", Scope.WRITE,
          body=(JSON, *YAML), answers={200: AppliedView, 201: AppliedView}, tag="functions"),
    Route("GET", "/v1/functions", list_functions, "List functions", Scope.READ,
          query=PageQuery, answers={200: FunctionList}, tag="functions"),
    Route("GET", "/v1/functions/{name}", get_function, "Show a function", Scope.READ,
          answers={200: FunctionView}, tag="functions"),
    Route("DELETE", "/v1/functions/{name}", delete, "Delete a function", Scope.WRITE,
          answers={204: None}, tag="functions"),
    Route("GET", "/v1/functions/{name}/versions", list_versions, "List a function's versions", Scope.READ,
          query=PageQuery, answers={200: VersionList}, tag="functions"),
    Route("POST", "/v1/functions/{name}/rollback", rollback, "Go back to an earlier version", Scope.WRITE,
          body=RollbackRequest, answers={200: FunctionView}, tag="functions"),
)  # fmt: skip
