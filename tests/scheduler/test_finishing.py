"""How a job that ran ends: what is made of a node's report, or of a lease that it hands back."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from functions import artifacts
from functions.db import Pool
from functions.errors import Invalid, LeaseLost
from functions.ids import ArtifactId
from scheduler import cancelling, finishing, queue
from scheduler.finishing import Report
from scheduler.reaper import Sight, reap_once
from tests.scheduler.factories import (
    FILE,
    World,
    claim_one,
    expire,
    finish,
    leased,
    make_world,
    stands_in,
)

HOOK = "http://127.0.0.1:1/"


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, retry={"attempts": 2, "on": ["error"]}, callbacks=[{"url": HOOK}])


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
        await cancelling.cancel(conn, world.project, [claimed.job_id])
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
        await cancelling.cancel(conn, world.project, [cancelled.job_id])
        await expire(conn, requeued, cancelled)
        await reap_once(world.pool, Sight(0))
        drained = await claim_one(conn, world.node, world.account)
        await finishing.release(conn, world.node, [(drained.job_id, drained.token)], "")
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
            await finishing.finish(conn, other.node, claimed.job_id, Report(claimed.token, "succeeded"))


async def test_releasing_a_job_with_a_cancel_pending_ends_it(world: World) -> None:
    async with world.pool.acquire() as conn:
        claimed, other = await leased(conn, world), await leased(conn, world)
        await cancelling.cancel(conn, world.project, [claimed.job_id])
        held = [(each.job_id, each.token) for each in (claimed, other)]
        assert await finishing.release(conn, world.node, held, "drain") == {claimed.job_id, other.job_id}
        assert await stands_in(conn, claimed.job_id) == ["cancelled"]
        assert await stands_in(conn, other.job_id) == ["ready"]
        assert await finishing.release(conn, world.node, held, "drain") == set()


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
