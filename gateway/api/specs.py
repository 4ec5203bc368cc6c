"""/v1/jobs/{id}/spec: what a job runs, with its params filled in: enough to run it somewhere else."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids, versions
from functions.artifacts import Store
from functions.db import Connection, Row
from functions.errors import NotFound
from functions.jobspec import render
from functions.versions import Version
from gateway.api.jobs import named
from gateway.api.models import View
from gateway.offers import image_of, input_of
from gateway.routes import Route, Scope, caller, services
from nodes.protocol import Image, Input, Resources
from scheduler.spill import loaded

LINK_S = 3600

WHAT_IT_RUNS = """
-- what_a_job_runs
SELECT version_id, params, trigger FROM jobs WHERE project_id = $1 AND id = $2
"""


class SpecView(View):
    """What an attempt of the job runs. ``secrets`` are names; links of inputs work for an hour."""

    job: str
    function: str | None
    version: int
    image: Image
    command: list[str] | None
    env: dict[str, str]
    secrets: list[str]
    resources: Resources
    inputs: list[Input]
    params: dict[str, Any]
    timeout_s: float
    grace_s: float
    network: bool
    user: int


async def read_spec(request: Request) -> Response:
    """GET /v1/jobs/{id}/spec: the job's image, command, variables, limits and inputs, as its node got them."""
    opened, project, job = services(request), caller(request).project_id, named(request)
    async with opened.pool.acquire() as conn:
        row = await conn.fetchrow(WHAT_IT_RUNS, project, job)
        if row is None:
            raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
        version = (await versions.by_ids(conn, [row["version_id"]]))[row["version_id"]]
        return JSONResponse(await _spec(conn, opened.store, ids.encode(ids.JOB, job), version, row))


async def _spec(conn: Connection, store: Store, name: str, version: Version, row: Row) -> dict[str, Any]:
    job = version.manifest.spec.job
    params = json.loads(await loaded(conn, store, version.project_id, row["params"]))
    rendered = render(
        version.manifest.spec,
        params=params,
        trigger=json.loads(row["trigger"]),
        job_id=name,
        function=version.function_name,
        version=version.number,
    )
    view = SpecView(
        job=name,
        function=version.function_name,
        version=version.number,
        image=await image_of(conn, store, version.project_id, version, link_s=LINK_S, login=None),
        command=rendered.command,
        env=rendered.env,
        secrets=list(job.secrets),
        resources=Resources(cpu=job.resources.cpu, memory_bytes=job.resources.memory, disk_bytes=job.resources.disk),
        inputs=[await input_of(conn, store, version.project_id, each, LINK_S) for each in rendered.inputs],
        params=params,
        timeout_s=job.timeout.total_seconds(),
        grace_s=job.grace.total_seconds(),
        network=job.network,
        user=job.user,
    )
    return view.model_dump(mode="json")


ROUTES = (
    Route("GET", "/v1/jobs/{id}/spec", read_spec, "What a job runs", Scope.WRITE, answers={200: SpecView}, tag="jobs"),
)
