"""What a batch takes while it is read and written: few bytes of a line may stand for many, and files must not stay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.api import batch_body, batches
from gateway.services import Services
from tests.gateway.making import make_function
from tests.gateway.test_batches import NDJSON, URL, jobs_in, lines

KEYED: dict[str, Any] = {
    "params": {"type": "object", "properties": {"customer": {"type": "string"}}},
    "job": {"image": "busybox:1", "command": ["true"]},
    "queue": {"concurrency": {"limit": 10, "perKey": 2, "key": "{{ params.customer }}"}},
}


def wide(characters: int) -> dict[str, Any]:
    """A function whose params are tiny until their default is filled in."""
    properties = {"n": {"type": "integer"}, "wide": {"type": "string", "default": "x" * characters}}
    return {
        "params": {"type": "object", "properties": properties, "additionalProperties": False},
        "job": {"image": "busybox:1", "command": ["true"]},
    }


async def files_in(services: Services) -> int:
    found = await services.store.list_objects("", 1000)
    async with services.pool.acquire() as conn:
        rows = int(await conn.fetchval("SELECT count(*) FROM artifacts"))
    assert len(found) == rows
    return rows


@pytest.mark.parametrize("characters", [120_000, 200_000])
async def test_defaults_cannot_make_gigabytes_of_a_small_batch(
    api: httpx.AsyncClient, services: Services, characters: int
) -> None:
    await make_function(api, **wide(characters))
    many = batch_body.MOST_PARAMS_BYTES // characters + 1
    answer = await api.post(URL, content=b"{}\n" * many, headers=NDJSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")
    assert (await jobs_in(services), await files_in(services)) == (0, 0)
    assert (await api.post(URL, content=b"{}\n" * 5, headers=NDJSON)).status_code == 202


async def test_large_params_are_in_the_store_before_the_next_ones_are_read_and_go_with_a_fault(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api, **wide(140_000))
    monkeypatch.setattr(batch_body, "CHECKED_AT_ONCE", 2)
    seen = []
    job = batch_body._job

    def noted(*given: Any) -> Any:
        seen.append(asyncio.run_coroutine_threadsafe(files_in(services), loop).result(10))
        return job(*given)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(batch_body, "_job", noted)
    answer = await api.post(URL, content=lines({}, {}, {}, {"n": "no"}), headers=NDJSON)
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/3/n"]
    assert seen == [0, 0, 2, 2]
    assert (await jobs_in(services), await files_in(services)) == (0, 0)


async def test_the_same_batch_at_once_leaves_the_files_of_one(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api, **wide(140_000))
    answers = await asyncio.gather(
        *(api.post(URL, content=b"{}\n" * 3, headers=NDJSON | {"Idempotency-Key": "k"}) for _ in range(4))
    )
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await files_in(services) == 3


async def test_a_commit_of_which_nobody_knows_whether_it_came_through_leaves_the_files(
    api: httpx.AsyncClient, services: Services
) -> None:
    await make_function(api, **wide(140_000))
    async with services.pool.acquire() as conn:
        await conn.execute(
            """CREATE FUNCTION break_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$"""
        )
        await conn.execute(
            "CREATE CONSTRAINT TRIGGER b AFTER INSERT ON batches DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION break_it()"
        )
    answer = await api.post(URL, content=b"{}\n", headers=NDJSON)
    assert (answer.status_code, await jobs_in(services)) == (503, 0)
    assert await files_in(services) == 1


async def test_two_batches_that_make_the_same_new_keys_do_not_wait_for_each_other(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api, **KEYED)
    monkeypatch.setattr(batches, "WRITTEN_AT_ONCE", 10)
    for on_limit in ("queue", "reject"):
        queue = {"concurrency": KEYED["queue"]["concurrency"] | {"limit": 9999, "onLimit": on_limit}}
        await make_function(api, **KEYED | {"queue": queue})
        for turn in range(2):
            given = [{"customer": f"{on_limit} {turn} {number}"} for number in range(150)]
            answers = await asyncio.gather(
                *(api.post(URL, content=lines(*each), headers=NDJSON) for each in (given, given[::-1]))
            )
            assert [answer.status_code for answer in answers] == [202, 202], [answer.text for answer in answers]


async def test_a_body_is_not_read_before_there_is_a_place_for_it(
    api: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_function(api)
    services.receiving = asyncio.Semaphore(1)
    came: list[int] = []
    first_came, go_on = asyncio.Event(), asyncio.Event()

    async def body(number: int) -> AsyncIterator[bytes]:
        came.append(number)
        first_came.set()
        if number == 1:
            await go_on.wait()
        yield json.dumps({"video": "v"}).encode()

    first = asyncio.ensure_future(api.post(URL, content=body(1), headers=NDJSON))
    await first_came.wait()
    second = asyncio.ensure_future(api.post(URL, content=body(2), headers=NDJSON))
    done, _ = await asyncio.wait([second], timeout=0.3)
    assert (done, came) == (set(), [1])
    monkeypatch.setattr(batches, "PATIENCE_S", 0.05)
    busy = await api.post(URL, content=lines({"video": "v"}), headers=NDJSON)
    assert (busy.status_code, busy.json()["code"], busy.headers["retry-after"]) == (429, "limit_reached", "5")
    go_on.set()
    assert [(await each).status_code for each in (first, second)] == [202, 202]
    assert not services.receiving.locked()


async def test_a_batch_waits_while_others_are_written(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api)
    services.batching = asyncio.Semaphore(0)
    waiting = asyncio.ensure_future(api.post(URL, content=lines({"video": "v"}), headers=NDJSON))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert (done, await jobs_in(services)) == (set(), 0)
    services.batching.release()
    assert (await waiting).status_code == 202
    assert not services.batching.locked()


async def test_a_batch_that_waited_passes_the_limits_of_now(api: httpx.AsyncClient, services: Services) -> None:
    await make_function(api, job={"image": "busybox:1"})
    services.batching = asyncio.Semaphore(0)
    waiting = asyncio.ensure_future(api.post(URL, content=lines({"video": "v"}, {"video": "v"}), headers=NDJSON))
    await asyncio.wait([waiting], timeout=0.3)
    await make_function(api, job={"image": "busybox:1"}, queue={"concurrency": {"limit": 1}})
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE functions SET limits_changed_at = NULL")
        services.batching.release()
        assert (await waiting).status_code == 202
        assert await conn.fetchval("SELECT count(*) FROM ready_jobs") == 1


def test_portions_are_bounded_in_number_and_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WRITTEN_AT_ONCE", 3)
    monkeypatch.setattr(batches, "WRITTEN_CHARACTERS", 10)

    class Job:
        def __init__(self, size: int) -> None:
            self.params = "x" * size

    given: list[Any] = [Job(size) for size in (1, 1, 1, 1, 9, 2, 30, 1)]
    found = [[len(job.params) for job in portion] for portion in batches._portions(given)]
    assert found == [[1, 1, 1], [1, 9], [2], [30], [1]]
