"""Batches over the real application: all or nothing, counts, lists, cancel, replay."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.api.models.batches import BatchView
from gateway.api.models.jobs import JobList
from gateway.services import Services
from scheduler import batches, delivery_log
from tests.gateway.making import claim, finish, key_client, make_function, make_node, project_client

NDJSON = {"Content-Type": "application/x-ndjson"}
URL = "/v1/functions/thumbnail/batch"


def lines(*params: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in params)


def videos(count: int) -> list[dict[str, Any]]:
    return [{"video": f"v{number}", "width": 16 + number} for number in range(count)]


async def make(api: httpx.AsyncClient, count: int, **headers: str) -> dict[str, Any]:
    answer = await api.post(URL, content=lines(*videos(count)), headers=NDJSON | headers)
    assert answer.status_code == 202, answer.text
    BatchView.model_validate_json(answer.content)
    made: dict[str, Any] = answer.json()
    return made


async def jobs_in(services: Services) -> int:
    async with services.pool.acquire() as conn:
        return int(await conn.fetchval("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM ready_jobs)"))


async def complete(services: Services) -> int:
    async with services.pool.acquire() as conn:
        return (await batches.complete_once(conn, batches.FIRST, limit=50))[0]


@pytest.mark.parametrize("form", ["NDJSON", "JSON"])
async def test_each_line_or_item_is_a_job_in_their_order(api: httpx.AsyncClient, form: str) -> None:
    await make_function(api)
    given = videos(30)
    if form == "JSON":
        answer = await api.post(URL, json=given)
    else:
        # No newline at the end, blank lines and carriage returns: as files are.
        content = b"\r\n".join(json.dumps(each).encode() for each in given).replace(b"\n", b"\n\n", 1)
        answer = await api.post(URL, content=content, headers=NDJSON)
    assert answer.status_code == 202, answer.text
    batch = BatchView.model_validate_json(answer.content)
    assert (batch.total, batch.status, batch.function, batch.version) == (30, "running", "thumbnail", 1)
    assert answer.headers["location"] == batch.links.self
    page = JobList.model_validate_json((await api.get(f"{batch.links.jobs}&limit=100")).content)
    assert [job.params for job in page.data] == given[::-1]
    assert {job.batch for job in page.data} == {batch.id}
    assert (await api.get(batch.links.self)).json() == answer.json()


async def test_the_counts_add_up_and_lists_know_the_batch(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    other = await make(api, 2)
    batch = await make(api, 5)
    node = await make_node(services)
    for claimed, status in zip((await claim(services, node))[2:6], ("succeeded", "failed", "succeeded", ""), strict=True):
        if status == "failed":
            await finish(services, node, claimed, status=status, exit_code=1, code="exit_nonzero", message="exit 1")
        elif status:
            await finish(services, node, claimed)
    now = (await api.get(f"/v1/batches/{batch['id']}")).json()
    assert {status: jobs for status, jobs in now["counts"].items() if jobs} == {
        "succeeded": 2, "failed": 1, "running": 2,
    }  # fmt: skip
    for status, found in (("succeeded", 2), ("failed", 1), ("running", 2), ("queued", 0), ("scheduled", 0)):
        page = (await api.get(f"/v1/jobs?batch={batch['id']}&status={status}")).json()
        assert len(page["data"]) == found, status
    assert len((await api.get(f"/v1/jobs?batch={batch['id']}&function=thumbnail&limit=3")).json()["data"]) == 3
    assert (await api.get(f"/v1/jobs?batch={batch['id']}&function=other")).json()["data"] == []
    assert (await api.get(f"/v1/jobs?batch={batch['id']}&trigger=schedule")).json()["data"] == []
    listed = (await api.get("/v1/batches")).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"], other["id"]]
    first = (await api.get("/v1/batches?limit=1")).json()
    rest = (await api.get("/v1/batches", params={"limit": 1, "cursor": first["next_cursor"]})).json()
    assert [each["id"] for each in (*first["data"], *rest["data"])] == [batch["id"], other["id"]]


async def test_one_fault_and_there_is_no_job_and_the_faults_say_where(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api)
    given: list[Any] = videos(40)
    given[17] = {"video": "v", "width": 5000}
    given[3] = {"width": 20}
    given[39] = ["video"]
    for content, headers in ((lines(*given), NDJSON), (json.dumps(given), {"Content-Type": "application/json"})):
        answer = await api.post(URL, content=content, headers=headers)
        assert answer.status_code == 422
        assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/3/video", "/17/width", "/39"]
    assert await jobs_in(services) == 0
    assert (await api.get("/v1/batches")).json()["data"] == []


@pytest.mark.parametrize(
    ("content", "status", "pointer"),
    [
        (b"", 422, ""), (b"\n\n", 422, ""), (b"[]", 422, "/0"), (b"1\n", 422, "/0"), (b'{"video": "v"}\n{', 400, None),
        (b'{"video": "v"} {"video": "v"}', 400, None), (b'{"video": "\\u0000"}', 422, "/0/video"),
        (b'{"video": "v"}\n{"video": "\\ud800"}', 422, "/1/video"), (b'{"video": "v", "video": "w"}', 400, None),
        (b'\xef\xbb\xbf{"video": "v"}', 400, None), (b'{"video": "\xff"}', 400, None),
        (b'{"video": "' + b"x" * 1024 * 1024 + b'"}', 422, "/0"), (b"[" * 70, 400, None),
    ],
)  # fmt: skip
async def test_lines_that_break_a_rule(
    shared_api: httpx.AsyncClient, content: bytes, status: int, pointer: str | None
) -> None:
    await make_function(shared_api)
    answer = await shared_api.post(URL, content=content, headers=NDJSON)
    assert answer.status_code == status, answer.text
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ([] if pointer is None else [pointer])


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"[", 400), (b'[{"video": "v"}', 400), (b'[{"video": "v"},]', 400), (b'[{"video": "v"} {"video": "v"}]', 400),
        (b'[{"video": "v"}] 1', 400), (b"[] []", 400), (b"[]", 422), (b" [ ] ", 422), (b"[1]", 422), (b"{}", 422), (b"null", 422),
        (b'[{"video": "v", "video": "w"}]', 400), (b'[{"video": NaN}]', 400), (b"[" * 100, 400),
        (b"[" + b"[" * 70 + b"]" * 70 + b"]", 400),
    ],
)  # fmt: skip
async def test_arrays_that_break_a_rule(shared_api: httpx.AsyncClient, content: bytes, status: int) -> None:
    await make_function(shared_api)
    answer = await shared_api.post(URL, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text


async def test_a_batch_has_at_most_10000_jobs_and_its_faults_are_not_all_listed(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api, params={}, job={"image": "busybox:1", "command": ["true"]})
    answer = await api.post(URL, content=b"{}\n" * 10_001, headers=NDJSON)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "")
    answer = await api.post(URL, content=b"[]\n" * 10_000, headers=NDJSON)
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"/{index}" for index in range(20)]
    assert await jobs_in(services) == 0


async def test_a_function_or_version_that_is_not_there_is_404(api: httpx.AsyncClient) -> None:
    assert (await api.post(URL, content=b"{}", headers=NDJSON)).json()["code"] == "function_not_found"
    await make_function(api)
    answer = await api.post(URL, content=lines(*videos(1)), headers=NDJSON | {"RGrid-Version": "2"})
    assert (answer.status_code, answer.json()["code"]) == (404, "version_not_found")


async def test_the_same_key_and_body_is_the_same_batch(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(
        *(api.post(URL, content=lines(*videos(1500)), headers=NDJSON | key) for _ in range(4))
    )
    assert [answer.status_code for answer in answers] == [202] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 3
    assert await jobs_in(services) == 3000
    other = await api.post(URL, content=lines(*videos(2)), headers=NDJSON | key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    single = await api.post("/v1/functions/thumbnail/invoke", json=videos(1)[0], headers=key)
    assert (single.status_code, single.json()["code"]) == (422, "idempotency_key_reused")
    assert len((await api.get("/v1/batches")).json()["data"]) == 1


async def test_a_connection_that_breaks_in_the_middle_leaves_nothing(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    async with services.pool.acquire() as conn:
        await conn.execute(
            """CREATE FUNCTION break_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.params ->> 'video' = 'v2222' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
                 RETURN NEW; END $$"""
        )
        await conn.execute("CREATE TRIGGER b BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION break_it()")
    content = lines(*videos(2500))
    answer = await api.post(URL, content=content, headers=NDJSON | {"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert await jobs_in(services) == 0
    assert (await api.get("/v1/batches")).json()["data"] == []
    async with services.pool.acquire() as conn:
        await conn.execute("DROP TRIGGER b ON jobs")
    again = await api.post(URL, content=content, headers=NDJSON | {"Idempotency-Key": "k"})
    assert (again.status_code, again.headers.get("idempotent-replayed")) == (202, None)


async def test_its_headers_hold_for_every_job(api: httpx.AsyncClient) -> None:
    await make_function(api)
    await make_function(api, job={"image": "busybox:2"})
    batch = await make(api, 3, **{
        "RGrid-Version": "1", "RGrid-Delay": "1h", "X-Callback-Url": "https://example.com/b",
        "X-Callback-Events": "batch.completed,job.failed",
    })  # fmt: skip
    assert (batch["version"], batch["counts"]["scheduled"], batch["callback_url"]) == (1, 3, "https://example.com/b")
    jobs = (await api.get(f"/v1/jobs?batch={batch['id']}")).json()["data"]
    assert {(job["status"], job["version"], job["callback_url"]) for job in jobs} == {
        ("scheduled", 1, "https://example.com/b")
    }
    quiet = await make(api, 1, **{"X-Callback-Url": "https://example.com/b"})
    (job,) = (await api.get(f"/v1/jobs?batch={quiet['id']}")).json()["data"]
    assert (job["callback_url"], quiet["callback_url"]) == (None, "https://example.com/b")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Callback-Events": "batch.completed"}, 422), ({"X-Callback-Url": "ftp://a"}, 422),
        ({"X-Callback-Url": "https://example.com", "X-Callback-Events": "batch.done"}, 400),
        ({"RGrid-Version": "x"}, 400), ({"Idempotency-Key": ""}, 400),
    ],
)  # fmt: skip
async def test_a_header_that_breaks_a_rule(
    shared_api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    await make_function(shared_api)
    answer = await shared_api.post(URL, content=lines(*videos(1)), headers=NDJSON | headers)
    assert answer.status_code == status, answer.text


async def test_a_cancel_ends_what_waits_and_asks_what_runs(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    node = await make_node(services, slots=2)
    batch = await make(api, 1200)
    held = await claim(services, node, slots=2)
    answer = await api.post(f"/v1/batches/{batch['id']}/cancel")
    assert answer.status_code == 202
    assert (answer.json()["counts"]["cancelled"], answer.json()["counts"]["running"]) == (1198, 2)
    for claimed in held:
        assert await finish(services, node, claimed, status="cancelled") == "cancelled"
    answer = await api.post(f"/v1/batches/{batch['id']}/cancel")
    assert (answer.status_code, answer.json()["counts"]["cancelled"]) == (200, 1200)
    assert await complete(services) == 1
    assert (await api.get(f"/v1/batches/{batch['id']}")).json()["status"] == "completed"


async def test_its_end_is_told_once_however_the_last_jobs_end(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api, callbacks=[{"url": "https://example.com/all", "events": ["batch.completed"]}])
    node = await make_node(services)
    batch = await make(api, 8, **{"X-Callback-Url": "https://example.com/mine"})
    held = await claim(services, node)
    for claimed in held[:6]:
        await finish(services, node, claimed)
        assert await complete(services) == 0
    # The last two end together, while several schedulers look.
    done = await asyncio.gather(
        *(finish(services, node, claimed) for claimed in held[6:]), *(complete(services) for _ in range(6))
    )
    told = sum(one for one in done if isinstance(one, int)) + await complete(services) + await complete(services)
    assert told == 1
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT url FROM deliveries WHERE type = 'batch.completed' ORDER BY url")
        project = await conn.fetchval("SELECT project_id FROM batches")
        listed = await delivery_log.list_deliveries(conn, project, limit=10)
    assert [row["url"] for row in rows] == ["https://example.com/all", "https://example.com/mine"]
    assert len(listed) == 2
    shown = (await api.get("/v1/deliveries")).json()["data"]
    assert {(each["job"], each["batch"], each["type"]) for each in shown} == {(None, batch["id"], "batch.completed")}
    now = (await api.get(f"/v1/batches/{batch['id']}")).json()
    assert (now["status"], now["counts"]["succeeded"]) == ("completed", 8)
    assert now["completed_at"] == max(
        job["finished_at"] for job in (await api.get(f"/v1/jobs?batch={batch['id']}")).json()["data"]
    )


async def test_who_sees_a_batch(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    batch = await make(api, 2)
    path = f"/v1/batches/{batch['id']}"
    async with key_client(services, "invoke:thumbnail") as invoker:
        assert (await invoker.get(path)).status_code == 404
        mine = await make(invoker, 1)
        assert (await invoker.get(f"/v1/batches/{mine['id']}")).json()["total"] == 1
        assert (await invoker.post(f"/v1/batches/{mine['id']}/cancel")).status_code == 403
    async with project_client(services) as stranger:
        assert (await stranger.get(path)).status_code == 404
        assert (await stranger.post(f"{path}/cancel")).json()["code"] == "batch_not_found"
        assert (await stranger.get(f"/v1/jobs?batch={batch['id']}")).json()["data"] == []
    assert (await api.get(path)).json()["counts"]["queued"] == 2
