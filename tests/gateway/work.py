"""Functions and jobs of project default, and nodes that take them, without the people's side of the API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from functions import ids, registry
from functions.egress import EgressPolicy
from functions.ids import JobId, ProjectId
from functions.manifest import parse_manifest
from functions.versions import Version
from gateway.services import Services
from nodes import registry as nodes
from scheduler import jobs, preparing
from scheduler.jobs import Submitted
from scheduler.preparing import Invocation
from scheduler.reaper import Sight, reap_once
from tests.gateway.conftest import client_of

JOB = {"image": "busybox:1", "command": ["echo", "hello"]}


async def project(services: Services, slug: str = "default") -> ProjectId:
    async with services.pool.acquire() as conn:
        return ProjectId(await conn.fetchval("SELECT id FROM projects WHERE slug = $1", slug))


async def define(
    services: Services,
    name: str = "echo",
    *,
    job: Mapping[str, Any] = {},
    to: ProjectId | None = None,
    **spec: Any,
) -> Version:
    """Apply a function; ``job`` is added to one that echoes, ``spec`` beside it."""
    document = {
        "apiVersion": "rgrid/v1",
        "kind": "Function",
        "metadata": {"name": name},
        "spec": {"job": {**JOB, **job}, **spec},
    }
    manifest = parse_manifest(json.dumps(document).encode(), yaml=False, policy=EgressPolicy())
    async with services.pool.acquire() as conn:
        applied = await registry.apply(conn, to or await project(services), manifest)
    return applied.function.version


async def submit(services: Services, version: Version, params: Mapping[str, Any] = {}, **how: Any) -> str:
    """A job of the version, committed; its id."""
    invocation = Invocation(params=params, trigger={"kind": "manual"}, **how)
    new = preparing.prepare(version.project_id, version, invocation, services.sizing)
    async with services.pool.acquire() as conn:
        (answer,) = await jobs.submit(conn, [new])
    assert isinstance(answer, Submitted)
    return ids.encode(ids.JOB, answer.job_id)


def uuid_of(job: str) -> JobId:
    found = ids.decode(ids.JOB, job)
    assert found is not None
    return JobId(found)


@dataclass
class Node:
    """A node that has joined, and its calls."""

    id: str
    credential: str
    http: httpx.AsyncClient

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.http.post(f"/node/v1/{path}", json={} if body is None else body, **options)

    async def claim(self, free_slots: int = 1, wait_s: float = 0) -> list[dict[str, Any]]:
        answer = await self.post("leases", {"free_slots": free_slots, "wait_s": wait_s})
        assert answer.status_code == 200, answer.text
        leases: list[dict[str, Any]] = answer.json()["leases"]
        return leases

    async def claim_one(self, wait_s: float = 0) -> dict[str, Any]:
        (lease,) = await self.claim(wait_s=wait_s)
        return lease

    async def verdicts(self, *leases: Mapping[str, Any], **held: Any) -> list[str]:
        body = {"leases": [{"job_id": each["job_id"], "token": each["token"], **held} for each in leases]}
        answer = await self.post("heartbeat", body)
        assert answer.status_code == 200, answer.text
        return [each["verdict"] for each in answer.json()["leases"]]

    async def log(self, lease: Mapping[str, Any], position: int, data: bytes) -> httpx.Response:
        return await self.http.post(
            f"/node/v1/jobs/{lease['job_id']}/logs",
            params={"attempt": lease["attempt"], "position": position},
            content=data,
            headers={"RGrid-Lease": lease["token"], "Content-Type": "application/octet-stream"},
        )

    async def finish(self, lease: Mapping[str, Any], status: str = "succeeded", **report: Any) -> httpx.Response:
        body = {"token": lease["token"], "status": status, **report}
        if status in ("failed", "timed_out"):
            body.setdefault("error", {"code": "exit_nonzero", "message": "exit 1"})
        return await self.post(f"jobs/{lease['job_id']}/finish", body)

    async def upload(self, lease: Mapping[str, Any], name: str, path: str, data: bytes) -> str:
        """Reserve and upload one file; the artifact's id."""
        answer = await self.post(
            f"jobs/{lease['job_id']}/outputs", {"token": lease["token"], "files": [file(name, path, data)]}
        )
        assert answer.status_code == 200, answer.text
        (target,) = answer.json()["uploads"]
        async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
            put = await storage.put(target["url"], content=data, headers=target["headers"])
        assert put.status_code == 200, put.text
        artifact: str = target["artifact_id"]
        return artifact


def file(name: str, path: str, data: bytes, content_type: str = "text/plain") -> dict[str, Any]:
    """A collected file as a node announces it."""
    return {
        "output": name,
        "path": path,
        "content_type": content_type,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
    }


async def mint(services: Services, *, slots: int = 2) -> str:
    """A join token for a node of any account."""
    async with services.pool.acquire() as conn:
        token = await nodes.mint_join_token(
            conn, name="test", provider="local", slots=slots, account_id=None, ttl=timedelta(minutes=1)
        )
    return token.token


def join_body(token: str, credential: str, slots: int = 2) -> dict[str, Any]:
    hashed = hashlib.sha256(credential.encode()).hexdigest()
    return {"token": token, "credential_sha256": hashed, "slots": slots, "version": "test"}


@asynccontextmanager
async def joined(services: Services, *, slots: int = 2) -> AsyncIterator[Node]:
    credential = secrets.token_hex(32)
    async with client_of(services, credential) as client:
        body = join_body(await mint(services, slots=slots), credential, slots)
        answer = await client.post("/node/v1/join", json=body, headers={"Authorization": ""})
        assert answer.status_code == 200, answer.text
        yield Node(answer.json()["node_id"], credential, client)


async def expire(services: Services, lease: Mapping[str, Any]) -> bool:
    """As if the node had been silent for too long, and the reaper had come; whether it took the lease back."""
    async with services.pool.acquire() as conn:
        await conn.execute(
            "UPDATE leases SET expires_at = now() - interval '1 second' WHERE job_id = $1", uuid_of(lease["job_id"])
        )
    return (await reap_once(services.pool, Sight(lease_s=0))).requeued > 0


async def status(services: Services, job: str) -> tuple[str, Any]:
    """Where a job is, and its error."""
    async with services.pool.acquire() as conn:
        # One statement: the job may be moving from one table to another.
        row = await conn.fetchrow(
            """SELECT status, error FROM outcomes WHERE job_id = $1
            UNION ALL SELECT 'running', NULL FROM leases WHERE job_id = $1
            UNION ALL SELECT 'queued', NULL FROM ready_jobs WHERE job_id = $1
            UNION ALL SELECT 'scheduled', NULL FROM waiting_jobs WHERE job_id = $1""",
            uuid_of(job),
        )
    assert row is not None, f"{job} is nowhere"
    return row["status"], None if row["error"] is None else json.loads(row["error"])


async def soon(condition: Any, timeout_s: float = 5) -> None:
    """Wait until an async condition holds."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)
