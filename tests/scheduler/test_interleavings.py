"""Claim, expiry, report, cancel and the rest, in every order and two at a time: a job ends in one way, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import permutations, product
from typing import Any, cast
from uuid import UUID

import pytest

from functions.db import Connection, Pool
from functions.errors import LeaseLost
from functions.ids import JobId, NodeId
from gateway.database import open_pool
from scheduler import cancelling, finishing, leasing, queue
from scheduler.claiming import Claimed
from scheduler.finishing import Report
from scheduler.reaper import Sight, reap_once
from tests.scheduler.factories import (
    LEASE,
    World,
    claim,
    expire,
    make_job,
    make_node,
    make_world,
    stands_in,
)

SEEN_FOR_LONG = Sight(0)
RUNS_OUT = "UPDATE leases SET expires_at = clock_timestamp() + $1::interval * random()"
PENDING = """
SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted
"""


class OnlyOne:
    """A pool whose connection is given, so that a round runs inside a transaction of the test's."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        yield self._conn


class Situation:
    """A job that was leased to a node whose lease has run out."""

    def __init__(self, world: World, claimed: Claimed) -> None:
        self.world, self.claimed, self.job = world, claimed, claimed.job_id

    async def succeed(self, conn: Connection) -> None:
        await finishing.finish(conn, self.world.node, self.job, Report(self.claimed.token, "succeeded", 0))

    async def fail(self, conn: Connection) -> None:
        report = Report(self.claimed.token, "failed", 1, "exit_nonzero", "it broke")
        await finishing.finish(conn, self.world.node, self.job, report)

    async def reap(self, conn: Connection) -> None:
        await reap_once(cast("Pool", OnlyOne(conn)), SEEN_FOR_LONG)

    async def cancel(self, conn: Connection) -> None:
        await cancelling.cancel(conn, self.world.project, [self.job])

    async def release(self, conn: Connection) -> None:
        await finishing.release(conn, self.world.node, [(self.job, self.claimed.token)], "drained")

    async def beat(self, conn: Connection) -> None:
        await leasing.heartbeat(conn, self.world.node, [(self.job, self.claimed.token, None, {})], lease=LEASE)

    async def claim(self, conn: Connection) -> None:
        await claim(conn, self.world.node, self.world.account)


STEPS = ("succeed", "fail", "reap", "cancel", "release", "beat", "claim")


async def situation(world: World) -> Situation:
    async with world.pool.acquire() as conn:
        await make_job(conn, world.version)
        (claimed,) = await claim(conn, world.node, world.account)
        await expire(conn, claimed)
        return Situation(world, claimed)


async def step(conn: Connection, act: Callable[[Connection], Awaitable[None]]) -> None:
    with suppress(LeaseLost):
        async with conn.transaction():
            await act(conn)


async def settle(conn: Connection, made: Situation) -> str:
    """Drive the job to its end; its outcome, after which everything about it is looked at."""
    world = made.world
    for _ in range(20):
        (place,) = await stands_in(conn, made.job)
        if place == "waiting":
            await conn.execute("UPDATE waiting_jobs SET due_at = now() WHERE job_id = $1", made.job)
            await queue.promote(conn, limit=10)
        elif place == "ready":
            await claim(conn, world.node, world.account)
        elif place == "leased":
            row = await conn.fetchrow("SELECT token, cancel_requested FROM leases WHERE job_id = $1", made.job)
            status = "cancelled" if row["cancel_requested"] else "succeeded"
            async with conn.transaction():
                await finishing.finish(conn, world.node, made.job, Report(row["token"], status))
        else:
            break
    await check(conn, made, place)
    return place


async def check(conn: Connection, made: Situation, status: str) -> None:
    told = await conn.fetch("SELECT type FROM deliveries WHERE job_id = $1", made.job)
    assert [row["type"] for row in told] == [f"job.{status}"]
    before = await conn.fetch("SELECT attempt FROM job_attempts WHERE job_id = $1 ORDER BY attempt", made.job)
    last = await conn.fetchval("SELECT attempt FROM outcomes WHERE job_id = $1", made.job)
    numbers = [row["attempt"] for row in before]
    assert numbers == list(range(1, len(numbers) + 1))
    assert last in (len(numbers), len(numbers) + 1), "the outcome's attempt is the last one"


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, retry={"attempts": 3}, callbacks=[{"url": "http://127.0.0.1:1/"}])


def expected(order: Sequence[str]) -> str:
    """The outcome that a user would expect: the node's word while it holds the lease, then the cancel's."""
    place, asked = "with the first node", False
    for name in order:
        first = place == "with the first node"
        if name == "cancel":
            place, asked = ("cancelled", asked) if place in ("ready", "waiting") else (place, True)
        elif name == "claim" and place == "ready":
            place = "with another node"
        elif first and name == "succeed":
            place = "succeeded"
        elif first and name in ("reap", "fail"):
            place = "cancelled" if asked else {"reap": "ready", "fail": "waiting"}[name]
    return place if place in ("succeeded", "cancelled") else "cancelled" if asked else "succeeded"


async def test_any_order_of_claim_expiry_report_and_cancel_ends_in_one_outcome(world: World) -> None:
    async with world.pool.acquire() as conn:
        for report in ("succeed", "fail"):
            for order in permutations(("claim", "reap", report, "cancel")):
                made = await situation(world)
                for name in order:
                    await step(conn, getattr(made, name))
                    assert len(await stands_in(conn, made.job)) == 1, order
                assert await settle(conn, made) == expected(order), order


