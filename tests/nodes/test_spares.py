"""Warm spares, where the operator asks for them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nodes.policy.spare_hours import ALWAYS, SpareHours, parse
from nodes.policy.state import Rules
from tests.nodes.fleets import A_MINUTE, AN_HOUR, Clouded, wish_of

SPARE = "SELECT node_id FROM node_events WHERE type = 'planned' AND detail::text LIKE '%spare%'"
RESERVED = "SELECT count(*) FROM reservations WHERE node_id = $1"


def want(clouded: Clouded, hours: SpareHours) -> None:
    clouded.wish = wish_of(types=("cx23",), rules=Rules(spares=hours))
    clouded.autoscaler = clouded.new_autoscaler()


async def test_spares_stand_ready_while_jobs_come_and_go_when_they_stop(clouded: Clouded) -> None:
    want(clouded, ALWAYS)
    at_once = 0
    for _ in range(8):
        await clouded.pass_time(A_MINUTE, step=A_MINUTE)
        (job,) = await clouded.submit()
        at_once += job in await clouded.work()
        await clouded.pass_time(A_MINUTE, step=A_MINUTE)
        await clouded.finish()
    assert at_once >= 6
    assert any("spare" in line for line in await clouded.history())
    await clouded.pass_time(2 * AN_HOUR, step=1.5 * A_MINUTE)
    assert clouded.existing == []


@pytest.mark.parametrize(("length", "goes_on"), [(30 * A_MINUTE, False), (3 * AN_HOUR, True)])
async def test_a_spare_is_bought_in_its_hours_and_goes_with_the_paid_hour_in_which_they_end(
    clouded: Clouded, length: timedelta, goes_on: bool
) -> None:
    begin = clouded.cloud.now + 6 * A_MINUTE
    want(clouded, parse(f"{begin:%H:%M}-{begin + length:%H:%M}"))
    await clouded.round()
    await clouded.submit(2)
    await clouded.pass_time(3 * A_MINUTE, step=A_MINUTE)
    assert len(await clouded.work()) == 2  # so that none is free
    await clouded.pass_time(2 * A_MINUTE, step=A_MINUTE)
    assert len(clouded.existing) == 1
    await clouded.pass_time(3 * A_MINUTE, step=A_MINUTE)
    spare = await clouded.pool.fetchval(SPARE)
    assert len(clouded.existing) == 2
    assert {row.id for row in await clouded.live()} > {spare}
    # Jobs keep coming, long after the hours, too.
    for _ in range(29):
        await clouded.finish()
        await clouded.submit()
        await clouded.work()
        await clouded.finish()
        await clouded.pass_time(2 * A_MINUTE, step=A_MINUTE)
        if clouded.cloud.now < begin + 57 * A_MINUTE:
            assert spare in {row.id for row in await clouded.live()}
    assert (spare in {row.id for row in await clouded.live()}) is goes_on
    assert await clouded.pool.fetchval(RESERVED, spare) == 0  # at nobody's expense
