"""A round of the autoscaler over 1,000 nodes, 2,000 running jobs and a queue, against a bare look at the same rows.

The cloud is a list in memory: what is measured is our part. ``listed`` is a round in which the cloud's list of all
servers is compared with the rows, as every few minutes at that size.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import asyncpg
from cryptography.fernet import Fernet

from functions.db import Pool
from functions.ids import NodeId
from functions.sealing import Sealer
from gateway.bootstrap import ensure_bootstrap
from gateway.database import migrate, open_pool
from gateway.settings import Settings
from nodes.autoscaler import Autoscaler
from nodes.ledger import Ledger
from nodes.offers import Catalogue, Offer
from nodes.policy.state import Caps, Rules
from nodes.provider import NODE_LABEL, Listing, Order, Provider, Server, Status
from nodes.wish import Wish
from tests.bench.rounds import Measured
from tests.postgres import Postgres

NODES, QUEUED, ROUNDS = 1_000, 5_000, 5
OFFER = Offer("cx23", "fsn1", 2, 4 * 1024**3, Decimal("0.0096"), Decimal("5.99"))

FILL = """
WITH made AS (
    INSERT INTO nodes (id, account_id, name, provider, state, slots, joined_at, last_seen_at)
    SELECT gen_random_uuid(), $1, 'rgrid-bench-' || n, 'hetzner', 'ready', 2, now(), now()
      FROM generate_series(1, $2::int) n
    RETURNING id, name
), bought AS (
    INSERT INTO servers (node_id, name, provider, state, type, location, architecture, slots, memory, hourly, monthly,
                         ipv4_hourly, ipv4_monthly, account_id, payer_id, reason, call_after, planned_at, cloud_id,
                         created_at, ipv4, seen_at, ready_at, reserved_until)
    SELECT id, name, 'hetzner', 'ready', 'cx23', 'fsn1', 'x86', 2, 4294967296, 0.0096, 5.99, 0, 0, $1, $3, 'queue', now(),
           now(), substr(name, 13)::bigint, now() - interval '10 minutes', '192.0.2.1', now(), now(),
           now() + interval '50 minutes'
      FROM made
), work AS (
    SELECT gen_random_uuid() AS job, gen_random_uuid() AS fn, id FROM made CROSS JOIN generate_series(1, 2)
), wide AS (
    INSERT INTO jobs (id, project_id, function_id, version_id, trigger, params)
    SELECT job, $3, fn, fn, '{}', '{}' FROM work
)
INSERT INTO leases (job_id, token, node_id, pool, project_id, lane, cls, attempt, losses, queued_at, expires_at)
SELECT job, job, id, $1, $3, 0, 1, 1, 0, now(), now() + interval '1 hour' FROM work
"""

QUEUE = """
WITH waiting AS (
    INSERT INTO jobs (id, project_id, version_id, trigger, params)
    SELECT gen_random_uuid(), $2, gen_random_uuid(), '{}', '{}' FROM generate_series(1, $3::int)
    RETURNING id
)
INSERT INTO ready_jobs (job_id, vt, pool, project_id, cls, attempt, losses)
SELECT id, row_number() OVER (), $1, $2, 1, 0, 0 FROM waiting
"""

BARE = "SELECT * FROM servers JOIN nodes ON nodes.id = servers.node_id JOIN leases ON leases.node_id = nodes.id"


class Listed(Provider):
    """A cloud that has what the database has, and sells nothing."""

    def __init__(self) -> None:
        self.servers: tuple[Server, ...] = ()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def compare_clock(self, ours: datetime, believed: datetime) -> None:
        pass

    def said_now(self) -> datetime:
        return self.now()

    async def prepare(self, image: str, architectures: frozenset[str]) -> tuple[str, ...]:
        return ()

    async def catalogue(self) -> Catalogue:
        return Catalogue((OFFER,), self.now())

    async def list_servers(self) -> Listing:
        return Listing(self.servers, True, self.now())

    async def create(self, order: Order) -> Server:
        raise AssertionError("the caps allow no more")

    async def failure_of(self, server_id: int) -> str | None:
        return None

    async def delete(self, server_id: int) -> None:
        raise AssertionError("all are busy")

    async def stray_addresses(self) -> tuple[str, ...]:
        return ()


def user_data(node: NodeId, token: str) -> str:
    return token


async def measure(postgres: Postgres) -> Measured:
    name = f"bench_{uuid4().hex}"
    await postgres.execute(f"CREATE DATABASE {name}")
    pool = await open_pool(postgres.url(name))
    try:
        return await _measure(pool, postgres.url(name))
    finally:
        await pool.close()
        await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _measure(pool: Pool, url: str) -> Measured:
    sealer = Sealer(key := Fernet.generate_key().decode())
    settings = Settings.model_validate(
        {"database_url": url, "s3_endpoint": "", "s3_access_key_id": "", "s3_secret_access_key": "", "secret_key": key}
    )
    conn = await asyncpg.connect(url)
    await migrate(conn)
    await ensure_bootstrap(conn, settings, sealer)
    project, account = await conn.fetchrow("SELECT id, account_id FROM projects")
    await conn.execute(FILL, account, NODES, project)
    await conn.execute(QUEUE, account, project, QUEUED)
    await conn.execute("ANALYZE")
    cloud = Listed()
    cloud.servers = tuple([
        Server(row["cloud_id"], row["name"], Status.RUNNING, row["created_at"], "cx23", "fsn1",
               {NODE_LABEL: row["node_id"].hex}, row["ipv4"])
        for row in await conn.fetch("SELECT * FROM servers")
    ])  # fmt: skip
    wish = Wish("bench", "hetzner", ("cx23",), (), "i", Decimal(1), Caps(NODES), Rules(), 2 * 1024**3)
    autoscaler = Autoscaler(
        pool, cloud, wish, sealer, user_data=user_data, books=Ledger(Decimal(10_000)), lease=timedelta(minutes=1)
    )
    await autoscaler.once()
    found = Measured(f"a round over {NODES} nodes, {2 * NODES} running and {QUEUED} queued jobs", "ms")
    for _ in range(ROUNDS):
        took: dict[str, float] = {}
        began = time.perf_counter()
        await conn.fetch(BARE)
        took["bare look"] = (time.perf_counter() - began) * 1000
        began = time.perf_counter()
        await autoscaler.once()
        took["round"] = (time.perf_counter() - began) * 1000
        autoscaler._survey.list_now()
        began = time.perf_counter()
        await autoscaler.once()
        took["listed"] = (time.perf_counter() - began) * 1000
        found.rounds.append(took)
    assert await conn.fetchval("SELECT count(*) FROM servers WHERE ended_at IS NULL AND state = 'ready'") == NODES
    await conn.close()
    return found
