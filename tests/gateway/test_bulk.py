"""All jobs that some filters fit: cancelled, and run again, as often as it is asked."""

from __future__ import annotations

import asyncio
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from gateway.api import bulk
from gateway.api.models.bulk import BulkCancelled, BulkRetried
from gateway.api.models.jobs import JobView
from gateway.services import Services
from scheduler import redrive
from tests.gateway.making import claim, finish, key_client, make_function, make_job, make_node, project_client

LONG_AGO = "2000-02-29T12:00:00Z"
FAILED: dict[str, Any] = {"status": "failed", "exit_code": 1, "code": "exit_nonzero", "message": "exit 1"}


async def cancel(api: httpx.AsyncClient, **body: Any) -> tuple[int, int, int]:
    answer = await api.post("/v1/jobs/cancel", json=body)
    assert answer.status_code == 200, answer.text
    found = BulkCancelled.model_validate_json(answer.content)
    return found.matched, found.cancelled, found.remaining


async def retry(api: httpx.AsyncClient, **body: Any) -> BulkRetried:
    answer = await api.post("/v1/jobs/retry", json=body)
    assert answer.status_code == 200, answer.text
    return BulkRetried.model_validate_json(answer.content)


async def listed(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.get("/v1/jobs", params={"limit": 100} | query)).json()["data"]
    return found


async def fail_all(api: httpx.AsyncClient, services: Services, count: int) -> list[str]:
    """Jobs that have failed, ids in their order."""
    made = [(await make_job(api))["id"] for _ in range(count)]
    node = await make_node(services, slots=32)
    for claimed in await claim(services, node, slots=32):
        await finish(services, node, claimed, **FAILED)
    return made


