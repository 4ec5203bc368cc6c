"""Jobs whose time is over: ttl and Cancel-After."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from functions.db import Connection, Pool
from functions.ids import JobId
from scheduler import claiming, finishing, gates
from scheduler.finishing import Report
from scheduler.gates import GateId
from scheduler.overdue import end_overdue
from scheduler.reaper import Sight, reap_once
from scheduler.views import read_jobs
from tests.scheduler.factories import World, claim, expire, make_job, make_world, stands_in

HOOK = [{"url": "http://127.0.0.1:1/"}]
HOUR = timedelta(hours=1)


async def pass_by(conn: Connection, *jobs: JobId) -> None:
    """Let their times pass."""
    for table in ("ready_jobs", "waiting_jobs"):
        await conn.execute(
            f"UPDATE {table} SET ttl_at = ttl_at - interval '40 days', cancel_at = cancel_at - interval '40 days'"
            " WHERE job_id = ANY ($1)",
            jobs,
        )
    await conn.execute("UPDATE leases SET cancel_at = cancel_at - interval '40 days' WHERE job_id = ANY ($1)", jobs)


async def outcome(conn: Connection, job: JobId) -> tuple[str, str | None, list[str]]:
    row = await conn.fetchrow("SELECT status, error FROM outcomes WHERE job_id = $1", job)
    told = await conn.fetch("SELECT type FROM deliveries WHERE job_id = $1", job)
    code = None if row["error"] is None else json.loads(row["error"])["code"]
    return row["status"], code, [each["type"] for each in told]


@pytest.mark.parametrize("delay", [None, HOUR])
async def test_a_job_that_does_not_start_within_its_ttl_expires_and_tells_so(pool: Pool, delay: timedelta | None) -> None:
    world = await make_world(pool, queue={"ttl": "1h"}, callbacks=HOOK)
    async with pool.acquire() as conn:
        late, early = [await make_job(conn, world.version, delay=delay) for _ in range(2)]
        await pass_by(conn, late)
        assert late not in [each.job_id for each in await claim(conn, world.node, world.account, free=2)]
        assert await end_overdue(pool, limit=10) == 1
        assert await outcome(conn, late) == ("expired", "deadline_exceeded", ["job.expired"])
        assert await stands_in(conn, early) in (["leased"], ["waiting"])
        assert await end_overdue(pool, limit=10) == 0


async def test_a_ttl_counts_from_when_the_job_may_start(pool: Pool) -> None:
    world = await make_world(pool, queue={"ttl": "1h"})
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version, delay=HOUR)
        assert await conn.fetchval("SELECT ttl_at - due_at FROM waiting_jobs WHERE job_id = $1", job) == HOUR


async def test_what_has_started_in_time_does_not_expire_any_more(pool: Pool) -> None:
    world = await make_world(pool, queue={"ttl": "1h"}, retry={"attempts": 2})
    async with pool.acquire() as conn:
        for _ in range(2):
            await make_job(conn, world.version)
        failed, lost = await claim(conn, world.node, world.account, free=2)
        await finishing.finish(conn, world.node, failed.job_id, Report(failed.token, "failed", 1, "exit_nonzero"))
        await finishing.release(conn, world.node, [(lost.job_id, lost.token)], "")
        await pass_by(conn, failed.job_id, lost.job_id)
        assert await end_overdue(pool, limit=10) == 0


async def test_an_expired_job_gives_back_its_place_at_the_limit(pool: Pool) -> None:
    world = await make_world(pool, queue={"ttl": "1h", "concurrency": {"limit": 1}})
    async with pool.acquire() as conn:
        made = [await make_job(conn, world.version) for _ in range(3)]
        await gates.advance_all(conn)
        await pass_by(conn, *made[:2])
        freed: set[GateId] = set()
        assert await end_overdue(pool, limit=10, freed=freed) == 2
        assert await gates.advance(conn, freed) == 1
        assert await stands_in(conn, made[2]) == ["ready"]


async def running(conn: Connection, world: World) -> tuple[JobId, claiming.Claimed]:
    job = await make_job(conn, world.version, cancel_after=timedelta(minutes=30))
    (claimed,) = await claim(conn, world.node, world.account)
    assert claimed.left_s is not None
    assert 1700 < claimed.left_s <= 1800
    return job, claimed


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, callbacks=HOOK, retry={"attempts": 3})


CANCELLED = ("cancelled", "deadline_exceeded", ["job.cancelled"])


async def test_cancel_after_ends_a_job_in_the_queue(world: World) -> None:
    async with world.pool.acquire() as conn:
        ready = await make_job(conn, world.version, cancel_after=HOUR)
        delayed = await make_job(conn, world.version, cancel_after=HOUR, delay=HOUR)
        await pass_by(conn, ready, delayed)
        assert await end_overdue(world.pool, limit=10) == 2
        assert [await outcome(conn, job) for job in (ready, delayed)] == [CANCELLED, CANCELLED]


@pytest.mark.parametrize("status", ["cancelled", "timed_out", "failed"])
async def test_cancel_after_ends_a_running_job_however_its_node_puts_it(world: World, status: str) -> None:
    async with world.pool.acquire() as conn:
        job, claimed = await running(conn, world)
        await end_overdue(world.pool, limit=10)
        assert not await conn.fetchval("SELECT cancel_requested FROM leases WHERE job_id = $1", job)
        await pass_by(conn, job)
        await end_overdue(world.pool, limit=10)
        assert await conn.fetchval("SELECT cancel_requested FROM leases WHERE job_id = $1", job)
        code = None if status == "cancelled" else "timeout"
        report = Report(claimed.token, status, code=code)
        assert await finishing.finish(conn, world.node, job, report) == "cancelled"
        assert await outcome(conn, job) == CANCELLED


async def test_what_succeeds_before_it_is_stopped_has_succeeded(world: World) -> None:
    async with world.pool.acquire() as conn:
        job, claimed = await running(conn, world)
        await pass_by(conn, job)
        await finishing.finish(conn, world.node, job, Report(claimed.token, "succeeded"))
        assert await outcome(conn, job) == ("succeeded", None, ["job.succeeded"])


async def test_cancel_after_ends_a_job_whose_node_is_lost_or_that_waits_for_a_retry(world: World) -> None:
    async with world.pool.acquire() as conn:
        lost, claimed = await running(conn, world)
        await pass_by(conn, lost)
        await expire(conn, claimed)
        await reap_once(world.pool, Sight(0))
        assert await outcome(conn, lost) == CANCELLED
        again, claimed = await running(conn, world)
        await finishing.finish(conn, world.node, again, Report(claimed.token, "failed", 1, "exit_nonzero"))
        (record,) = await read_jobs(conn, world.project, [again])
        assert (record.status, record.row["wait_reason"]) == ("scheduled", "retry")
        await pass_by(conn, again)
        await end_overdue(world.pool, limit=10)
        assert await outcome(conn, again) == CANCELLED


async def test_a_job_waits_for_capacity_while_no_node_has_room(world: World) -> None:
    async with world.pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET slots = 1")
        first = await make_job(conn, world.version)
        (record,) = await read_jobs(conn, world.project, [first])
        assert record.row["wait_reason"] is None
        await claim(conn, world.node, world.account)
        second = await make_job(conn, world.version)
        records = await read_jobs(conn, world.project, [first, second])
        assert [record.row["wait_reason"] for record in records] == [None, "capacity"]


async def test_lane_paid_is_taken_by_a_node_that_has_nothing_else_to_do(world: World) -> None:
    async with world.pool.acquire() as conn:
        paid = await make_job(conn, world.version, lane="paid")
        standard = await make_job(conn, world.version)
        taken = [(await claim(conn, world.node, world.account))[0].job_id for _ in range(2)]
        assert taken == [standard, paid]
