"""Jobs that other jobs' outcomes cause: each exactly once, and never lost without a word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from functions import artifacts, ids, registry
from functions.artifacts import NewFile
from functions.db import Connection, Pool
from functions.errors import Invalid, NotFound, Unavailable
from functions.ids import JobId
from functions.s3 import S3Store
from functions.versions import Version
from scheduler import cancelling, chaining, chains, finishing, jobs
from scheduler.chaining import Chained, chain_once
from scheduler.finishing import Report
from scheduler.history import job_events
from scheduler.reaper import Sight, reap_once
from scheduler.spill import loaded, spilled
from scheduler.views import read_jobs
from tests.scheduler.factories import (
    LOOPBACK,
    SIZING,
    World,
    claim_one,
    expire,
    make_job,
    make_node,
    make_project,
    make_version,
    new_job,
    stands_in,
)

NO_STORE: Any = None
"""Nothing is asked of it while params are small."""
FILE = NewFile("thumb.jpg", "/out/thumb.jpg", "image/jpeg", 3, "a" * 64, "b" * 32)
OUTPUTS = {"files": {"outputs": [{"path": "/out/thumb.jpg"}, {"path": "/out/*.png", "name": "frames"}]}}


async def make_chain(
    pool: Pool,
    params: Mapping[str, Any],
    *,
    events: Sequence[str] = ("job.succeeded",),
    publish: Mapping[str, Any] | None = None,
) -> World:
    """``fn``, whose jobs cause jobs of ``publish``."""
    async with pool.acquire() as conn:
        project, account = await make_project(conn)
        await make_version(conn, project, name="publish", **(publish or {}))
        chained = [{"function": "publish", "events": list(events), "params": dict(params)}]
        version = await make_version(conn, project, job=OUTPUTS, callbacks=chained)
        return World(pool, project, account, version, await make_node(conn))


async def ended(
    conn: Connection, world: World, status: str = "succeeded", *, files: Sequence[NewFile] = (), **report: Any
) -> JobId:
    """A job of the world's that was run to its end."""
    job = await make_job(conn, world.version, params={"who": "me"})
    await end(conn, world, status, files=files, **report)
    return job


async def end(
    conn: Connection, world: World, status: str = "succeeded", *, files: Sequence[NewFile] = (), **report: Any
) -> JobId:
    claimed = await claim_one(conn, world.node, world.account)
    made = await artifacts.reserve(conn, world.project, claimed.job_id, claimed.attempt, files)
    report = {"exit_code": 0 if status == "succeeded" else 1, "artifacts": tuple(each.id for each in made)} | report
    async with conn.transaction():
        await finishing.finish(conn, world.node, claimed.job_id, Report(claimed.token, status, **report))
    return claimed.job_id


async def chain(world: World, store: Any = NO_STORE) -> Chained:
    return await chain_once(world.pool, store, SIZING, LOOPBACK)


async def caused_by(conn: Connection, world: World, job: JobId) -> list[dict[str, Any]]:
    """The events that tell of the job's chains."""
    events = await job_events(conn, world.project, job)
    return [event for event in events if event["type"].startswith("chain")]


async def next_of(conn: Connection, world: World, job: JobId) -> Mapping[str, Any]:
    """The row of the one job that the job caused."""
    (event,) = await caused_by(conn, world, job)
    found = ids.decode(ids.JOB, event["job"])
    assert event["type"] == "chained" and found is not None
    (record,) = await read_jobs(conn, world.project, [JobId(found)])
    return record.row


