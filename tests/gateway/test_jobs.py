"""/v1/jobs over the real application: list, show, wait, cancel, retry, events."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from gateway.api.models.jobs import EventList, JobList, JobView
from gateway.services import Services
from tests.gateway.making import claim, finish, make_function, make_job, make_node

LONG_AGO = "2000-02-29T12:00:00Z"


async def listed(api: httpx.AsyncClient, **query: Any) -> list[str]:
    """Ids of a whole list, page after page."""
    found: list[str] = []
    cursor = None
    while True:
        answer = await api.get("/v1/jobs", params=query | ({"cursor": cursor} if cursor else {}))
        page = JobList.model_validate_json(answer.content)
        found += [job.id for job in page.data]
        if (cursor := page.next_cursor) is None:
            return found


async def test_every_filter_finds_its_jobs_the_newest_first(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    await make_function(api, "other")
    node = await make_node(services)
    ended = [(await make_job(api))["id"] for _ in range(3)]
    for claimed in await claim(services, node):
        await finish(services, node, claimed)
    failed = (await make_job(api, "other"))["id"]
    (claimed,) = await claim(services, node)
    await finish(services, node, claimed, status="failed", exit_code=1, code="exit_nonzero", message="exit 1")
    running = (await make_job(api))["id"]
    await claim(services, node)
    queued = (await make_job(api, "other"))["id"]
    scheduled = (await make_job(api, headers={"RGrid-Delay": "1h"}))["id"]
    cancelled = (await make_job(api))["id"]
    await api.post(f"/v1/jobs/{cancelled}/cancel")

    everything = [cancelled, scheduled, queued, running, failed, *reversed(ended)]
    assert await listed(api) == await listed(api, limit=1) == await listed(api, limit=3) == everything
    for limit in (1, 100):
        assert await listed(api, limit=limit, function="other") == [queued, failed]
        assert await listed(api, limit=limit, function="nothing") == []
        assert await listed(api, limit=limit, status="succeeded") == ended[::-1]
        assert await listed(api, limit=limit, status="failed") == [failed]
        assert await listed(api, limit=limit, status="cancelled") == [cancelled]
        assert await listed(api, limit=limit, status="running") == [running]
        assert await listed(api, limit=limit, status="queued") == [queued]
        assert await listed(api, limit=limit, status="scheduled") == [scheduled]
        assert await listed(api, limit=limit, status="succeeded", function="thumbnail") == ended[::-1]
        assert await listed(api, limit=limit, status="succeeded", function="other") == []
        assert await listed(api, limit=limit, status="failed", function="other") == [failed]
        assert await listed(api, limit=limit, status="queued", function="thumbnail") == []
        assert await listed(api, limit=limit, trigger="manual") == everything
        assert await listed(api, limit=limit, trigger="webhook") == []
        assert await listed(api, limit=limit, since=LONG_AGO) == everything
        assert await listed(api, limit=limit, until=LONG_AGO) == []
    at = {job: (await api.get(f"/v1/jobs/{job}")).json()["created_at"] for job in everything}
    # Shown to a millisecond, stored to a microsecond: a time lies between two jobs, not on one.
    after_failed = (datetime.fromisoformat(at[failed]) + timedelta(milliseconds=1)).isoformat()
    assert await listed(api, since=after_failed, limit=2) == [cancelled, scheduled, queued, running]
    assert await listed(api, until=after_failed) == [failed, *reversed(ended)]
    assert await listed(api, until=after_failed, status="succeeded", since=LONG_AGO) == ended[::-1]


async def test_a_list_holds_the_jobs_of_all_functions_that_had_the_name(api: httpx.AsyncClient) -> None:
    await make_function(api)
    first = (await make_job(api))["id"]
    await api.delete("/v1/functions/thumbnail")
    await make_function(api)
    second = (await make_job(api))["id"]
    assert await listed(api, function="thumbnail", limit=1) == [second, first]


@pytest.mark.parametrize(
    "query",
    [
        "status=done", "status=", "status=succeeded,failed", "trigger=cron", "since=yesterday", "since=",
        "since=2026-01-01", "since=2026-01-01T00:00:00", "since=1700000000", "since=10000-01-01T00:00:00Z",
        "since=2026-02-29T00:00:00Z", "since=2026-01-01T00:00:60Z", "since=2026-01-01T00:00:00%2B25:00",
        "since=0001-01-01T00:00:00%2B14:00", "until=9999-12-31T23:59:59-14:00", "limit=0", "limit=101",
        "limit=-1", "limit=1e2", "batch=bat_1", "unknown=1", "function=a&function=b",
    ],
)  # fmt: skip
async def test_a_list_query_that_breaks_a_rule_is_422(shared_api: httpx.AsyncClient, query: str) -> None:
    answer = await shared_api.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["errors"][0]["pointer"] == f"/query/{query.partition('=')[0]}"


@pytest.mark.parametrize(
    "time",
    ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-02-29T23:59:59.999999+01:00"],
)
async def test_a_list_takes_every_time_that_exists(shared_api: httpx.AsyncClient, time: str) -> None:
    for name in ("since", "until"):
        assert (await shared_api.get("/v1/jobs", params={name: time})).status_code == 200


async def test_a_cursor_that_is_not_of_this_list_is_400(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    await make_function(api, "other")
    for _ in range(2):
        await make_job(api)
    cursor = (await api.get("/v1/jobs?limit=1")).json()["next_cursor"]
    foreign = (await api.get("/v1/functions?limit=1")).json()["next_cursor"]
    changed = [cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :] for place in range(40)]
    wrong = [*changed, foreign, "", "x", cursor[:-1], f"{cursor}A", f"{cursor}=", "A" * 40, "ä", "x" * 10_000]
    for text in wrong:
        answer = await api.get("/v1/jobs", params={"cursor": text})
        assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid"), text
    assert (await api.get("/v1/jobs", params={"cursor": cursor})).status_code == 200


async def test_a_job_is_waited_for_no_longer_than_asked(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    job = await make_job(api)
    started = time.monotonic()
    answer = await api.get(f"/v1/jobs/{job['id']}?wait=1")
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert 0.9 < time.monotonic() - started < 3
    node = await make_node(services)
    waiting = [asyncio.ensure_future(api.get(f"/v1/jobs/{job['id']}?wait=30")) for _ in range(20)]
    (claimed,) = await claim(services, node)
    await finish(services, node, claimed)
    started = time.monotonic()
    assert {(await one).json()["status"] for one in waiting} == {"succeeded"}
    assert time.monotonic() - started < 2
    assert (await api.get(f"/v1/jobs/{job['id']}?wait=300")).json()["status"] == "succeeded"


@pytest.mark.parametrize("wait", ["301", "-1", "1.5", "", "x", "%2B1"])
async def test_a_wait_that_breaks_a_rule_is_422(shared_api: httpx.AsyncClient, wait: str) -> None:
    answer = await shared_api.get(f"/v1/jobs/job_{'0' * 32}?wait={wait}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/wait")


async def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked_to_end(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    node = await make_node(services)
    running = await make_job(api)
    (claimed,) = await claim(services, node)
    queued, delayed = await make_job(api), await make_job(api, headers={"RGrid-Delay": "1h"})
    for job in (queued, delayed):
        for _ in range(2):
            answer = await api.post(f"/v1/jobs/{job['id']}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    answer = await api.post(f"/v1/jobs/{running['id']}/cancel", json={})
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert await finish(services, node, claimed, status="cancelled", exit_code=137) == "cancelled"
    answer = await api.post(f"/v1/jobs/{running['id']}/cancel")
    assert (answer.status_code, JobView.model_validate_json(answer.content).status) == (200, "cancelled")


async def test_a_cancel_wakes_who_waits(api: httpx.AsyncClient) -> None:
    await make_function(api)
    job = await make_job(api)
    waiting = asyncio.ensure_future(api.get(f"/v1/jobs/{job['id']}?wait=30"))
    await api.post(f"/v1/jobs/{job['id']}/cancel")
    assert (await waiting).json()["status"] == "cancelled"


async def test_a_retry_is_a_new_job_of_the_same_version(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    job = await make_job(api, headers={"X-Callback-Url": "https://example.com/a"})
    refused = await api.post(f"/v1/jobs/{job['id']}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
    await api.post(f"/v1/jobs/{job['id']}/cancel")
    await make_function(api, job={"image": "busybox:2"})
    answer = await api.post(f"/v1/jobs/{job['id']}/retry")
    new = JobView.model_validate_json(answer.content)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{new.id}")
    assert (new.retried_from, new.version, new.status, new.callback_url) == (
        job["id"], 1, "queued", "https://example.com/a",
    )  # fmt: skip
    # Whether a node has room for it is not asked before the answer.
    assert (await api.get(f"/v1/jobs/{new.id}")).json() | {"wait_reason": None} == answer.json()


async def test_a_retry_with_a_key_is_made_once(api: httpx.AsyncClient) -> None:
    await make_function(api)
    first, second = await make_job(api), await make_job(api)
    for job in (first, second):
        await api.post(f"/v1/jobs/{job['id']}/cancel")
    key = {"Idempotency-Key": "again"}
    made = [(await api.post(f"/v1/jobs/{first['id']}/retry", headers=key)) for _ in range(2)]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert made[1].headers["idempotent-replayed"] == "true"
    other = await api.post(f"/v1/jobs/{second['id']}/retry", headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert (await api.delete("/v1/functions/thumbnail")).status_code == 204
    again = await api.post(f"/v1/jobs/{first['id']}/retry", headers=key)
    assert (again.status_code, again.json()["id"]) == (202, made[0].json()["id"])
    refused = await api.post(f"/v1/jobs/{first['id']}/retry", headers={"Idempotency-Key": "another"})
    assert (refused.status_code, refused.json()["code"]) == (409, "function_deleted")


@pytest.mark.parametrize(("call", "option"), [("cancel", "params"), ("retry", "priority")])
async def test_options_that_a_call_does_not_have_are_refused(
    shared_api: httpx.AsyncClient, call: str, option: str
) -> None:
    answer = await shared_api.post(f"/v1/jobs/job_{'0' * 32}/{call}", json={option: {}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{option}")


async def test_events_tell_what_happened_in_order(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api, retry={"attempts": 2, "backoff": {"initial": "0s", "max": "0s"}})
    job = await make_job(api)
    node = await make_node(services)
    (claimed,) = await claim(services, node)
    await finish(services, node, claimed, status="failed", exit_code=1, code="exit_nonzero", message="exit 1")
    answer = await api.get(f"/v1/jobs/{job['id']}/events")
    events = EventList.model_validate_json(answer.content).data
    assert [event.type for event in events][:3] == ["created", "queued", "leased"]
    assert {"attempt_failed", "retry_scheduled"} <= {event.type for event in events}
    assert events == sorted(events, key=lambda event: event.at)
    assert (await api.get(f"/v1/jobs/{job['id']}")).json()["status"] == "scheduled"
