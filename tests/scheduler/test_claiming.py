"""A node takes what is ready: what fits, fairly, and only if it is ready itself."""

from __future__ import annotations

import pytest

from functions.db import Connection
from scheduler import claiming
from scheduler.claiming import VirtualClocks
from tests.scheduler.factories import (
    LEASE,
    claim,
    claim_one,
    make_job,
    make_node,
    make_project,
    make_version,
)


async def test_a_claim_fills_at_most_the_free_slots(conn: Connection) -> None:
    project, pool = await make_project(conn)
    small = await make_version(conn, project)
    large = await make_version(conn, project, job={"resources": {"cpu": 3}}, name="large")
    for version in (small, large, small, small, small):
        await make_job(conn, version)
    node = await make_node(conn, slots=4)
    taken = [each.slots for each in await claim(conn, node, pool, free=4)]
    assert sorted(taken) == [1, 3]
    assert [each.slots for each in await claim(conn, node, pool, free=2, slots=4)] == [1, 1]
    assert await claim(conn, node, pool, free=0, slots=4) == []


async def test_a_job_of_many_slots_is_claimed_by_a_node_that_has_them(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project, job={"resources": {"cpu": 20}})
    job = await make_job(conn, version)
    assert await claim(conn, await make_node(conn, slots=19), pool, free=19) == []
    assert [each.job_id for each in await claim(conn, await make_node(conn, slots=20), pool, free=20)] == [job]


async def test_a_large_job_that_waited_long_holds_the_node_until_it_fits(conn: Connection) -> None:
    project, pool = await make_project(conn)
    small = await make_version(conn, project)
    large = await make_version(conn, project, job={"resources": {"cpu": 2}}, name="large")
    waiting = await make_job(conn, large)
    for _ in range(3):
        await make_job(conn, small)
    node = await make_node(conn)
    assert len(await claim(conn, node, pool, free=1, slots=2)) == 1, "it is not starving yet"
    await conn.execute("UPDATE ready_jobs SET queued_at = now() - interval '1 minute' WHERE job_id = $1", waiting)
    assert await claim(conn, node, pool, free=1, slots=2) == []
    assert len(await claim(conn, await make_node(conn, slots=1), pool, free=1)) == 1, "a node too small need not wait"
    assert [each.job_id for each in await claim(conn, node, pool, free=2)] == [waiting]


async def test_several_pools_take_turns_whatever_their_virtual_times_are(conn: Connection) -> None:
    old, old_pool = await make_project(conn)
    await conn.execute("UPDATE pool_clocks SET v = 1000000 WHERE pool = $1", old_pool)
    new, new_pool = await make_project(conn)
    for project in (old, new):
        version = await make_version(conn, project)
        for _ in range(4):
            await make_job(conn, version)
    node = await make_node(conn, slots=4)
    for pools in ((old_pool, new_pool), (new_pool, old_pool)):
        claimed = await claim(conn, node, *pools, free=3)
        assert sorted(pools.index(old_pool if each.project_id == old else new_pool) for each in claimed) == [0, 0, 1]


@pytest.mark.parametrize("state", ["draining", "gone"])
async def test_only_a_ready_node_gets_jobs(conn: Connection, state: str) -> None:
    project, pool = await make_project(conn)
    await make_job(conn, await make_version(conn, project))
    node = await make_node(conn)
    await conn.execute(
        "UPDATE nodes SET state = $2, gone_at = CASE WHEN $2 = 'gone' THEN now() END WHERE id = $1", node, state
    )
    assert await claim(conn, node, pool) == []


async def test_a_claim_moves_the_clock_and_not_more_often_than_it_should(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    for _ in range(3):
        await make_job(conn, version)
    node, clocks = await make_node(conn), VirtualClocks(interval_s=3600)
    await claim_one(conn, node, pool)  # the first one starts at 0

    async def v() -> float:
        await claiming.claim(conn, clocks, node, pools=[pool], free_slots=1, node_slots=1, lease=LEASE)
        found: float = await conn.fetchval("SELECT v FROM pool_clocks WHERE pool = $1", pool)
        return found

    assert [await v(), await v()] == [1, 1]
