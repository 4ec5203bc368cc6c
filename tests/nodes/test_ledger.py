"""Hours of servers: when they are written down, settled, struck, and whom they are charged to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from functions.db import Connection, Pool
from functions.ids import JobId, NodeId
from nodes import budgets, ledger, rented, servers
from nodes.ledger import Ledger
from nodes.offers import HOUR, Offer
from nodes.receipts import NOBODY
from nodes.rented import State
from scheduler import finishing, lease_ends
from scheduler.finishing import Report
from scheduler.views import read_jobs
from tests.nodes.fleets import A_MINUTE, Clouded
from tests.nodes.renting import rent
from tests.scheduler.factories import SEALER, claim, make_job, make_project, make_version

IPV4 = {"ipv4_hourly": Decimal("0.0008"), "ipv4_monthly": Decimal("0.50")}
OFFER = Offer("cx23", "fsn1", 2, 4 * 1024**3, Decimal("0.0096"), Decimal("5.99"), **IPV4)
NO_TIME = timedelta()


class Rig:
    """A node whose first paid hour began 50 minutes ago, and a function."""

    def __init__(self, conn: Connection, node: NodeId, created: datetime, project: Any, account: int, version: Any) -> None:
        self.conn, self.node, self.created = conn, node, created
        self.project, self.account, self.version = project, account, version

    async def run(self, for_s: float, *, ago_s: float = 0, ends: bool = True) -> JobId:
        """A job that ran so long on a slot of the node, and ended so long ago, or has not ended yet."""
        job = await make_job(self.conn, self.version)
        (held,) = await claim(self.conn, self.node, self.account, free=1, slots=2)
        began = timedelta(seconds=for_s + ago_s)
        await self.conn.execute("UPDATE leases SET leased_at = now() - $2::interval WHERE job_id = $1", job, began)
        if ends:
            await finishing.finish(self.conn, self.node, job, Report(held.token, "succeeded", 0))
            over = timedelta(seconds=ago_s)
            await self.conn.execute("UPDATE outcomes SET finished_at = now() - $2::interval WHERE job_id = $1", job, over)
        return job

    async def settle(self, after: timedelta) -> int:
        """So long after the node's creation."""
        return await ledger.settle(self.conn, self.created + after, ahead=NO_TIME, limit=100)

    async def cost(self, job: JobId) -> tuple[Decimal, bool]:
        (record,) = await read_jobs(self.conn, self.project, [job])
        return record.row["cost"].amount, record.row["cost"].is_open

    async def receipts(self) -> list[Mapping[str, Any]]:
        return [dict(row) for row in await self.conn.fetch("SELECT * FROM receipts ORDER BY hour, job_id")]

    async def hours(self) -> list[tuple[int, bool]]:
        rows = await self.conn.fetch("SELECT hour, settled_at IS NOT NULL AS settled FROM server_hours ORDER BY hour")
        return [(row["hour"], row["settled"]) for row in rows]

    async def usage(self) -> Decimal:
        total: Decimal = await self.conn.fetchval("SELECT coalesce(sum(cost), 0) FROM usage_days")
        return total


@pytest.fixture
async def rig(conn: Connection) -> Rig:
    project, account = await make_project(conn)
    version = await make_version(conn, project)
    node, _ = await rent(conn, account, age=50 * A_MINUTE, offer=OFFER)
    row = await rented.get(conn, node)
    assert row is not None and row.created_at is not None
    return Rig(conn, node, row.created_at, project, account, version)


async def test_an_hours_price_is_shared_by_the_jobs_that_ran_in_it_as_far_as_they_did(rig: Rig) -> None:
    long, short = await rig.run(1800), await rig.run(600)
    before = await rig.cost(long)
    assert before == (pytest.approx(Decimal("0.0024"), abs=Decimal("1e-6")), True)
    assert await rig.settle(65 * A_MINUTE) == 1
    assert await rig.cost(long) == (pytest.approx(Decimal("0.0072"), abs=Decimal("1e-6")), False)
    assert await rig.cost(short) == (pytest.approx(Decimal("0.0024"), abs=Decimal("1e-6")), False)
    made = await rig.receipts()
    assert sum(each["server"] + each["ipv4"] + each["idle"] for each in made) == Decimal("0.0096")
    assert sum(each["idle"] for each in made) == pytest.approx(Decimal("0.0064"), abs=Decimal("1e-6"))
    assert sum(each["ipv4"] for each in made) == pytest.approx(Decimal("0.0008") / 3, abs=Decimal("1e-6"))
    assert await rig.usage() == Decimal("0.0096")


