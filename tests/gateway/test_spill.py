"""Params that are too large for a row: they go to the store by themselves, and come back wherever they are needed."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from gateway.services import Services
from scheduler.spill import INLINE_BYTES
from tests.gateway.making import make_function
from tests.gateway.test_uploads import objects
from tests.gateway.work import file, joined

INVOKE = "/v1/functions/thumbnail/invoke"
JOB = {"image": "busybox:1", "command": ["echo", "{{ params.small }}"]}


def large(**more: Any) -> dict[str, Any]:
    return {"text": "ä" * 100_000, "small": "one"} | more


@pytest.fixture
async def function(api: httpx.AsyncClient) -> None:
    await make_function(api, params={"type": "object"}, job=JOB)


async def invoked(api: httpx.AsyncClient, params: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = await api.post(INVOKE, json=params, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def test_large_params_lie_in_the_store_and_reach_the_job(
    services: Services, api: httpx.AsyncClient, function: None
) -> None:
    job = await invoked(api, large())
    assert list(job["params"]) == ["$artifact"]
    assert (await api.get(f"/v1/jobs/{job['id']}")).json()["params"] == job["params"]
    artifact = (await api.get(f"/v1/artifacts/{job['params']['$artifact'].removeprefix('artifact:')}")).json()
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        assert (await browser.get(artifact["url"])).json() == large()
    async with services.pool.acquire() as conn:
        assert await conn.fetchval("SELECT length(params::text) FROM jobs") < 100
    async with joined(services) as node:
        lease = await node.claim_one()
    assert json.loads(lease["params"]) == large()
    assert lease["command"] == ["echo", "one"]


async def test_params_up_to_the_bound_stay_in_the_row(
    services: Services, api: httpx.AsyncClient, function: None
) -> None:
    room = INLINE_BYTES - len(b'{"small":"","t":""}')
    fitting = {"small": "", "t": "x" * room}
    assert (await invoked(api, fitting))["params"] == fitting
    assert await objects(services) == set()
    assert list((await invoked(api, {"small": "x", "t": "x" * room}))["params"]) == ["$artifact"]


async def test_a_repeat_leaves_no_second_file(services: Services, api: httpx.AsyncClient, function: None) -> None:
    first, again = [await invoked(api, large(), **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert first["id"] == again["id"]
    assert len(await objects(services)) == 1
    other = await api.post(INVOKE, json=large(a=1), headers={"Idempotency-Key": "k"})
    assert other.json()["code"] == "idempotency_key_reused"
    assert len(await objects(services)) == 1


async def test_a_retry_has_the_same_params_also_edited_ones(
    services: Services, api: httpx.AsyncClient, function: None
) -> None:
    job = await invoked(api, large())
    async with joined(services) as node:
        await node.finish(
            await node.claim_one(), "failed", error={"code": "exit_nonzero", "message": "m", "retryable": False}
        )
        plain = await api.post(f"/v1/jobs/{job['id']}/retry")
        edited = await api.post(f"/v1/jobs/{job['id']}/retry", json={"params": {"small": "two"}})
        assert (plain.status_code, edited.status_code) == (202, 202), edited.text
        leases = [await node.claim_one() for _ in range(2)]
    assert [json.loads(lease["params"]) for lease in leases] == [large(), large(small="two")]
    # Each job's params live as long as the job does.
    assert (
        len({plain.json()["params"]["$artifact"], edited.json()["params"]["$artifact"], job["params"]["$artifact"]})
        == 3
    )


async def test_a_retry_of_large_params_needs_one_connection_only(
    services: Services, api: httpx.AsyncClient, function: None
) -> None:
    job = await invoked(api, large())
    await api.post(f"/v1/jobs/{job['id']}/cancel")
    async with AsyncExitStack() as busy, asyncio.timeout(10):
        for _ in range(services.pool.get_max_size() - 1):
            await busy.enter_async_context(services.pool.acquire())
        assert (await api.post(f"/v1/jobs/{job['id']}/retry")).status_code == 202


async def test_params_that_are_gone_fail_the_job(services: Services, api: httpx.AsyncClient, function: None) -> None:
    job = await invoked(api, large())
    async with services.pool.acquire() as conn:
        await conn.execute("DELETE FROM artifacts")
    async with joined(services) as node:
        assert await node.claim() == []
    ended = (await api.get(f"/v1/jobs/{job['id']}")).json()
    assert (ended["status"], ended["error"]["code"]) == ("failed", "input_unavailable")
    retried = await api.post(f"/v1/jobs/{job['id']}/retry")
    assert (retried.status_code, retried.json()["code"]) == (404, "artifact_not_found")


async def test_a_batch_may_have_large_params_too(services: Services, api: httpx.AsyncClient, function: None) -> None:
    answer = await api.post("/v1/functions/thumbnail/batch", json=[large(), {"small": "two"}])
    assert answer.status_code == 202, answer.text
    assert len(await objects(services)) == 1
    async with joined(services) as node:
        leases = [await node.claim_one() for _ in range(2)]
    assert sorted(json.loads(lease["params"])["small"] for lease in leases) == ["one", "two"]


async def test_a_string_in_the_place_of_params_is_never_taken_for_a_file(
    api: httpx.AsyncClient, function: None
) -> None:
    assert (await api.post(INVOKE, json="artifact:art_" + "0" * 32)).status_code == 422
    same = {"$artifact": "artifact:art_" + "0" * 32, "small": "x"}
    assert (await invoked(api, same))["params"] == same


async def test_a_large_result_is_an_output_named_result(
    services: Services, api: httpx.AsyncClient, function: None
) -> None:
    job = await invoked(api, {"small": "x"})
    data = json.dumps("x" * 300_000).encode()
    async with joined(services) as node:
        lease = await node.claim_one()
        for output, path in (("result", "/out/other.json"), ("other", "/out/result.json")):
            body = {"token": lease["token"], "files": [file(output, path, data)]}
            assert (await node.post(f"jobs/{lease['job_id']}/outputs", body)).status_code == 422
        artifact = await node.upload(lease, "result", "/out/result.json", data)
        assert (await node.finish(lease, artifacts=[artifact])).status_code == 200
    shown = (await api.get(f"/v1/jobs/{job['id']}")).json()
    assert (shown["result"], shown["outputs"][0]["name"], shown["outputs"][0]["size"]) == (None, "result", len(data))
