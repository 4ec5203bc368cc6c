"""GET /metrics: what it says, who may ask, and that it answers whatever else does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from functions.ids import ProjectId
from gateway import instance as instances
from gateway.database import open_pool
from gateway.instance import InstanceReader, instance_reader
from gateway.services import Services
from nodes import budgets, fleet
from tests.gateway.conftest import client_of
from tests.gateway.making import make_function, make_job, make_one_of_each
from tests.nodes.renting import rent
from tests.postgres import free_port

TOKEN = "a-token-for-whoever-watches"


def read(text: str) -> dict[tuple[str, ...], float]:
    """Value by name and labels' values, as in ``("rgrid_jobs", "ready")``."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    answer = await client.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    return read(answer.text)


def reading_from(services: Services, url: str) -> AbstractAsyncContextManager[InstanceReader]:
    return instance_reader(services.settings.model_copy(update={"database_url": SecretStr(url)}))


@contextmanager
def reader_of(services: Services, reader: InstanceReader) -> Iterator[None]:
    before, services.instance = services.instance, reader
    try:
        yield
    finally:
        services.instance = before


async def test_it_says_how_much_waits_and_runs(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api)
    for _ in range(3):
        await make_job(api)
    found = await scrape(api)
    assert found["rgrid_database_up",] == 1
    assert {state: found["rgrid_jobs", state] for state in ("ready", "running", "gated", "paused", "scheduled")} == {
        "ready": 3, "running": 0, "gated": 0, "paused": 0, "scheduled": 0,
    }  # fmt: skip
    assert 0 <= found["rgrid_queue_oldest_age_seconds", "standard"] < 60
    assert found["rgrid_pool_connections_max", "hot"] == 10
    assert [found[f"rgrid_servers_{each}",] for each in ("listed", "known", "unknown")] == [0, 0, 0]
    assert found["process_resident_memory_bytes",] > 1e7


async def test_requests_are_counted_by_route_and_not_by_path(services: Services, api: httpx.AsyncClient) -> None:
    before = services.requests.registry
    await make_function(api)
    await api.get("/v1/functions/thumbnail")
    for n in range(50):
        assert (await api.request("GET", f"/v1/functions/f{n}")).status_code == 404
        assert (await api.request("GET", f"/nothing/{n}")).status_code == 404
    found = await scrape(api)
    named = "/v1/functions/{name}"
    assert services.requests.registry is before
    assert found["rgrid_http_requests_total", "GET", named, "200"] == 1
    assert found["rgrid_http_requests_total", "GET", named, "404"] == 50
    assert found["rgrid_http_requests_total", "none", "none", "404"] == 50
    assert found["rgrid_http_request_duration_seconds_count", "GET", named] == 51
    assert found["rgrid_http_request_duration_seconds_bucket", "+Inf", "GET", named] == 51
    assert sum(name[0] == "rgrid_http_requests_total" for name in found) == 4


async def test_nothing_of_a_tenant_is_in_it(services: Services, api: httpx.AsyncClient) -> None:
    known = await make_one_of_each(services, api)
    text = (await api.get("/metrics")).text
    assert "rgrid_jobs" in text
    for name in (*vars(known).values(), "thumbnail", '"default"', "default/"):
        assert str(name) not in text


async def test_without_a_setting_it_is_open_and_with_one_the_token_is_needed(services: Services) -> None:
    async with client_of(services, None) as anyone:
        assert (await anyone.get("/metrics")).status_code == 200
        services.settings = services.settings.model_copy(update={"metrics_token": SecretStr(TOKEN)})
        refused = await anyone.get("/metrics")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    for key, status in ((TOKEN, 200), (TOKEN[:-1], 401), (TOKEN + "x", 401), ("\xfc" * 20, 401)):
        async with client_of(services, None) as client:
            answer = await client.get("/metrics", headers={"Authorization": f"Bearer {key}".encode("latin-1")})
        assert answer.status_code == status, key


async def test_it_answers_in_time_when_the_database_is_away(services: Services, api: httpx.AsyncClient) -> None:
    async with reading_from(services, f"postgresql://x@127.0.0.1:{free_port()}/x") as refused:
        with reader_of(services, refused):
            found = await scrape(api)
    assert found["rgrid_database_up",] == 0
    assert ("rgrid_jobs", "ready") not in found
    assert found["rgrid_claims_waiting",] == 0


async def test_it_answers_in_time_when_the_database_is_a_black_hole(
    services: Services, api: httpx.AsyncClient
) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as hole:
        port = hole.sockets[0].getsockname()[1]
        async with reading_from(services, f"postgresql://x@127.0.0.1:{port}/x?sslmode=disable") as reader:
            with reader_of(services, reader):
                began = time.monotonic()
                both = await asyncio.gather(scrape(api), scrape(api))
                assert time.monotonic() - began < 2
    assert [found["rgrid_database_up",] for found in both] == [0, 0]