async def test_an_outcome_causes_a_job_with_values_of_the_job_that_ended(pool: Pool) -> None:
    params = {
        "image": "{{ outputs.thumb.jpg.uri }}",
        "sizes": ["{{ outputs.frames.0.size }}", "{{ outputs.frames.1.size }}", "{{ outputs.frames.size }}"],
        "text": "{{ params.who }} made {{ result.count }} of {{ function.name }}",
        "result": "{{ result }}",
        "job": "{{ job.id }}",
        "fixed": {"a": [1, None, True]},
    }
    world = await make_chain(pool, params)
    frames = [NewFile("frames", f"/out/{n}.png", "image/png", n, "c" * 64, "d" * 32) for n in (7, 8)]
    async with pool.acquire() as conn:
        job = await ended(conn, world, files=[FILE, *frames], result='{"count": 3}')
        name = ids.encode(ids.JOB, job)
        assert await chain(world) == Chained(1, 0)
        row = await next_of(conn, world, job)
        given = json.loads(row["params"])
        assert given.pop("image").startswith("artifact:art_")
        assert given == {
            "sizes": [7, 8, 7],
            "text": "me made 3 of fn",
            "result": {"count": 3},
            "job": name,
            "fixed": {"a": [1, None, True]},
        }
        assert json.loads(row["trigger"]) == {"kind": "function", "name": "fn", "job": name, "depth": 1}
        assert (row["function"], row["status"]) == ("publish", "queued")


async def test_a_file_goes_on_by_reference_to_the_next_jobs_input(pool: Pool) -> None:
    inputs = {"files": {"inputs": [{"path": "/in/image", "url": "{{ params.image }}"}]}}
    world = await make_chain(pool, {"image": "{{ outputs.thumb.jpg.uri }}"}, publish={"job": inputs})
    async with pool.acquire() as conn:
        job = await ended(conn, world, files=[FILE])
        assert await chain(world) == Chained(1, 0)
        assert json.loads((await next_of(conn, world, job))["params"])["image"].startswith("artifact:art_")


async def test_each_outcome_causes_only_what_asks_for_it(pool: Pool) -> None:
    world = await make_chain(pool, {"why": "{{ error.code }}"}, events=["job.failed", "job.cancelled"])
    async with pool.acquire() as conn:
        await ended(conn, world)
        assert await chain(world) == Chained(0, 0)
        job = await ended(conn, world, "failed", code="exit_nonzero", message="it broke")
        assert await chain(world) == Chained(1, 0)
        assert json.loads((await next_of(conn, world, job))["params"]) == {"why": "exit_nonzero"}


async def test_jobs_that_end_without_a_report_cause_jobs_too(pool: Pool) -> None:
    world = await make_chain(pool, {"of": "{{ job.status }}"}, events=["job.failed", "job.cancelled"])
    async with pool.acquire() as conn:
        queued = await make_job(conn, world.version)
        async with conn.transaction():
            await cancelling.cancel(conn, world.project, [queued])
        lost = await make_job(conn, world.version)
        claimed = await claim_one(conn, world.node, world.account)
        await expire(conn, claimed)
        await reap_once(pool, Sight(0), max_losses=0)
        assert await chain(world) == Chained(2, 0)
        assert [json.loads((await next_of(conn, world, job))["params"]) for job in (queued, lost)] == [
            {"of": "cancelled"},
            {"of": "failed"},
        ]


async def test_an_outcome_that_is_taken_back_causes_nothing(pool: Pool) -> None:
    world = await make_chain(pool, {})
    async with pool.acquire() as conn:
        await make_job(conn, world.version)
        claimed = await claim_one(conn, world.node, world.account)
        transaction = conn.transaction()
        await transaction.start()
        await finishing.finish(conn, world.node, claimed.job_id, Report(claimed.token, "succeeded", exit_code=0))
        await transaction.rollback()
        assert await chain(world) == Chained(0, 0)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["due", "_causes", "_next", "_submit", "end"])
