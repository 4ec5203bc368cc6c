"""Limits, pauses and times of a job, over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from gateway.services import Services

MANIFEST: dict[str, Any] = {
    "apiVersion": "rgrid/v1",
    "kind": "Function",
    "metadata": {"name": "fn"},
    "spec": {"params": {"properties": {"c": {"type": "string"}}}, "job": {"image": "busybox"}},
}


async def apply(api: httpx.AsyncClient, **queue: Any) -> None:
    manifest = MANIFEST | {"spec": MANIFEST["spec"] | {"queue": queue}}
    answer = await api.put("/v1/functions/fn", json=manifest)
    assert answer.status_code in (200, 201), answer.text


async def invoke(api: httpx.AsyncClient, params: Any = None, **headers: str) -> httpx.Response:
    return await api.post("/v1/functions/fn/invoke", json=params or {}, headers=headers)


async def job(api: httpx.AsyncClient, answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = (await api.get(f"/v1/jobs/{answer.json()['id']}")).json()
    return found


async def test_a_job_over_its_limit_is_queued_and_says_why(api: httpx.AsyncClient) -> None:
    await apply(api, concurrency={"limit": 1})
    first, second = await invoke(api), await invoke(api)
    assert (await job(api, first))["wait_reason"] == "capacity", "it was let in at once; there is no node"
    found = await job(api, second)
    assert (found["status"], found["wait_reason"], found["eta"]) == ("queued", "concurrency", None)
    listed = (await api.get("/v1/jobs?status=queued")).json()["data"]
    assert [each["id"] for each in listed] == [second.json()["id"], first.json()["id"]]
    assert (await api.get("/v1/jobs?status=scheduled")).json()["data"] == []
    cancelled = await api.post(f"/v1/jobs/{first.json()['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    assert (await job(api, second))["wait_reason"] == "capacity", "the place goes on at once"


async def test_jobs_that_wait_for_a_limits_lock_hold_up_no_others(api: httpx.AsyncClient, services: Services) -> None:
    await apply(api, concurrency={"limit": 10, "onLimit": "reject"})
    assert (await invoke(api)).status_code == 202
    innocent = MANIFEST | {"metadata": {"name": "innocent"}}
    assert (await api.put("/v1/functions/innocent", json=innocent)).status_code == 201
    async with services.pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT 1 FROM gates FOR UPDATE")
        stuck = [asyncio.ensure_future(invoke(api)) for _ in range(6)]
        async with asyncio.timeout(10):
            while not await conn.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            answers = [await api.post("/v1/functions/innocent/invoke", json={}) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [202] * 6
        assert not any(each.done() for each in stuck)
    assert [(await each).status_code for each in stuck] == [202] * 6


async def test_rejected_jobs_answer_429_and_are_made_when_there_is_room(api: httpx.AsyncClient) -> None:
    await apply(api, concurrency={"perKey": 1, "key": "{{ params.c }}", "onLimit": "reject"})
    assert (await invoke(api, {"c": "a"})).status_code == 202
    refused = await invoke(api, {"c": "a"})
    assert (refused.status_code, refused.json()["code"]) == (429, "concurrency_rejected")
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await invoke(api, {"c": "b"})).status_code == 202
    assert len((await api.get("/v1/jobs")).json()["data"]) == 2


@pytest.mark.parametrize("on_limit", ["reject", "replace"])
async def test_a_batch_is_rejected_as_a_whole_or_its_last_jobs_go_on(
    api: httpx.AsyncClient, services: Services, on_limit: str
) -> None:
    await apply(api, concurrency={"limit": 1200, "onLimit": on_limit})
    answer = await api.post("/v1/functions/fn/batch", json=[{}] * 1201)
    async with services.pool.acquire() as conn:
        if on_limit == "reject":
            assert (answer.status_code, answer.json()["code"]) == (429, "concurrency_rejected")
            assert await conn.fetchval("SELECT count(*) FROM jobs") == 0
            assert (await api.post("/v1/functions/fn/batch", json=[{}] * 1200)).status_code == 202
        else:
            counts = answer.json()["counts"]
            assert counts["queued"] + counts["cancelled"] == 1201
        assert 0 < await conn.fetchval("SELECT count(*) FROM ready_jobs") <= 1200


async def test_an_older_versions_jobs_pass_the_current_limits(api: httpx.AsyncClient) -> None:
    await apply(api)
    waiting = [await invoke(api), await invoke(api)]
    await apply(api, concurrency={"limit": 1})
    assert [(await job(api, each))["wait_reason"] for each in waiting] == ["capacity", "concurrency"]
    old = await invoke(api, **{"RGrid-Version": "1"})
    assert (await job(api, old))["wait_reason"] == "concurrency"
    await apply(api)
    batch = await api.post("/v1/functions/fn/batch", json=[{}], headers={"RGrid-Version": "2"})
    assert batch.json()["counts"]["queued"] == 1
    listed = (await api.get("/v1/jobs?status=queued")).json()["data"]
    assert [each["wait_reason"] for each in listed] == ["capacity"] * 4


async def test_a_raised_limit_lets_jobs_go_on_at_once(api: httpx.AsyncClient) -> None:
    await apply(api, concurrency={"limit": 1})
    await invoke(api)
    second = await invoke(api)
    await apply(api, concurrency={"limit": 2})
    assert (await job(api, second))["wait_reason"] == "capacity"
    await api.post("/v1/functions/fn/rollback", json={"version": 1})
    assert (await job(api, await invoke(api)))["wait_reason"] == "concurrency"


async def test_a_paused_function_takes_jobs_and_starts_none_until_it_goes_on(api: httpx.AsyncClient) -> None:
    await apply(api)
    before = await invoke(api)
    for _ in range(2):
        paused = await api.post("/v1/functions/fn/pause")
        assert (paused.status_code, paused.json()["paused"]) == (200, True)
    after = await invoke(api)
    for answer in (before, after):
        assert (await job(api, answer))["wait_reason"] == "paused"
    resumed = await api.post("/v1/functions/fn/resume", json={})
    assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    for answer in (before, after):
        assert (await job(api, answer))["wait_reason"] == "capacity"
    missing = await api.post("/v1/functions/none/pause")
    assert (missing.status_code, missing.json()["code"]) == (404, "function_not_found")


async def test_what_the_headers_ask_for_is_kept_with_the_job(api: httpx.AsyncClient, services: Services) -> None:
    await apply(api, priority="5s", ttl="1h")
    asked = {"Cancel-After": "30m", "RGrid-Priority": "1m", "RGrid-Lane": "paid"}
    assert (await invoke(api, **asked)).status_code == 202
    assert (await invoke(api)).status_code == 202
    async with services.pool.acquire() as conn:
        rows = await conn.fetch(
            """SELECT extract(epoch FROM cancel_at - queued_at)::int AS cancel_s, lane,
                      extract(epoch FROM head_start)::int AS head_s, extract(epoch FROM ttl_at - queued_at)::int AS ttl_s
                 FROM ready_jobs ORDER BY job_id"""
        )
    assert [tuple(row) for row in rows] == [(1800, 1, 60, 3600), (None, 0, 5, 3600)]


@pytest.mark.parametrize("limit", [None, {"limit": 10}])
async def test_a_delayed_job_says_when_it_starts(api: httpx.AsyncClient, limit: Any) -> None:
    await apply(api, **({} if limit is None else {"concurrency": limit}))
    answer = await invoke(api, **{"RGrid-Delay": "10m"})
    assert (answer.json()["wait_reason"], answer.json()["eta"] is not None) == ("delayed", True)
    assert (await job(api, answer))["wait_reason"] == "delayed"


async def test_an_unlimited_function_costs_no_statement_more(api: httpx.AsyncClient, services: Services) -> None:
    """What gates need is asked only of functions that have some."""
    await apply(api)
    await invoke(api)
    async with services.pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM gates") == 0
        row = await conn.fetchrow("SELECT gates, ttl_at, cancel_at, head_start FROM ready_jobs")
    assert tuple(row) == (None, None, None, None)
