"""What a node is never given, what it can no longer do once it is struck off, and many that come back at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from functions import ids
from functions.ids import AccountId, NodeId, ProjectId
from gateway.services import Services
from nodes import servers
from nodes.agent.gateway_client import GatewayClient
from tests.gateway import making, work
from tests.gateway.conftest import client_of, listening
from tests.gateway.work import Node, joined
from tests.nodes.renting import rent
from tests.postgres import free_port

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


@asynccontextmanager
async def node_of(services: Services, node: NodeId, credential: str) -> AsyncIterator[Node]:
    async with client_of(services, credential) as client:
        yield Node(ids.encode(ids.NODE, node), credential, client)


async def account_of(services: Services, slug: str) -> AccountId:
    async with services.pool.acquire() as conn:
        return AccountId(await conn.fetchval("SELECT account_id FROM projects WHERE slug = $1", slug))


@pytest.mark.parametrize("rented", [True, False], ids=["rented", "own"])
async def test_a_node_of_one_account_is_never_offered_the_work_of_another(services: Services, rented: bool) -> None:
    theirs = ProjectId(await services.pool.fetchval(making.ADD_PROJECT, "theirs", b"x"))
    job = await work.submit(services, await work.define(services, to=theirs))
    ours, account = await account_of(services, "default"), await account_of(services, "theirs")
    async with services.pool.acquire() as conn:
        if rented:
            (mine, one), (other, two) = await rent(conn, ours), await rent(conn, account, cloud_id=2)
    if not rented:
        mine, one = await making.join_node(services, ours, 2)
        other, two = await making.join_node(services, account, 2)
    async with node_of(services, mine, one) as node, node_of(services, other, two) as right:
        for _ in range(3):
            assert await node.claim(free_slots=2) == []
        assert [each["job_id"] for each in await right.claim(free_slots=2)] == [job]


async def test_a_report_that_comes_again_with_another_body_changes_nothing(services: Services) -> None:
    """SECURITY N07: what is replayed is answered with what became of the first."""
    async with joined(services) as node:
        job = await work.submit(services, await work.define(services))
        lease = await node.claim_one()
        assert (await node.finish(lease, result={"n": 1})).json() == {"status": "succeeded"}
        told = await node.finish(lease, "failed", exit_code=1)
        assert (told.status_code, told.json()) == (200, {"status": "succeeded"})
        assert await work.status(services, job) == ("succeeded", None)


async def test_a_node_that_is_struck_off_while_it_works_is_refused_everything_and_its_job_runs_elsewhere(
    services: Services,
) -> None:
    job = await work.submit(services, await work.define(services))
    async with services.pool.acquire() as conn:
        id, credential = await rent(conn, await account_of(services, "default"))
    async with node_of(services, id, credential) as node, joined(services) as other:
        lease = await node.claim_one()
        assert lease["job_id"] == job
        async with services.pool.acquire() as conn:
            await servers.delete(conn, id, reason="a test wants it", now=datetime.now(UTC))
        answers = [
            await node.post("heartbeat", {"leases": []}),
            await node.post("leases", {"free_slots": 1}),
            await node.log(lease, 0, b"x"),
            await node.post(f"jobs/{job}/outputs", {"token": lease["token"], "files": []}),
            await node.finish(lease),
        ]
        assert {(each.status_code, each.json()["code"]) for each in answers} == {(401, "node_credential_invalid")}
        await work.expire(services, lease)
        again = await other.claim_one()
        assert (again["job_id"], again["attempt"]) == (job, 2)
        assert (await other.finish(again)).json() == {"status": "succeeded"}


async def test_two_hundred_nodes_find_a_gateway_again_that_was_away(services: Services) -> None:
    """Each waits for work when it goes, and is given work soon after it is back, over no more connections than before."""
    clients = []
    port = free_port()
    for _ in range(200):
        _, credential = await making.join_node(services, None, 1)
        clients.append(GatewayClient(f"http://127.0.0.1:{port}", credential))
    version = await work.define(services)

    async def next_job(client: GatewayClient) -> str:
        while not (leases := (await client.claim(1, 20)).leases):
            await asyncio.sleep(0.1)
        return leases[0].job_id

    async with listening(services, port=port):
        claims = [asyncio.create_task(next_job(client)) for client in clients]
        async with asyncio.timeout(30):
            while services.dispatcher.nodes_waiting < len(clients):
                await asyncio.sleep(0.02)
        before = await services.pool.fetchval(CONNECTIONS)
    await asyncio.sleep(1)  # how long it is away, which is the fault
    jobs = {await work.submit(services, version) for _ in clients}
    async with listening(services, port=port), asyncio.timeout(30):
        began = time.monotonic()
        assert {await claim for claim in claims} == jobs
        print(f"200 nodes had work again within {time.monotonic() - began:.1f} s")
        assert await services.pool.fetchval(CONNECTIONS) <= before
    for client in clients:
        await client.aclose()
