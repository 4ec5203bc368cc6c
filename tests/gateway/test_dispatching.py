"""Which of the nodes that ask gets a job."""

from __future__ import annotations

from datetime import timedelta

import pytest

from functions.db import Connection, Pool
from functions.ids import NodeId
from gateway.dispatching import Dispatcher, Turn
from nodes import registry, servers
from nodes.policy.state import Rules
from tests.nodes.renting import rent
from tests.scheduler.factories import SIZING, World, claim_one, make_job, make_node, make_world

STANDARD, PAID = Turn((0,), 1), Turn((1,), 1)
MINUTES = timedelta(minutes=1)


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(Rules(), slot_memory=SIZING.slot_memory)


async def turns(dispatcher: Dispatcher, conn: Connection, world: World, node: NodeId, free: int = 2) -> list[Turn]:
    standing = await registry.standing(conn, node)
    assert standing is not None
    return await dispatcher.turns(conn, node, standing, [world.account], free)


async def test_of_two_nodes_that_ask_the_fuller_one_gets_the_job(pool: Pool, dispatcher: Dispatcher) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        busy, _ = await rent(conn, world.account)
        idle, _ = await rent(conn, world.account, cloud_id=2)
        await make_job(conn, world.version)
        await claim_one(conn, busy, world.account)
        await make_job(conn, world.version)
        with dispatcher.waiting(busy, 1), dispatcher.waiting(idle, 2):
            assert await turns(dispatcher, conn, world, idle) == []
            assert await turns(dispatcher, conn, world, busy, free=1) == [STANDARD]
        with dispatcher.waiting(idle, 2):
            assert await turns(dispatcher, conn, world, idle) == [STANDARD]


async def test_a_node_that_says_it_has_no_room_is_not_waited_for(pool: Pool, dispatcher: Dispatcher) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        busy, _ = await rent(conn, world.account)
        idle, _ = await rent(conn, world.account, cloud_id=2)
        await make_job(conn, world.version)
        await claim_one(conn, busy, world.account)
        await make_job(conn, world.version)
        with dispatcher.waiting(busy, 0), dispatcher.waiting(idle, 2):
            assert await turns(dispatcher, conn, world, idle) == [STANDARD]


async def test_each_gets_what_the_other_has_no_room_for(pool: Pool, dispatcher: Dispatcher) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        one, _ = await rent(conn, world.account)
        two, _ = await rent(conn, world.account, cloud_id=2)
        for _ in range(3):
            await make_job(conn, world.version)
        with dispatcher.waiting(one, 2), dispatcher.waiting(two, 2):
            shared = [await turns(dispatcher, conn, world, node) for node in (one, two)]
    assert sorted(turn.slots for each in shared for turn in each) == [1, 2]


async def test_a_closed_node_gets_nothing(pool: Pool, dispatcher: Dispatcher) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        node, _ = await rent(conn, world.account)
        await make_job(conn, world.version)
        await servers.close(conn, [node])
        assert await turns(dispatcher, conn, world, node) == []
        await servers.close(conn, [])
        assert await turns(dispatcher, conn, world, node) == [STANDARD]


async def test_a_job_of_the_paid_lane_goes_only_where_enough_paid_time_is_left(
    pool: Pool, dispatcher: Dispatcher
) -> None:
    world = await make_world(pool, queue={"lane": "paid", "deadline": "6h"})
    async with pool.acquire() as conn:
        old, _ = await rent(conn, world.account, age=57 * MINUTES)
        await make_job(conn, world.version)
        assert await turns(dispatcher, conn, world, old) == []
        young, _ = await rent(conn, world.account, age=10 * MINUTES, cloud_id=2)
        assert await turns(dispatcher, conn, world, young) == [PAID]


async def test_its_deadline_lets_it_go_anywhere(pool: Pool, dispatcher: Dispatcher) -> None:
    world = await make_world(pool, queue={"lane": "paid", "deadline": "1s"})
    async with pool.acquire() as conn:
        old, _ = await rent(conn, world.account, age=57 * MINUTES)
        await make_job(conn, world.version)
        assert await turns(dispatcher, conn, world, old) == [PAID]


async def test_a_machine_of_ones_own_takes_both_lanes(pool: Pool, dispatcher: Dispatcher) -> None:
    world = await make_world(pool, queue={"lane": "paid", "deadline": "6h"})
    async with pool.acquire() as conn:
        own = await make_node(conn)
        await make_job(conn, world.version)
        assert await turns(dispatcher, conn, world, own) == [Turn((0, 1), 2)]