async def test_to_settle_again_changes_nothing(rig: Rig) -> None:
    await rig.run(60)
    assert [await rig.settle(65 * A_MINUTE) for _ in range(3)] == [1, 0, 0]
    assert (await rig.hours(), len(await rig.receipts())) == ([(0, True), (1, False)], 1)
    assert await rig.usage() == Decimal("0.0096")


async def test_two_schedulers_settle_an_hour_once(pool: Pool) -> None:
    async with pool.acquire() as conn:
        _, account = await make_project(conn)
        await rent(conn, account, age=70 * A_MINUTE, offer=OFFER)
        await conn.execute("UPDATE servers SET seen_at = now()")
    settled = await asyncio.gather(*(ledger.settle_once(pool, limit=10) for _ in range(4)))
    assert sum(settled) == 1
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT sum(cost) FROM usage_days") == OFFER.hourly


async def test_a_job_over_the_hour_pays_in_both_and_the_rest_is_an_estimate_until_then(rig: Rig) -> None:
    job = await rig.run(1200, ends=False)
    await rig.settle(61 * A_MINUTE)
    amount, is_open = await rig.cost(job)
    assert (amount, is_open) == (Decimal("0.0096"), False)  # by the real clock the first hour goes on
    await rig.conn.execute("UPDATE servers SET created_at = created_at - interval '20 minutes'")
    amount, is_open = await rig.cost(job)
    assert is_open
    assert amount == pytest.approx(Decimal("0.0096") + Decimal("0.0048") / 6, abs=Decimal("1e-5"))


async def test_an_attempt_that_was_not_the_last_counts_with_its_own_node(rig: Rig) -> None:
    job = await rig.run(600, ends=False)
    await rig.conn.execute("UPDATE leases SET expires_at = now() - interval '1 second'")
    row = await rig.conn.fetchrow("SELECT token FROM leases WHERE job_id = $1", job)
    await lease_ends.requeue(rig.conn, [(job, row["token"], {"code": "node_lost", "message": "", "attempt": 1})])
    await rig.settle(65 * A_MINUTE)
    assert await rig.cost(job) == (Decimal("0.0096"), False)


async def test_an_hour_without_jobs_is_charged_to_whom_it_was_reserved_for_and_else_to_nobody(rig: Rig) -> None:
    books = Ledger()
    await books.left(rig.conn, rig.created + 50 * A_MINUTE)
    share = ((rig.project, Decimal("0.0096")),)
    for _ in range(2):  # a round that is repeated
        await books.reserved(rig.conn, rig.node, until=rig.created + HOUR, shares=share, price=OFFER.hourly)
    await rig.conn.execute("UPDATE servers SET seen_at = created_at + interval '150 minutes'")
    assert await rig.settle(150 * A_MINUTE) == 2
    charged = [(each["project_id"], each["job_id"], each["idle"]) for each in await rig.receipts()]
    assert charged == [(rig.project, None, Decimal("0.0096")), (NOBODY, None, Decimal("0.0096"))]
    assert await rig.conn.fetchval("SELECT count(*) FROM reservations") == 0


async def test_an_hour_is_settled_only_when_the_server_was_seen_in_it_and_its_last_stays_open(rig: Rig) -> None:
    assert await rig.settle(50 * A_MINUTE) == 0
    # For three hours nobody could ask the cloud.
    assert await rig.settle(170 * A_MINUTE) == 1
    assert await rig.hours() == [(0, True), (1, False), (2, False)]
    # It turns out to have gone in its second hour.
    await servers.end(rig.conn, rig.node, State.LOST, at=rig.created + 70 * A_MINUTE)
    assert await rig.settle(171 * A_MINUTE) == 1
    assert await rig.hours() == [(0, True), (1, True)]
    assert await rig.usage() == 2 * OFFER.hourly


