"""Limits that change: those of the current version hold for every job that has not started, whichever version it has."""

from __future__ import annotations

from typing import Any

import pytest

from functions import registry
from functions.db import Connection, Pool
from functions.errors import Unavailable
from functions.ids import FunctionId
from functions.s3 import S3Store
from gateway.database import open_pool
from scheduler import cancelling, gates, jobs, pauses, queue, redrive
from scheduler.gates import GateId
from scheduler.redrive import Redriving
from scheduler.relimiting import relimit_once
from scheduler.spill import spilled
from tests.scheduler.factories import (
    LOOPBACK,
    SIZING,
    STORE,
    World,
    make_job,
    make_version,
    make_world,
    new_job,
    stands_in,
)
from tests.scheduler.test_gates import BY_CUSTOMER, KEY, end, enter, slots, take

BY_KEY = {"concurrency": {"perKey": 1, "key": KEY}}
RETRY = {"attempts": 2, "backoff": {"initial": "0s", "max": "0s"}}


async def change(
    conn: Connection, world: World, queue: dict[str, Any] | None, *, store: Any = STORE, **more: Any
) -> FunctionId:
    """Apply the function with other limits, as the API does."""
    more = {"params": BY_CUSTOMER, "retry": RETRY} | more
    world.version = await make_version(conn, world.project, queue=queue, **more)
    assert world.version.function_id is not None
    await relimit_once(world.pool, store, function=world.version.function_id)
    return world.version.function_id


async def test_jobs_of_versions_without_limits_count_once_there_is_one(pool: Pool) -> None:
    world = await make_world(pool, params=BY_CUSTOMER, retry=RETRY)
    async with pool.acquire() as conn:
        made = await enter(conn, world, *"aabb")
        running = await take(conn, world, 1)
        await change(conn, world, {"concurrency": {"limit": 2}})
        assert [await stands_in(conn, job) for job in made] == [["leased"], ["ready"], ["waiting"], ["waiting"]]
        assert await slots(conn) == 2
        await end(conn, world, running[0])
        assert [each.job_id for each in await take(conn, world)] == made[1:3], "in the order in which they came"


async def test_a_running_job_counts_for_a_rate_from_its_start(pool: Pool) -> None:
    world = await make_world(pool, params=BY_CUSTOMER)
    async with pool.acquire() as conn:
        made = await enter(conn, world, "a", "a")
        await take(conn, world, 1)
        await conn.execute("UPDATE leases SET leased_at = now() - interval '30 seconds'")
        await change(conn, world, {"rate": {"limit": 1, "per": "1m"}})
        assert await stands_in(conn, made[1]) == ["waiting"]
        left = await gates.next_start_s(conn)
        assert left is not None and 20 < left <= 30


@pytest.mark.parametrize("after", [None, {"concurrency": {"limit": 10}}, {"concurrency": {"perKey": 2, "key": "{{ trigger.kind }}"}}])
async def test_who_waits_at_a_limit_that_there_is_no_more_goes_on(pool: Pool, after: dict[str, Any] | None) -> None:
    world = await make_world(pool, params=BY_CUSTOMER, retry=RETRY, queue=BY_KEY)
    async with pool.acquire() as conn:
        made = await enter(conn, world, *"aaa")
        assert len(await take(conn, world)) == 1
        await change(conn, world, after)
        most = 1 if after is not None and "perKey" in after["concurrency"] else 2
        assert [each.job_id for each in await take(conn, world)] == made[1:][:most]
        assert await slots(conn) == (0 if after is None else 1 + most)