async def test_any_two_of_them_at_once_leave_the_job_in_one_place(world: World) -> None:
    """The second one begins while the first one's transaction is open, and waits for it or passes it by."""
    async with world.pool.acquire() as first, world.pool.acquire() as second, world.pool.acquire() as watch:
        pid = await second.fetchval("SELECT pg_backend_pid()")
        for one, other in product(STEPS, STEPS):
            made = await situation(world)
            begun = first.transaction()
            await begun.start()
            with suppress(LeaseLost):
                await getattr(made, one)(first)
            task = asyncio.ensure_future(step(second, getattr(made, other)))
            await _waits_or_is_done(watch, pid, task)
            await begun.commit()
            await task
            assert len(await stands_in(watch, made.job)) == 1, (one, other)
            await settle(watch, made)


async def _waits_or_is_done(watch: Connection, pid: int, task: asyncio.Future[None]) -> None:
    while not task.done() and not await watch.fetchval(PENDING, pid):
        await asyncio.sleep(0.001)


async def test_a_cancel_that_comes_while_a_failure_is_being_reported_is_not_lost(world: World) -> None:
    made = await situation(world)
    async with world.pool.acquire() as first, world.pool.acquire() as second, world.pool.acquire() as watch:
        pid = await second.fetchval("SELECT pg_backend_pid()")
        begun = first.transaction()
        await begun.start()
        await made.cancel(first)
        # The report has read the lease before the cancel commits, and deletes it afterwards.
        report = asyncio.ensure_future(step(second, made.fail))
        await _waits_or_is_done(watch, pid, report)
        await begun.commit()
        await report
        assert await stands_in(watch, made.job) == ["cancelled"]


async def test_two_nodes_never_lease_the_same_job(world: World) -> None:
    async with world.pool.acquire() as a, world.pool.acquire() as b:
        job = await make_job(a, world.version)
        other = await make_node(a)
        async with a.transaction():
            mine = await claim(a, world.node, world.account)
            theirs = await claim(b, other, world.account)
    assert ([lease.job_id for lease in mine], theirs) == ([job], [])


async def test_of_a_thousand_leases_that_run_out_while_they_are_renewed_each_has_one_owner(
    world: World, database: str
) -> None:
    """SECURITY N10: ten times a hundred, some of which the node asks about while the reaper takes some."""
    renewed = taken = 0
    hot = await open_pool(database, hot_path=True)
    async with world.pool.acquire() as conn:
        for _ in range(100):
            await make_job(conn, world.version)
    for step in range(10):
        async with world.pool.acquire() as conn:
            node = await make_node(conn, slots=100)
            held = {each.job_id: each.token for each in await claim(conn, node, world.account, free=100)}
            assert len(held) == 100
            await conn.execute(RUNS_OUT, timedelta(milliseconds=step - 5))

        async def beat(node: NodeId = node, held: dict[JobId, UUID] = held) -> set[JobId]:
            kept: set[JobId] = set()
            asked = [(job, token, None, {}) for job, token in held.items()]
            async with hot.acquire() as conn:
                for at in range(0, 100, 5):
                    kept |= set(await leasing.heartbeat(conn, node, asked[at : at + 5], lease=LEASE))
            return kept

        async def reap() -> None:
            for _ in range(20):
                await reap_once(world.pool, SEEN_FOR_LONG, limit=3, max_losses=100)

        kept, _ = await asyncio.gather(beat(), reap())
        async with world.pool.acquire() as conn:
            rows = await conn.fetch("SELECT job_id, token FROM leases")
            ready = {row["job_id"] for row in await conn.fetch("SELECT job_id FROM ready_jobs")}
            assert {row["job_id"]: row["token"] for row in rows} == {job: held[job] for job in kept}
            assert ready == held.keys() - kept
            renewed, taken = renewed + len(kept), taken + len(ready)
            await finishing.release(conn, node, [(job, held[job]) for job in kept], "drained")
    await hot.close()
    assert renewed + taken == 1000 and min(renewed, taken) > 10
    print(f"{renewed} were renewed, {taken} taken back")


async def test_two_promoters_never_move_the_same_job(world: World) -> None:
    async with world.pool.acquire() as a, world.pool.acquire() as b:
        for _ in range(4):
            await make_job(a, world.version, delay=timedelta(minutes=1))
        await a.execute("UPDATE waiting_jobs SET due_at = now()")
        async with a.transaction():
            moved = await queue.promote(a, limit=3), await queue.promote(b, limit=10)
    assert moved == (3, 1)


async def test_many_cancels_and_heartbeats_of_the_same_jobs_never_deadlock(world: World, database: str) -> None:
    hot = await open_pool(database, hot_path=True)
    async with world.pool.acquire() as conn:
        made = [await make_job(conn, world.version) for _ in range(30)]
        node = await make_node(conn, slots=20)
        held: list[Any] = [
            (each.job_id, each.token, None, {}) for each in await claim(conn, node, world.account, free=20)
        ]

    async def cancel(order: list[Any]) -> None:
        async with world.pool.acquire(timeout=60) as conn, conn.transaction():
            await cancelling.cancel(conn, world.project, order)

    async def beat(order: list[Any]) -> None:
        async with hot.acquire(timeout=60) as conn:
            await leasing.heartbeat(conn, node, order, lease=LEASE)

    for _ in range(5):
        await asyncio.gather(
            *(cancel(made[::turn]) for turn in (1, -1, 1, -1)),
            *(beat(held[::turn]) for turn in (1, -1, 1, -1) for _ in range(3)),
        )
    await hot.close()
    async with world.pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM outcomes WHERE status = 'cancelled'") == 10
        assert await conn.fetchval("SELECT count(*) FROM leases WHERE cancel_requested") == 20
