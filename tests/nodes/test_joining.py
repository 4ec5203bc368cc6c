"""What a join alarm does to the fleet, with the cloud in it."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

from functions.db import Connection
from functions.errors import Conflict, Forbidden
from nodes import joining, registry, servers
from nodes.protocol import JoinRequest
from nodes.rented import Rented
from tests.nodes.fleets import A_MINUTE, Clouded

BOOT = timedelta(seconds=15)


async def test_a_server_whose_token_was_used_twice_is_deleted_at_the_cloud_and_replaced(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.round()
    clouded.cloud.advance(BOOT)
    await clouded.round()
    (machine,) = clouded.machines.started
    assert machine.ipv4 is not None
    (row,) = await clouded.live()
    assert row.ipv4 == machine.ipv4
    token = json.loads(machine.user_data)["token"]
    mine, theirs = (JoinRequest(token=token, credential_sha256=each * 64, slots=2, version="1") for each in "ab")
    async with clouded.pool.acquire() as conn:
        assert isinstance(await joining.join(conn, mine, "203.0.113.1"), Forbidden)
        assert await joining.join(conn, mine, machine.ipv4) == row.id
        assert isinstance(await joining.join(conn, theirs, machine.ipv4), Conflict)
    await clouded.round()
    assert machine.name not in [each.name for each in await clouded.live() if each.state != "deleting"]
    await clouded.pass_time(timedelta(minutes=3))
    assert machine.name not in clouded.existing and len(clouded.existing) == 1
    assert await clouded.states() == ["gone", "ready"]


async def test_a_token_used_twice_and_a_round_that_gives_the_node_up_do_not_wait_for_each_other(
    clouded: Clouded,
) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (machine,), (row,) = clouded.machines.started, await clouded.live()
    theirs = JoinRequest(token=json.loads(machine.user_data)["token"], credential_sha256="b" * 64, slots=2, version="1")
    assert machine.ipv4 is not None
    async with clouded.pool.acquire() as door, clouded.pool.acquire() as round_:
        async with door.transaction():
            await registry.bidder(door, theirs)
            giving_up = asyncio.ensure_future(delete(round_, clouded, row))
            waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            async with asyncio.timeout(10):
                while not await clouded.pool.fetchval(waits):
                    await asyncio.sleep(0.005)
            assert isinstance(await joining.join(door, theirs, machine.ipv4), Conflict)
        await giving_up
    await clouded.round()
    assert await clouded.states() in (["deleting"], ["deleting", "booting"])


async def delete(conn: Connection, clouded: Clouded, row: Rented) -> None:
    async with conn.transaction():
        await servers.delete(conn, row.id, reason="a test wants it", now=clouded.cloud.now)
