"""How a rented server becomes a node, and what becomes of everybody else who has its token."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from functions import ids
from functions.ids import NodeId
from gateway.app import create_app
from gateway.peers import source_of
from gateway.services import Services
from nodes import servers
from nodes.agent.gateway_client import GatewayClient
from nodes.agent.identity import sha256_hex
from nodes.offers import Offer
from nodes.protocol import JoinAnswer, JoinRequest
from nodes.provider import Server, Status
from tests.gateway import work
from tests.gateway.conftest import listening

OFFER = Offer("cx23", "fsn1", 2, 4 * 1024**3, Decimal("0.0096"), Decimal("5.99"))
NOW = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
ADDRESS = "192.0.2.7"


async def bought(services: Services, ipv4: str | None = ADDRESS) -> tuple[NodeId, str]:
    """A server that was asked for, and its join token; without ``ipv4`` the cloud's answer is not here yet."""
    async with services.pool.acquire() as conn:
        node = await servers.plan(
            conn, services.sealer, OFFER, owner="o", provider="hetzner", account=None, payer=None, reason="test", now=NOW
        )
        token = await servers.ask(conn, services.sealer, node, now=NOW)
        assert token is not None
        if ipv4 is not None:
            seen = Server(7, servers.name_of("o", node), Status.RUNNING, NOW, "cx23", "fsn1", {}, ipv4)
            await servers.see(conn, node, seen, now=NOW, off=False)
    return node, token


