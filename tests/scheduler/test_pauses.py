"""Paused functions: their jobs stand aside and go on in their order."""

from __future__ import annotations

from datetime import timedelta

from functions import registry
from functions.db import Connection, Pool
from functions.ids import FunctionId
from scheduler import finishing, gates, pauses, queue
from scheduler.finishing import Report
from scheduler.gates import GateId
from scheduler.views import read_jobs
from tests.scheduler.factories import World, claim, make_job, make_world, stands_in


async def pause(conn: Connection, world: World, *, paused: bool = True) -> FunctionId:
    return (await registry.set_paused(conn, world.project, "fn", paused=paused)).id


async def test_jobs_of_a_paused_function_wait_and_go_on_in_their_order(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        made = [await make_job(conn, world.version) for _ in range(3)]
        function = await pause(conn, world)
        assert await pauses.pause(conn, world.project, function, limit=2) == 2
        assert await pauses.pause(conn, world.project, function, limit=2) == 1
        made += [await make_job(conn, world.version) for _ in range(2)]
        assert await claim(conn, world.node, world.account, free=10) == []
        for record in await read_jobs(conn, world.project, made):
            assert (record.status, record.row["wait_reason"]) == ("queued", "paused")
            assert record.row["queued_at"] is not None
        assert await pauses.resume(conn, function, limit=10) == 5
        assert [each.job_id for each in await claim(conn, world.node, world.account, free=10)] == made


async def test_running_jobs_finish_and_what_comes_back_waits(pool: Pool) -> None:
    world = await make_world(pool, retry={"attempts": 2})
    async with pool.acquire() as conn:
        for _ in range(3):
            await make_job(conn, world.version)
        delayed = await make_job(conn, world.version, delay=timedelta(minutes=1))
        good, failed, lost = await claim(conn, world.node, world.account, free=3)
        function = await pause(conn, world)
        await finishing.finish(conn, world.node, good.job_id, Report(good.token, "succeeded"))
        await finishing.finish(conn, world.node, failed.job_id, Report(failed.token, "failed", 1, "exit_nonzero"))
        await finishing.release(conn, world.node, [(lost.job_id, lost.token)], "")
        await conn.execute("UPDATE waiting_jobs SET due_at = now() WHERE due_at IS NOT NULL")
        assert await queue.promote(conn, limit=10) == 2
        rows = await conn.fetch("SELECT job_id FROM waiting_jobs WHERE stage = 'paused'")
        assert {row["job_id"] for row in rows} == {failed.job_id, lost.job_id, delayed}
        assert await stands_in(conn, good.job_id) == ["succeeded"]
        assert await pauses.resume(conn, function, limit=10) == 3


async def test_a_paused_function_lets_nobody_through_its_limits_and_leaks_no_place(pool: Pool) -> None:
    world = await make_world(pool, queue={"concurrency": {"limit": 1}})
    async with pool.acquire() as conn:
        made = [await make_job(conn, world.version) for _ in range(3)]
        assert await gates.advance_all(conn) == 1
        function = await pause(conn, world)
        assert await pauses.pause(conn, world.project, function, limit=10) == 1
        assert await conn.fetchval("SELECT count(*) FROM slots") == 0
        assert await gates.advance_all(conn) == 0
        await pause(conn, world, paused=False)
        reached: set[GateId] = set()
        assert await pauses.resume(conn, function, limit=10, reached=reached) == 1
        assert await gates.advance(conn, reached) == 1
        assert [each.job_id for each in await claim(conn, world.node, world.account, free=10)] == made[:1]


async def test_the_round_heals_what_a_pause_or_resume_has_missed(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version)
        await pause(conn, world)
        reached: set[GateId] = set()
        assert await pauses.heal(conn, limit=10, reached=reached) == 1
        assert await stands_in(conn, job) == ["waiting"]
        await pause(conn, world, paused=False)
        assert await pauses.heal(conn, limit=10, reached=reached) == 1
        assert await stands_in(conn, job) == ["ready"]
        assert await pauses.heal(conn, limit=10, reached=reached) == 0


async def test_a_pause_does_not_set_the_projects_other_functions_back(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        for _ in range(50):
            await make_job(conn, world.version)
        function = await pause(conn, world)
        await pauses.pause(conn, world.project, function, limit=100)
        assert await conn.fetchval("SELECT f FROM flows WHERE project_id = $1", world.project) == 0


async def test_a_job_that_is_retried_after_its_paused_function_was_deleted_is_not_stranded(pool: Pool) -> None:
    world = await make_world(pool, retry={"attempts": 2, "backoff": {"initial": "0s", "max": "0s"}})
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version)
        (running,) = await claim(conn, world.node, world.account, free=1)
        await pause(conn, world)
        await registry.delete(conn, world.project, "fn")
        await finishing.finish(conn, world.node, job, Report(running.token, "failed", 1, "exit_nonzero"))
        assert await queue.promote(conn, limit=10) == 1
        (again,) = await claim(conn, world.node, world.account, free=1)
        assert (again.job_id, again.attempt) == (job, 2)