async def test_the_current_versions_limits_hold_for_an_older_versions_jobs_too(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        await change(conn, world, {"concurrency": {"limit": 1, "perKey": 1, "key": KEY, "onLimit": "reject"}})
        old = await registry.current(conn, world.project, "fn", number=1)
        job = new_job(old)
        assert ([spec.level for spec in job.gates], job.on_limit) == ([1, 2], "reject"), "a missing key is null"
        assert new_job(world.version).gates[0] == job.gates[0]


async def test_a_retry_with_its_own_version_passes_the_current_limits(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version)
        await cancelling.cancel(conn, world.project, [job])
        await change(conn, world, {"concurrency": {"limit": 3}}, params=None)
        again = await redrive.retry(world.project, job, Redriving(pool, STORE, SIZING, LOOPBACK))
        assert [spec.limit for spec in again.gates] == [3]


async def test_jobs_that_wait_for_a_retry_or_stand_aside_come_back_to_the_limits_of_now(pool: Pool) -> None:
    world = await make_world(pool, params=BY_CUSTOMER, retry=RETRY)
    async with pool.acquire() as conn:
        await enter(conn, world, *"aa")
        for each in await take(conn, world):
            await end(conn, world, each, "failed")
        aside = await make_job(conn, world.version)
        function = (await registry.set_paused(conn, world.project, "fn", paused=True)).id
        await pauses.pause(conn, world.project, function, limit=10)
        await change(conn, world, {"concurrency": {"limit": 1}})
        assert await stands_in(conn, aside) == ["waiting"]
        await registry.set_paused(conn, world.project, "fn", paused=False)
        reached: set[GateId] = set()
        await pauses.resume(conn, function, limit=10, reached=reached)
        await queue.promote(conn, limit=10, reached=reached)
        await gates.advance(conn, reached)
        assert len(await take(conn, world)) == 1


async def test_a_change_whose_process_died_and_jobs_that_were_on_their_way_are_found_by_the_round(pool: Pool) -> None:
    world = await make_world(pool, params=BY_CUSTOMER)
    async with pool.acquire() as conn:
        late = new_job(world.version)
        world.version = await make_version(conn, world.project, queue={"concurrency": {"limit": 1}}, params=BY_CUSTOMER)
        await relimit_once(pool, STORE)
        await enter(conn, world, "a")
        await jobs.submit(conn, [late])
        assert await stands_in(conn, late.id) == ["ready"]
        await relimit_once(pool, STORE)
        assert await stands_in(conn, late.id) == ["waiting"]
        assert await registry.changed_limits(conn, limit=1), "others may still come"
        await conn.execute("UPDATE functions SET limits_changed_at = now() - interval '1 minute'")
        await relimit_once(pool, STORE)
        assert not await registry.changed_limits(conn, limit=1)


async def test_a_key_of_large_params_is_read_from_the_store_and_waits_while_that_is_away(
    pool: Pool, store: S3Store
) -> None:
    class Away:
        def read(self, *_: Any) -> Any:
            raise Unavailable("the object store does not answer")

    away: Any = Away()
    world = await make_world(pool, params=BY_CUSTOMER)
    async with pool.acquire() as conn:
        large = new_job(world.version, params={"customer": "x" * 200_000})
        await jobs.submit(conn, [(await spilled(pool, store, large))[0]])
        await change(conn, world, BY_KEY, store=away)
        assert await conn.fetchval("SELECT gates FROM ready_jobs") is None
        assert await registry.changed_limits(conn, limit=1)
        await relimit_once(pool, store)
        expected = new_job(world.version, params={"customer": "x" * 200_000}).gates
        assert await conn.fetchval("SELECT key FROM gates JOIN slots ON gate_id = gates.id") == expected[0].key


async def test_a_function_whose_limits_are_locked_holds_up_no_others(database: str, pool: Pool) -> None:
    world = await make_world(pool, params=BY_CUSTOMER, queue={"concurrency": {"limit": 3}})
    hasty = await open_pool(database, command_timeout_s=0.3)
    async with pool.acquire() as conn, hasty.acquire() as holder:
        await enter(conn, world, "a")
        await make_version(conn, world.project, params=BY_CUSTOMER, queue={"concurrency": {"limit": 2}})
        unlimited = await make_job(conn, await make_version(conn, world.project, name="other"))
        await make_version(conn, world.project, name="other", queue={"concurrency": {"limit": 1}})
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM gates FOR UPDATE")
            await relimit_once(hasty, STORE)
        assert await conn.fetchval("SELECT gates FROM ready_jobs WHERE job_id = $1", unlimited)
    await hasty.close()


async def test_the_number_alone_moves_nobody(pool: Pool) -> None:
    world = await make_world(pool, params=BY_CUSTOMER, retry=RETRY, queue={"concurrency": {"limit": 3}})
    async with pool.acquire() as conn:
        made = await enter(conn, world, *"aaaa")
        await change(conn, world, {"concurrency": {"limit": 1}})
        assert [each.job_id for each in await take(conn, world)] == made[:3], "they were let in"
        await change(conn, world, {"concurrency": {"limit": 4}})
        assert [each.job_id for each in await take(conn, world)] == made[3:]
