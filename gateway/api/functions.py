"""/v1/functions: apply, read, delete, versions, rollback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any
from uuid import UUID

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import registry, versions
from functions.chaining import lock_chains
from functions.db import Connection
from functions.documents import load_json, pointer
from functions.egress import refused_names
from functions.errors import FieldError, Invalid
from functions.ids import FunctionId, ProjectId
from functions.manifest import LARGEST_BYTES, Manifest, parse_manifest
from functions.registry import FunctionRow
from functions.versions import Version
from gateway.api import paging
from gateway.api.models import NothingMore
from gateway.api.models.functions import AppliedView, Change, ChangeList, FunctionList, FunctionView, VersionList
from gateway.api.paging import PageQuery
from gateway.body import JSON
from gateway.routes import Route, Scope, caller, content_type, read_body, read_query, read_raw, services
from gateway.services import Services
from scheduler import cancelling, gates, pauses, withdrawing
from scheduler.gates import GateId
from scheduler.relimiting import relimit_once
from scheduler.views import rfc3339
from scheduler.wakeups import Topic

log = structlog.get_logger(__name__)

YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
CANCELLED_AT_ONCE = 1000
MOVED_AT_ONCE = 500
RELIMIT_S = 5.0
"""So long one request makes changed limits hold for jobs that are there; a round does the rest."""
SEVERAL, SEVERAL_BYTES, SEVERAL_FAULTS = 500, 4 * 1024 * 1024, 100
"""Manifests of one request."""


class Manifests(BaseModel):
    model_config = ConfigDict(extra="forbid")

    manifests: list[dict[str, Any]] = Field(min_length=1, max_length=SEVERAL)


class ApplyQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(False, description="Check everything, say what would change, and change nothing.")


def _labels(text: str) -> str:
    for pair in text.split(","):
        if not all(pair.partition("=")):
            raise ValueError("takes labels as name=value, with commas between them")
    return text


class FunctionsQuery(PageQuery):
    label: Annotated[str, AfterValidator(_labels)] | None = Field(
        None, description="Only functions with these labels: `team=media,stage=live`."
    )


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=2**31 - 1)


async def apply(request: Request) -> Response:
    """PUT /v1/functions/{name}: make the function, or a new version of it if its spec changed."""
    opened, who, query = services(request), caller(request), read_query(request, ApplyQuery)
    data = await read_raw(request, LARGEST_BYTES, media_types=(JSON, *YAML))
    # A large manifest takes a while, and other requests must not wait for it.
    manifest = await asyncio.to_thread(_parse, opened, data, content_type(request) != JSON)
    if manifest.metadata.name != request.path_params["name"]:
        fault = FieldError("/metadata/name", f"is not {request.path_params['name'][:63]}, as the address says")
        raise Invalid("the manifest is another function's", errors=[fault])
    await _check_callbacks(opened, [manifest])
    if query.dry_run:
        (planned,) = await _apply_all(opened, who.project_id, [manifest], dry_run=True)
        return JSONResponse(planned)
    async with opened.pool.acquire() as conn, conn.transaction():
        applied = await registry.apply(conn, who.project_id, manifest)
    await _set_limits(opened, applied.function)
    body = function_view(applied.function) | {"changed": applied.changed}
    return JSONResponse(body, 201 if applied.created else 200)


async def apply_several(request: Request) -> Response:
    """POST /v1/functions: apply manifests together, all of them or none; pointers begin with `/manifests/{index}`."""
    opened, who, query = services(request), caller(request), read_query(request, ApplyQuery)
    data = await read_raw(request, SEVERAL_BYTES, media_types=(JSON,))
    manifests = await asyncio.to_thread(_parse_several, opened, data)
    await _check_callbacks(opened, manifests)
    applied = await _apply_all(opened, who.project_id, manifests, dry_run=query.dry_run)
    enough_s = time.monotonic() + RELIMIT_S  # for all of them together
    for name in [] if query.dry_run else [each["name"] for each in applied if each["changed"]]:
        async with opened.pool.acquire() as conn:
            row = await registry.find(conn, who.project_id, name)
        if row is not None:
            await _set_limits(opened, row, enough_s)
    return JSONResponse({"data": applied})


async def _check_callbacks(opened: Services, manifests: Sequence[Manifest]) -> None:
    """Refuse callbacks whose names lead to where nothing may be sent."""
    places = [
        (index, position, callback.url)
        for index, manifest in enumerate(manifests)
        for position, callback in enumerate(manifest.spec.callbacks)
        if callback.url is not None
    ]
    refused = await refused_names([url for *_, url in places], opened.callback_egress)
    for index, position, url in places:
        if (error := refused.get(url)) is not None:
            fault = FieldError(f"/spec/callbacks/{position}/url", error.message)
            invalid = Invalid(f"{fault.pointer}: {error.message}", code=error.code, errors=[fault])
            raise invalid if len(manifests) == 1 else _at(index, invalid)


async def _apply_all(
    opened: Services, project: ProjectId, manifests: Sequence[Manifest], *, dry_run: bool
) -> list[dict[str, Any]]:
    """What each apply changed. A dry run is done and taken back, so that nothing is checked differently."""
    found: dict[int, dict[str, Any]] = {}
    async with opened.pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        try:
            # Two sets may have the same functions in other orders: one comes after the other.
            await lock_chains(conn, project)
            for index in chains_last(manifests):
                try:
                    found[index] = await _apply_shown(conn, project, manifests[index])
                except Invalid as error:
                    raise error if len(manifests) == 1 else _at(index, error) from None
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if dry_run else transaction.commit())
    return [found[index] for index in range(len(manifests))]


async def _apply_shown(conn: Connection, project: ProjectId, manifest: Manifest) -> dict[str, Any]:
    before = await registry.find(conn, project, manifest.metadata.name)
    applied = await registry.apply(conn, project, manifest)
    return {
        "name": applied.function.name,
        "version": applied.function.version.number,
        "created": applied.created,
        "changed": applied.changed,
        "manifest": applied.function.version.manifest.normalised(),
        "before": None if before is None else before.version.manifest.normalised(),
    }


def chains_last(manifests: Sequence[Manifest]) -> list[int]:
    """An order in which the functions that a manifest's callbacks name come before it, where they are among them."""
    index_of = {manifest.metadata.name: index for index, manifest in enumerate(manifests)}
    graph = TopologicalSorter[int]()
    for index, manifest in enumerate(manifests):
        names = [callback.function for callback in manifest.spec.callbacks if callback.function is not None]
        graph.add(index, *(index_of[name] for name in names if name in index_of))
    try:
        return list(graph.static_order())
    except CycleError:
        return list(range(len(manifests)))  # the apply itself says what is wrong with it