async def post(services: Services, path: str, body: dict[str, Any], source: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(services), client=(source, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        return await client.post(f"/node/v1/{path}", json=body)


async def join(services: Services, token: str, credential: str, source: str = ADDRESS, slots: int = 2) -> httpx.Response:
    return await post(services, "join", work.join_body(token, credential, slots), source)


async def events(services: Services, node: NodeId, type: str) -> list[str]:
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT detail FROM node_events WHERE node_id = $1 AND type = $2 ORDER BY id", node, type)
    return [row["detail"] for row in rows]


async def follow_nodes(services: Services) -> None:
    """As the scheduler does in each round."""
    async with services.pool.acquire() as conn:
        await servers.follow_nodes(conn, now=NOW)


async def state(services: Services, node: NodeId) -> tuple[str, str]:
    """Of the node and of its server."""
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow(
            "SELECT nodes.state AS node, servers.state AS server FROM nodes JOIN servers ON node_id = id WHERE id = $1", node
        )
    assert row is not None
    return row["node"], row["server"]


async def test_a_server_joins_from_its_own_address_with_no_more_slots_than_it_was_bought_for(services: Services) -> None:
    node, token = await bought(services)
    credential = secrets.token_hex(32)
    answer = await join(services, token, credential, slots=64)
    assert answer.json()["node_id"] == ids.encode(ids.NODE, node)
    async with services.pool.acquire() as conn:
        assert await conn.fetchval("SELECT slots FROM nodes WHERE id = $1", node) == 2
    again = await join(services, token, credential)
    assert (again.status_code, again.json()) == (200, answer.json())
    assert not await events(services, node, "join_alarm")


async def test_a_machine_elsewhere_does_not_join_and_the_right_one_still_does(services: Services) -> None:
    node, token = await bought(services)
    for _ in range(15):
        refused = await join(services, token, "x" * 64, source="198.51.100.9")
        assert (refused.status_code, refused.json()["code"]) == (403, "join_address_wrong")
    alarms = await events(services, node, "join_alarm")
    assert alarms == [f"a machine at 198.51.100.9, not at {ADDRESS}, has its join token"] * 10
    assert (await join(services, token, "y" * 64)).status_code == 200


async def test_a_server_that_the_cloud_has_not_told_of_yet_is_asked_to_come_again(services: Services) -> None:
    node, token = await bought(services, ipv4=None)
    early = await join(services, token, "x" * 64)
    assert (early.status_code, early.json()["code"], early.headers["retry-after"]) == (503, "server_unknown", "2")
    assert (await state(services, node))[0] == "joining"


async def test_the_second_use_of_a_token_raises_an_alarm_and_costs_the_server(services: Services) -> None:
    node, token = await bought(services)
    credential = secrets.token_hex(32)
    assert (await join(services, token, credential)).status_code == 200
    second = await join(services, token, "x" * 64, source="198.51.100.9")
    assert (second.status_code, second.json()["code"]) == (409, "join_token_used")
    assert await state(services, node) == ("gone", "booting")
    await follow_nodes(services)
    assert await state(services, node) == ("gone", "deleting")
    assert await events(services, node, "join_alarm") == ["a second machine, at 198.51.100.9, has its join token"]
    assert await events(services, node, "deleting") == ["its join token was used twice"]
    # Neither of the two is a node now, and the token is as good as unknown.
    alive = await post(services, "heartbeat", {}, ADDRESS, Authorization=f"Bearer {credential}")
    assert (alive.status_code, alive.json()["code"]) == (401, "node_credential_invalid")
    third = await join(services, token, credential)
    assert (third.status_code, third.json()["code"]) == (401, "join_token_invalid")


async def test_of_fifty_at_once_with_a_rented_nodes_token_one_joins_and_the_server_goes(services: Services) -> None:
    node, token = await bought(services)
    answers = await asyncio.gather(*(join(services, token, secrets.token_hex(32)) for _ in range(50)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), set(statuses)) == (1, {200, 401, 409})
    await follow_nodes(services)
    assert await state(services, node) == ("gone", "deleting")


async def test_expired_unknown_and_gone_tokens_are_refused_alike_and_alike_fast(services: Services) -> None:
    (late, expired), (gone, of_gone) = await bought(services), await bought(services)
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET join_expires_at = now() - interval '1 s' WHERE id = $1", late)
        await servers.delete(conn, gone, reason="test", now=NOW)
    took: dict[str, list[float]] = {expired: [], of_gone: [], secrets.token_urlsafe(32): []}
    told = set()
    for _ in range(30):
        for token, times in took.items():
            began = time.perf_counter()
            answer = await join(services, token, "x" * 64)
            times.append(time.perf_counter() - began)
            told.add((answer.status_code, answer.json()["code"], answer.json()["detail"]))
    assert len(told) == 1 and next(iter(told))[:2] == (401, "join_token_invalid")
    medians = [statistics.median(times) for times in took.values()]
    assert max(medians) < 3 * min(medians) + 0.002


async def test_trouble_is_an_event_of_the_node_for_whoever_has_its_token_and_address(services: Services) -> None:
    node, token = await bought(services)
    body = {"token": token, "message": "Docker 20 is older than 29"}
    assert (await post(services, "trouble", body, ADDRESS)).status_code == 200
    assert (await post(services, "trouble", body, "198.51.100.9")).status_code == 403
    assert (await post(services, "trouble", body | {"token": "x" * 40}, ADDRESS)).status_code == 401
    assert await events(services, node, "boot_trouble") == ["Docker 20 is older than 29"]
    assert (await join(services, token, "x" * 64)).status_code == 200
    assert (await post(services, "trouble", body, ADDRESS)).status_code == 401


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("192.0.2.7", [], "192.0.2.7"),
        ("192.0.2.7", ["10.9.9.9"], "192.0.2.7"),  # nobody that we trust says so
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["203.0.113.1, 192.0.2.7", "10.0.0.2"], "192.0.2.7"),  # what the client says of itself is left
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7, unknown"], ""),
        ("2001:db8::1", ["192.0.2.7"], "2001:db8::1"),
    ],
)
def test_the_source_is_the_nearest_address_that_is_not_a_trusted_proxys(peer: str, forwarded: list[str], source: str) -> None:
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    request = Request({"type": "http", "headers": headers, "client": (peer, 1)})
    assert source_of(request, [ip_network("10.0.0.0/8")]) == source


async def test_two_hundred_servers_join_at_once_without_an_error(services: Services) -> None:
    """Over one gateway's sockets, as agents do it; and then each asks for work and sends a heartbeat."""
    tokens = [await bought(services, ipv4="127.0.0.1") for _ in range(200)]
    async with listening(services) as gateway:

        async def become_a_node(token: str) -> str:
            credential = secrets.token_hex(32)
            client = GatewayClient(f"http://127.0.0.1:{gateway.port}", credential)
            request = JoinRequest(token=token, credential_sha256=sha256_hex(credential), slots=2, version="test")
            try:
                answer = await client._once("join", request, JoinAnswer, timeout_s=15, anonymous=True)
                assert not (await client.claim(2, 0)).leases
                await client.heartbeat([], 15)
            finally:
                await client.aclose()
            return answer.node_id

        began = time.monotonic()
        joined = await asyncio.gather(*(become_a_node(token) for _, token in tokens))
        took_s = time.monotonic() - began
    assert sorted(joined) == sorted(ids.encode(ids.NODE, node) for node, _ in tokens)
    assert took_s < 60, took_s
    async with services.pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM nodes WHERE state = 'ready'") >= 200
    print(f"200 joined, asked for work and sent a heartbeat in {took_s:.1f} s")
