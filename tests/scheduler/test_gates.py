"""Limits of a function: of a key, in total, and of starts in a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from functions.db import Connection, Pool
from functions.errors import LimitReached
from functions.ids import JobId
from gateway.database import open_pool
from scheduler import gates, jobs, queue
from scheduler.gates import GateId
from scheduler.jobs import Report, Submitted
from scheduler.queue import Claimed
from scheduler.views import read_jobs
from tests.scheduler.factories import (
    World,
    claim,
    make_node,
    make_project,
    make_version,
    make_world,
    new_job,
    stands_in,
)

BY_CUSTOMER = {"properties": {"customer": {"type": ["string", "null"], "default": None}}}
KEY = "{{ params.customer }}"


async def enter(conn: Connection, world: World, *customers: str | None, **more: Any) -> list[JobId]:
    """Submit a job for each customer, and let through what may go."""
    reached: set[GateId] = set()
    made = [new_job(world.version, params={"customer": each}, **more) for each in customers]
    answers = await jobs.submit(conn, made, reached)
    await gates.advance(conn, reached)
    return [answer.job_id for answer in answers if isinstance(answer, Submitted)]


async def end(conn: Connection, world: World, claimed: Claimed, status: str = "succeeded") -> None:
    freed: set[GateId] = set()
    code = None if status == "succeeded" else "exit_nonzero"
    async with conn.transaction():
        await jobs.finish(conn, world.node, claimed.job_id, Report(claimed.token, status, code=code), freed=freed)
    await gates.advance(conn, freed)


async def take(conn: Connection, world: World, most: int = 100) -> list[Claimed]:
    return await claim(conn, world.node, world.account, free=most)


async def slots(conn: Connection) -> int:
    held: int = await conn.fetchval("SELECT count(*) FROM slots WHERE until IS NULL")
    return held


async def limited(pool: Pool, **spec: Any) -> World:
    return await make_world(pool, params=BY_CUSTOMER, queue=spec)


async def test_no_more_jobs_are_let_in_than_the_limit_and_the_next_one_when_one_has_ended(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        made = await enter(conn, world, *["a"] * 5)
        first = await take(conn, world)
        assert [each.job_id for each in first] == made[:2]
        assert await take(conn, world) == []
        await end(conn, world, first[0])
        (next_one,) = await take(conn, world)
        assert next_one.job_id == made[2], "in the order in which they came"
        assert await slots(conn) == 2


async def test_each_key_has_its_limit_and_a_flooding_key_hides_no_other(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 4, "perKey": 2, "key": KEY})
    async with pool.acquire() as conn:
        await enter(conn, world, *["a"] * 50)
        ours = await enter(conn, world, "b", None, None, None)
        taken = [each.job_id for each in await take(conn, world)]
        assert len(taken) == 4
        assert taken[2:] == ours[:2], "null is a key of its own"
        assert await conn.fetchval("SELECT count(*) FROM gates WHERE level = 1") == 3


async def test_a_limit_holds_over_all_versions_and_a_new_one_from_the_next_admission_on(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        await enter(conn, world, *["a"] * 4)
        running = await take(conn, world)
        world.version = await make_version(
            conn, world.project, params=BY_CUSTOMER, queue={"concurrency": {"limit": 1}}
        )
        function = world.version.function_id
        assert function is not None
        await gates.set_limits(conn, function, world.version.manifest.spec.queue)
        await enter(conn, world, "a")
        await end(conn, world, running[0])
        assert await take(conn, world) == [], "one is running, and no more may"
        await end(conn, world, running[1])
        assert len(await take(conn, world)) == 1


async def test_a_rate_counts_starts_also_those_of_attempts_that_failed(pool: Pool) -> None:
    world = await make_world(pool, retry={"attempts": 2, "backoff": {"initial": "0s", "max": "0s"}},
                             queue={"rate": {"limit": 2, "per": "1m"}})  # fmt: skip
    async with pool.acquire() as conn:
        reached: set[GateId] = set()
        await jobs.submit(conn, [new_job(world.version) for _ in range(3)], reached)
        await gates.advance(conn, reached)
        first, second = await take(conn, world)
        assert await slots(conn) == 0
        await end(conn, world, first, "failed")
        await end(conn, world, second)
        await queue.promote(conn, limit=10, reached=reached)
        await gates.advance(conn, reached)
        assert await take(conn, world) == []
        waiting = await read_jobs(conn, world.project, [first.job_id])
        assert (waiting[0].status, waiting[0].row["wait_reason"]) == ("queued", "rate")
        left = await gates.next_start_s(conn)
        assert left is not None
        assert 50 < left <= 60
        assert await gates.free_starts(conn, limit=10) == []
        await conn.execute("UPDATE slots SET until = now() WHERE job_id = $1", first.job_id)
        await gates.advance(conn, await gates.free_starts(conn, limit=10))
        (third,) = await take(conn, world)
        assert third.attempt == 1, "the one that has waited since before the other failed"


async def test_a_job_that_is_cancelled_gives_its_place_back(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1, "perKey": 1, "key": KEY}, rate={"limit": 1, "per": "1h"})
    async with pool.acquire() as conn:
        let_in, waiting, next_one = await enter(conn, world, "a", "a", "b")
        freed: set[GateId] = set()
        async with conn.transaction():
            await jobs.cancel(conn, world.project, [let_in, waiting], freed)
        await gates.advance(conn, freed)
        assert await stands_in(conn, next_one) == ["ready"], "what never started is no start of the rate"
        assert await slots(conn) == 3


async def test_a_job_whose_node_was_lost_passes_its_gates_again_before_the_others(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        lost, _ = await enter(conn, world, "a", "a")
        (claimed,) = await take(conn, world)
        freed: set[GateId] = set()
        async with conn.transaction():
            await jobs.release(conn, world.node, [(lost, claimed.token)], "drained", freed)
        await gates.advance(conn, freed)
        (again,) = await take(conn, world)
        assert (again.job_id, again.attempt) == (lost, 2)


async def test_a_delayed_job_takes_its_place_when_it_is_due(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        (delayed,) = await enter(conn, world, "a", delay=timedelta(minutes=1))
        assert await slots(conn) == 0
        await enter(conn, world, "a")
        await conn.execute("UPDATE waiting_jobs SET due_at = now()")
        reached: set[GateId] = set()
        await queue.promote(conn, limit=10, reached=reached)
        await gates.advance(conn, reached)
        (record,) = await read_jobs(conn, world.project, [delayed])
        assert (record.status, record.row["wait_reason"]) == ("queued", "concurrency")


async def test_rejecting_refuses_what_is_over_the_limit_and_makes_no_job(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1, "onLimit": "reject"})
    async with pool.acquire() as conn:
        first = new_job(world.version, params={}, idempotency_key="k", body_hash=b"")
        (answer, refused) = await jobs.submit(conn, [first, new_job(world.version)])
        assert isinstance(answer, Submitted)
        assert isinstance(refused, LimitReached)
        assert (refused.code, refused.retry_after_s is not None) == ("concurrency_rejected", True)
        (again,) = await jobs.submit(conn, [new_job(world.version, idempotency_key="k", body_hash=b"")])
        assert again == Submitted(answer.job_id, None), "a repeat has its answer"
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 1
        (claimed,) = await take(conn, world)
        await end(conn, world, claimed)
        assert len(await enter(conn, world, "a")) == 1


async def test_replacing_cancels_the_waiting_one_at_once_and_starts_when_the_running_one_has_ended(pool: Pool) -> None:
    world = await limited(pool, concurrency={"perKey": 1, "key": KEY, "onLimit": "replace"})
    async with pool.acquire() as conn:
        await enter(conn, world, "a", "b")
        running, other = await take(conn, world)
        (second,) = await enter(conn, world, "a")
        (third,) = await enter(conn, world, "a")
        assert await stands_in(conn, second) == ["cancelled"]
        asked = await conn.fetch("SELECT job_id FROM leases WHERE cancel_requested")
        assert [row["job_id"] for row in asked] == [running.job_id]
        assert await take(conn, world) == []
        await end(conn, world, running)
        assert [each.job_id for each in await take(conn, world)] == [third]
        assert await stands_in(conn, other.job_id) == ["leased"], "another key's"


async def test_a_job_that_waits_for_its_limit_holds_up_nothing_else_of_its_project(pool: Pool) -> None:
    """Virtual time is given when a job is let in (QUEUE, trap 5)."""
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        await enter(conn, world, *["a"] * 200)
        free = await make_version(conn, world.project, name="free")
        (answer,) = await jobs.submit(conn, [new_job(free)])
        assert isinstance(answer, Submitted)
        assert answer.job_id in [each.job_id for each in await take(conn, world, 2)]


async def test_what_a_dead_process_did_not_advance_is_healed_by_the_round(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        await jobs.submit(conn, [new_job(world.version) for _ in range(3)])
        assert await take(conn, world) == []
        assert await gates.advance_all(conn) == 2
        assert len(await take(conn, world)) == 2


async def test_gates_that_nobody_has_used_are_forgotten(pool: Pool) -> None:
    world = await limited(pool, concurrency={"perKey": 1, "key": KEY})
    async with pool.acquire() as conn:
        await enter(conn, world, "running", "ended")
        for each in await take(conn, world):
            if each.params == '{"customer":"ended"}':
                await end(conn, world, each)
        await enter(conn, world, "later", delay=timedelta(hours=1))
        await conn.execute("UPDATE gates SET used_at = now() - interval '3 days'")
        assert await gates.forget(conn, limit=10) == 1


@pytest.mark.parametrize("per_key", [1, 3])
async def test_eight_workers_at_once_never_deadlock_or_let_in_too_many(database: str, per_key: int) -> None:
    pool = await open_pool(database, hot_path=True, max_size=10)
    world = await limited(pool, concurrency={"limit": 5, "perKey": per_key, "key": KEY}, rate={"limit": 40, "per": "1s"})
    made: list[JobId] = []
    most = 0

    async def produce(turn: int) -> None:
        async with pool.acquire(timeout=60) as conn:
            for number in range(30):
                made.extend(await enter(conn, world, f"c{(number * turn) % 4}"))

    async def cancel() -> None:
        async with pool.acquire(timeout=60) as conn:
            while len(made) < 120:
                freed: set[GateId] = set()
                async with conn.transaction():
                    await jobs.cancel(conn, world.project, made[-3:], freed)
                await gates.advance(conn, freed)
                await asyncio.sleep(0.05)

    async def work(worker: int) -> None:
        nonlocal most
        async with pool.acquire(timeout=60) as conn:
            node = await make_node(conn, slots=2)
            while await conn.fetchval("SELECT count(*) FROM outcomes") < 120:
                await gates.advance(conn, await gates.free_starts(conn, limit=100))
                taken = await claim(conn, node, world.account, free=2)
                held = await conn.fetch(
                    "SELECT gate_id, count(*) AS n, min(lim) AS lim FROM slots JOIN gates ON gates.id = gate_id"
                    " WHERE until IS NULL GROUP BY gate_id"
                )
                assert all(row["n"] <= row["lim"] for row in held)
                most = max([most, *(row["n"] for row in held)])
                for number, each in enumerate(taken):
                    freed: set[GateId] = set()
                    async with conn.transaction():
                        if (worker + number) % 3 == 0:
                            await jobs.release(conn, node, [(each.job_id, each.token)], "", freed)
                        else:
                            await jobs.finish(conn, node, each.job_id, Report(each.token, "succeeded"), freed=freed)
                    await gates.advance(conn, freed)
                if not taken:
                    await asyncio.sleep(0.005)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for turn in range(4):
            group.create_task(produce(turn + 1))
        for worker in range(4):
            group.create_task(work(worker + 1))
        group.create_task(cancel())
    async with pool.acquire() as conn:
        assert await slots(conn) == 0
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 120
        assert most >= 2
    await pool.close()


async def test_other_projects_are_not_touched(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        other, account = await make_project(conn)
        theirs = World(
            pool, other, account,
            await make_version(conn, other, params=BY_CUSTOMER, queue={"concurrency": {"limit": 1}}), world.node,
        )  # fmt: skip
        await enter(conn, world, "a")
        await enter(conn, theirs, "a")
        assert len(await take(conn, theirs)) == len(await take(conn, world)) == 1