def _parse_several(opened: Services, data: bytes) -> list[Manifest]:
    given = load_json(data)
    if isinstance(given, dict) and (unknown := given.keys() - {"manifests"}):
        faults = [FieldError(pointer(name), "unknown key") for name in sorted(unknown)[:SEVERAL_FAULTS]]
        raise Invalid("the body has an unknown key", errors=faults)
    documents = given.get("manifests") if isinstance(given, dict) else None
    if not isinstance(documents, list) or not 1 <= len(documents) <= SEVERAL:
        fault = FieldError("/manifests", f"must be a list of 1 to {SEVERAL} manifests")
        raise Invalid("manifests are applied as a list", errors=[fault])
    manifests: list[Manifest] = []
    refused: list[Invalid] = []
    for index, document in enumerate(documents):
        try:
            manifest = _parse(opened, json.dumps(document).encode(), yaml=False)
            if any(other.metadata.name == manifest.metadata.name for other in manifests):
                twice = FieldError("/metadata/name", "another manifest of these has this name")
                raise Invalid("two manifests are one function's", errors=[twice])
            manifests.append(manifest)
        except Invalid as error:
            refused.append(_at(index, error))
    if refused:
        errors = [fault for error in refused for fault in error.errors]
        codes = {error.code for error in refused}
        raise Invalid(
            f"{len(refused)} of {len(documents)} manifests break a rule",
            code=codes.pop() if len(codes) == 1 else "manifest_invalid",
            errors=errors[:SEVERAL_FAULTS],
        )
    return manifests


def _at(index: int, error: Invalid) -> Invalid:
    """The error, with pointers into the list."""
    faults = error.errors or (FieldError("", error.message),)
    moved = [FieldError(pointer("manifests", index) + fault.pointer, fault.message) for fault in faults]
    return Invalid(error.message, code=error.code, errors=moved)


def _parse(opened: Services, data: bytes, yaml: bool) -> Manifest:
    manifest = parse_manifest(
        data, yaml=yaml, policy=opened.egress, callbacks=opened.callback_egress, runtimes=opened.settings.runtimes
    )
    manifest.slots(opened.sizing.slot_memory, opened.sizing.max_slots)
    return manifest


