"""What a join alarm does to the fleet, with the cloud in it."""

from __future__ import annotations

import json
from datetime import timedelta

from functions.errors import Conflict, Forbidden
from nodes import joining
from nodes.protocol import JoinRequest
from tests.nodes.fleets import Clouded

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