async def test_a_crash_between_any_two_steps_neither_loses_a_job_nor_makes_two(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    world = await make_chain(pool, {})
    module: Any = chains if step in ("due", "end") else chaining
    done = getattr(module, step)

    async def killed_after(*given: Any, **more: Any) -> None:
        await done(*given, **more)
        raise Killed

    async with pool.acquire() as conn:
        job = await ended(conn, world)
        with monkeypatch.context() as patched:
            patched.setattr(module, step, killed_after)
            with pytest.raises(Killed):
                await chain(world)
        assert await caused_by(conn, world, job) == []
        assert [await chain(world) for _ in range(2)] == [Chained(1, 0), Chained(0, 0)]
        assert (await next_of(conn, world, job))["status"] == "queued"
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 2


async def test_two_schedulers_beside_each_other_make_each_job_once(pool: Pool) -> None:
    world = await make_chain(pool, {})
    async with pool.acquire() as conn:
        for _ in range(6):
            await ended(conn, world)
        done = await asyncio.gather(*(chain_once(pool, NO_STORE, SIZING, LOOPBACK, limit=2) for _ in range(4)))
        while (await chain(world)).submitted:
            pass
        assert sum(each.submitted for each in done) >= 2
        assert await conn.fetchval("SELECT count(*) FROM jobs WHERE trigger ->> 'kind' = 'function'") == 6


async def test_params_that_the_next_function_refuses_are_told_of(pool: Pool) -> None:
    schema = {"params": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}
    world = await make_chain(pool, {"n": "{{ params.who }}"}, publish=schema)
    async with pool.acquire() as conn:
        job = await ended(conn, world)
        assert await chain(world) == Chained(0, 1)
        (event,) = await caused_by(conn, world, job)
        assert (event["type"], event["function"], event["error"]["code"]) == (
            "chain_failed",
            "publish",
            "params_invalid",
        )
        assert await chain(world) == Chained(0, 0)


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"image": "{{ outputs.thumb.jpg.uri }}"}, "template_invalid", "outputs.thumb.jpg.uri has no value"),
        ({"of": "a {{ result }}"}, "template_invalid", "is null"),
        ({"of": "{{ params.other }}"}, "template_invalid", "params.other has no value"),
    ],
)
async def test_a_value_that_is_not_there_is_told_of(pool: Pool, params: dict[str, Any], code: str, words: str) -> None:
    world = await make_chain(pool, params)
    async with pool.acquire() as conn:
        job = await ended(conn, world)
        assert await chain(world) == Chained(0, 1)
        (event,) = await caused_by(conn, world, job)
        assert event["error"]["code"] == code and words in event["error"]["message"]


async def test_a_function_that_was_deleted_meanwhile_is_told_of_and_ends_no_other_chain(pool: Pool) -> None:
    world = await make_chain(pool, {})
    async with pool.acquire() as conn:
        gone = await ended(conn, world)
        await registry.delete(conn, world.project, "publish")
        assert await chain(world) == Chained(0, 1)
        (event,) = await caused_by(conn, world, gone)
        assert event["error"]["code"] == "function_not_found"


async def test_an_outcome_that_cannot_be_looked_into_ends_its_own_chain_only(pool: Pool) -> None:
    world = await make_chain(pool, {"image": "{{ outputs.thumb.jpg.uri }}"})
    clash = NewFile("thumb.jpg.uri", "/out/x", "text/plain", 3, "a" * 64, "b" * 32)
    async with pool.acquire() as conn:
        broken = await ended(conn, world, files=[FILE, clash])
        await ended(conn, world, files=[FILE])
        assert await chain(world) == Chained(1, 1)
        (event,) = await caused_by(conn, world, broken)
    assert event["type"] == "chain_failed"


async def test_a_job_that_its_function_rejects_is_there_under_its_id_and_has_failed(pool: Pool) -> None:
    rejecting = {"queue": {"concurrency": {"limit": 1, "onLimit": "reject"}}}
    world = await make_chain(pool, {}, publish=rejecting)
    async with pool.acquire() as conn:
        causes = [await ended(conn, world) for _ in range(2)]
        assert await chain(world) == Chained(2, 0)
        rows = [await next_of(conn, world, job) for job in causes]
        assert sorted(row["status"] for row in rows) == ["failed", "queued"]
        (failed,) = [row for row in rows if row["status"] == "failed"]
        assert (json.loads(failed["error"])["code"], failed["function"]) == ("concurrency_rejected", "publish")
        assert json.loads(failed["trigger"])["kind"] == "function"


