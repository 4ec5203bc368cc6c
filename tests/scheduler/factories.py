"""Projects, versions, nodes and jobs for tests of the scheduler."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from cryptography.fernet import Fernet

from functions import ids, registry
from functions.artifacts import NewFile
from functions.db import Connection, Pool
from functions.egress import EgressPolicy
from functions.errors import RGridError
from functions.ids import JobId, NodeId, ProjectId
from functions.manifest import parse_manifest
from functions.s3 import S3Config, S3Store
from functions.sealing import Sealer
from functions.versions import Version
from scheduler import claiming, finishing, jobs, preparing
from scheduler.claiming import Claimed, VirtualClocks
from scheduler.finishing import Report
from scheduler.preparing import Invocation, Sizing
from scheduler.queue import NewJob

SIZING = Sizing(slot_memory=2 * 1024**3, max_slots=32)
LEASE = timedelta(seconds=20)
STORE = S3Store(S3Config("http://127.0.0.1:1", "http://127.0.0.1:1", "us-east-1", "none", "id", "secret"))
"""For what needs none: it answers nothing."""
LOOPBACK = EgressPolicy(allow=("127.0.0.0/8",))
FILE = NewFile("thumb", "/out/t.jpg", "image/jpeg", 3, "a" * 64, "b" * 32)
"""What a job has put out."""
SEALING_KEY = Fernet.generate_key().decode()
SEALER = Sealer(SEALING_KEY)
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()

MAKE_PROJECT = """
WITH account AS (
    INSERT INTO accounts (slug) SELECT $1 WHERE $3::bigint IS NULL RETURNING id
), project AS (
    INSERT INTO projects (account_id, slug, callback_secret) SELECT coalesce($3, (SELECT id FROM account)), $1, $2
    RETURNING id, account_id
), clock AS (
    INSERT INTO pool_clocks (pool) SELECT id FROM account
)
INSERT INTO flows (project_id, pool) SELECT id, account_id FROM project RETURNING project_id, pool
"""

MAKE_NODE = """
INSERT INTO nodes (id, name, provider, state, slots, joined_at, last_seen_at)
VALUES ($1, 'n', 'local', $3, $2, now(), now())
"""

STANDS_IN = """
SELECT name FROM (
    SELECT 'ready' AS name FROM ready_jobs WHERE job_id = $1
    UNION ALL SELECT 'waiting' FROM waiting_jobs WHERE job_id = $1
    UNION ALL SELECT 'leased' FROM leases WHERE job_id = $1
    UNION ALL SELECT status FROM outcomes WHERE job_id = $1) found
"""


async def make_project(conn: Connection, *, pool: int | None = None) -> tuple[ProjectId, int]:
    """A project with its rows for fairness, in an account (= pool) of its own or in a given one; (project, pool)."""
    slug = f"p{uuid4().hex[:12]}"
    row = await conn.fetchrow(MAKE_PROJECT, slug, SEALER.seal(SECRET.encode()), pool)
    return ProjectId(row["project_id"]), row["pool"]


async def make_version(
    conn: Connection,
    project: ProjectId,
    *,
    retry: Mapping[str, Any] | None = None,
    callbacks: Sequence[Mapping[str, Any]] = (),
    job: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    queue: Mapping[str, Any] | None = None,
    name: str = "fn",
) -> Version:
    spec = {"job": {"image": "busybox", **(job or {})}, "callbacks": list(callbacks)}
    if retry is not None:
        spec["retry"] = dict(retry)
    if params is not None:
        spec["params"] = dict(params)
    if queue is not None:
        spec["queue"] = dict(queue)
    document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec}
    manifest = parse_manifest(json.dumps(document).encode(), yaml=False, policy=LOOPBACK)
    return (await registry.apply(conn, project, manifest)).function.version


def new_job(version: Version, **invocation: Any) -> NewJob:
    invocation = {"params": {}, "trigger": {"kind": "manual"}} | invocation
    return preparing.prepare(version.project_id, version, Invocation(**invocation), SIZING)


async def make_job(conn: Connection, version: Version, **invocation: Any) -> JobId:
    (answer,) = await jobs.submit(conn, [new_job(version, **invocation)])
    assert not isinstance(answer, RGridError), answer
    return answer.job_id


async def make_node(conn: Connection, *, slots: int = 2, state: str = "ready") -> NodeId:
    node = NodeId(ids.new_uuid7())
    await conn.execute(MAKE_NODE, node, slots, state)
    return node


async def claim(
    conn: Connection, node: NodeId, *pools: int, free: int = 1, slots: int | None = None, **more: Any
) -> list[Claimed]:
    return await claiming.claim(
        conn, VirtualClocks(0), node, pools=pools, free_slots=free, node_slots=slots or free, lease=LEASE, **more
    )


async def claim_one(conn: Connection, node: NodeId, pool: int) -> Claimed:
    (claimed,) = await claim(conn, node, pool)
    return claimed


async def leased(conn: Connection, world: World, **invocation: Any) -> Claimed:
    """A new job of the world's version, on its node."""
    await make_job(conn, world.version, **invocation)
    return await claim_one(conn, world.node, world.account)


async def finish(conn: Connection, world: World, claimed: Claimed, status: str, **more: Any) -> str:
    """Its node reports how it ended."""
    async with conn.transaction():
        return await finishing.finish(conn, world.node, claimed.job_id, Report(claimed.token, status, **more))


async def expire(conn: Connection, *claimed: Claimed) -> None:
    """Let leases run out."""
    await conn.execute(
        "UPDATE leases SET expires_at = now() - interval '1 second' WHERE job_id = ANY ($1)",
        [each.job_id for each in claimed],
    )


async def stands_in(conn: Connection, job: JobId) -> list[str]:
    """The tables that a job stands in; its status for the outcomes."""
    return [row["name"] for row in await conn.fetch(STANDS_IN, job)]


class World:
    """A project with one version and one node, on a pool."""

    def __init__(self, pool: Pool, project: ProjectId, account: int, version: Version, node: NodeId) -> None:
        self.pool, self.project, self.account, self.version, self.node = pool, project, account, version, node


async def make_world(pool: Pool, **version: Any) -> World:
    async with pool.acquire() as conn:
        project, account = await make_project(conn)
        made = await make_version(conn, project, **version)
        return World(pool, project, account, made, await make_node(conn))
