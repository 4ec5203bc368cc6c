"""How soon a callback is sent after its outcome's commit, at 200 outcomes a second to ten receivers; alone, beside 5,000
deliveries to a host that never answers, and beside 10,000 hosts of another project that refuse.

One scheduler process with all of its rounds over a durable PostgreSQL; receivers and load in processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from functions import ids, registry
from functions.db import Connection, Pool
from functions.egress import origin_of
from functions.errors import RGridError
from functions.ids import JobId, NodeId, ProjectId
from gateway.database import open_pool
from scheduler import claiming, finishing, jobs, preparing
from scheduler.claiming import Claimed, VirtualClocks
from scheduler.finishing import Report
from scheduler.preparing import Invocation
from scheduler.wakeups import Topic, Wakeups
from tests.bench.ingress import FUNCTION
from tests.bench.rounds import ROUNDS, Measured, percentile
from tests.e2e.instance import Instance, eventually
from tests.postgres import Postgres
from tests.s3 import S3Server
from tests.scheduler.factories import SIZING, make_node, make_project

RECEIVERS, PER_SECOND, SECONDS = 10, 200, 8
AT_ONCE = 16
ONE_DEAD, MANY_DEAD = 5_000, 10_000
LEASE = timedelta(hours=1)
PARTIES = ("alone", "beside one dead host", "beside 10,000 dead hosts")

ADD_DEAD = """
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, payload, moment)
SELECT d.id, $1, d.id, 'job.failed', d.url, d.endpoint, '{"id": "none"}', now()
  FROM unnest($2::uuid[], $3::text[], $4::text[]) d (id, url, endpoint)
"""


async def measure(folder: Path, postgres: Postgres, s3: S3Server) -> list[Measured]:
    await postgres.execute("CREATE DATABASE bench_deliveries")
    instance = Instance(folder, postgres, s3, postgres.url("bench_deliveries"))
    instance.add_process("gateway", instance.server_env())
    receivers = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "tests.bench.receivers", str(RECEIVERS),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    assert receivers.stdout is not None
    ports = json.loads(await receivers.stdout.readline())
    pool = await open_pool(instance.database_url, max_size=AT_ONCE + 2)
    wakeups = Wakeups(instance.database_url)
    hints = asyncio.create_task(wakeups.run())
    try:
        await instance.ready()
        await instance.apply(FUNCTION)
        instance.add_process("scheduler", instance.server_env() | {"RGRID_CALLBACK_ALLOW": "127.0.0.0/8"})
        return await _rounds(pool, wakeups, receivers, ports)
    finally:
        hints.cancel()
        await pool.close()
        receivers.kill()
        await receivers.wait()
        await instance.close()


async def _rounds(
    pool: Pool, wakeups: Wakeups, receivers: asyncio.subprocess.Process, ports: list[int]
) -> list[Measured]:
    p50 = Measured(f"first attempt after the commit, {PER_SECOND} outcomes/s, p50", "ms")
    p99 = Measured("p99 of the same", "ms")
    async with pool.acquire() as conn:
        row = await conn.fetchrow("SELECT id, account_id FROM projects WHERE slug = 'default'")
        other, _ = await make_project(conn)
        await conn.execute("UPDATE projects SET callback_secret = (SELECT callback_secret FROM projects WHERE id = $1)", row["id"])
    project, account = ProjectId(row["id"]), int(row["account_id"])
    for number in range(ROUNDS + 1):
        found = {}
        for party in PARTIES:
            # The first round warms everything up and is not counted.
            many = PER_SECOND * (SECONDS if number else 1)
            async with pool.acquire() as conn:
                claimed = await _claimed(conn, project, account, ports[:-1], many)
                if party == PARTIES[1]:
                    await _add_dead(conn, project, [f"http://127.0.0.1:{ports[-1]}/hook"] * ONE_DEAD)
                elif party == PARTIES[2]:
                    hosts = [f"http://127.1.{n // 250}.{n % 250 + 1}:9/hook" for n in range(MANY_DEAD)]
                    await _add_dead(conn, other, hosts)
            ended = await _end(pool, wakeups, claimed)
            made = len(ended) / (max(ended.values()) - min(ended.values()))
            assert not number or made > 0.8 * PER_SECOND, f"this machine makes {made:.0f} outcomes a second now"
            took = await _took(receivers, ended)
            found[party] = took
            async with pool.acquire() as conn:
                await conn.execute("UPDATE deliveries SET state = 'exhausted' WHERE state = 'pending'")
                await conn.execute("VACUUM ANALYZE deliveries")
        if number:
            p50.rounds.append({party: percentile(took, 0.5) for party, took in found.items()})
            p99.rounds.append({party: percentile(took, 0.99) for party, took in found.items()})
    return [p50, p99]


async def _claimed(
    conn: Connection, project: ProjectId, account: int, ports: list[int], many: int
) -> list[tuple[NodeId, Claimed]]:
    """Jobs in the hands of nodes, each with an address to be told at."""
    version = await registry.current(conn, project, "noop")
    for first in range(0, many, 500):
        asked = [
            Invocation(
                params={"text": "x"},
                trigger={"kind": "manual"},
                callback_url=f"http://127.0.0.1:{ports[n % len(ports)]}/hook",
            )
            for n in range(first, min(first + 500, many))
        ]
        answers = await jobs.submit(conn, [preparing.prepare(project, version, each, SIZING) for each in asked])
        assert not any(isinstance(each, RGridError) for each in answers)
    claimed: list[tuple[NodeId, Claimed]] = []
    while len(claimed) < many:
        node = await make_node(conn, slots=500)
        taken = await claiming.claim(
            conn, VirtualClocks(0), node, pools=[account], free_slots=500, node_slots=500, lease=LEASE
        )
        claimed += [(node, each) for each in taken]
    return claimed


async def _add_dead(conn: Connection, project: ProjectId, urls: list[str]) -> None:
    new = [ids.new_uuid7() for _ in urls]
    await conn.execute(ADD_DEAD, project, new, urls, [origin_of(url) for url in urls])


async def _end(pool: Pool, wakeups: Wakeups, claimed: list[tuple[NodeId, Claimed]]) -> dict[str, float]:
    """End them at the rate; when each one's commit was known, by ``time.monotonic()``."""
    ended: dict[str, float] = {}
    room = asyncio.Semaphore(AT_ONCE)

    async def end(node: NodeId, one: Claimed) -> None:
        async with room, pool.acquire() as conn:
            async with conn.transaction():
                await finishing.finish(conn, node, JobId(one.job_id), Report(one.token, "succeeded", 0))
            ended[ids.encode(ids.JOB, one.job_id)] = time.monotonic()
        wakeups.hint(Topic.DELIVERY)

    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, one in enumerate(claimed):
            await asyncio.sleep(max(began_s + number / PER_SECOND - time.monotonic(), 0))
            group.create_task(end(*one))
    return ended


async def _took(receivers: asyncio.subprocess.Process, ended: dict[str, float]) -> list[float]:
    """Milliseconds from each commit to the arrival of its callback."""
    arrived: dict[str, float] = {}

    async def all_there() -> bool:
        assert receivers.stdin is not None and receivers.stdout is not None
        receivers.stdin.write(b"\n")
        arrived.update(json.loads(await receivers.stdout.readline()))
        return ended.keys() <= arrived.keys()

    await eventually(all_there, 60, 0.2)
    return [max(arrived[job] - at, 0) * 1000 for job, at in ended.items()]
