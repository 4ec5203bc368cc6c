"""A job's life: what is made of an invocation, and of a node's report."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from functions import artifacts
from functions.artifacts import NewFile
from functions.db import Connection, Pool
from functions.egress import EgressPolicy
from functions.errors import Conflict, Invalid, LeaseLost, NotFound
from functions.ids import ArtifactId, JobId, encode
from scheduler import jobs, queue, redrive
from scheduler.inputs import check_inputs
from scheduler.jobs import Report
from scheduler.leasing import Claimed
from scheduler.reaper import Sight, reap_once
from scheduler.redrive import Redriving
from tests.scheduler.factories import (
    LOOPBACK,
    SIZING,
    STORE,
    World,
    claim_one,
    expire,
    make_job,
    make_project,
    make_version,
    make_world,
    new_job,
    stands_in,
)

HOOK = "http://127.0.0.1:1/"
FILE = NewFile("thumb", "/out/t.jpg", "image/jpeg", 3, "a" * 64, "b" * 32)


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, retry={"attempts": 2, "on": ["error"]}, callbacks=[{"url": HOOK}])


async def leased(conn: Connection, world: World, **invocation: Any) -> Claimed:
    await make_job(conn, world.version, **invocation)
    return await claim_one(conn, world.node, world.account)


async def finish(conn: Connection, world: World, claimed: Claimed, status: str, **more: Any) -> str:
    async with conn.transaction():
        return await jobs.finish(conn, world.node, claimed.job_id, Report(claimed.token, status, **more))


def failing(code: str = "exit_nonzero") -> dict[str, Any]:
    return {"exit_code": 1, "code": code, "message": "it broke"}


async def test_a_success_commits_outcome_files_and_delivery_together(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world)
        (file,) = await artifacts.reserve(conn, world.project, claimed.job_id, 1, [FILE])
        assert await artifacts.visible(conn, world.project, [file.id]) == set()
        assert await finish(conn, world, claimed, "succeeded", exit_code=0, artifacts=(file.id,)) == "succeeded"
        assert await artifacts.visible(conn, world.project, [file.id]) == {file.id}
        row = await conn.fetchrow("SELECT * FROM deliveries WHERE job_id = $1", claimed.job_id)
        assert (row["type"], row["url"], row["endpoint"]) == ("job.succeeded", HOOK, "http://127.0.0.1:1")


async def test_a_success_with_a_strange_file_changes_nothing(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world)
        with pytest.raises(Invalid):
            await finish(conn, world, claimed, "succeeded", artifacts=(ArtifactId(uuid4()),))
        with pytest.raises(Invalid):
            await finish(conn, world, claimed, "succeeded", exit_code=3)
        assert await stands_in(conn, claimed.job_id) == ["leased"]


async def test_a_failure_is_tried_again_as_the_manifest_says_and_then_final(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world)
        assert await finish(conn, world, claimed, "failed", **failing()) == "scheduled"
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 0
        await conn.execute("UPDATE waiting_jobs SET due_at = now()")
        await queue.promote(conn, limit=1)
        again = await claim_one(conn, world.node, world.account)
        assert await finish(conn, world, again, "failed", **failing()) == "failed"
        error = json.loads(await conn.fetchval("SELECT error FROM outcomes WHERE job_id = $1", claimed.job_id))
        assert error == {"code": "exit_nonzero", "message": "it broke", "attempt": 2}


async def test_a_cause_that_the_manifest_does_not_name_is_final_at_once(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world)
        assert await finish(conn, world, claimed, "timed_out", **failing("timeout")) == "timed_out"


async def test_a_failure_after_a_cancel_is_a_cancelled_job(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world)
        await jobs.cancel(conn, world.project, [claimed.job_id])
        assert await finish(conn, world, claimed, "failed", **failing()) == "cancelled"
        assert await conn.fetchval("SELECT type FROM deliveries") == "job.cancelled"


@pytest.mark.parametrize("report", [("succeeded", {}), ("failed", failing())])
async def test_a_report_that_comes_twice_gets_the_first_answer(world: World, report: tuple[str, Any]) -> None:
    status, more = report
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world)
        first = await finish(conn, world, claimed, status, **more)
        assert await finish(conn, world, claimed, "succeeded") == first


async def test_a_report_of_a_lease_that_was_taken_back_is_refused_whatever_came_of_the_job(world: World) -> None:
    async with world.pool.acquire() as conn:
        requeued = await leased(conn, world)
        cancelled = await leased(conn, world)
        await jobs.cancel(conn, world.project, [cancelled.job_id])
        await expire(conn, requeued, cancelled)
        await reap_once(world.pool, Sight(0))
        drained = await claim_one(conn, world.node, world.account)
        await jobs.release(conn, world.node, [(drained.job_id, drained.token)], "")
        for claimed in (requeued, cancelled, drained):
            for status, more in (("succeeded", {}), ("failed", failing())):
                with pytest.raises(LeaseLost):
                    await finish(conn, world, claimed, status, **more)
        assert await stands_in(conn, requeued.job_id) == ["ready"]


async def test_another_nodes_token_is_worth_nothing(world: World, pool: Pool) -> None:
    other = await make_world(pool)
    async with pool.acquire() as conn:
        claimed = await leased(conn, world)
        with pytest.raises(LeaseLost):
            await jobs.finish(conn, other.node, claimed.job_id, Report(claimed.token, "succeeded"))


async def test_releasing_a_job_with_a_cancel_pending_ends_it(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed, other = await leased(conn, world), await leased(conn, world)
        await jobs.cancel(conn, world.project, [claimed.job_id])
        held = [(each.job_id, each.token) for each in (claimed, other)]
        assert await jobs.release(conn, world.node, held, "drain") == {claimed.job_id, other.job_id}
        assert await stands_in(conn, claimed.job_id) == ["cancelled"]
        assert await stands_in(conn, other.job_id) == ["ready"]
        assert await jobs.release(conn, world.node, held, "drain") == set()


async def test_cancelling_leaves_finished_and_foreign_jobs_as_they_are(world: World, pool: Pool) -> None:
    other = await make_world(pool)
    async with pool.acquire() as conn:
        claimed = await leased(conn, world)
        await finish(conn, world, claimed, "succeeded")
        foreign = await make_job(conn, other.version)
        await jobs.cancel(conn, world.project, [claimed.job_id, foreign, JobId(uuid4())])
        assert await stands_in(conn, claimed.job_id) == ["succeeded"]
        assert await stands_in(conn, foreign) == ["ready"]


async def test_the_jobs_own_url_is_told_beside_the_manifests(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world, callback_url="https://a.example/x", callback_events=("job.failed",))
        await finish(conn, world, claimed, "succeeded")
        claimed = await leased(conn, world, callback_url="https://a.example/y")
        await finish(conn, world, claimed, "succeeded")
        claimed = await leased(conn, world, callback_url=HOOK)
        await finish(conn, world, claimed, "succeeded")
        urls = sorted(row["url"] for row in await conn.fetch("SELECT url FROM deliveries"))
        assert urls == [HOOK, HOOK, HOOK, "https://a.example/y"]


async def test_retrying_a_finished_job_makes_a_new_one_of_the_same_version(world: World) -> None:
    how = Redriving(world.pool, STORE, SIZING, LOOPBACK)
    async with world.pool.acquire() as conn:
        claimed = await leased(conn, world, params={"a": 1}, callback_url="https://a.example/")
        with pytest.raises(Conflict, match="not finished"):
            await redrive.retry(world.project, claimed.job_id, how)
        await finish(conn, world, claimed, "succeeded")
        new = await redrive.retry(world.project, claimed.job_id, how)
        assert (json.loads(new.params), new.version_id) == ({"a": 1}, world.version.id)
        assert (new.retried_from, new.callback_url) == (claimed.job_id, "https://a.example/")
        with pytest.raises(NotFound):
            await redrive.retry((await make_project(conn))[0], claimed.job_id, how)


PARAMS = {"type": "object", "properties": {"video": {"type": "string"}, "name": {"type": "string"}}}
INPUTS = [
    {"path": "/in/a", "url": "{{ params.video }}"},
    {"path": "/in/b", "url": "https://files.example/{{ params.name }}"},
    {"path": "/in/c", "content": "{{ params.name }}"},
]


async def refusal(pool: Pool, job: queue.NewJob) -> tuple[str, list[str]]:
    with pytest.raises(Invalid) as caught:
        await check_inputs(pool, job, EgressPolicy())
    return caught.value.code, [error.pointer for error in caught.value.errors]


async def test_inputs_are_the_projects_own_files_or_addresses_that_may_be_called(world: World) -> None:
    pool = world.pool
    async with pool.acquire() as conn:
        version = await make_version(
            conn, world.project, job={"files": {"inputs": INPUTS}}, params=PARAMS, name="inputs"
        )
        claimed = await leased(conn, world)
        (file,) = await artifacts.reserve(conn, world.project, claimed.job_id, 1, [FILE])
        uri = f"artifact:{encode('art', file.id)}"

        def job(video: str) -> queue.NewJob:
            return new_job(version, params={"video": video, "name": "n"})

        assert await refusal(pool, job(uri)) == ("artifact_not_found", ["/video"])
        await finish(conn, world, claimed, "succeeded", artifacts=(file.id,))
        await check_inputs(pool, job(uri), EgressPolicy())
        foreign, _ = await make_project(conn)
        theirs = await make_version(conn, foreign, job={"files": {"inputs": INPUTS}}, params=PARAMS)
        stolen = new_job(theirs, params={"video": uri, "name": "n"})
        assert await refusal(pool, stolen) == ("artifact_not_found", ["/video"])
        for video in ("artifact:", "artifact:art_1", f"artifact:art_{uuid4().hex}", f"artifact:job_{uuid4().hex}"):
            assert await refusal(pool, job(video)) == ("artifact_not_found", ["/video"])
        for video in ("http://files.example/x", "https://127.0.0.1/", "file:///etc/passwd", "", "https://u:p@a.example/"):
            assert await refusal(pool, job(video)) == ("url_refused", ["/video"])
        await check_inputs(pool, job("http://127.0.0.1:1/x"), EgressPolicy(allow=("127.0.0.1",)))
        await check_inputs(pool, job("https://files.example/x"), EgressPolicy())


async def test_addresses_of_inputs_cost_no_statement(world: World) -> None:
    async with world.pool.acquire() as conn:
        version = await make_version(
            conn, world.project, job={"files": {"inputs": INPUTS}}, params=PARAMS, name="inputs"
        )
    job = new_job(version, params={"video": "https://files.example/x", "name": "n"})
    await check_inputs(None, job, EgressPolicy())  # type: ignore[arg-type]
