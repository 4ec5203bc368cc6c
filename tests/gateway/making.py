"""What tests of the API make: functions, other projects, nodes, and jobs that run and end without a container."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx

from functions import artifacts, ids
from functions.artifacts import NewFile
from functions.ids import AccountId, JobId, NodeId, ProjectId
from gateway.auth import add_key
from gateway.keys import digest
from gateway.services import Services
from nodes import registry
from nodes.protocol import JoinRequest
from scheduler import claiming, finishing
from scheduler.claiming import Claimed
from scheduler.finishing import Report
from scheduler.wakeups import Topic
from tests.gateway.conftest import client_of

LEASE = timedelta(seconds=60)
SECRET = "TOKEN"

ADD_PROJECT = """
WITH account AS (
    INSERT INTO accounts (slug) VALUES ($1) RETURNING id
), project AS (
    INSERT INTO projects (account_id, slug, callback_secret) SELECT id, $1, $2 FROM account RETURNING id, account_id
), clock AS (
    INSERT INTO pool_clocks (pool) SELECT id FROM account
), flow AS (
    INSERT INTO flows (project_id, pool) SELECT id, account_id FROM project
)
SELECT id FROM project
"""


def manifest(name: str = "thumbnail", **spec: Any) -> dict[str, Any]:
    """A manifest with a param that is required and one that has a default."""
    params = {
        "type": "object",
        "required": ["video"],
        "additionalProperties": False,
        "properties": {
            "video": {"type": "string"},
            "width": {"type": "integer", "default": 320, "minimum": 16, "maximum": 4096},
        },
    }
    job = {"image": "busybox:1", "command": ["true", "{{ params.video }}", "{{ params.width }}"]}
    return {
        "apiVersion": "rgrid/v1",
        "kind": "Function",
        "metadata": {"name": name, "description": "First frame", "labels": {"team": "media"}},
        "spec": {"params": params, "job": job} | spec,
    }


async def make_function(api: httpx.AsyncClient, name: str = "thumbnail", **spec: Any) -> dict[str, Any]:
    answer = await api.put(f"/v1/functions/{name}", json=manifest(name, **spec))
    assert answer.status_code in (200, 201), answer.text
    made: dict[str, Any] = answer.json()
    return made


async def make_job(api: httpx.AsyncClient, name: str = "thumbnail", **options: Any) -> dict[str, Any]:
    answer = await api.post(f"/v1/functions/{name}/invoke", json={"video": "v"}, **options)
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    return made


@asynccontextmanager
async def project_client(services: Services, scopes: tuple[str, ...] = ("admin",)) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another project, in an account of its own."""
    async with services.pool.acquire() as conn:
        secret = services.sealer.seal(b"whsec_" + b"A" * 32)
        project = ProjectId(await conn.fetchval(ADD_PROJECT, f"p-{uuid4().hex[:12]}", secret))
        key = await add_key(conn, project, name="test", scopes=scopes)
    async with client_of(services, key.text) as client:
        yield client


