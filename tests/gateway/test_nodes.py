"""/v1/nodes over the real application."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from functions import ids
from gateway.api.models.nodes import JoinTokenView, NodeEventList, NodeList, NodeView
from gateway.services import Services
from nodes import registry, rented, servers
from nodes.protocol import JoinRequest
from tests.gateway.making import claim, key_client, make_function, make_job, make_node
from tests.nodes.renting import rent

CREDENTIAL = "a" * 64


async def join(services: Services, token: str, slots: int = 4) -> None:
    request = JoinRequest(
        token=token, credential_sha256=CREDENTIAL, slots=slots, version="1.0", facts={"hostname": "big-one"}
    )
    async with services.pool.acquire() as conn:
        await registry.join(conn, request)


async def test_a_minted_token_is_a_node_that_joins(api: httpx.AsyncClient, services: Services) -> None:
    answer = await api.post("/v1/nodes")
    minted = JoinTokenView.model_validate_json(answer.content)
    assert answer.status_code == 201
    assert timedelta(minutes=50) < minted.expires_at - datetime.now(UTC) <= timedelta(hours=1)
    (waiting,) = NodeList.model_validate_json((await api.get("/v1/nodes")).content).data
    assert (waiting.id, waiting.state, waiting.name) == (minted.id, "joining", "")
    await join(services, minted.join_token)
    (node,) = NodeList.model_validate_json((await api.get("/v1/nodes")).content).data
    assert (node.state, node.name, node.slots, node.running) == ("ready", "big-one", 4, 0)
    assert minted.join_token not in (await api.get("/v1/nodes")).text


async def test_a_node_keeps_the_name_that_it_was_given(api: httpx.AsyncClient, services: Services) -> None:
    minted = (await api.post("/v1/nodes", json={"name": "rack-1", "slots": 2})).json()
    await join(services, minted["join_token"])
    assert (await api.get("/v1/nodes")).json()["data"][0]["name"] == "rack-1"


async def test_a_drained_node_gets_no_more_jobs(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    node = await make_node(services)
    await make_job(api)
    await claim(services, node)
    await make_job(api)
    name = ids.encode(ids.NODE, node)
    for _ in range(2):
        answer = await api.post(f"/v1/nodes/{name}/drain")
        drained = NodeView.model_validate_json(answer.content)
        assert (answer.status_code, drained.state, drained.running) == (200, "draining", 1)
    assert await claim(services, node) == []
    async with services.pool.acquire() as conn:
        await registry.leave(conn, node)
    gone = await api.post(f"/v1/nodes/{name}/drain")
    assert (gone.status_code, gone.json()["code"]) == (409, "node_not_ready")


async def test_a_node_that_says_nothing_is_shown_as_silent(api: httpx.AsyncClient, services: Services) -> None:
    await make_node(services)
    await services.pool.execute("UPDATE nodes SET last_seen_at = now() - interval '1 minute'")
    assert (await api.get("/v1/nodes")).json()["data"][0]["state"] == "silent"


async def test_nodes_go_on_with_the_cursor(api: httpx.AsyncClient) -> None:
    made = [(await api.post("/v1/nodes")).json()["id"] for _ in range(3)]
    first = (await api.get("/v1/nodes?limit=2")).json()
    rest = (await api.get(f"/v1/nodes?limit=2&cursor={first['next_cursor']}")).json()
    assert [node["id"] for node in first["data"] + rest["data"]] == made[::-1]


@pytest.mark.parametrize(
    "body",
    [{"name": ""}, {"name": "x" * 64}, {"name": "a b"}, {"name": "ä"}, {"name": "a\n"}, {"name": "-"}, {"slots": 0},
     {"slots": 1025}, {"slots": True}, {"slots": "1"}, {"slots": 1.0}, {"provider": "hetzner"}],
)  # fmt: skip
async def test_a_node_that_cannot_be_is_422(shared_api: httpx.AsyncClient, body: dict[str, object]) -> None:
    answer = await shared_api.post("/v1/nodes", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{next(iter(body))}")


@pytest.mark.parametrize("scope", ["read", "write", "invoke"])
async def test_nodes_are_the_operators(shared_services: Services, scope: str) -> None:
    async with key_client(shared_services, scope) as client:
        for answer in (
            await client.get("/v1/nodes"),
            await client.post("/v1/nodes"),
            await client.post(f"/v1/nodes/node_{'0' * 32}/drain"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_a_rented_node_shows_its_server_and_what_happened_to_it(
    api: httpx.AsyncClient, services: Services
) -> None:
    async with services.pool.acquire() as conn:
        account = await conn.fetchval("SELECT account_id FROM projects WHERE slug = 'default'")
        node, _ = await rent(conn, account, age=timedelta(minutes=90))
    name = ids.encode(ids.NODE, node)
    shown = NodeView.model_validate_json((await api.get(f"/v1/nodes/{name}")).content)
    assert (shown.state, shown.provider) == ("ready", "hetzner")
    assert shown.server is not None
    assert (shown.server.state, shown.server.type, shown.server.hourly) == ("ready", "cx23", "0.0096")
    assert shown.server.created_at is not None
    assert shown.server.paid_until == shown.server.created_at + timedelta(hours=2)
    events = NodeEventList.model_validate_json((await api.get(f"/v1/nodes/{name}/events")).content).data
    assert [event.type for event in events] == ["planned", "booting", "ready"]
    async with services.pool.acquire() as conn:
        await servers.delete(conn, node, reason="a test wants it", now=datetime.now(UTC))
    (listed,) = NodeList.model_validate_json((await api.get("/v1/nodes")).content).data
    assert listed.server is not None
    assert (listed.state, listed.server.state, listed.server.error) == ("gone", "deleting", "a test wants it")


async def test_a_purchase_that_failed_is_no_node(api: httpx.AsyncClient, services: Services) -> None:
    async with services.pool.acquire() as conn:
        account = await conn.fetchval("SELECT account_id FROM projects WHERE slug = 'default'")
        node, _ = await rent(conn, account)
        await servers.end(conn, node, rented.State.FAILED, at=datetime.now(UTC), error="out of stock")
    assert (await api.get("/v1/nodes")).json()["data"] == []