async def test_a_chain_ends_at_its_sixteenth_job(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project, account = await make_project(conn)
        version = await apply(conn, project, "f17")
        for number in range(16, 0, -1):
            version = await apply(conn, project, f"f{number}", f"f{number + 1}")
        world = World(pool, project, account, version, await make_node(conn))
        job, made = await ended(conn, world), 1
        while (await chain(world)).submitted:
            job, made = await end(conn, world), made + 1
        (event,) = await caused_by(conn, world, job)
        assert (made, event["function"], event["error"]["code"]) == (16, "f17", "chain_too_deep")
        assert await stands_in(conn, job) == ["succeeded"]


async def test_params_too_large_for_a_row_go_on_through_the_store_and_wait_while_it_is_away(
    pool: Pool, store: S3Store
) -> None:
    class Away:
        async def put(self, *_: Any) -> None:
            raise Unavailable("the object store does not answer")

    world = await make_chain(pool, {"text": "{{ params.text }}", "again": "{{ params.text }}"})
    text = "ü" * 100_000
    async with pool.acquire() as conn:
        new, _ = await spilled(pool, store, new_job(world.version, params={"text": text}))
        await jobs.submit(conn, [new])
        job = await end(conn, world)
        away: Any = Away()
        away.read = store.read
        assert await chain(world, away) == Chained(0, 0)
        assert await chain(world, store) == Chained(0, 0)
        await conn.execute("UPDATE chains SET due_at = now()")
        assert await chain(world, store) == Chained(1, 0)
        row = await next_of(conn, world, job)
        given = json.loads(await loaded(conn, store, world.project, row["params"]))
        assert given == {"text": text, "again": text}


async def test_large_params_of_a_round_that_broke_do_not_stay(
    pool: Pool, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(OSError):
        pass

    async def broken(*_: Any) -> None:
        raise Killed

    world = await make_chain(pool, {"text": "{{ params.text }}", "again": "{{ params.text }}"})
    async with pool.acquire() as conn:
        await jobs.submit(conn, [new_job(world.version, params={"text": "x" * 100_000})])
        await end(conn, world)
        with monkeypatch.context() as patched:
            patched.setattr(chains, "end", broken)
            with pytest.raises(Killed):
                await chain(world, store)
        assert await store.list_objects("", 10) == []
        assert await chain(world, store) == Chained(1, 0)
        assert len(await store.list_objects("", 10)) == await conn.fetchval("SELECT count(*) FROM artifacts") == 1


async def apply(conn: Connection, project: Any, name: str, *targets: str) -> Version:
    return await make_version(conn, project, name=name, callbacks=[{"function": target} for target in targets])


async def test_a_chain_that_leads_back_is_refused_when_it_is_applied(conn: Connection) -> None:
    project, _ = await make_project(conn)
    for name, *targets in (("a",), ("b", "a"), ("c", "b"), ("d", "c", "a")):
        await apply(conn, project, name, *targets)
    for name, *targets in (("a", "a"), ("a", "b"), ("a", "d"), ("b", "d", "c")):
        with pytest.raises(Invalid) as caught:
            await apply(conn, project, name, *targets)
        assert caught.value.code == "callback_cycle"
        assert [error.pointer for error in caught.value.errors] == [
            f"/spec/callbacks/{index}/function" for index in range(len(targets))
        ]
    other, _ = await make_project(conn)
    await apply(conn, other, "b")
    await apply(conn, other, "a", "b")


async def test_a_roll_back_does_not_close_a_circle_either(conn: Connection) -> None:
    project, _ = await make_project(conn)
    await apply(conn, project, "b")
    await apply(conn, project, "a", "b")
    await apply(conn, project, "a")
    await apply(conn, project, "b", "a")
    with pytest.raises(Invalid) as caught:
        await registry.rollback(conn, project, "a", 1)
    assert caught.value.code == "callback_cycle"
    with pytest.raises(NotFound):
        await registry.rollback(conn, project, "a", 9)


async def test_a_function_that_does_not_exist_cannot_be_called_back(conn: Connection) -> None:
    project, _ = await make_project(conn)
    await apply(conn, project, "there")
    with pytest.raises(Invalid) as caught:
        await apply(conn, project, "fn", "there", "missing")
    assert caught.value.code == "function_not_found"
    assert [error.pointer for error in caught.value.errors] == ["/spec/callbacks/1/function"]
    await registry.delete(conn, project, "there")
    with pytest.raises(Invalid):
        await apply(conn, project, "fn", "there")
