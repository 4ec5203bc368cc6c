"""What becomes of a purchase that the cloud refuses, and how many slots one counts for that was made."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

import pytest

from functions.ids import NodeId
from nodes import fleet, registry
from nodes.protocol import JoinRequest
from nodes.rented import State
from tests.hetzner.rules import CREATE, Answer, Slow, asks_for
from tests.nodes.fleets import A_MINUTE, Clouded

ODD = {"fields": [{"name": "something new", "messages": ["no"]}]}


@pytest.mark.parametrize("answer", [Answer(422, "invalid_input", details=ODD), Answer(403, "invented_today")])
async def test_an_offer_that_is_refused_leaves_the_others_and_is_tried_again_later(
    clouded: Clouded, answer: Answer
) -> None:
    clouded.cloud.inject(answer, times=None, **CREATE, where=asks_for("cx23"))
    await clouded.submit()
    await clouded.round()
    (row,) = await clouded.live()
    assert (row.offer.type, row.state) == ("cx33", State.BOOTING)
    assert len(clouded.cloud.made("POST", "/servers")) == 4
    async with clouded.pool.acquire() as conn:
        state = await fleet.get(conn)
    assert state.frozen_until is None
    assert "cx23 at fsn1 cannot be bought" in (state.problem or "")
    await clouded.pass_time(2 * A_MINUTE)
    async with clouded.pool.acquire() as conn:
        assert (await fleet.get(conn)).problem is None
    clouded.cloud.rules.clear()
    await clouded.work()
    await clouded.submit(4)
    await clouded.round()
    assert "cx23" in [row.offer.type for row in await clouded.live()]


@pytest.mark.parametrize("code", ["forbidden", "unauthorized", "token_readonly"])
async def test_what_the_token_may_not_do_stops_all_purchases_for_a_while(clouded: Clouded, code: str) -> None:
    clouded.cloud.inject(Answer(403, code), times=None, **CREATE)
    await clouded.submit()
    await clouded.pass_time(4 * A_MINUTE)
    assert len(clouded.cloud.made("POST", "/servers")) == 1
    async with clouded.pool.acquire() as conn:
        assert "token" in ((await fleet.get(conn)).problem or "")


async def test_a_limit_that_is_met_while_other_purchases_are_under_way_counts_those(clouded: Clouded) -> None:
    clouded.cloud.cloud.server_cap = 1
    clouded.cloud.inject(Slow(0.5), times=1, **CREATE)
    await clouded.submit(3)
    await clouded.round()
    async with clouded.pool.acquire() as conn:
        assert (await fleet.get(conn)).server_limit == len(clouded.existing) == 1


async def test_a_node_counts_for_the_slots_that_its_machine_has_said(clouded: Clouded) -> None:
    """It may be set to fewer than its type has cores."""
    await clouded.submit(2)
    await clouded.round()
    clouded.cloud.advance(timedelta(seconds=20))
    (machine,) = clouded.machines.started
    told = json.loads(machine.user_data)
    request = JoinRequest(token=told["token"], credential_sha256="c" * 64, slots=1, version="1")
    async with clouded.pool.acquire() as conn:
        assert await registry.join(conn, request) == NodeId(UUID(hex=told["node"]))
    await clouded.round()
    assert await clouded.states() == ["ready", "booting"]
    (ready, _) = await clouded.live()
    assert (ready.offer.slots, ready.node_slots) == (2, 1)
