"""Leases that ran out: back into the queue, or to an end."""

from __future__ import annotations

import json

import pytest

from functions.db import Pool
from scheduler import cancelling, finishing, leasing, queue
from scheduler.finishing import Report
from scheduler.history import job_events
from scheduler.reaper import Reaped, Sight, reap_once
from scheduler.views import read_jobs
from tests.scheduler.factories import (
    World,
    claim,
    claim_one,
    expire,
    make_job,
    make_world,
    stands_in,
)

SEEN_FOR_LONG = Sight(0)


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, callbacks=[{"url": "http://127.0.0.1:1/"}])


async def test_a_silent_nodes_job_is_ready_again_and_the_attempt_is_noted(world: World) -> None:
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        await expire(conn, await claim_one(conn, world.node, world.account))
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(1, 0)
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(0, 0)
        assert await stands_in(conn, job) == ["ready"]
        assert "node_lost" in [event["type"] for event in await job_events(conn, world.project, job)]
        (record,) = await read_jobs(conn, world.project, [job])
        assert (record.status, record.row["attempt"], record.row["losses"]) == ("queued", 1, 1)


async def test_a_lease_that_is_renewed_is_left_alone(world: World) -> None:
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        await claim_one(conn, world.node, world.account)
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(0, 0)
        assert await stands_in(conn, job) == ["leased"]


async def test_a_job_survives_five_lost_nodes_and_fails_with_the_sixth(world: World) -> None:
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        for _ in range(5):
            await expire(conn, await claim_one(conn, world.node, world.account))
            assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(1, 0)
        await expire(conn, await claim_one(conn, world.node, world.account))
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(0, 1)
        row = await conn.fetchrow("SELECT * FROM outcomes WHERE job_id = $1", job)
        error = json.loads(row["error"])
        assert (row["status"], row["attempt"], row["losses"]) == ("failed", 6, 5)
        assert (error["code"], error["attempt"]) == ("node_lost", 6)
        assert await conn.fetchval("SELECT type FROM deliveries WHERE job_id = $1", job) == "job.failed"


async def test_drains_do_not_count_as_lost_nodes(world: World) -> None:
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        for _ in range(7):
            claimed = await claim_one(conn, world.node, world.account)
            assert await finishing.release(conn, world.node, [(job, claimed.token)], "drain") == {job}
        await expire(conn, await claim_one(conn, world.node, world.account))
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(1, 0)


async def test_losses_do_not_use_up_the_users_attempts(world: World, pool: Pool) -> None:
    world = await make_world(pool, retry={"attempts": 2})
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version)
        for _ in range(3):
            await expire(conn, await claim_one(conn, world.node, world.account))
            await reap_once(pool, SEEN_FOR_LONG)
        for status in ("scheduled", "failed"):
            claimed = await claim_one(conn, world.node, world.account)
            report = Report(claimed.token, "failed", 1, "exit_nonzero", "it broke")
            assert await finishing.finish(conn, world.node, job, report) == status
            await conn.execute("UPDATE waiting_jobs SET due_at = now()")
            await queue.promote(conn, limit=1)


async def test_a_lost_job_with_a_cancel_pending_ends_cancelled(world: World) -> None:
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        claimed = await claim_one(conn, world.node, world.account)
        await cancelling.cancel(conn, world.project, [job])
        await expire(conn, claimed)
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(0, 1)
        assert await stands_in(conn, job) == ["cancelled"]
        assert await conn.fetchval("SELECT type FROM deliveries WHERE job_id = $1", job) == "job.cancelled"


async def test_a_round_takes_no_more_than_its_limit_the_oldest_first(world: World) -> None:
    async with world.pool.acquire() as conn:
        for _ in range(4):
            await make_job(conn, world.version)
        claimed = await claim(conn, world.node, world.account, free=4)
        await expire(conn, *claimed)
        await conn.execute("UPDATE leases SET expires_at = now() - interval '1 h' WHERE job_id = $1", claimed[2].job_id)
        assert await reap_once(world.pool, SEEN_FOR_LONG, limit=1) == Reaped(1, 0)
        assert await stands_in(conn, claimed[2].job_id) == ["ready"]
        assert await reap_once(world.pool, SEEN_FOR_LONG, limit=10) == Reaped(3, 0)


async def test_two_reapers_share_the_work(world: World) -> None:
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        await expire(conn, await claim_one(conn, world.node, world.account))
        async with conn.transaction():
            await leasing.expired(conn, limit=10)
            assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(0, 0)
        assert await reap_once(world.pool, SEEN_FOR_LONG) == Reaped(1, 0)
        assert await stands_in(conn, job) == ["ready"]


async def test_a_message_with_a_nul_does_not_stop_the_rounds_that_read_it(world: World, pool: Pool) -> None:
    world = await make_world(pool, retry={"attempts": 2})
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version)
        claimed = await claim_one(conn, world.node, world.account)
        report = Report(claimed.token, "failed", 1, "exit_nonzero", "a\0b\ud800")
        assert await finishing.finish(conn, world.node, job, report) == "scheduled"
        assert await finishing.finish(conn, world.node, job, report) == "scheduled"
        await conn.execute("UPDATE waiting_jobs SET due_at = now()")
        await queue.promote(conn, limit=1)
        await expire(conn, await claim_one(conn, world.node, world.account))
        assert await reap_once(pool, SEEN_FOR_LONG) == Reaped(1, 0)


async def test_nobody_is_taken_for_dead_who_could_not_be_heard(world: World) -> None:
    """After the database was away every lease has run out, and every node is well."""
    now = [0.0]
    sight = Sight(20, clock=lambda: now[0])
    async with world.pool.acquire() as conn:
        job = await make_job(conn, world.version)
        await expire(conn, await claim_one(conn, world.node, world.account))

        async def at(second: float) -> str:
            now[0] = second
            await reap_once(world.pool, sight)
            (place,) = await stands_in(conn, job)
            return place

        assert await at(1) == "leased", "the scheduler has only just begun to look"
        assert await at(600) == "leased", "the database was away since"
        for second in range(604, 620, 4):
            assert await at(second) == "leased"
        assert await at(620) == "ready"


def test_a_short_gap_does_not_delay_what_is_due() -> None:
    now = [0.0]
    sight = Sight(20, clock=lambda: now[0])
    clear = []
    for now[0] in (4, 8, 12, 16, 20, 25, 30.5, 36, 50.4, 51):
        clear.append(sight.clear())
    assert clear == [False, False, False, False, True, True, False, False, False, False]
