"""Clocks that are wrong, the cloud's or the database's: no node goes early, and no hour is written down that was none."""

from __future__ import annotations

from datetime import timedelta

import pytest

from functions.db import Connection
from nodes import fleet
from tests.nodes.fleets import A_MINUTE, AN_HOUR, Clouded

HOURS = "SELECT count(*) FROM server_hours"


async def a_busy_node(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    await clouded.finish()


async def problem(clouded: Clouded) -> str:
    async with clouded.pool.acquire() as conn:
        return (await fleet.get(conn)).problem or ""


@pytest.mark.parametrize("shift", [58 * A_MINUTE, 5 * AN_HOUR, -AN_HOUR])
async def test_while_the_clouds_answers_have_a_wrong_date_nodes_stay_and_no_hour_is_added(
    clouded: Clouded, shift: timedelta
) -> None:
    await a_busy_node(clouded)
    clouded.cloud.clock.date_shift = shift
    await clouded.pass_time(8 * A_MINUTE, step=A_MINUTE)
    assert await clouded.states() == ["ready"]
    assert await clouded.pool.fetchval(HOURS) == 1
    assert f"{abs(shift.total_seconds()):.0f} s {'ahead of' if shift > timedelta() else 'behind'}" in await problem(clouded)
    clouded.cloud.clock.date_shift = timedelta()
    await clouded.pass_time(A_MINUTE)
    assert await problem(clouded) == ""
    await clouded.pass_time(AN_HOUR, step=A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["gone"], (1, 1))


@pytest.mark.parametrize("wrong", [AN_HOUR, -AN_HOUR])
async def test_where_the_databases_clock_is_wrong_hours_are_the_clouds_after_a_while_and_never_too_many(
    clouded: Clouded, wrong: timedelta
) -> None:
    async def clocks(conn: Connection) -> tuple[timedelta, timedelta]:
        return clouded.cloud.now + wrong, clouded.cloud.now + wrong

    clouded.provider.close()
    clouded.provider = clouded.new_provider()
    clouded.autoscaler = clouded.new_autoscaler(clocks=clocks)
    await clouded.round()
    assert "the database's" in await problem(clouded)
    await clouded.pass_time(11 * A_MINUTE, step=A_MINUTE)
    assert abs(clouded.provider.now() - clouded.cloud.now) < timedelta(seconds=2)
    await a_busy_node(clouded)
    await clouded.pass_time(50 * A_MINUTE, step=A_MINUTE)
    assert await clouded.states() == ["ready"]
    assert await clouded.pool.fetchval(HOURS) == 1
    await clouded.pass_time(8 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["gone"], (1, 1))


async def test_hours_are_settled_by_the_slower_clock(clouded: Clouded) -> None:
    async with clouded.pool.acquire() as conn, conn.transaction():
        now = clouded.cloud.now
        await fleet.compare_clocks(conn, now, doubt=AN_HOUR)
        (cloud, _), (sure, _) = await fleet.clock(conn), await fleet.sure_clock(conn)
    assert abs(cloud - now) < A_MINUTE
    assert abs(cloud - sure - AN_HOUR) < A_MINUTE
