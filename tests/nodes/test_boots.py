from __future__ import annotations

from datetime import timedelta

from functions.db import Pool
from nodes import boots
from nodes.rented import State
from tests.hetzner.rules import CREATE, Fate
from tests.nodes.fleets import A_MINUTE, AN_HOUR, Clouded, problem


async def test_how_long_a_type_boots_is_known_once_three_of_its_servers_joined_within_a_week(
    clouded: Clouded, pool: Pool
) -> None:
    now = clouded.cloud.now
    async with pool.acquire() as conn:
        for machine_after in (timedelta(), timedelta(), 2 * A_MINUTE):
            assert await boots.times(conn, now=now) == {}
            clouded.cloud.inject(Fate(machine_after=machine_after), **CREATE)
            await clouded.submit(2)
            await clouded.pass_time(3 * A_MINUTE)
            await clouded.work()
        ((place, seconds),) = (await boots.times(conn, now=now)).items()
        assert (place, 120 < seconds < 160) == (("cx23", "fsn1"), True)
        assert await boots.times(conn, now=now + timedelta(days=8)) == {}


async def test_a_server_that_never_joins_is_replaced_and_its_type_left_alone_for_a_while(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(machine_never=True), **CREATE)
    await clouded.submit()
    await clouded.round()
    first = clouded.existing
    await clouded.pass_time(8 * A_MINUTE)
    (row,) = await clouded.live()
    assert row.state is State.READY
    assert (row.name not in first, row.offer.location) == (True, "nbg1")
    assert clouded.paid == (2, 2)
    assert clouded.existing == [row.name]


async def test_while_no_server_becomes_a_node_money_is_spent_more_and_more_slowly(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(machine_never=True), times=None, **CREATE)
    await clouded.submit()
    await clouded.pass_time(6 * AN_HOUR, step=A_MINUTE)
    bought, _ = clouded.paid
    assert 8 <= bought <= 16
    assert "did not become nodes" in ((await problem(clouded)) or "")
    clouded.cloud.rules.clear()
    await clouded.pass_time(40 * A_MINUTE, step=A_MINUTE)
    assert [row.state for row in await clouded.live()] == [State.READY]
    assert await problem(clouded) is None


async def test_one_purchase_of_which_some_fail_is_no_reason_to_buy_less(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(machine_never=True), times=3, **CREATE)
    await clouded.submit(10)
    await clouded.pass_time(12 * A_MINUTE)
    assert sum(row.offer.slots for row in await clouded.live() if row.state is State.READY) >= 10
