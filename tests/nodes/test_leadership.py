"""Who looks after the fleet, and for how long a round may keep others waiting."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from functions.db import Pool
from nodes import fleet, servers
from nodes.leadership import Leadership
from scheduler.reaper import Sight
from tests.hetzner.rules import CREATE, DELETE, LIST, Slow
from tests.nodes.fleets import A_MINUTE, Clouded, wish_of

LEASE = timedelta(seconds=0.4)


async def take(pool: Pool, leadership: Leadership) -> bool:
    async with pool.acquire() as conn:
        return await leadership.take(conn)


async def test_who_waits_for_the_cloud_leads_on_and_who_has_died_does_not(pool: Pool) -> None:
    answered = asyncio.Semaphore(0)
    first = Leadership(pool, lease=LEASE, answered=answered.release)
    second = Leadership(pool, lease=LEASE, answered=lambda: None)
    assert await take(pool, first)
    async with first.kept():
        began = time.monotonic()
        while time.monotonic() - began < 2 * LEASE.total_seconds():
            await answered.acquire()
            assert not await take(pool, second)
    async with asyncio.timeout(10):
        while not await take(pool, second):
            await asyncio.sleep(0.02)
    async with second.step() as (_, state):
        assert state.problem is None


async def test_leadership_is_renewed_in_its_own_epoch_only(pool: Pool) -> None:
    first = Leadership(pool, lease=LEASE, answered=lambda: None)
    assert await take(pool, first)
    async with pool.acquire() as conn:
        assert await fleet.renew(conn, first.epoch, lease=LEASE)
        assert not await fleet.renew(conn, first.epoch - 1, lease=LEASE)


async def test_a_round_that_waits_for_the_cloud_has_the_database_in_sight_all_the_time(clouded: Clouded) -> None:
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    autoscaler = clouded.new_autoscaler(lease=LEASE)
    autoscaler._sight = Sight(120, clock)
    clouded.cloud.inject(Slow(0.5), **LIST)
    await autoscaler.once()
    before, at_the_plan = 1, 1
    assert looks > before + at_the_plan + 1


async def test_two_schedulers_do_not_replace_each_other_because_the_cloud_is_slow(clouded: Clouded) -> None:
    first, second = (clouded.new_autoscaler(lease=LEASE) for _ in range(2))
    await clouded.submit()
    clouded.cloud.inject(Slow(1.0), **LIST)
    clouded.cloud.inject(Slow(1.0), **CREATE)
    slow = asyncio.ensure_future(first.once())
    while not slow.done():
        if clouded.cloud.made("GET", "/servers"):
            assert not await second.once()
        await asyncio.sleep(0.05)
    await slow
    assert await clouded.states() == ["booting"]
    assert len(clouded.cloud.made("GET", "/servers")) == len(clouded.cloud.made("POST", "/servers")) == 1
    assert await clouded.pool.fetchval("SELECT epoch FROM fleet") == 1


async def test_calls_that_would_begin_late_in_a_round_are_left_for_the_next(clouded: Clouded) -> None:
    clouded.wish = wish_of(nodes=6, types=("cx23",))
    clouded.autoscaler = clouded.new_autoscaler(calls_begin_within_s=0.2)
    await clouded.submit(12)
    await clouded.pass_time(4 * A_MINUTE)
    assert len(clouded.existing) == 6
    async with clouded.pool.acquire() as conn:
        await conn.execute("DELETE FROM ready_jobs")
        for row in await clouded.live():
            await servers.delete(conn, row.id, reason="a test wants it", now=clouded.cloud.now)
    clouded.cloud.inject(Slow(0.3), times=None, **DELETE)
    asked = []
    for _ in range(2):
        await clouded.autoscaler.once()
        asked.append(sum(call.method == "DELETE" for call in clouded.cloud.calls))
    assert asked == [4, 6]
    await clouded.pass_time(2 * A_MINUTE)
    assert clouded.existing == []