@asynccontextmanager
async def key_client(services: Services, *scopes: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of project default whose key may do less."""
    async with services.pool.acquire() as conn:
        project = await conn.fetchval("SELECT id FROM projects WHERE slug = 'default'")
        key = await add_key(conn, project, name="test", scopes=scopes)
    async with client_of(services, key.text) as client:
        yield client


async def make_node(services: Services, account: AccountId | None = None, slots: int = 8) -> NodeId:
    return (await join_node(services, account, slots))[0]


async def join_node(
    services: Services, account: AccountId | None = None, slots: int = 8
) -> tuple[NodeId, str]:
    """A node that is ready, and its credential."""
    credential = uuid4().hex * 2
    async with services.pool.acquire() as conn:
        minted = await registry.mint_join_token(
            conn, name="n1", provider="local", slots=slots, account_id=account, ttl=timedelta(hours=1)
        )
        hashed = digest(credential).hex()
        request = JoinRequest(
            token=minted.token, credential_sha256=hashed, slots=slots, version="0", facts={"hostname": "h1"}
        )
        return await registry.join(conn, request), credential


async def claim(services: Services, node: NodeId, slots: int = 8) -> list[Claimed]:
    async with services.pool.acquire() as conn:
        pools = [row["pool"] for row in await conn.fetch("SELECT pool FROM pool_clocks")]
        return await claiming.claim(
            conn, services.clocks, node, pools=pools, free_slots=slots, node_slots=slots, lease=LEASE
        )


async def claim_one(services: Services, node: NodeId) -> Claimed:
    """The next job, once there is one."""
    async with asyncio.timeout(5):
        while not (found := await claim(services, node, slots=1)):
            await asyncio.sleep(0.01)
    return found[0]


async def finish(services: Services, node: NodeId, claimed: Claimed, **report: Any) -> str:
    """End an attempt as a node does: with success unless the report says something else."""
    ending = Report(claimed.token, **({"status": "succeeded", "exit_code": 0} | report))
    async with services.pool.acquire() as conn, conn.transaction():
        status = await finishing.finish(conn, node, claimed.job_id, ending)
    services.wakeups.hint(Topic.OUTCOME)
    return status


def job_id(job: dict[str, Any]) -> JobId:
    found = ids.decode(ids.JOB, job["id"])
    assert found is not None
    return JobId(found)


async def until(what: Any, timeout_s: float = 5) -> None:
    """Return when ``what()`` is true."""
    async with asyncio.timeout(timeout_s):
        while not what():
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class OneOfEach:
    """Names and ids of things that exist in a project, as addresses have them."""

    function: str
    job: str
    artifact: str
    token: str
    delivery: str
    node: str
    node_credential: str
    batch: str = f"bat_{'0' * 32}"
    schedule: str = f"sch_{'0' * 32}"
    callback: str = f"cb_{'0' * 32}"
    webhook: str = f"whk_{'0' * 32}"
    receipt: str = f"rcp_{'0' * 32}"

    def of(self, path: str) -> dict[str, str]:
        """Values for the parameters of a path of the table; ``KeyError`` for one that is new to this."""
        if path == "/r/{token}":
            return {"token": self.token}
        if path.startswith("/node/"):
            return {"job": self.job} if "{job}" in path else {}
        if "{" not in path:
            return {}
        if path.startswith("/f/"):
            return {"project": "default", "function": self.function} | ({"id": self.job} if "{id}" in path else {})
        if path.startswith("/hooks/"):
            return {"project": "default", "function": self.function, "webhook": "in"}
        if path.startswith("/v1/webhooks/"):
            return {"id": self.webhook} | ({"receipt": self.receipt} if "{receipt}" in path else {})
        if path.startswith("/callback-keys/"):
            return {"project": "default"}
        resource = path.split("/")[2]
        if resource == "functions":
            return {"name": self.function}
        if resource == "secrets":
            return {"name": SECRET}
        ids = {"jobs": self.job, "artifacts": self.artifact, "deliveries": self.delivery, "nodes": self.node,
               "batches": self.batch, "schedules": self.schedule, "callbacks": self.callback}  # fmt: skip
        return {"id": ids[resource]}


async def make_one_of_each(services: Services, api: httpx.AsyncClient) -> OneOfEach:
    """A function, a job of it that has succeeded with a file and a callback, and the node that ran it."""
    await make_function(api)
    job = await make_job(api, headers={"X-Callback-Url": "https://example.com/hook"})
    async with services.pool.acquire() as conn:
        account, project = await conn.fetchrow(
            "SELECT account_id, projects.id FROM projects JOIN jobs ON projects.id = project_id WHERE jobs.id = $1",
            job_id(job),
        )
    node, credential = await join_node(services, account)
    claimed = await claim_one(services, node)
    file = NewFile("thumbnail", "/out/thumb.jpg", "image/jpeg", 3, "0" * 64, "0" * 32)
    async with services.pool.acquire() as conn:
        (artifact,) = await artifacts.reserve(conn, project, claimed.job_id, claimed.attempt, [file])
    await finish(services, node, claimed, artifacts=(artifact.id,))
    (delivery,) = (await api.get("/v1/deliveries")).json()["data"]
    assert (await api.post("/v1/secrets", json={"name": SECRET, "value": "hunter22"})).status_code == 201
    batch = await api.post("/v1/functions/thumbnail/batch", json=[{"video": "v"}], headers={"RGrid-Delay": "1h"})
    assert batch.status_code == 202, batch.text
    wish = {"function": "thumbnail", "name": "nightly", "cron": "0 3 * * *", "params": {"video": "v"}}
    schedule = await api.post("/v1/schedules", json=wish)
    assert schedule.status_code == 201, schedule.text
    callback = await api.post("/v1/callbacks", json={"url": "https://example.com/all", "events": ["schedule.missed"]})
    assert callback.status_code == 201, callback.text
    hook = {"function": "thumbnail", "name": "in", "verify": "none", "params": {"video": "{{ body.video }}"}}
    webhook = await api.post("/v1/webhooks", json=hook)
    assert webhook.status_code == 201, webhook.text
    called = await api.post("/hooks/default/thumbnail/in", json={"video": "v"})
    assert called.status_code == 202, called.text
    return OneOfEach(
        "thumbnail", job["id"], ids.encode(ids.ARTIFACT, artifact.id), artifact.link_token, delivery["id"],
        ids.encode(ids.NODE, node), credential, schedule=schedule.json()["id"], callback=callback.json()["id"],
        webhook=webhook.json()["id"], receipt=called.json()["trigger"]["receipt"],
    )  # fmt: skip
