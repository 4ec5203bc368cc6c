"""Retries by cause: what a node reports, and what the next attempt is."""

from __future__ import annotations

from typing import Any

import httpx

from gateway.services import Services
from scheduler import queue
from scheduler.preparing import Sizing
from tests.gateway.making import make_function, make_job, manifest
from tests.gateway.work import Node, expire, joined, uuid_of

GIB = 2**30
AT_ONCE = {"initial": "0s"}


async def next_lease(services: Services, node: Node) -> dict[str, Any]:
    async with services.pool.acquire() as conn:
        await queue.promote(conn, limit=10)
    (lease,) = await node.claim(free_slots=2)
    return lease


async def fail(node: Node, lease: dict[str, Any], code: str = "exit_nonzero", exit_code: int = 1, **more: Any) -> str:
    error = {"code": code, "message": "it broke"}
    answer = await node.finish(lease, "failed", exit_code=exit_code, error=error, **more)
    assert answer.status_code == 200, answer.text
    status: str = answer.json()["status"]
    return status


async def oom(node: Node, lease: dict[str, Any]) -> str:
    return await fail(node, lease, "oom_killed", 137)


async def heavy(api: httpx.AsyncClient, memory: str, most: str, **retry: Any) -> dict[str, Any]:
    resources = {"memory": memory, "memoryMax": most}
    job = {"image": "busybox:1", "resources": resources}
    await make_function(api, job=job, retry={"backoff": AT_ONCE, **retry})
    return await make_job(api)


async def test_out_of_memory_is_tried_once_with_twice_as_much(services: Services, api: httpx.AsyncClient) -> None:
    made = await heavy(api, "2Gi", "8Gi")  # one attempt is all, but for this
    async with joined(services) as node:
        lease = await next_lease(services, node)
        assert (lease["resources"]["memory_bytes"], lease["slots"]) == (2 * GIB, 1)
        assert await oom(node, lease) == "scheduled"
        lease = await next_lease(services, node)
        assert (lease["attempt"], lease["resources"]["memory_bytes"], lease["slots"]) == (2, 4 * GIB, 2)
        assert await expire(services, lease)  # a node that is lost changes nothing of it
        lease = await next_lease(services, node)
        assert (lease["attempt"], lease["resources"]["memory_bytes"], lease["slots"]) == (3, 4 * GIB, 2)
        assert await oom(node, lease) == "failed"
    job = (await api.get(f"/v1/jobs/{made['id']}")).json()
    assert (job["error"]["code"], job["attempt"], job["max_attempts"]) == ("oom_killed", 3, 3)


async def test_further_attempts_keep_what_the_second_had(services: Services, api: httpx.AsyncClient) -> None:
    await heavy(api, "2Gi", "3Gi", attempts=3)
    async with joined(services) as node:
        for memory, status in ((2, "scheduled"), (3, "scheduled"), (3, "failed")):
            lease = await next_lease(services, node)
            assert lease["resources"]["memory_bytes"] == memory * GIB
            assert await oom(node, lease) == status


async def test_other_failures_and_no_larger_limit_get_no_more_memory(
    services: Services, api: httpx.AsyncClient
) -> None:
    await heavy(api, "1Gi", "4Gi", attempts=2)
    async with joined(services) as node:
        assert await fail(node, await next_lease(services, node)) == "scheduled"
        lease = await next_lease(services, node)
        assert lease["resources"]["memory_bytes"] == GIB
        await node.finish(lease)
        await heavy(api, "1Gi", "1Gi")
        assert await oom(node, await next_lease(services, node)) == "failed"


async def test_more_memory_than_any_node_has_is_refused(services: Services, api: httpx.AsyncClient) -> None:
    job = {"image": "busybox:1", "resources": {"memory": "3Gi", "memoryMax": "64Gi"}}
    answer = await api.put("/v1/functions/thumbnail", json=manifest(job=job))
    assert (answer.status_code, answer.json()["code"]) == (422, "too_large_for_any_node")
    assert answer.json()["errors"][0]["pointer"] == "/spec/job/resources/memoryMax"
    # Nodes that have become smaller since make it a failure like any other.
    await heavy(api, "2Gi", "4Gi")
    services.sizing = Sizing(2 * GIB, max_slots=1)
    async with joined(services) as node:
        assert await oom(node, await next_lease(services, node)) == "failed"


async def test_an_exit_code_may_be_the_cause(services: Services, api: httpx.AsyncClient) -> None:
    async with joined(services) as node:
        for on, exit_code, status in (
            ("exit:75", 75, "scheduled"),
            ("exit:75", 1, "failed"),
            ("error", 75, "scheduled"),
            ("oom", 75, "failed"),
        ):
            await make_function(api, retry={"attempts": 2, "on": [on], "backoff": {"initial": "5m"}})
            await make_job(api)
            assert await fail(node, await next_lease(services, node), exit_code=exit_code) == status, (on, exit_code)


async def test_a_job_says_when_its_next_attempt_may_start(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api, retry={"attempts": 2, "backoff": AT_ONCE})
    made = await make_job(api)
    async with joined(services) as node:
        lease = await next_lease(services, node)
        assert await fail(node, lease, exit_code=75, retry_after_s=3600) == "scheduled"
        async with services.pool.acquire() as conn:
            waits_s = await conn.fetchval(
                "SELECT extract(epoch FROM due_at - now())::float8 FROM waiting_jobs WHERE job_id = $1",
                uuid_of(made["id"]),
            )
    assert 3590 < waits_s <= 3600


async def test_a_node_reports_a_wait_within_bounds(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api)
    await make_job(api)
    async with joined(services) as node:
        lease = await next_lease(services, node)
        for value in (-1, 86_401, "30", True):
            assert (await node.finish(lease, "failed", exit_code=1, retry_after_s=value)).status_code == 422, value
        assert (await node.finish(lease, "failed", exit_code=1, retry_after_s=86_400)).status_code == 200
