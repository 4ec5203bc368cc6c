"""RGrid-Max-Cost: what is refused because of it, what the job shows of it, and what its node is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from functions.ids import NodeId
from gateway.services import Services
from tests.gateway.conftest import client_of
from tests.gateway.making import claim, finish, key_client, make_function, make_job, project_client
from tests.gateway.work import Node
from tests.nodes.renting import rent

A_SLOT_HOUR = 0.0048
RAN = {"started": 5, "exited": 100}


def limited(euros: str) -> dict[str, str]:
    return {"RGrid-Max-Cost": euros}


async def rented(services: Services) -> tuple[NodeId, str]:
    """A node of two slots that costs 0.0096 EUR an hour, and its credential."""
    async with services.pool.acquire() as conn:
        account = await conn.fetchval("SELECT account_id FROM projects WHERE slug = 'default'")
        return await rent(conn, account)


@pytest.fixture
async def agent(services: Services) -> AsyncIterator[Node]:
    """Such a node, as it talks to the gateway."""
    node, credential = await rented(services)
    async with client_of(services, credential) as http:
        yield Node(str(node), credential, http)


async def ran_for_an_hour(services: Services, api: httpx.AsyncClient, node: NodeId, times: int = 1) -> None:
    """Jobs of the function that filled a slot for an hour each: half of what the node costs, the rest stood idle."""
    for _ in range(times):
        await make_job(api)
        (held,) = await claim(services, node, slots=1)
        async with services.pool.acquire() as conn:
            await conn.execute("UPDATE leases SET leased_at = now() - interval '1 hour'")
        await finish(services, node, held, timeline=RAN)
    services.budgets.forget()


async def test_what_typically_costs_more_than_it_may_is_refused_with_both_figures(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    assert (await make_job(api, headers=limited("0.000001")))["max_cost"] == "0.000001", "nothing is known of it yet"
    node, _ = await rented(services)
    await claim(services, node)
    await ran_for_an_hour(services, api, node, times=3)
    quoted = (await api.post("/v1/functions/thumbnail/invoke?quote=1", json={"video": "v"})).json()
    assert float(quoted["running_cost"]["p50"]) == pytest.approx(A_SLOT_HOUR, abs=1e-5)
    less = limited("0.0047")
    refused = [
        await api.post("/v1/functions/thumbnail/invoke", json={"video": "v"}, headers=less),
        await api.post("/v1/functions/thumbnail/batch", json=[{"video": "v"}], headers=less),
        await api.post("/f/default/thumbnail?video=v", headers=less),
    ]
    assert [(each.status_code, each.json()["code"]) for each in refused] == [(402, "budget_exceeded")] * 3
    for each in refused:
        assert "0.0048" in each.json()["detail"] and "0.004700 EUR" in each.json()["detail"]
    before = len((await api.get("/v1/jobs")).json()["data"])
    made = await make_job(api, headers=limited("0.0049"))
    assert (await api.get(f"/v1/jobs/{made['id']}")).json()["max_cost"] == "0.004900"
    assert len((await api.get("/v1/jobs")).json()["data"]) == before + 1
    # Once for all of them: it goes over hundreds of jobs.
    async with services.pool.acquire() as conn:
        await conn.execute("DELETE FROM outcomes")
    assert (await api.post("/v1/functions/thumbnail/invoke", json={"video": "v"}, headers=less)).status_code == 402
    async with project_client(services) as stranger:
        await make_function(stranger)
        await make_job(stranger, headers=less)


async def test_a_repeat_has_its_answer_however_dear_it_became(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    headers = limited("0.001") | {"Idempotency-Key": "k"}
    first = await make_job(api, headers=headers)
    node, _ = await rented(services)
    await claim(services, node)
    await ran_for_an_hour(services, api, node)
    assert (await make_job(api, headers=headers))["id"] == first["id"]


async def test_every_way_in_takes_it_and_a_retry_keeps_it(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    spec = {"job": {"image": "busybox:1"}}
    one_off = (await api.post("/v1/jobs", json=spec, headers=limited("0.5"))).json()
    assert one_off["max_cost"] == "0.500000"
    items = [{"video": "v"}, {"video": "w"}]
    batch = (await api.post("/v1/functions/thumbnail/batch", json=items, headers=limited("0.25"))).json()
    of_batch = (await api.get("/v1/jobs", params={"batch": batch["id"]})).json()["data"]
    assert [job["max_cost"] for job in of_batch] == ["0.250000"] * 2
    job = of_batch[0]["id"]
    await api.post(f"/v1/jobs/{job}/cancel")
    assert (await api.post(f"/v1/jobs/{job}/retry")).json()["max_cost"] == "0.250000"
    async with key_client(services, "invoke") as invoker:
        assert (await make_job(invoker, headers=limited("1")))["max_cost"] == "1.000000"
    assert (await make_job(api))["max_cost"] is None


async def test_its_node_gets_no_more_time_than_its_money_is_enough_for(
    api: httpx.AsyncClient, services: Services, agent: Node
) -> None:
    await make_function(api)
    job = await make_job(api, headers=limited("0.000040"))
    (lease,) = await agent.claim()
    assert lease["job_id"] == job["id"]
    assert lease["timeout_s"] == pytest.approx(30, abs=0.1)
    assert await agent.verdicts(lease) == ["keep"]
    await moved(services, 31)
    assert await agent.verdicts(lease) == ["cancel"], "also while an image or an input is fetched"
    answer = await agent.post(f"jobs/{job['id']}/finish", {"token": lease["token"], "status": "cancelled"})
    assert answer.json() == {"status": "failed"}
    shown = (await api.get(f"/v1/jobs/{job['id']}")).json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "budget_exceeded")
    assert float(shown["cost"]["amount"]) == pytest.approx(0.000041, abs=1e-6)


async def test_an_attempt_for_which_nothing_is_left_ends_before_it_begins(
    api: httpx.AsyncClient, services: Services, agent: Node
) -> None:
    await make_function(api)
    job = await make_job(api, headers=limited("0.000040"))
    (lease,) = await agent.claim()
    await moved(services, 29)
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE leases SET leased_at = leased_at - interval '5 seconds'")
    assert (await agent.post(f"jobs/{job['id']}/release", {"token": lease["token"]})).status_code == 200
    assert await agent.claim() == []
    shown = (await api.get(f"/v1/jobs/{job['id']}")).json()
    assert (shown["status"], shown["error"]["code"], shown["attempt"]) == ("failed", "budget_exceeded", 2)


async def test_a_file_whose_job_cost_too_much_is_402_at_either_end(
    api: httpx.AsyncClient, services: Services, agent: Node
) -> None:
    await make_function(api)
    asked = asyncio.ensure_future(api.post("/f/default/thumbnail?video=v", headers=limited("0.000040")))
    lease = await agent.claim_one(wait_s=5)
    await moved(services, 31)
    await agent.post(f"jobs/{lease['job_id']}/finish", {"token": lease["token"], "status": "cancelled"})
    answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (402, "budget_exceeded"), "a code has one status"
    assert lease["job_id"] in answer.json()["detail"]


async def moved(services: Services, seconds: float) -> None:
    """Let what runs have begun so much earlier."""
    async with services.pool.acquire() as conn:
        span = timedelta(seconds=seconds)
        await conn.execute("UPDATE leases SET leased_at = leased_at - $1::interval, pays_until = pays_until - $1", span)


@pytest.mark.parametrize("wrong", ["0", "0.000", "-1", "1e3", "0,05", "5 EUR", "1234567890", "0.123456789", ".5", ""])
async def test_what_is_no_amount_is_refused(shared_api: httpx.AsyncClient, wrong: str) -> None:
    answer = await shared_api.post("/v1/functions/nothing/invoke", json={}, headers=limited(wrong))
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["errors"][0]["pointer"]) == (400, "/header/RGrid-Max-Cost")
    assert "EUR like 0.05" in answer.text
