"""POST /v1/functions/{name}/invoke over the real application."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from gateway.api.models.invoking import DryRun
from gateway.api.models.jobs import JobView
from gateway.services import Services
from scheduler.views import job_object, read_jobs
from tests.gateway.conftest import listening
from tests.gateway.making import (
    claim_one,
    finish,
    job_id,
    key_client,
    make_function,
    make_job,
    make_node,
    project_client,
    until,
)

INVOKE = "/v1/functions/thumbnail/invoke"
PARAMS = {"video": "v"}


async def counted(services: Services) -> int:
    return int(await services.pool.fetchval("SELECT count(*) FROM jobs"))


async def test_an_invoke_is_202_with_the_job_where_to_find_it_and_when_to_ask(api: httpx.AsyncClient) -> None:
    await make_function(api)
    answer = await api.post(INVOKE, json=PARAMS)
    job = JobView.model_validate_json(answer.content)
    assert (answer.status_code, job.status, job.params) == (202, "queued", {"video": "v", "width": 320})
    assert (answer.headers["location"], answer.headers["retry-after"]) == (f"/v1/jobs/{job.id}", "1")
    assert "preference-applied" not in answer.headers and "idempotent-replayed" not in answer.headers


def waits_for_a_node(job: dict[str, Any]) -> dict[str, Any]:
    """What a look at a queued job finds, and the answer to its invoke does not ask for: there is no node here."""
    return {"wait_reason": "capacity"} if job["status"] == "queued" else {}


async def test_the_job_in_the_answer_is_the_job_that_is_stored(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api, retry={"attempts": 3})
    for headers in ({}, {"RGrid-Delay": "1h"}, {"X-Callback-Url": "https://example.com/a"}):
        made = await make_job(api, headers=headers)
        stored = (await api.get(f"/v1/jobs/{made['id']}")).json()
        assert stored == made | waits_for_a_node(made)


@pytest.mark.parametrize("content", [None, b""])
async def test_no_body_is_no_params(api: httpx.AsyncClient, content: bytes | None) -> None:
    await make_function(api, params={"type": "object"}, job={"image": "busybox:1"})
    answer = await api.post(INVOKE, content=content)
    assert (answer.status_code, answer.json()["params"]) == (202, {})


async def test_a_delayed_job_is_scheduled(api: httpx.AsyncClient) -> None:
    await make_function(api)
    answer = await api.post(INVOKE, json=PARAMS, headers={"RGrid-Delay": "10m"})
    job = JobView.model_validate_json(answer.content)
    assert (job.status, job.queued_at, answer.headers["retry-after"]) == ("scheduled", None, "600")
    assert job.eta is not None and (job.eta - job.created_at).total_seconds() == 600
    at_once = await api.post(INVOKE, json=PARAMS, headers={"RGrid-Delay": "0s"})
    assert at_once.json()["status"] == "queued"


async def test_a_dry_run_checks_everything_and_makes_no_job(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    answer = await api.post(f"{INVOKE}?dry_run=1", json=PARAMS)
    assert answer.status_code == 200
    assert DryRun.model_validate_json(answer.content) == DryRun(
        valid=True, function="thumbnail", version=1, params={"video": "v", "width": 320}
    )
    assert (await api.post(f"{INVOKE}?dry_run=1", json={"video": "v", "width": 1})).status_code == 422
    assert await counted(services) == 0


async def test_who_waits_gets_the_finished_job(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    node = await make_node(services)
    waiting = asyncio.ensure_future(api.post(INVOKE, json=PARAMS, headers={"Prefer": "wait=30"}))
    claimed = await claim_one(services, node)
    ended = time.monotonic()
    await finish(services, node, claimed, result='{"n": 1}')
    answer = await waiting
    job = JobView.model_validate_json(answer.content)
    assert (answer.status_code, job.status, job.result) == (200, "succeeded", {"n": 1})
    assert answer.headers["preference-applied"] == "wait=30"
    assert time.monotonic() - ended < 1


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", "wait=0"),
        ("WAIT=1", "wait=1"),
        ('foo; wait=9, wait="1", bar=2', "wait=1"),
        ("respond-async", "respond-async"),
        ("respond-async, wait=0", "wait=0"),
        ("handling=lenient", None),
        ("", None),
    ],
)
async def test_who_waits_in_vain_gets_202_and_is_told_what_was_applied(
    shared_api: httpx.AsyncClient, prefer: str, applied: str | None
) -> None:
    await make_function(shared_api, "invoked")
    answer = await shared_api.post("/v1/functions/invoked/invoke", json=PARAMS, headers={"Prefer": prefer})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers.get("preference-applied") == applied


async def test_waiting_ends_at_once_when_the_process_stops(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api)
    started = time.monotonic()
    waiting = asyncio.ensure_future(api.post(INVOKE, json=PARAMS, headers={"Prefer": "wait=60"}))
    async with asyncio.timeout(5):
        while not await counted(services):
            await asyncio.sleep(0.01)
    services.stopping.set()
    assert ((await waiting).status_code, time.monotonic() - started < 5) == (202, True)


async def test_a_client_that_goes_is_not_waited_for(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api)
    async with listening(services) as gateway:
        headers = {"Authorization": api.headers["Authorization"], "Prefer": "wait=60"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(INVOKE, json=PARAMS, headers=headers, timeout=0.3)
        await until(lambda: not gateway.server.server_state.tasks)
    assert await counted(services) == 1


async def test_the_same_key_and_body_is_the_same_job(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    key = {"Idempotency-Key": "a-1"}
    first = await api.post(INVOKE, json=PARAMS, headers=key)
    again = await api.post(INVOKE, json=PARAMS, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json() | waits_for_a_node(first.json())
    assert "idempotent-replayed" not in first.headers
    assert (again.headers["idempotent-replayed"], again.headers["location"]) == ("true", first.headers["location"])
    other = await api.post(INVOKE, json={"video": "w"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    node = await make_node(services)
    claimed = await claim_one(services, node)
    await finish(services, node, claimed)
    ended = await api.post(INVOKE, json=PARAMS, headers=key | {"Prefer": "wait=5"})
    assert (ended.status_code, ended.json()["id"], ended.json()["status"]) == (200, first.json()["id"], "succeeded")
    assert await counted(services) == 1


async def test_a_replay_is_answered_after_the_function_has_changed(api: httpx.AsyncClient) -> None:
    await make_function(api)
    first = await make_job(api, headers={"Idempotency-Key": "a"})
    await make_function(api, params={"type": "object", "required": ["other"]}, job={"image": "busybox:1"})
    again = await api.post(INVOKE, json=PARAMS, headers={"Idempotency-Key": "a"})
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert (await api.post(INVOKE, json=PARAMS, headers={"Idempotency-Key": "b"})).status_code == 422


async def test_a_key_belongs_to_one_function_of_one_project(api: httpx.AsyncClient, services: Services) -> None:
    key = {"Idempotency-Key": "shared"}
    await make_function(api)
    await make_function(api, "other")
    made = {(await make_job(api, name, headers=key))["id"] for name in ("thumbnail", "other")}
    async with project_client(services) as stranger:
        await make_function(stranger)
        made.add((await make_job(stranger, headers=key))["id"])
    assert len(made) == 3


async def test_500_requests_at_once_with_one_key_make_one_job(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    headers = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(api.post(INVOKE, json=PARAMS, headers=headers) for _ in range(500)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert await counted(services) == 1


async def test_requests_at_once_are_all_stored(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    jobs = await asyncio.gather(*(make_job(api) for _ in range(100)))
    async with services.pool.acquire() as conn:
        project = await conn.fetchval("SELECT id FROM projects WHERE slug = 'default'")
        stored = await read_jobs(conn, project, [job_id(job) for job in jobs])
    found = [job_object(record, services.links) for record in stored]
    assert found == [job | waits_for_a_node(job) for job in jobs]


@pytest.mark.parametrize(
    ("header", "value", "status", "code"),
    [
        ("Prefer", "wait=301", 400, "malformed"),
        ("Prefer", "wait=-1", 400, "malformed"),
        ("Prefer", "wait=1.5", 400, "malformed"),
        ("Prefer", "wait=", 400, "malformed"),
        ("Prefer", "wait=" + "9" * 500, 400, "malformed"),
        ("Idempotency-Key", "", 400, "malformed"),
        ("Idempotency-Key", "x" * 256, 400, "malformed"),
        ("Idempotency-Key", "a b", 400, "malformed"),
        ("Idempotency-Key", "ä".encode(), 400, "malformed"),
        ("RGrid-Delay", "soon", 400, "malformed"),
        ("RGrid-Delay", "-1m", 400, "malformed"),
        ("RGrid-Delay", "31d", 400, "malformed"),
        ("RGrid-Delay", "9" * 500 + "d", 400, "malformed"),
        ("RGrid-Version", "0", 400, "malformed"),
        ("RGrid-Version", "+1", 400, "malformed"),
        ("RGrid-Version", "1_0", 400, "malformed"),
        ("RGrid-Version", "9999999999", 400, "malformed"),
        ("RGrid-Version", "latest", 400, "malformed"),
        ("X-Callback-Events", "job.succeeded", 422, "invalid"),
        ("X-Callback-Url", "http://127.0.0.1/", 422, "url_refused"),
        ("X-Callback-Url", "https://169.254.169.254/latest", 422, "url_refused"),
        ("X-Callback-Url", "https://user:pass@example.com/", 422, "url_refused"),
        ("X-Callback-Url", "ftp://example.com/", 422, "url_refused"),
        ("X-Callback-Url", "https://" + "a" * 3000, 422, "url_refused"),
        ("X-Callback-Url", "", 422, "url_refused"),
        ("X-Callback-Url", "https://exämple.com/".encode(), 422, "url_refused"),
        ("Cancel-After", "0s", 400, "malformed"),
        ("Cancel-After", "61d", 400, "malformed"),
        ("Cancel-After", "soon", 400, "malformed"),
        ("RGrid-Priority", "25h", 400, "malformed"),
        ("RGrid-Priority", "-1s", 400, "malformed"),
        ("RGrid-Lane", "fast", 400, "malformed"),
        ("RGrid-Max-Cost", "free", 400, "malformed"),
    ],
)
async def test_a_header_that_breaks_a_rule_is_refused_and_named(
    shared_api: httpx.AsyncClient, header: str, value: str | bytes, status: int, code: str
) -> None:
    answer = await shared_api.post("/v1/functions/nothing/invoke", json={}, headers={header: value})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert [error["pointer"] for error in problem["errors"]] == [f"/header/{header}"]
    assert "Value error" not in answer.text


@pytest.mark.parametrize("events", ["", "job.done", "job.succeeded,", "succeeded", "*", "batch.completed"])
async def test_events_that_do_not_exist_are_refused(shared_api: httpx.AsyncClient, events: str) -> None:
    headers = {"X-Callback-Url": "https://example.com/", "X-Callback-Events": events}
    answer = await shared_api.post("/v1/functions/nothing/invoke", json={}, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/header/X-Callback-Events")


async def test_the_callback_and_trace_of_a_job_are_kept(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {
        "X-Callback-Url": "https://example.com/hook",
        "X-Callback-Events": "job.failed, job.succeeded,job.failed",
        "traceparent": trace,
    }
    job = await make_job(api, headers=headers)
    assert job["callback_url"] == "https://example.com/hook"
    row = await services.pool.fetchrow("SELECT callback_events, traceparent, key_id FROM jobs")
    assert row is not None
    assert dict(row) == {
        "callback_events": ["job.failed", "job.succeeded"], "traceparent": trace, "key_id": "bootstrap"
    }  # fmt: skip


async def test_a_malformed_trace_is_ignored(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    rest = "00f067aa0ba902b7-01"
    traces = ["x", ""]
    traces += [f"00-{'0' * 32}-{rest}", f"ff-{'4' * 32}-{rest}", f"00-{'A' * 32}-{rest}", f"00-{'4' * 32}-{rest}-"]
    for trace in traces:
        await make_job(api, headers={"traceparent": trace})
    assert await services.pool.fetchval("SELECT count(*) FROM jobs WHERE traceparent IS NULL") == len(traces)


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({}, "/video"),
        ({"video": 1}, "/video"),
        ({"video": "v", "width": "320"}, "/width"),
        ({"video": "v", "width": 15}, "/width"),
        ({"video": "v", "unknown": 1}, "/unknown"),
    ],
)
async def test_params_that_break_the_schema_are_422_with_pointers(
    shared_api: httpx.AsyncClient, params: dict[str, Any], pointer: str
) -> None:
    await make_function(shared_api, "checked")
    answer = await shared_api.post("/v1/functions/checked/invoke", json=params)
    assert (answer.status_code, answer.json()["code"]) == (422, "params_invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert (await shared_api.get("/v1/jobs?function=checked")).json()["data"] == []


@pytest.mark.parametrize("content", [b"[]", b"null", b'"a"', b"1", b"true"])
async def test_params_that_are_no_object_are_422(shared_api: httpx.AsyncClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await shared_api.post("/v1/functions/nothing/invoke", content=content, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "")


async def test_an_unknown_function_is_404(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/functions/nothing/invoke", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "function_not_found")


async def test_a_key_for_one_function_invokes_it_and_sees_its_own_jobs_only(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    await make_function(api, "other")
    foreign = await make_job(api)
    async with key_client(services, "invoke:thumbnail") as widget:
        own = await make_job(widget)
        read = (await widget.get(f"/v1/jobs/{own['id']}")).json()
        assert read | {"wait_reason": None} == own  # why it waits is found when it is read
        assert (await widget.get(f"/v1/jobs/{own['id']}/events")).status_code == 200
        theirs = await make_job(api, headers={"Idempotency-Key": "guessed"})
        guess = await widget.post(
            "/v1/functions/thumbnail/invoke", json={"video": "v"}, headers={"Idempotency-Key": "guessed"}
        )
        assert (guess.status_code, guess.json()["code"]) == (422, "idempotency_key_reused")
        assert theirs["id"] not in guess.text
        for path in (f"/v1/jobs/{foreign['id']}", f"/v1/jobs/{foreign['id']}/events"):
            assert ((await widget.get(path)).status_code, (await api.get(path)).status_code) == (404, 200)
        refused = [
            await widget.post("/v1/functions/other/invoke", json=PARAMS),
            await widget.get("/v1/jobs"),
            await widget.get("/v1/functions/thumbnail"),
            await widget.post(f"/v1/jobs/{own['id']}/cancel"),
            await widget.post(f"/v1/jobs/{own['id']}/retry"),
            await widget.put("/v1/functions/thumbnail", json={}),
            await widget.get("/v1/callbacks/secret"),
            await widget.get("/v1/nodes"),
        ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
