"""Claim and finish at the queue, beside a bare table with SKIP LOCKED, on one durable PostgreSQL.

Both in batches of ``BATCH`` by ``CLAIMERS`` connections, with payloads of 300 bytes and a commit after each of the two
steps. RGrid leases, fences, records an outcome and writes a delivery for each job; the bare table only sets a flag.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from uuid import uuid4

import asyncpg
from cryptography.fernet import Fernet

from functions import ids
from functions.db import Connection
from functions.ids import FunctionId, JobId, MessageId, NodeId, ProjectId, VersionId
from functions.sealing import Sealer
from gateway.bootstrap import ensure_bootstrap
from gateway.database import migrate, open_pool
from gateway.settings import Settings
from nodes.protocol import JoinRequest
from nodes.registry import join, mint_join_token
from scheduler import claiming, lease_ends, queue
from scheduler.claiming import VirtualClocks
from scheduler.lease_ends import Ending
from scheduler.new_deliveries import NewDelivery
from scheduler.queue import NewJob
from tests.bench.rounds import ROUNDS, Measured
from tests.postgres import Postgres

JOBS, BATCH, CLAIMERS = 20_000, 500, 2
LEASE = timedelta(seconds=60)
PARAMS = json.dumps({"text": "x" * 280})

RAW_SCHEMA = """
CREATE TABLE raw (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state smallint NOT NULL DEFAULT 0,
    prio smallint NOT NULL DEFAULT 0, payload json NOT NULL);
CREATE INDEX raw_ready ON raw (prio, id) WHERE state = 0;
ALTER TABLE raw SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0)
"""
RAW_FILL = "INSERT INTO raw (payload) SELECT $1::json FROM generate_series(1, $2::int)"
RAW_CLAIM = """
UPDATE raw SET state = 1 WHERE id = ANY (ARRAY(
    SELECT id FROM raw WHERE state = 0 ORDER BY prio, id LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING id, payload
"""
RAW_FINISH = "UPDATE raw SET state = 2 WHERE id = ANY ($1::bigint[])"


async def measure(postgres: Postgres) -> Measured:
    """Jobs a second through claim and finish."""
    measured = Measured(f"claim + finish, {JOBS:,} jobs, batches of {BATCH}, {CLAIMERS} claimers", "jobs/s")
    for number in range(ROUNDS):
        database = f"bench_queue_{number}"
        await postgres.execute(f"CREATE DATABASE {database}")
        url = postgres.url(database)
        measured.rounds.append({"bare SKIP LOCKED table": await _raw(url), "RGrid's queue": await _ours(url)})
        await postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")
    return measured


async def _raw(url: str) -> float:
    conn = await asyncpg.connect(url)
    await conn.execute(RAW_SCHEMA)
    await conn.execute(RAW_FILL, PARAMS, JOBS)
    await conn.execute("VACUUM ANALYZE raw")
    await conn.execute("CHECKPOINT")

    async def drain(own: Connection) -> int:
        done = 0
        while rows := await own.fetch(RAW_CLAIM, BATCH):
            await own.execute(RAW_FINISH, [row["id"] for row in rows])
            done += len(rows)
        return done

    claimers = [await asyncpg.connect(url) for _ in range(CLAIMERS)]
    began_s = time.perf_counter()
    done = sum(await asyncio.gather(*map(drain, claimers)))
    took_s = time.perf_counter() - began_s
    for each in (conn, *claimers):
        await each.close()
    assert done == JOBS
    return done / took_s


async def _ours(url: str) -> float:
    conn = await asyncpg.connect(url)
    await migrate(conn)
    node, project, pool_id = await _prepare(conn)
    function, version = FunctionId(uuid4()), VersionId(uuid4())
    for _ in range(JOBS // BATCH):
        await queue.enqueue(conn, [_job(project, function, version) for _ in range(BATCH)])
    await conn.execute("VACUUM ANALYZE")
    await conn.execute("CHECKPOINT")
    pool = await open_pool(url, hot_path=True, max_size=CLAIMERS)
    clocks = VirtualClocks()

    async def drain() -> int:
        done = 0
        async with pool.acquire() as own:
            while True:
                claimed = await claiming.claim(
                    own, clocks, node, pools=[pool_id], free_slots=BATCH, node_slots=BATCH, lease=LEASE
                )
                if not claimed:
                    return done
                endings = [Ending(job.job_id, job.token, "succeeded", exit_code=0) for job in claimed]
                deliveries = [
                    NewDelivery(MessageId(ids.new_uuid7()), job.job_id, "job.succeeded", "https://a.example/hook", "a")
                    for job in claimed
                ]
                done += len(await lease_ends.finish(own, endings, deliveries))

    began_s = time.perf_counter()
    done = sum(await asyncio.gather(*(drain() for _ in range(CLAIMERS))))
    took_s = time.perf_counter() - began_s
    await pool.close()
    await conn.close()
    assert done == JOBS
    return done / took_s


async def _prepare(conn: Connection) -> tuple[NodeId, ProjectId, int]:
    """A project, and a node that has joined."""
    key = Fernet.generate_key().decode()
    settings = Settings.model_validate(
        {
            "database_url": "postgresql://unused",
            "s3_endpoint": "http://unused",
            "s3_access_key_id": "unused",
            "s3_secret_access_key": "unused",
            "secret_key": key,
        }
    )
    await ensure_bootstrap(conn, settings, Sealer(key))
    row = await conn.fetchrow("SELECT id, account_id FROM projects")
    assert row is not None
    minted = await mint_join_token(
        conn, name="bench", provider="local", slots=1024, account_id=None, ttl=timedelta(minutes=1)
    )
    request = JoinRequest(token=minted.token, credential_sha256="0" * 64, slots=1024, version="bench")
    return await join(conn, request), ProjectId(row["id"]), int(row["account_id"])


def _job(project: ProjectId, function: FunctionId, version: VersionId) -> NewJob:
    return NewJob(JobId(ids.new_uuid7()), project, function, version, '{"kind":"manual"}', PARAMS, 1)
