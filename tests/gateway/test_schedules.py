"""/v1/schedules over the real application, and a scheduler that keeps them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from functions import registry
from functions.db import Pool
from gateway.api.models.jobs import JobView
from gateway.api.models.schedules import RunList, ScheduleList, ScheduleView
from gateway.services import Services, open_services
from gateway.settings import Settings
from scheduler import jobs
from tests.gateway.conftest import client_of, make_settings
from tests.gateway.making import claim, finish, key_client, make_function, make_node
from tests.gateway.test_scheduling import QUICK, eventually, scheduling
from tests.receivers import raw_server, read_request
from tests.s3 import S3Server
from tests.scheduler.test_cron import blocked

NIGHTLY = {"name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "params": {"video": "{{ schedule.time }}"}}


def wish(**more: Any) -> dict[str, Any]:
    return {"function": "thumbnail", "name": "own", "cron": "@hourly", "params": {"video": "v"}} | more


async def add(api: httpx.AsyncClient, **more: Any) -> ScheduleView:
    answer = await api.post("/v1/schedules", json=wish(**more))
    assert answer.status_code == 201, answer.text
    return ScheduleView.model_validate_json(answer.content)


async def listed(api: httpx.AsyncClient, query: str = "") -> list[ScheduleView]:
    return ScheduleList.model_validate_json((await api.get(f"/v1/schedules{query}")).content).data


async def test_schedules_of_a_manifest_and_of_the_api_are_listed_together(api: httpx.AsyncClient) -> None:
    made = await make_function(api, triggers={"schedules": [NIGHTLY]})
    written_out = NIGHTLY | {"overlap": "skip", "catchUp": "one", "jitter": "0s"}
    assert made["manifest"]["spec"]["triggers"]["schedules"] == [written_out]
    own = await add(api, timezone="Asia/Tokyo", overlap="allow", catchUp="all", jitter="1m30s")
    found = await listed(api)
    assert [(one.name, one.origin, one.function) for one in found] == [
        ("own", "api", "thumbnail"), ("nightly", "manifest", "thumbnail"),
    ]  # fmt: skip
    assert found[0] == own
    assert (own.timezone, own.overlap, own.catchUp, own.jitter, own.paused) == ("Asia/Tokyo", "allow", "all", "1m30s", False)
    assert found[1].params == {"video": "{{ schedule.time }}"}
    assert [one.name for one in await listed(api, "?name=own")] == ["own"]
    assert await listed(api, "?function=other") == []
    again = await make_function(api)
    assert again["version"] == 2 and [one.name for one in await listed(api)] == ["own"]


async def test_next_runs_are_the_next_five(api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await add(api, cron="*/10 * * * *")
    now = datetime.now(UTC)
    assert timedelta(0) < made.next_runs[0] - now <= timedelta(minutes=10)
    steps = {later - earlier for earlier, later in zip(made.next_runs, made.next_runs[1:], strict=False)}
    assert (len(made.next_runs), steps) == (5, {timedelta(minutes=10)})
    assert made.last_run is None


async def test_pause_and_resume_may_be_said_twice(api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await add(api)
    for _ in range(2):
        paused = ScheduleView.model_validate_json((await api.post(f"/v1/schedules/{made.id}/pause")).content)
        assert (paused.paused, paused.next_runs) == (True, [])
    for _ in range(2):
        resumed = ScheduleView.model_validate_json((await api.post(f"/v1/schedules/{made.id}/resume")).content)
        assert (resumed.paused, resumed.next_runs) == (False, made.next_runs)


async def test_trigger_makes_one_job_now_also_of_a_paused_one(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api, triggers={"schedules": [NIGHTLY]})
    (row,) = await listed(api)
    await api.post(f"/v1/schedules/{row.id}/pause")
    key = {"Idempotency-Key": "k1"}
    answer = await api.post(f"/v1/schedules/{row.id}/trigger", headers=key)
    job = JobView.model_validate_json(answer.content)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job.id}")
    assert (job.trigger["kind"], job.trigger["name"], job.trigger["schedule"]) == ("schedule", "nightly", row.id)
    assert job.params["video"] == job.trigger["time"]
    again = await api.post(f"/v1/schedules/{row.id}/trigger", headers=key)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (job.id, "true")
    runs = RunList.model_validate_json((await api.get(f"/v1/schedules/{row.id}/runs")).content).data
    assert [(run.state, run.manual, run.job) for run in runs] == [("submitted", True, job.id)]
    assert (await listed(api))[0].last_run is not None
    assert [one["id"] for one in (await api.get("/v1/jobs?trigger=schedule")).json()["data"]] == [job.id]
    node = await make_node(services)
    (claimed,) = await claim(services, node)
    await finish(services, node, claimed)
    assert (await api.get(f"/v1/jobs/{job.id}")).json()["status"] == "succeeded"


async def test_a_trigger_that_its_function_rejects_is_429_and_no_run(api: httpx.AsyncClient) -> None:
    await make_function(api, queue={"concurrency": {"limit": 1, "onLimit": "reject"}})
    made = await add(api)
    answers = [await api.post(f"/v1/schedules/{made.id}/trigger") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert answers[1].json()["code"] == "concurrency_rejected"
    assert len((await api.get(f"/v1/schedules/{made.id}/runs")).json()["data"]) == 1


async def test_a_function_deleted_beside_a_trigger_leaves_no_job_of_it_in_the_queue(
    services: Services, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api)
    made = await add(api)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await submit(*given)

    submit = jobs.submit
    monkeypatch.setattr(jobs, "submit", slow)
    async with asyncio.TaskGroup() as group:
        triggering = group.create_task(api.post(f"/v1/schedules/{made.id}/trigger"))
        await entered.wait()
        deleting = group.create_task(api.delete("/v1/functions/thumbnail"))
        await blocked(services.pool)
        go_on.set()
    assert (triggering.result().status_code, deleting.result().status_code) == (202, 204)
    job = triggering.result().json()["id"]
    assert (await api.get(f"/v1/jobs/{job}")).json()["status"] == "cancelled"


async def test_a_trigger_that_a_delete_of_its_function_outruns_makes_no_job(
    services: Services, api: httpx.AsyncClient
) -> None:
    await make_function(api)
    made = await add(api)
    async with services.pool.acquire() as conn, asyncio.TaskGroup() as group:
        async with conn.transaction():
            await registry.delete(conn, await conn.fetchval("SELECT project_id FROM schedules"), "thumbnail")
            triggering = group.create_task(api.post(f"/v1/schedules/{made.id}/trigger"))
            await blocked(services.pool)
    assert (triggering.result().status_code, triggering.result().json()["code"]) == (404, "schedule_not_found")
    assert (await api.get("/v1/jobs")).json()["data"] == []


async def test_runs_come_in_pages(api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await add(api)
    jobs = [(await api.post(f"/v1/schedules/{made.id}/trigger")).json()["id"] for _ in range(3)]
    first = (await api.get(f"/v1/schedules/{made.id}/runs?limit=2")).json()
    rest = (await api.get(f"/v1/schedules/{made.id}/runs", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [run["job"] for run in first["data"] + rest["data"]] == jobs[::-1]
    assert rest["next_cursor"] is None
    assert (await api.get(f"/v1/schedules/{made.id}/runs?state=skipped")).json()["data"] == []


async def test_delete_takes_away_what_the_api_made_and_nothing_of_a_manifest(api: httpx.AsyncClient) -> None:
    await make_function(api, triggers={"schedules": [NIGHTLY]})
    own = await add(api)
    nightly = next(one for one in await listed(api) if one.origin == "manifest")
    assert (await api.delete(f"/v1/schedules/{own.id}")).status_code == 204
    again = await api.delete(f"/v1/schedules/{own.id}")
    assert (again.status_code, again.json()["code"]) == (404, "schedule_not_found")
    refused = await api.delete(f"/v1/schedules/{nightly.id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "schedule_of_manifest")
    assert (await api.delete("/v1/functions/thumbnail")).status_code == 204
    assert await listed(api) == []
    assert (await api.get(f"/v1/schedules/{nightly.id}")).status_code == 404


async def test_a_name_stands_once_in_a_function(api: httpx.AsyncClient) -> None:
    await make_function(api)
    await make_function(api, "other")
    await add(api)
    twice = await api.post("/v1/schedules", json=wish())
    assert (twice.status_code, twice.json()["code"]) == (409, "schedule_exists")
    await add(api, function="other")


@pytest.mark.parametrize(
    ("change", "status", "code", "pointer"),
    [
        ({"cron": "0 0 30 2 *"}, 422, "invalid", "/cron"),
        ({"cron": "* * * * * *"}, 422, "invalid", "/cron"),
        ({"cron": "{{ params.x }}"}, 422, "template_invalid", "/cron"),
        ({"cron": 5}, 422, "invalid", "/cron"),
        ({"timezone": "Europe/Berln"}, 422, "invalid", "/timezone"),
        ({"overlap": "queue"}, 422, "invalid", "/overlap"),
        ({"catchUp": "some"}, 422, "invalid", "/catchUp"),
        ({"catch_up": "one"}, 422, "invalid", "/catch_up"),
        ({"jitter": "2d"}, 422, "invalid", "/jitter"),
        ({"jitter": -1}, 422, "invalid", "/jitter"),
        ({"name": "Own"}, 422, "invalid", "/name"),
        ({"params": []}, 422, "invalid", "/params"),
        ({"params": {"video": "{{ body.x }}"}}, 422, "template_invalid", "/params/video"),
        ({"params": {"video": "{{ schedule.day }}"}}, 422, "template_invalid", "/params/video"),
        ({"params": {"video": 3}}, 422, "params_invalid", "/params/video"),
        ({"params": {"video": "v", "other": 1}}, 422, "params_invalid", "/params/other"),
        ({"params": {"video": "x" * 70_000}}, 422, "invalid", "/params"),
        ({"function": "none"}, 404, "function_not_found", None),
        ({"function": "../x"}, 422, "invalid", "/function"),
        ({"extra": 1}, 422, "invalid", "/extra"),
    ],
)
async def test_what_can_be_no_schedule_is_refused(
    shared_api: httpx.AsyncClient, change: dict[str, Any], status: int, code: str, pointer: str | None
) -> None:
    await make_function(shared_api)
    answer = await shared_api.post("/v1/schedules", json=wish(**change))
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert [one["pointer"] for one in answer.json().get("errors", [])][:1] == ([] if pointer is None else [pointer])
    for body in (b"[]", b"null", b"3", b'"x"'):
        refused = await shared_api.post("/v1/schedules", content=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 422


async def test_a_manifest_is_told_where_its_schedules_are_wrong(shared_api: httpx.AsyncClient) -> None:
    from tests.gateway.making import manifest

    bad = manifest(triggers={"schedules": [NIGHTLY, {"name": "b", "cron": "0 0 31 2 *", "timezone": "X"}]})
    answer = await shared_api.put("/v1/functions/thumbnail", json=bad)
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == [
        "/spec/triggers/schedules/1/cron", "/spec/triggers/schedules/1/timezone",
    ]  # fmt: skip
    bad = manifest(triggers={"schedules": [NIGHTLY | {"params": {"width": "{{ schedule.time }}"}}]})
    answer = await shared_api.put("/v1/functions/thumbnail", json=bad)
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/spec/triggers/schedules/0/params/width"]


async def test_a_key_that_only_reads_changes_nothing(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await add(api)
    async with key_client(services, "read") as reader:
        assert (await reader.get(f"/v1/schedules/{made.id}")).status_code == 200
        for path in ("pause", "resume", "trigger"):
            assert (await reader.post(f"/v1/schedules/{made.id}/{path}")).status_code == 403
        assert (await reader.post("/v1/schedules", json=wish(name="b"))).status_code == 403
        assert (await reader.delete(f"/v1/schedules/{made.id}")).status_code == 403


async def test_two_schedulers_keep_a_schedule_and_tell_of_what_was_missed(
    database: str, s3_server: S3Server, pool: Pool
) -> None:
    told: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append((await read_request(reader))[2])
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")

    quick: Settings = make_settings(database, s3_server, **QUICK)
    async with raw_server(handle) as port, open_services(quick) as opened, client_of(opened) as api:
        events = {"url": f"http://127.0.0.1:{port}/", "events": ["schedule.missed"]}
        await make_function(api, callbacks=[events])
        kept, missed = await add(api), await add(api, name="missed", catchUp="none")
        async with scheduling(quick, quick), pool.acquire() as conn:
            await conn.execute(
                """UPDATE schedules SET due_at = now() + interval '0.3 s', cron = extract(minute FROM at) || ' * * * *',
                          next_at = CASE name WHEN 'missed' THEN at - interval '1 h' ELSE at END
                     FROM (SELECT date_trunc('minute', now()) - interval '30 m' AS at) half_an_hour_ago"""
            )

            async def done() -> bool:
                return bool(told) and (await api.get(f"/v1/schedules/{kept.id}")).json()["last_run"] is not None

            await eventually(done)
        (job,) = (await api.get("/v1/jobs?trigger=schedule")).json()["data"]
        row = ScheduleView.model_validate_json((await api.get(f"/v1/schedules/{kept.id}")).content)
        assert (job["status"], job["trigger"]["name"]) == ("queued", "own")
        assert row.last_run is not None and row.last_run.job == job["id"]
        assert row.next_runs[0] - row.last_run.planned_at == timedelta(hours=1)
        (message,) = map(json.loads, told)
        assert (message["type"], message["data"]["schedule"]) == ("schedule.missed", missed.id)
        assert (message["data"]["reason"], message["data"]["count"]) == ("late", 2)
        (listed_delivery,) = (await api.get("/v1/deliveries")).json()["data"]
        assert (listed_delivery["type"], listed_delivery["state"]) == ("schedule.missed", "delivered")
