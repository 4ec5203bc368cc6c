"""10,000 schedules of 100 functions that are due in one minute: seconds until all of their jobs are in the queue.

By the rounds of one scheduler and of two, over a durable PostgreSQL; and the same number of bare jobs put into the queue in
batches as large, which is the least that it could take.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from uuid import uuid4

from cryptography.fernet import Fernet

from functions import registry
from functions.db import Connection, Pool
from functions.egress import EgressPolicy
from functions.ids import ProjectId
from functions.manifest import parse_manifest
from functions.sealing import Sealer
from gateway.bootstrap import ensure_bootstrap
from gateway.database import migrate, open_pool
from gateway.settings import Settings
from scheduler import jobs, preparing
from scheduler.cron import AT_ONCE, fire_once
from scheduler.preparing import Invocation, Sizing
from tests.bench.rounds import ROUNDS, Measured
from tests.postgres import Postgres

FUNCTIONS, OF_EACH = 100, 100
MANY = FUNCTIONS * OF_EACH
SIZING = Sizing(2 * 1024**3, 2)
STORE: Any = None
"""Nothing is asked of it while params are small."""

# As if the clock had come to the minute: lines of the most various kinds, all of them due now.
ADD = """
INSERT INTO schedules (id, project_id, function_id, name, origin, cron, timezone, params, overlap, catch_up, jitter, next_at,
                       due_at)
SELECT gen_random_uuid(), functions.project_id, functions.id, 's' || n, 'api',
       extract(minute FROM at) || ' * ' || (n % 28 + 1) || ',' || extract(day FROM at) || ' * *', 'UTC',
       '{"at": "{{ schedule.time }}"}', CASE n % 2 WHEN 0 THEN 'skip' ELSE 'allow' END, 'one', '0', at, at
  FROM functions CROSS JOIN generate_series(1, $1::int) n
 CROSS JOIN (SELECT date_trunc('minute', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS at) moment
"""


async def measure(postgres: Postgres) -> Measured:
    measured = Measured(f"{MANY:,} schedules of one minute, until their jobs are in the queue", "s")
    for _ in range(ROUNDS):
        found = {}
        for party, run in {"bare jobs": _bare, "one scheduler": _one, "two schedulers": _two}.items():
            database = f"schedules_{uuid4().hex}"
            await postgres.execute(f"CREATE DATABASE {database}")
            pool = await open_pool(postgres.url(database), hot_path=True)
            async with pool.acquire() as conn:
                project = await _prepare(conn)
            began_s = time.perf_counter()
            await run(pool, project)
            found[party] = time.perf_counter() - began_s
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT count(*) FROM ready_jobs") == MANY
                assert await conn.fetchval("SELECT count(*) FROM jobs") == MANY
            await pool.close()
            await postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")
        measured.rounds.append(found)
    return measured


async def _prepare(conn: Connection) -> ProjectId:
    await migrate(conn)
    key = Fernet.generate_key().decode()
    settings = Settings.model_validate(
        {"database_url": "postgresql://x", "s3_endpoint": "http://127.0.0.1:1", "s3_access_key_id": "x",
         "s3_secret_access_key": "x", "secret_key": key, "bootstrap_key": "x" * 24}
    )  # fmt: skip
    await ensure_bootstrap(conn, settings, Sealer(key))
    project = ProjectId(await conn.fetchval("SELECT id FROM projects"))
    for number in range(FUNCTIONS):
        spec = {"job": {"image": "busybox", "command": ["echo", "{{ params.at }}"]}}
        document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": f"f{number}"}, "spec": spec}
        manifest = parse_manifest(json.dumps(document).encode(), yaml=False, policy=EgressPolicy())
        await registry.apply(conn, project, manifest)
    await conn.execute(ADD, OF_EACH)
    await conn.execute("ANALYZE")
    return project


async def _bare(pool: Pool, project: ProjectId) -> None:
    async with pool.acquire() as conn:
        versions = [await registry.current(conn, project, f"f{number}") for number in range(FUNCTIONS)]
        asked = Invocation(params={"at": "2026-01-01T00:00:00Z"}, trigger={"kind": "schedule"})
        for first in range(0, MANY, AT_ONCE):
            batch = range(first, first + AT_ONCE)
            await jobs.submit(conn, [preparing.prepare(project, versions[n % FUNCTIONS], asked, SIZING) for n in batch])


async def _one(pool: Pool, _: ProjectId) -> None:
    while (await fire_once(pool, STORE, SIZING, EgressPolicy())).schedules:
        pass


async def _two(pool: Pool, project: ProjectId) -> None:
    await asyncio.gather(_one(pool, project), _one(pool, project))
    await _one(pool, project)  # what the last of them had passed by