async def test_a_bulk_cancel_takes_what_its_filters_fit_and_nothing_else(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    await make_function(api, "other")
    node = await make_node(services, slots=2)
    running = [(await make_job(api))["id"] for _ in range(2)]
    held = await claim(services, node, slots=2)
    for _ in range(3):
        await make_job(api)
    await make_job(api, headers={"RGrid-Delay": "1h"})
    spared = (await make_job(api, "other"))["id"]
    assert await cancel(api, function="thumbnail", dry_run=True) == (6, 0, 6)
    assert await cancel(api, function="thumbnail", status="queued", dry_run=True) == (3, 0, 3)
    assert await cancel(api, function="thumbnail", until=LONG_AGO) == (0, 0, 0)
    assert await cancel(api, function="nothing") == (0, 0, 0)
    assert len(await listed(api, status="cancelled")) == 0, "a dry run changes nothing"
    assert await cancel(api, function="thumbnail", status="scheduled") == (1, 1, 0)
    assert await cancel(api, function="thumbnail", since=LONG_AGO, trigger="manual") == (5, 5, 0)
    assert len(await listed(api, status="cancelled")) == 4
    for claimed in held:
        assert await finish(services, node, claimed, status="cancelled") == "cancelled"
    assert {job["status"] for job in await listed(api, function="thumbnail")} == {"cancelled"}
    assert (await api.get(f"/v1/jobs/{spared}")).json()["status"] == "queued"
    assert await cancel(api, function="thumbnail") == (0, 0, 0)
    assert {job["id"] for job in await listed(api, function="thumbnail")} > set(running)


async def test_a_bulk_retry_makes_one_job_of_each_however_often_it_is_asked(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 3)
    await make_function(api)
    failed = await fail_all(api, services, 8)
    assert (await retry(api, status="failed", dry_run=True)).matched == 8
    assert len(await listed(api)) == 8
    # Two at once, and one after the other: each job is retried once.
    both = await asyncio.gather(retry(api, function="thumbnail"), retry(api, status="failed"))
    assert sum(one.retried for one in both) == 8
    again = await retry(api, status="failed")
    assert (again.matched, again.retried, again.skipped, again.remaining) == (0, 0, 8, 0)
    assert (await retry(api, status="failed", dry_run=True)).matched == 0
    new = [job for job in await listed(api) if job["retried_from"]]
    assert sorted(job["retried_from"] for job in new) == sorted(failed)
    assert {(job["status"], job["version"]) for job in new} == {("queued", 1)}


async def test_a_retry_that_failed_again_can_be_retried(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    await fail_all(api, services, 1)
    await retry(api, status="failed")
    node = await make_node(services)
    (claimed,) = await claim(services, node)
    await finish(services, node, claimed, **FAILED)
    found = await retry(api, status="failed")
    assert (found.retried, found.skipped) == (1, 1)


async def test_params_are_merged_and_the_version_chosen(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    await fail_all(api, services, 2)
    await make_function(api, job={"image": "busybox:2"})
    assert (await retry(api, status="failed", params={"width": 64}, version="current")).retried == 2
    new = [job for job in await listed(api) if job["retried_from"]]
    assert [(job["params"], job["version"]) for job in new] == [({"video": "v", "width": 64}, 2)] * 2


async def test_what_does_not_fit_is_refused_and_named(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    failed = await fail_all(api, services, 2)
    found = await retry(api, status="failed", params={"width": 5})
    assert (found.matched, found.retried, found.refused) == (2, 0, 2)
    assert {(error.job, error.code) for error in found.errors} == {(job, "params_invalid") for job in failed}
    found = await retry(api, function="thumbnail", version=9)
    assert {error.code for error in found.errors} == {"version_not_found"}
    await api.delete("/v1/functions/thumbnail")
    assert {error.code for error in (await retry(api, status="failed")).errors} == {"function_deleted"}
    assert len(await listed(api)) == 2


async def test_what_takes_too_long_is_left_for_the_next_call(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api)
    await fail_all(api, services, 3)
    for _ in range(2):
        await make_job(api)
    monkeypatch.setattr(bulk, "ENOUGH_S", -1)
    assert await cancel(api, function="thumbnail") == (2, 0, 2)
    found = await retry(api, function="thumbnail")
    assert (found.matched, found.retried, found.remaining) == (3, 0, 3)


@pytest.mark.parametrize("call", ["cancel", "retry"])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""), ({"dry_run": True}, ""), ({"function": 1}, "/function"), ({"status": "done"}, "/status"),
        ({"batch": "bat_1"}, "/batch"), ({"since": 5}, "/since"), ({"until": "2026-01-01"}, "/until"),
        ({"trigger": "cron"}, "/trigger"), ({"all": True}, "/all"), ({"function": "f", "dry_run": 1}, "/dry_run"),
    ],
)  # fmt: skip
async def test_filters_that_break_a_rule(
    shared_api: httpx.AsyncClient, call: str, body: dict[str, Any], pointer: str
) -> None:
    answer = await shared_api.post(f"/v1/jobs/{call}", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


@pytest.mark.parametrize(
    ("call", "body", "pointer"),
    [
        ("cancel", {"status": "failed"}, "/status"), ("retry", {"status": "queued"}, "/status"),
        ("retry", {"params": {}}, ""), ("retry", {"status": "failed", "params": []}, "/params"),
        ("retry", {"status": "failed", "version": 0}, "/version"), ("retry", {"status": "failed", "version": 2}, "/function"),
        ("retry", {"status": "failed", "version": "newest"}, "/version"), ("cancel", {"function": "f", "version": 1}, "/version"),
    ],
)  # fmt: skip
async def test_what_only_one_of_the_calls_takes(
    shared_api: httpx.AsyncClient, call: str, body: dict[str, Any], pointer: str
) -> None:
    answer = await shared_api.post(f"/v1/jobs/{call}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)


async def test_it_reaches_no_other_project_and_needs_the_scope(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    await fail_all(api, services, 1)
    await make_job(api)
    async with project_client(services) as stranger:
        assert await cancel(stranger, function="thumbnail", since=LONG_AGO) == (0, 0, 0)
        assert (await retry(stranger, since=LONG_AGO)).matched == 0
    async with key_client(services, "invoke", "read") as reader:
        for call in ("cancel", "retry"):
            assert (await reader.post(f"/v1/jobs/{call}", json={"since": LONG_AGO})).status_code == 403
    assert {job["status"] for job in await listed(api)} == {"queued", "failed"}


async def test_one_job_is_retried_with_other_params_or_of_another_version(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    (failed,) = await fail_all(api, services, 1)
    await make_function(api, job={"image": "busybox:2"})
    path = f"/v1/jobs/{failed}/retry"
    plain = JobView.model_validate_json((await api.post(path)).content)
    assert (plain.version, plain.params) == (1, {"video": "v", "width": 320})
    edited = JobView.model_validate_json((await api.post(path, json={"params": {"width": 99, "video": "w"}})).content)
    assert (edited.version, edited.params, edited.retried_from) == (1, {"video": "w", "width": 99}, failed)
    newer = JobView.model_validate_json((await api.post(path, json={"version": "current"})).content)
    assert newer.version == 2
    assert (await api.post(path, json={"version": 1, "params": {"width": None}})).json()["params"]["width"] == 320
    key = {"Idempotency-Key": "k"}
    first = await api.post(path, json={"params": {"width": 50}}, headers=key)
    assert (await api.post(path, json={"params": {"width": 50}}, headers=key)).json()["id"] == first.json()["id"]
    other = await api.post(path, json={"params": {"width": 51}}, headers=key)
    assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"version": 3}, 404, "version_not_found", None), ({"version": 0}, 422, "invalid", "/version"),
        ({"version": True}, 422, "invalid", "/version"), ({"version": "newest"}, 422, "invalid", "/version"),
        ({"params": 1}, 422, "invalid", "/params"), ({"params": {"width": 1}}, 422, "params_invalid", "/width"),
        ({"params": {"video": None}}, 422, "params_invalid", "/video"), ({"param": {}}, 422, "invalid", "/param"),
    ],
)  # fmt: skip
async def test_changes_to_one_job_that_break_a_rule(
    shared_api: httpx.AsyncClient, body: dict[str, Any], status: int, code: str, pointer: str | None
) -> None:
    await make_function(shared_api, "retried")
    job = await make_job(shared_api, "retried")
    await shared_api.post(f"/v1/jobs/{job['id']}/cancel")
    answer = await shared_api.post(f"/v1/jobs/{job['id']}/retry", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if pointer is not None:
        assert answer.json()["errors"][0]["pointer"].startswith(pointer)


async def finished(api: httpx.AsyncClient, count: int, **params: Any) -> None:
    for _ in range(count):
        answer = await api.post("/v1/functions/wide/invoke", json={"video": "v"} | params)
        assert answer.status_code == 202, answer.text
    await cancel(api, function="wide")


@pytest.mark.parametrize("by", ["params", "defaults"])
async def test_of_a_bulk_retry_only_so_many_bytes_are_in_memory_at_once(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    plain = {"params": {"type": "object"}, "job": {"image": "busybox:1", "command": ["true"]}}
    await make_function(api, "wide", **plain)
    await finished(api, 10, text="x" * (100_000 if by == "params" else 1))
    if by == "defaults":
        properties = {"wide": {"type": "string", "default": "x" * 100_000}}
        await make_function(api, "wide", **plain | {"params": {"type": "object", "properties": properties}})
    monkeypatch.setattr(redrive, "PORTION_BYTES", 310_000)
    seen: list[int] = []
    really = redrive.retry_portion

    async def noted(pool: Any, project: Any, portion: redrive.Portion, how: Any) -> Any:
        seen.append(sum(len(new.params) for _, new in portion.made))
        return await really(pool, project, portion, how)

    monkeypatch.setattr(redrive, "retry_portion", noted)
    found = await retry(api, function="wide", status="cancelled", version="current")
    assert (found.retried, found.remaining) == (10, 0)
    assert len(seen) > 1 and max(seen) < 310_000 + 110_000


async def test_no_connection_of_the_queue_waits_for_the_store_and_no_file_stays_without_its_job(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api, "wide", params={"type": "object"}, job={"image": "busybox:1", "command": ["true"]})
    await finished(api, 3, text="x" * 200_000)
    busy: list[int] = []
    put, read = services.store.put, services.store.read

    async def noted_put(*given: Any) -> None:
        busy.append(services.hot_pool.get_size() - services.hot_pool.get_idle_size())
        await put(*given)

    def noted_read(*given: Any) -> Any:
        busy.append(services.hot_pool.get_size() - services.hot_pool.get_idle_size())
        return read(*given)

    with monkeypatch.context() as patched:
        patched.setattr(services.store, "put", noted_put)
        patched.setattr(services.store, "read", noted_read)
        assert (await retry(api, function="wide", status="cancelled")).retried == 3
    assert busy == [0] * 6
    await cancel(api, function="wide")
    both = await asyncio.gather(*(retry(api, function="wide", status="cancelled") for _ in range(2)))
    assert sum(one.retried for one in both) == 3
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT params_of FROM artifacts")
        assert {row["params_of"] for row in rows} == {row["id"] for row in await conn.fetch("SELECT id FROM jobs")}
        assert len(rows) == 9
    assert len(await services.store.list_objects("", 100)) == 9


async def test_a_bulk_retry_that_takes_too_long_in_the_middle_says_what_is_left(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api)
    await fail_all(api, services, 5)
    monkeypatch.setattr(redrive, "PORTION_BYTES", 1)
    times = chain([0.0, 0.0, 0.0], repeat(99.0))
    monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: next(times)))
    found = await retry(api, status="failed")
    monkeypatch.undo()
    assert (found.matched, found.retried, found.remaining) == (5, 2, 3)
    found = await retry(api, status="failed")
    assert (found.matched, found.retried, found.skipped, found.remaining) == (3, 3, 2, 0)