async def test_it_answers_when_every_connection_of_the_pools_is_in_use(
    services: Services, api: httpx.AsyncClient
) -> None:
    async with asyncio.timeout(10):
        held = [await pool.acquire() for pool in (services.pool, services.hot_pool) for _ in range(10)]
        found = await scrape(api)
        for n, conn in enumerate(held):
            await (services.pool if n < 10 else services.hot_pool).release(conn)
    assert found["rgrid_database_up",] == 1
    assert found["rgrid_pool_connections_in_use", "hot"] == found["rgrid_pool_connections_max", "hot"]


async def test_it_finds_a_database_that_is_back(services: Services, api: httpx.AsyncClient) -> None:
    assert (await scrape(api))["rgrid_database_up",] == 1
    for _ in range(2):  # the connection that was cut is found out once
        await services.pool.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        services.instance._at_s = float("-inf")
        await scrape(api)
        found = await scrape(api)
        assert found["rgrid_database_up",] == 1


async def test_scrapes_share_one_look_at_the_database(
    services: Services, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    backlog_of = instances.backlog.read

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal looks
        looks += 1
        return await backlog_of(*args, **kwargs)

    monkeypatch.setattr(instances.backlog, "read", counted)
    await asyncio.gather(*(scrape(api) for _ in range(20)))
    await scrape(api)
    assert looks == 1


async def test_the_fleet_is_shown_as_the_scheduler_left_it(services: Services, api: httpx.AsyncClient) -> None:
    async with services.pool.acquire() as conn:
        account, project = await conn.fetchrow("SELECT account_id, id FROM projects")
        await rent(conn, account)
        now, _ = await fleet.clock(conn)
        await fleet.listed(conn, 3, 1, at=now)
        await fleet.freeze(conn, until=now + timedelta(minutes=5))
        await fleet.limit(conn, 5, until=now + timedelta(minutes=5))
        await fleet.tell(conn, {"buy": "no room", "delete n-1": "locked", "delete n-2": "locked"})
        await budgets.put(conn, ProjectId(project), Decimal(0))
    services.settings = services.settings.model_copy(
        update={"provider": "hetzner", "max_eur_hour": Decimal("0.25"), "max_nodes": 7}
    )
    async with instance_reader(services.settings) as reader:
        with reader_of(services, reader):
            found = await scrape(api)
    assert (found["rgrid_servers_listed",], found["rgrid_servers_known",], found["rgrid_servers_unknown",]) == (3, 2, 1)
    assert (found["rgrid_servers", "ready"], found["rgrid_servers", "planned"]) == (1, 0)
    assert (found["rgrid_nodes", "hetzner", "ready"], found["rgrid_nodes", "hetzner", "silent"]) == (1, 0)
    assert (found["rgrid_cost_eur_per_hour",], found["rgrid_cost_eur_per_hour_max",]) == (0.0096, 0.25)
    assert ("rgrid_cost_eur_month_max",) not in found
    assert (found["rgrid_servers_max",], found["rgrid_servers_account_limit",]) == (7, 5)
    assert found["rgrid_purchases_frozen",] == 1
    alarms = {kind for kind in fleet.ALARMS if found["rgrid_fleet_alarm", kind]}
    assert alarms == {"buy", "delete"}
    assert (found["rgrid_budgets_over", "80"], found["rgrid_budgets_over", "100"]) == (1, 1)
    for moment in ("rgrid_fleet_reconciled_timestamp_seconds", "rgrid_fleet_round_timestamp_seconds"):
        assert abs(found[moment,] - time.time()) < 60


async def test_what_schedulers_told_is_shown(services: Services, api: httpx.AsyncClient) -> None:
    await services.pool.execute(
        "INSERT INTO rounds VALUES ('promote', 1, now(), 10, 2, 0.5, now()), ('reap', 1, NULL, 3, 3, 0.1, now())"
    )
    await services.pool.execute("INSERT INTO tallies VALUES ('deliveries_exhausted', 4), ('of_another_release', 1)")
    found = await scrape(api)
    assert abs(found["rgrid_round_last_success_timestamp_seconds", "promote"] - time.time()) < 60
    assert ("rgrid_round_last_success_timestamp_seconds", "reap") not in found
    assert (found["rgrid_round_runs_total", "promote"], found["rgrid_round_failures_total", "reap"]) == (10, 3)
    assert found["rgrid_delivery_attempts_total", "exhausted"] == 4
    assert found["rgrid_delivery_attempts_total", "taken"] == 0


async def test_the_reading_needs_no_connection_before_somebody_asks(database: str) -> None:
    pool = await open_pool(database, min_size=0, max_size=1, hot_path=True)
    assert pool.get_size() == 0
    reader = InstanceReader(pool, provider="local", lease=timedelta(seconds=20))
    assert (await reader.read()) is not None
    assert pool.get_size() == 1
    await pool.close()
