"""What was used and what it cost, and what a project may cost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from functions.ids import ProjectId
from gateway.services import Services
from gateway.usage_rounds import usage_rounds
from nodes import budgets, ledger, usage
from nodes.offers import HOUR
from tests.gateway.making import claim, finish, key_client, make_function, make_job, make_node, project_client
from tests.nodes.renting import rent

A_MINUTE = timedelta(minutes=1)
NO_TIME = timedelta()


async def used(api: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await api.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ran(services: Services, api: httpx.AsyncClient, name: str = "thumbnail", seconds: int = 10) -> dict[str, Any]:
    node, job = await make_node(services), await make_job(api, name)
    (held,) = await claim(services, node)
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE leases SET leased_at = now() - $1 * interval '1 second'", seconds)
    await finish(services, node, held)
    return job


async def spent(services: Services, api: httpx.AsyncClient) -> tuple[dict[str, Any], ProjectId]:
    """A job that ran alone in an hour of a rented node, and its project."""
    await make_function(api)
    job = await make_job(api)
    async with services.pool.acquire() as conn:
        project, account = await conn.fetchrow("SELECT id, account_id FROM projects WHERE slug = 'default'")
        node, _ = await rent(conn, account, age=50 * A_MINUTE)
        (held,) = await claim(services, node)
        await conn.execute("UPDATE leases SET leased_at = now() - interval '10 minutes'")
    await finish(services, node, held, timeline={"started": 5, "exited": 100})
    async with services.pool.acquire() as conn, conn.transaction():
        begun = await conn.fetchval("SELECT created_at FROM servers")
        assert await ledger.settle(conn, begun + HOUR + A_MINUTE, ahead=NO_TIME, limit=10) == 1
        # Also if the hour began yesterday, which may be last month.
        await conn.execute("UPDATE usage_days SET day = (now() AT TIME ZONE 'UTC')::date")
    return job, ProjectId(project)


async def test_jobs_count_at_once_and_once_and_stay_when_they_are_gone(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    await make_function(api, "other")
    await ran(services, api)
    await ran(services, api, seconds=20)
    await ran(services, api, "other", seconds=5)
    before = await used(api)
    async with services.pool.acquire() as conn:
        assert [await usage.count_once(conn, limit=2, settled=NO_TIME) for _ in range(3)] == [2, 1, 0]
        await conn.execute("DELETE FROM outcomes")
    after = await used(api)
    assert [(row["group"], row["jobs"], round(row["slot_seconds"])) for row in after["data"]] == [
        ("other", 1, 5), ("thumbnail", 2, 30)
    ]  # fmt: skip
    assert after == before
    assert (after["total"]["jobs"], after["total"]["cost"]["amount"]) == (3, "0.000000")


async def test_it_is_grouped_by_day_and_bounded_by_days(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    await ran(services, api)
    await ran(services, api)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    async with services.pool.acquire() as conn:
        await conn.execute(
            "UPDATE outcomes SET leased_at = leased_at - interval '1 day', finished_at = finished_at - interval '1 day'"
            " WHERE job_id = (SELECT job_id FROM outcomes ORDER BY job_id LIMIT 1)"
        )
    found = await used(api, group_by="day", **{"from": yesterday.isoformat()})
    assert [row["group"] for row in found["data"]] == [(yesterday + timedelta(days=1)).isoformat(), yesterday.isoformat()]
    only = await used(api, group_by="project", **{"from": yesterday.isoformat(), "to": yesterday.isoformat()})
    assert [(row["group"], row["jobs"]) for row in only["data"]] == [("default", 1)]


async def test_a_job_on_a_rented_node_shows_what_it_cost_and_so_does_its_function(
    api: httpx.AsyncClient, services: Services
) -> None:
    job, _ = await spent(services, api)
    shown = (await api.get(f"/v1/jobs/{job['id']}")).json()["cost"]
    assert shown == {"currency": "EUR", "amount": "0.009600", "estimated": False}
    (row,) = (await used(api))["data"]
    assert (row["group"], row["jobs"], row["cost"]["amount"]) == ("thumbnail", 1, "0.009600")
    assert Decimal(row["idle"]["amount"]) == pytest.approx(Decimal("0.0088"), abs=Decimal("1e-6"))
    quoted = (await api.post("/v1/functions/thumbnail/invoke?quote=1", json={"video": "v"})).json()
    assert (quoted["jobs"], quoted["cost"]["p50"], quoted["cost"]["p95"]) == (1, "0.009600", "0.009600")
    async with project_client(services) as stranger:
        assert (await used(stranger))["data"] == []


async def test_a_project_whose_budget_is_used_up_gets_402_but_its_repeats_their_answer(
    api: httpx.AsyncClient, services: Services
) -> None:
    job, project = await spent(services, api)
    kept = {"Idempotency-Key": "k"}
    first = await make_job(api, headers=kept)
    wish = {"function": "thumbnail", "name": "own", "cron": "@hourly", "params": {"video": "v"}}
    schedule = (await api.post("/v1/schedules", json=wish)).json()["id"]
    answer = await api.put("/v1/budget", json={"monthly": "0.01"})
    assert answer.json()["left"] == "0.000400"
    refused = [
        await api.post("/v1/functions/thumbnail/invoke", json={"video": "v"}),
        await api.post("/v1/functions/thumbnail/batch", json=[{"video": "v"}]),
        await api.post("/v1/jobs", json={"job": {"image": "busybox"}}),
        await api.post(f"/v1/jobs/{job['id']}/retry"),
        await api.post("/v1/jobs/retry", json={"status": "succeeded"}),
        await api.post("/f/default/thumbnail?video=v"),
        await api.post(f"/v1/schedules/{schedule}/trigger"),
    ]
    assert [(each.status_code, each.json()["code"]) for each in refused] == [(402, "budget_exceeded")] * 7
    assert (await make_job(api, headers=kept))["id"] == first["id"]
    async with services.pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 2
        assert project in await budgets.exhausted(conn, datetime.now(UTC))
    async with project_client(services) as stranger:
        await make_function(stranger)
        await make_job(stranger)
    assert (await api.delete("/v1/budget")).status_code == 204
    await make_job(api)


async def test_a_project_is_warned_once_a_month_when_most_of_its_budget_is_used(
    api: httpx.AsyncClient, services: Services
) -> None:
    await spent(services, api)  # 0.0096 EUR
    (warn,) = [each.once for each in usage_rounds(services.pool) if each.name == "warn of budgets"]

    async def warned() -> list[dict[str, Any]]:
        with capture_logs() as said:
            await warn()
        return [each for each in said if each["event"] == "budget nearly used up"]

    for monthly, percent, warning in (("0.0121", 79, False), ("0.012", 80, True)):
        assert await warned() == []
        shown = (await api.put("/v1/budget", json={"monthly": monthly})).json()
        assert (shown["used_percent"], shown["warning"]) == (percent, warning)
        assert (await used(api))["budget"] == shown
    (said,) = await warned()
    assert (said["project"], said["used_eur"], said["monthly_eur"]) == ("default", "0.009600", "0.012000")
    assert await warned() == []
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE budgets SET warned_in = warned_in - interval '1 month'")
    assert len(await warned()) == 1
    # One that is changed may be near its end anew.
    await api.put("/v1/budget", json={"monthly": "0.0119"})
    assert len(await warned()) == 1


async def test_two_schedulers_at_once_warn_of_a_budget_once(api: httpx.AsyncClient, services: Services) -> None:
    await spent(services, api)
    await api.put("/v1/budget", json={"monthly": "0.012"})
    now, waits = datetime.now(UTC), "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"
    async with services.pool.acquire() as one, services.pool.acquire() as other, asyncio.timeout(10):
        async with one.transaction():
            assert len(await budgets.warn_once(one, now)) == 1
            late = asyncio.create_task(budgets.warn_once(other, now))
            while not await one.fetchval(waits, other.get_server_pid()):
                await asyncio.sleep(0.01)
        assert await late == []


async def test_a_budget_is_shown_and_set_by_an_admin_only(api: httpx.AsyncClient, services: Services) -> None:
    none = {"currency": "EUR", "monthly": None, "spent": "0.000000", "reserved": "0.000000", "left": None}
    none |= {"used_percent": None, "warning": False}
    assert (await api.get("/v1/budget")).json() == {"project": "default", **none}
    assert (await api.put("/v1/budget", json={"monthly": "25"})).json()["left"] == "25.000000"
    async with key_client(services, "write") as writer:
        assert (await writer.put("/v1/budget", json={"monthly": "1"})).status_code == 403
        assert (await writer.get("/v1/budget")).json()["monthly"] == "25.000000"


@pytest.mark.parametrize("monthly", ["0", "0.0", "-1", "1e3", "", "1.0000001", "NaN", 5, None])
async def test_a_budget_that_is_no_amount_is_refused(shared_api: httpx.AsyncClient, monthly: object) -> None:
    answer = await shared_api.put("/v1/budget", json={"monthly": monthly})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/monthly")


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-11-31", "from=yesterday", "from=1700000000", "to=2026-11-01T00:00:00Z", "group_by=node", "day=1",
        "from=2026-11-02&to=2026-11-01", "from=2020-01-01&to=2026-11-01", "from=0000-01-01",
    ],
)  # fmt: skip
async def test_what_is_no_range_of_days_is_refused(shared_api: httpx.AsyncClient, query: str) -> None:
    answer = await shared_api.get(f"/v1/usage?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["errors"][0]["pointer"].startswith("/query/")


async def test_the_ends_of_time_are_days_like_others(shared_api: httpx.AsyncClient) -> None:
    for query in ("from=0001-01-01&to=0001-01-02", "from=9999-12-31&to=9999-12-31"):
        assert (await shared_api.get(f"/v1/usage?{query}")).status_code == 200, query
