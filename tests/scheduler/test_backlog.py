"""How much waits and runs: exact for few, an estimate for many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from functions.db import Connection, Pool
from gateway.database import open_pool
from scheduler import backlog, gates
from scheduler.backlog import INDEXES
from tests.scheduler.factories import claim_one, make_job, make_node, make_project, make_version

FILL = """
INSERT INTO ready_jobs (job_id, vt, pool, project_id, cls, attempt, losses, queued_at)
SELECT gen_random_uuid(), n, 1 + n % 3, 1, 1, 0, 0, now() - n * interval '1 second' FROM generate_series(1, $1::int) n
"""


@pytest.fixture
async def hot(database: str) -> AsyncIterator[Pool]:
    opened = await open_pool(database, hot_path=True)
    yield opened
    await opened.close()


async def test_jobs_are_counted_by_state(conn: Connection) -> None:
    project, pool = await make_project(conn)
    node = await make_node(conn)
    version = await make_version(conn, project, queue={"concurrency": {"limit": 1}})
    plain = await make_version(conn, project, name="plain")
    for _ in range(3):
        await make_job(conn, version)
    await make_job(conn, plain, delay=timedelta(hours=1))
    await gates.advance_all(conn)
    await claim_one(conn, node, pool)
    await make_job(conn, plain)
    assert (await backlog.read(conn)).jobs == {"ready": 1, "gated": 2, "paused": 0, "scheduled": 1, "running": 1}


async def test_many_jobs_are_estimated_and_not_counted(hot: Pool) -> None:
    async with hot.acquire() as conn:
        await conn.execute(FILL, 5_000)
        assert (await backlog.read(conn, most=100)).jobs["ready"] == 100, "nothing is known of a table so young"
        await conn.execute("ANALYZE ready_jobs")
        found = await backlog.read(conn, most=100)
        assert 4_500 <= found.jobs["ready"] <= 5_500
        assert found.jobs["running"] == 0
        await conn.execute(FILL, 5_000)
        assert (await backlog.read(conn, most=100)).jobs["ready"] > 8_000, "by today's size of the index"
        names = [row["relname"] for row in await conn.fetch(backlog.ESTIMATE, list(INDEXES.values()))]
        assert set(names) <= set(INDEXES.values())


async def test_every_index_that_estimates_rest_on_is_there(conn: Connection) -> None:
    there = await conn.fetch("SELECT relname FROM pg_class WHERE relkind = 'i' AND relname = ANY ($1)",
                             list(INDEXES.values()))  # fmt: skip
    assert {row["relname"] for row in there} == set(INDEXES.values())


async def test_the_oldest_is_that_of_the_jobs_that_are_next(hot: Pool) -> None:
    async with hot.acquire() as conn:
        nothing = await backlog.read(conn)
        assert nothing.oldest_s == {"standard": 0, "paid": 0}
        await conn.execute(FILL, 30)
        await conn.execute("UPDATE ready_jobs SET queued_at = now() - interval '1 hour' WHERE pool = 2 AND vt = 1")
        await conn.execute("UPDATE ready_jobs SET lane = 1, queued_at = now() - interval '2 hours' WHERE vt = 30")
        found = await backlog.read(conn)
    assert 3600 <= found.oldest_s["standard"] < 3660
    assert 7200 <= found.oldest_s["paid"] < 7260


async def test_leases_deliveries_and_outcomes_are_counted(conn: Connection) -> None:
    project, pool = await make_project(conn)
    node = await make_node(conn)
    version = await make_version(conn, project, callbacks=[{"url": "https://example.com", "events": ["job.failed"]}])
    for _ in range(2):
        await make_job(conn, version)
    first, second = [await claim_one(conn, node, pool) for _ in range(2)]
    await conn.execute("UPDATE leases SET expires_at = now() - interval '1 s' WHERE job_id = $1", first.job_id)
    for n, due in enumerate(("-1 second", "1 hour", "2 hours")):
        await conn.execute(
            "INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, due_at, moment)"
            " VALUES (gen_random_uuid(), $1, $2, 't', 'u', 'e', now() + $3::text::interval, to_timestamp($4))",
            project, second.job_id, due, n,
        )  # fmt: skip
    await conn.execute(
        "INSERT INTO outcomes (job_id, project_id, status, attempt, losses) SELECT gen_random_uuid(), $1, s, 1, 0"
        " FROM unnest(ARRAY['succeeded', 'cancelled', 'succeeded']) s", project,
    )  # fmt: skip
    await conn.execute(
        "INSERT INTO outcomes (job_id, project_id, status, attempt, losses, finished_at)"
        " VALUES (gen_random_uuid(), $1, 'succeeded', 1, 0, now() - interval '2 minutes')", project,
    )  # fmt: skip
    found = await backlog.read(conn)
    assert (found.overdue, found.deliveries) == (1, {"due": 1, "waiting": 2})
    assert found.ended == {"succeeded": 2, "failed": 0, "timed_out": 0, "cancelled": 1, "expired": 0}


async def test_one_dead_receiver_neither_counts_for_many_nor_hides_the_others(hot: Pool) -> None:
    async with hot.acquire() as conn:
        project, _ = await make_project(conn)
        await conn.execute(
            "INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, due_at)"
            " SELECT gen_random_uuid(), $1, gen_random_uuid(), 't', 'u', e, now() + w * interval '1 hour'"
            "   FROM (VALUES ('dead', 300, 0), ('dead', 300, 1), ('zz', 7, 0), ('waits', 5, 1)) v (e, many, w),"
            "        generate_series(1, many)", project,
        )  # fmt: skip
        found = await backlog.read(conn)
        assert found.deliveries == {"due": backlog.OF_AN_ADDRESS + 7, "waiting": 305}
        assert (await backlog.read(conn, most=90)).deliveries["due"] == 90
