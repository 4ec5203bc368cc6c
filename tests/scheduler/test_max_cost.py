"""What running a job may cost: how long that is enough, and how the job ends when it is not any more."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from functions.db import Connection, Pool
from functions.ids import JobId, NodeId
from scheduler import cancelling, finishing, leasing
from scheduler.claiming import Claimed
from scheduler.finishing import Report
from scheduler.overdue import end_overdue
from scheduler.queue import promote
from scheduler.reaper import Sight, reap_once
from scheduler.running_costs import running_costs
from scheduler.views import read_jobs
from tests.nodes.renting import OFFER, rent
from tests.scheduler.factories import LEASE, World, claim, expire, make_job, make_world, stands_in

A_SLOT_SECOND = OFFER.hourly / OFFER.slots / 3600
HOOK = [{"url": "https://a.example/hook", "events": ["job.failed", "job.succeeded", "job.cancelled"]}]
BROKE = ("failed", "budget_exceeded", ["job.failed"])


def eur(seconds: int) -> Decimal:
    """What a slot of the rented node costs for so long; less than a nanosecond's worth is cut off."""
    return round(A_SLOT_SECOND * seconds, 12)


class Rented(World):
    """A world whose node costs money."""

    rented: NodeId

    async def take(self, conn: Connection, max_cost: Decimal, **more: Any) -> Claimed:
        await make_job(conn, self.version, max_cost=max_cost, **more)
        (claimed,) = await claim(conn, self.rented, self.account)
        return claimed

    async def report(self, conn: Connection, claimed: Claimed, status: str, code: str | None = None) -> str:
        report = Report(claimed.token, status, code=code, message="exit code 3")
        return await finishing.finish(conn, self.rented, claimed.job_id, report)


@pytest.fixture
async def world(pool: Pool) -> Rented:
    made = await make_world(pool, callbacks=HOOK, retry={"attempts": 3, "backoff": {"initial": "1ms"}})
    world = Rented(pool, made.project, made.account, made.version, made.node)
    async with pool.acquire() as conn:
        world.rented, _ = await rent(conn, world.account)
    return world


async def run_for(conn: Connection, claimed: Claimed, seconds: float) -> None:
    """Let the attempt have begun so much earlier."""
    await conn.execute(
        "UPDATE leases SET leased_at = leased_at - $2::interval, pays_until = pays_until - $2::interval"
        " WHERE job_id = $1", claimed.job_id, timedelta(seconds=seconds),
    )  # fmt: skip


async def outcome(conn: Connection, job: JobId) -> tuple[str, str | None, list[str]]:
    row = await conn.fetchrow("SELECT status, error FROM outcomes WHERE job_id = $1", job)
    assert row is not None
    told = await conn.fetch("SELECT type FROM deliveries WHERE job_id = $1", job)
    error = None if row["error"] is None else json.loads(row["error"])["code"]
    return row["status"], error, [each["type"] for each in told]


async def beat(conn: Connection, world: Rented, claimed: Claimed) -> bool:
    """Whether the node is told to stop it."""
    held = [(claimed.job_id, claimed.token, None, {})]
    return (await leasing.heartbeat(conn, world.rented, held, lease=LEASE))[claimed.job_id]


async def test_a_lease_says_for_how_long_the_money_is_enough_on_its_node(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(90))
        assert claimed.pays_s == pytest.approx(90, abs=1e-3)
        left = await conn.fetchval("SELECT pays_until - leased_at FROM leases WHERE job_id = $1", claimed.job_id)
        assert left.total_seconds() == pytest.approx(90, abs=1e-3)
        assert (await world.take(conn, Decimal(999_999_999))).pays_s is None, "as good as no limit"


async def test_a_job_of_more_slots_pays_for_all_of_them(pool: Pool) -> None:
    made = await make_world(pool, job={"resources": {"cpu": 2, "memory": "3Gi"}})
    async with pool.acquire() as conn:
        node, _ = await rent(conn, made.account)
        await make_job(conn, made.version, max_cost=eur(90))
        (claimed,) = await claim(conn, node, made.account, free=2)
        assert (claimed.slots, claimed.pays_s) == (2, pytest.approx(45, abs=1e-3))


