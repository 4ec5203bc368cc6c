"""POST /v1/jobs: a job without a function. Its spec is in the request, as a manifest has it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import faults, registry
from functions.errors import FieldError, Invalid
from functions.faults import Fault
from functions.manifest import Manifest, parse_manifest
from gateway.api.invoke import RunHeaders, dry_run, made_before, read_asked
from gateway.api.models import View
from gateway.api.models.invoking import DryRun
from gateway.api.models.jobs import JobView
from gateway.api.submitting import replay, submit
from gateway.prefer import read_prefer
from gateway.routes import Route, Scope, caller, read_body, read_headers, read_query, services
from gateway.services import Services
from scheduler import preparing
from scheduler.inputs import check_inputs

SPEC = "/spec"


class OneOffRequest(View):
    """``job``, ``retry``, ``queue`` and ``callbacks`` are those of a manifest's ``spec``; ``params`` are values."""

    job: dict[str, Any]
    retry: dict[str, Any] | None = None
    queue: dict[str, Any] | None = None
    callbacks: list[dict[str, Any]] | None = None
    params: dict[str, Any] = Field({}, description="What `{{ params.… }}` stands for.")


class OneOffQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(False, description="Check everything and make no job.")


async def run(request: Request) -> Response:
    """POST /v1/jobs: 202 with the job; with `Prefer: wait` 200 with the finished one, if it finishes in time.

    Jobs of one spec share a version: the image that the first of them pulled is the image of all.
    """
    opened, who = services(request), caller(request)
    query, headers = read_query(request, OneOffQuery), read_headers(request, RunHeaders)
    asked = read_asked(request, headers)
    preference = read_prefer(headers.prefer)
    body = await read_body(request, OneOffRequest)
    given = body.model_dump(exclude_unset=True)
    hashed = hashlib.sha256(b"job " + json.dumps(given, sort_keys=True).encode()).digest()
    invocation = replace(asked, params=body.params, body_hash=hashed)
    given.pop("params", None)
    with _pointers():
        manifest = await asyncio.to_thread(_parse, opened, given)
    async with opened.pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        try:
            with _pointers():
                version = await registry.one_off(conn, who.project_id, manifest)
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.rollback() if query.dry_run else transaction.commit())
    try:
        with _pointers("/params"):
            new = preparing.prepare(who.project_id, version, invocation, opened.sizing)
            await check_inputs(opened.pool, new, opened.egress)
    except Invalid:
        # A repeat has its answer, whatever has become of its inputs since.
        if (before := await made_before(request, version, invocation)) is None:
            raise
        return await replay(request, before, preference)
    if query.dry_run:
        return JSONResponse(dry_run(version, new))
    return await submit(request, new, version, preference)


def _parse(opened: Services, spec: dict[str, Any]) -> Manifest:
    document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": "job"}, "spec": spec}
    text = json.dumps(document).encode()
    manifest = parse_manifest(
        text, yaml=False, policy=opened.egress, callbacks=opened.callback_egress, runtimes=opened.settings.runtimes
    )
    queue = manifest.spec.queue
    if queue is not None:
        limits = [key for key in ("concurrency", "rate") if getattr(queue, key) is not None]
        # Jobs of one spec have nothing else in common.
        faults.raise_all([Fault(f"{SPEC}/queue/{key}", "limits a function, and this job has none") for key in limits])
    manifest.slots(opened.sizing.slot_memory, opened.sizing.max_slots)
    return manifest


@contextmanager
def _pointers(params: str = "") -> Iterator[None]:
    """Faults point into the request: what is a manifest's ``spec`` stands at its top, and params below ``params``."""
    try:
        yield
    except Invalid as error:
        faults = [FieldError(_moved(fault.pointer, params), fault.message) for fault in error.errors]
        message = error.message.replace(f"{SPEC}/", "/")
        raise Invalid(message, code=error.code, errors=faults) from None


def _moved(pointer: str, params: str) -> str:
    of_spec = pointer == SPEC or pointer.startswith((f"{SPEC}/job/", f"{SPEC}/queue/")) or not params
    return pointer.removeprefix(SPEC) if of_spec else params + pointer


ROUTES = (
    Route("POST", "/v1/jobs", run, "Run a job without a function", Scope.WRITE,
          body=OneOffRequest, query=OneOffQuery, headers=RunHeaders, answers={200: (JobView, DryRun), 202: JobView},
          tag="jobs"),
)  # fmt: skip