async def test_what_was_reserved_and_never_came_to_be_is_struck(rig: Rig) -> None:
    books, share = Ledger(Decimal(1)), ((rig.project, Decimal("0.0096")),)
    await budgets.put(rig.conn, rig.project, Decimal("0.03"))
    now = rig.created + 58 * A_MINUTE
    await books.left(rig.conn, now)
    await books.reserved(rig.conn, rig.node, until=rig.created + 2 * HOUR, shares=share, price=OFFER.hourly)
    left = await books.left(rig.conn, now)
    assert (left.budgets, left.month) == ({rig.project: Decimal("0.0204")}, Decimal("0.9808"))
    await servers.end(rig.conn, rig.node, State.GONE, at=now)
    left = await books.left(rig.conn, now)
    assert (left.budgets, left.month) == ({rig.project: Decimal("0.03")}, Decimal("0.9904"))
    assert await rig.hours() == [(0, False)]


async def test_a_budget_counts_what_is_settled_and_is_used_up_when_it_pays_for_no_hour(rig: Rig) -> None:
    await budgets.put(rig.conn, rig.project, Decimal("0.012"))
    now = datetime.now(UTC)
    assert await budgets.exhausted(rig.conn, now) == frozenset()
    await rig.run(60)
    await rig.settle(65 * A_MINUTE)
    assert rig.project in await budgets.exhausted(rig.conn, rig.created)
    assert (await budgets.get(rig.conn, rig.project, rig.created)).left == Decimal("0.0024")
    assert await budgets.exhausted(rig.conn, now + timedelta(days=32)) == frozenset()
    await budgets.remove(rig.conn, rig.project)
    assert await budgets.exhausted(rig.conn, rig.created) == frozenset()


@pytest.mark.parametrize("bought", [True, False])
async def test_that_others_bought_a_dear_node_or_tried_to_shuts_no_project_out(rig: Rig, bought: bool) -> None:
    await budgets.put(rig.conn, rig.project, Decimal("0.012"))
    dear = replace(OFFER, type="cpx22", hourly=Decimal("0.0320"))
    if bought:
        await rent(rig.conn, rig.account, offer=dear, cloud_id=2)
    else:
        await rig.conn.execute("UPDATE servers SET reason = 'unknown', hourly = 0")  # what is not ours says nothing
        await servers.plan(
            rig.conn, SEALER, dear, owner="test", provider="hetzner", account=None, payer=None, reason="spare",
            now=datetime.now(UTC),
        )  # fmt: skip
    assert await budgets.exhausted(rig.conn, datetime.now(UTC)) == frozenset()


async def test_above_the_months_limit_nothing_is_bought(clouded: Clouded) -> None:
    clouded.autoscaler = clouded.new_autoscaler(books=Ledger(Decimal("0.02")))
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    await clouded.submit(6)
    await clouded.pass_time(3 * A_MINUTE)
    assert len(await clouded.live()) == 2
    async with clouded.pool.acquire() as conn:
        assert (await Ledger(Decimal("0.02")).left(conn, clouded.cloud.now)).month == Decimal("0.0008")


async def test_a_project_without_money_waits_and_says_so(clouded: Clouded, pool: Pool) -> None:
    async with pool.acquire() as conn:
        await budgets.put(conn, clouded.world.project, Decimal("0.0095"))
    (job,) = await clouded.submit()
    await clouded.round()
    async with pool.acquire() as conn:
        (record,) = await read_jobs(conn, clouded.world.project, [job])
        await budgets.put(conn, clouded.world.project, Decimal("0.0096"))
    assert (record.row["wait_reason"], await clouded.live()) == ("budget", [])
    await clouded.round()
    assert len(await clouded.live()) == 1
