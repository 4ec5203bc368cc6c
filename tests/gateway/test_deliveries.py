"""/v1/deliveries over the real application."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from functions import ids
from gateway.api.deliveries import DeliveryList, DeliveryView
from gateway.services import Services
from scheduler import deliveries
from scheduler.deliveries import Exchanged
from tests.gateway.making import make_function, make_job

HOOK = {"X-Callback-Url": "https://example.com/hook"}


async def cancelled(api: httpx.AsyncClient) -> str:
    """A job that has caused a delivery."""
    job = await make_job(api, headers=HOOK)
    await api.post(f"/v1/jobs/{job['id']}/cancel")
    return str(job["id"])


async def attempted(services: Services, status: int, state: str) -> None:
    """One attempt of every delivery that is due."""
    async with services.pool.acquire() as conn:
        project = await conn.fetchval("SELECT id FROM projects WHERE slug = 'default'")
        wanted = [(project, "https://example.com:443", 10)]
        for each in await deliveries.claim(conn, wanted, lease=timedelta(seconds=30)):
            exchanged = Exchanged(12, "203.0.113.1", status, response="thanks")
            assert await deliveries.record(conn, each, exchanged, state, timedelta(0))


async def test_deliveries_show_every_attempt_and_can_be_sent_again(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    first, second = await cancelled(api), await cancelled(api)
    await attempted(services, 200, "delivered")
    listed = DeliveryList.model_validate_json((await api.get("/v1/deliveries")).content).data
    assert [(one.job, one.type, one.state) for one in listed] == [
        (second, "job.cancelled", "delivered"), (first, "job.cancelled", "delivered"),
    ]  # fmt: skip
    (attempt,) = listed[0].attempts
    assert (attempt.attempt, attempt.status, attempt.duration_ms, attempt.response) == (1, 200, 12, "thanks")
    assert attempt.address == "203.0.113.1"
    shown = DeliveryView.model_validate_json((await api.get(f"/v1/deliveries/{listed[0].id}")).content)
    assert shown == listed[0]

    answer = await api.post(f"/v1/deliveries/{listed[0].id}/redeliver")
    assert (answer.status_code, answer.json()) == (202, {"id": listed[0].id, "state": "pending"})
    pending = DeliveryList.model_validate_json((await api.get("/v1/deliveries?state=pending")).content).data
    assert [one.id for one in pending] == [listed[0].id]
    assert pending[0].next_at is not None
    await attempted(services, 500, "exhausted")
    (failed,) = (await api.get("/v1/deliveries?state=exhausted")).json()["data"]
    assert [attempt["status"] for attempt in failed["attempts"]] == [200, 500]


async def test_deliveries_are_found_by_job_and_go_on_with_the_cursor(api: httpx.AsyncClient) -> None:
    await make_function(api)
    jobs = [await cancelled(api) for _ in range(3)]
    (one,) = (await api.get(f"/v1/deliveries?job={jobs[1]}")).json()["data"]
    assert one["job"] == jobs[1]
    first = (await api.get("/v1/deliveries?limit=2")).json()
    rest = (await api.get(f"/v1/deliveries?limit=2&cursor={first['next_cursor']}")).json()
    assert [delivery["job"] for delivery in first["data"] + rest["data"]] == jobs[::-1]
    unknown = ids.encode(ids.JOB, ids.new_uuid7())
    assert (await api.get(f"/v1/deliveries?job={unknown}")).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("job=x", 404), ("job=", 404), ("state=done", 422), ("state=", 422), ("limit=0", 422), ("cursor=x", 400),
        ("callback=x", 422), ("since=yesterday", 422), ("until=2026-01-01", 422),
    ],
)  # fmt: skip
async def test_a_query_that_breaks_a_rule_is_refused(shared_api: httpx.AsyncClient, query: str, status: int) -> None:
    answer: Any = await shared_api.get(f"/v1/deliveries?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
