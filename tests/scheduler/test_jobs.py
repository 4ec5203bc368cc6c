"""What is made of an invocation: jobs that are new, cancelled, or made again."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from functions import artifacts
from functions.db import Pool
from functions.egress import EgressPolicy
from functions.errors import Conflict, Invalid, NotFound
from functions.ids import JobId, encode
from scheduler import cancelling, queue, redrive
from scheduler.inputs import check_inputs
from scheduler.redrive import Redriving
from tests.scheduler.factories import (
    FILE,
    LOOPBACK,
    SIZING,
    STORE,
    World,
    finish,
    leased,
    make_job,
    make_project,
    make_version,
    make_world,
    new_job,
    stands_in,
)

HOOK = "http://127.0.0.1:1/"


@pytest.fixture
async def world(pool: Pool) -> World:
    return await make_world(pool, retry={"attempts": 2, "on": ["error"]}, callbacks=[{"url": HOOK}])


async def test_cancelling_leaves_finished_and_foreign_jobs_as_they_are(world: World, pool: Pool) -> None:
    other = await make_world(pool)
    async with pool.acquire() as conn:
        claimed = await leased(conn, world)
        await finish(conn, world, claimed, "succeeded")
        foreign = await make_job(conn, other.version)
        await cancelling.cancel(conn, world.project, [claimed.job_id, foreign, JobId(uuid4())])
        assert await stands_in(conn, claimed.job_id) == ["succeeded"]
        assert await stands_in(conn, foreign) == ["ready"]


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