async def list_functions(request: Request) -> Response:
    """GET /v1/functions: the project's functions, the newest first."""
    query = read_query(request, FunctionsQuery)
    before = paging.start(request, query)
    labels = dict(pair.split("=", 1) for pair in query.label.split(",")) if query.label else None
    async with services(request).pool.acquire() as conn:
        rows = await registry.list_functions(
            conn,
            caller(request).project_id,
            limit=query.limit + 1,
            before=None if before is None else FunctionId(before),
            labels=labels,
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
        waiting = await withdrawing.unfinished_of(conn, project, function)
        for first in range(0, len(waiting), CANCELLED_AT_ONCE):
            await cancelling.cancel(conn, project, waiting[first : first + CANCELLED_AT_ONCE])
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
    await _set_limits(services(request), row)
    return JSONResponse(function_view(row))


async def _set_limits(opened: Services, function: FunctionRow, enough_s: float | None = None) -> None:
    """After the commit: it waits for the locks of gates, which others hold while they wait for one another's. What it
    does not come to, or if it fails, is done by a round."""
    try:
        within_s = RELIMIT_S if enough_s is None else enough_s - time.monotonic()
        ready = await relimit_once(opened.hot_pool, opened.store, function=function.id, within_s=within_s)
    except Exception as error:  # the apply is done, and must not fail for what is made good
        log.warning("limits not changed, the scheduler will", function=function.name, error=type(error).__name__)
        return
    if ready:
        opened.wakeups.hint(Topic.READY)


async def pause(request: Request) -> Response:
    """POST /v1/functions/{name}/pause: jobs of the function wait, those that run finish. Again, it changes nothing."""
    await read_body(request, NothingMore)
    opened, project = services(request), caller(request).project_id
    async with opened.pool.acquire() as conn:
        row = await registry.set_paused(conn, project, request.path_params["name"], paused=True)
        while await pauses.pause(conn, project, row.id, limit=MOVED_AT_ONCE) == MOVED_AT_ONCE:
            pass
    return JSONResponse(function_view(row))


async def resume(request: Request) -> Response:
    """POST /v1/functions/{name}/resume: its jobs go on in the order in which they came."""
    await read_body(request, NothingMore)
    opened, project = services(request), caller(request).project_id
    reached: set[GateId] = set()
    async with opened.hot_pool.acquire() as conn:
        row = await registry.set_paused(conn, project, request.path_params["name"], paused=False)
        while await pauses.resume(conn, row.id, limit=MOVED_AT_ONCE, reached=reached) == MOVED_AT_ONCE:
            pass
        await gates.advance_function(conn, row.id)
    opened.wakeups.hint(Topic.READY)
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
        "paused": row.paused,
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
          body=(JSON, *YAML), query=ApplyQuery, answers={200: (AppliedView, Change), 201: AppliedView},
          tag="functions"),
    Route("POST", "/v1/functions", apply_several, "Apply several manifests, all or none", Scope.WRITE,
          body=Manifests, query=ApplyQuery, answers={200: ChangeList}, tag="functions"),
    Route("GET", "/v1/functions", list_functions, "List functions", Scope.READ,
          query=FunctionsQuery, answers={200: FunctionList}, tag="functions"),
    Route("GET", "/v1/functions/{name}", get_function, "Show a function", Scope.READ,
          answers={200: FunctionView}, tag="functions"),
    Route("DELETE", "/v1/functions/{name}", delete, "Delete a function", Scope.WRITE,
          answers={204: None}, tag="functions"),
    Route("GET", "/v1/functions/{name}/versions", list_versions, "List a function's versions", Scope.READ,
          query=PageQuery, answers={200: VersionList}, tag="functions"),
    Route("POST", "/v1/functions/{name}/rollback", rollback, "Go back to an earlier version", Scope.WRITE,
          body=RollbackRequest, answers={200: FunctionView}, tag="functions"),
    Route("POST", "/v1/functions/{name}/pause", pause, "Let a function's jobs wait", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: FunctionView}, tag="functions"),
    Route("POST", "/v1/functions/{name}/resume", resume, "Let a function's jobs go on", Scope.WRITE,
          body=NothingMore, body_required=False, answers={200: FunctionView}, tag="functions"),
)  # fmt: skip
