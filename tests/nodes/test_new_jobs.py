"""The rate of arrivals, from the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from functions.db import Connection, Pool
from nodes.new_jobs import NewJobs
from nodes.policy.arrivals import WINDOW_S
from scheduler import finishing
from scheduler.finishing import Report
from tests.scheduler.factories import claim, make_job, make_world

AHEAD = timedelta(seconds=40)
OLD = """
UPDATE jobs SET created_at = now() - interval '10 minutes'
"""


async def rate(conn: Connection, new_jobs: NewJobs, account: int) -> float:
    rates = await new_jobs.rates(conn, now=datetime.now(UTC) + AHEAD, ahead=AHEAD)
    return {int(of): each for of, each in rates.items()}.get(account, 0.0)


async def test_each_job_counts_once_wherever_it_stands(pool: Pool) -> None:
    world = await make_world(pool)
    new_jobs = NewJobs()
    async with pool.acquire() as conn:
        await make_job(conn, world.version)
        assert await rate(conn, new_jobs, world.account) == pytest.approx(1 / WINDOW_S)
        for lease in await claim(conn, world.node, world.account):
            await finishing.finish(conn, world.node, lease.job_id, Report(lease.token, "succeeded", 0))
        await make_job(conn, world.version)
        assert len(await claim(conn, world.node, world.account)) == 1
        await make_job(conn, world.version)
        assert await rate(conn, new_jobs, world.account) == pytest.approx(3 / WINDOW_S)
        assert await rate(conn, NewJobs(), world.account) == pytest.approx(3 / WINDOW_S)


async def test_a_scheduler_that_starts_knows_what_came_before_and_when(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        for _ in range(6):
            await make_job(conn, world.version)
        await conn.execute(OLD)
        # Six in half an hour would be one in 300 s, but for ten minutes none came.
        assert await rate(conn, NewJobs(), world.account) == pytest.approx(1 / 600, rel=0.02)