async def test_a_node_of_ones_own_costs_nothing_and_neither_does_what_has_no_limit(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        await make_job(conn, world.version, max_cost=Decimal("0.000001"))
        (own,) = await claim(conn, world.node, world.account)
        await make_job(conn, world.version)
        (unlimited,) = await claim(conn, world.rented, world.account)
        assert (own.pays_s, unlimited.pays_s) == (None, None)
        assert await conn.fetchval("SELECT count(*) FROM leases WHERE pays_until IS NOT NULL") == 0


async def test_attempts_add_up_lost_ones_included(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        first = await world.take(conn, eur(100))
        await run_for(conn, first, 30)
        assert await world.report(conn, first, "failed", "exit_nonzero") == "scheduled"
        await conn.execute("UPDATE waiting_jobs SET due_at = now()")
        await promote(conn, limit=10)
        (second,) = await claim(conn, world.rented, world.account)
        assert second.pays_s == pytest.approx(70, abs=1)
        await run_for(conn, second, 50)
        assert await finishing.release(conn, world.rented, [(second.job_id, second.token)], "") == {second.job_id}
        (third,) = await claim(conn, world.rented, world.account)
        assert third.pays_s == pytest.approx(20, abs=1)
        await run_for(conn, third, 15)
        await world.report(conn, third, "succeeded")
        [cost] = await running_costs(conn, world.project, [third.job_id])
        assert cost == pytest.approx(eur(95), abs=A_SLOT_SECOND)


async def test_its_node_is_told_to_stop_it_once_the_money_is_used_up(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await run_for(conn, claimed, 55)
        assert not await beat(conn, world, claimed)
        await run_for(conn, claimed, 6)
        assert await beat(conn, world, claimed)


@pytest.mark.parametrize(("status", "code"), [("cancelled", None), ("timed_out", "timeout"), ("failed", "exit_nonzero")])
async def test_it_fails_for_good_however_its_node_puts_it(world: Rented, status: str, code: str | None) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await run_for(conn, claimed, 61)
        assert await world.report(conn, claimed, status, code) == "failed"
        assert await outcome(conn, claimed.job_id) == BROKE
        (record,) = await read_jobs(conn, world.project, [claimed.job_id])
        message = json.loads(record.row["error"])["message"]
        assert "RGrid-Max-Cost" in message and ("exit code 3" in message) == (status == "failed")
        # A report that comes twice, as from a node that heard no answer.
        assert await world.report(conn, claimed, status, code) == "failed"


@pytest.mark.parametrize(("status", "code"), [("cancelled", None), ("timed_out", "timeout")])
async def test_a_node_that_was_stopped_a_moment_early_by_another_clock_was_stopped_for_money(
    world: Rented, status: str, code: str | None
) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await run_for(conn, claimed, 59)  # a clock that is a second behind, as after a failover
        assert await world.report(conn, claimed, status, code) == "failed"
        assert await outcome(conn, claimed.job_id) == BROKE


async def test_a_timeout_that_is_shorter_than_the_money_lasts_is_a_timeout(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(3600))
        await run_for(conn, claimed, 601)
        assert await world.report(conn, claimed, "timed_out", "timeout") == "scheduled"


async def test_what_succeeds_before_it_is_stopped_has_succeeded(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await run_for(conn, claimed, 61)
        assert await world.report(conn, claimed, "succeeded") == "succeeded"
        assert await outcome(conn, claimed.job_id) == ("succeeded", None, ["job.succeeded"])


async def test_a_failure_that_is_not_tried_again_keeps_its_own_error(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await run_for(conn, claimed, 61)
        report = Report(claimed.token, "failed", code="image_pull_failed", retryable=False)
        await finishing.finish(conn, world.rented, claimed.job_id, report)
        assert await outcome(conn, claimed.job_id) == ("failed", "image_pull_failed", ["job.failed"])


async def test_a_job_whose_node_is_lost_or_leaves_does_not_begin_again_without_money(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        lost = await world.take(conn, eur(60))
        await run_for(conn, lost, 61)
        await expire(conn, lost)
        await reap_once(world.pool, Sight(0))
        assert await outcome(conn, lost.job_id) == BROKE
        left = await world.take(conn, eur(60))
        await run_for(conn, left, 61)
        assert await finishing.release(conn, world.rented, [(left.job_id, left.token)], "the node left") == {left.job_id}
        assert await outcome(conn, left.job_id) == BROKE


async def test_a_cancel_stays_a_cancel(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await cancelling.cancel(conn, world.project, [claimed.job_id])
        await run_for(conn, claimed, 61)
        assert await world.report(conn, claimed, "cancelled") == "cancelled"
        late = await world.take(conn, eur(60), cancel_after=timedelta(hours=1))
        await run_for(conn, late, 61)
        await conn.execute("UPDATE leases SET cancel_at = now()")
        assert await end_overdue(world.pool, limit=10) == 0
        assert await world.report(conn, late, "timed_out", "timeout") == "cancelled"
        assert (await outcome(conn, late.job_id))[1] == "deadline_exceeded"


async def test_an_attempt_that_a_lost_one_left_no_money_for_is_leased_with_none(world: Rented) -> None:
    async with world.pool.acquire() as conn:
        claimed = await world.take(conn, eur(60))
        await run_for(conn, claimed, 59)
        await conn.execute("UPDATE leases SET leased_at = leased_at - interval '5 seconds'")
        await finishing.release(conn, world.rented, [(claimed.job_id, claimed.token)], "")
        assert await stands_in(conn, claimed.job_id) == ["ready"]
        (again,) = await claim(conn, world.rented, world.account)
        assert again.pays_s is not None and again.pays_s < 0
        assert await conn.fetchval("SELECT pays_until = leased_at FROM leases")
