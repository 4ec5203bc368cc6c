"""Jobs enter the queue, become claimable, and are taken out of it: each statement, on one connection."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from functions.db import Connection
from functions.ids import JobId
from scheduler import idempotency, lease_ends, queue, withdrawing
from tests.scheduler.factories import (
    claim,
    claim_one,
    make_job,
    make_node,
    make_project,
    make_version,
    new_job,
    stands_in,
)


async def test_a_submitted_job_is_claimed_once_with_what_its_node_needs(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    job = await make_job(conn, version, params={"a": 1})
    assert await stands_in(conn, job) == ["ready"]
    node = await make_node(conn)
    claimed = await claim_one(conn, node, pool)
    assert (claimed.job_id, claimed.attempt, claimed.slots) == (job, 1, 1)
    assert (claimed.project_id, claimed.function_id, claimed.version_id) == (project, version.function_id, version.id)
    assert (json.loads(claimed.params), json.loads(claimed.trigger)) == ({"a": 1}, {"kind": "manual"})
    assert await stands_in(conn, job) == ["leased"]
    assert await claim(conn, node, pool) == []


async def test_jobs_of_one_project_start_in_the_order_they_came(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    made = [await make_job(conn, version) for _ in range(5)]
    node = await make_node(conn)
    assert [(await claim_one(conn, node, pool)).job_id for _ in made] == made


async def test_a_job_is_never_lost_for_want_of_its_projects_rows(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    await make_job(conn, version)
    claimed = await claim_one(conn, await make_node(conn), pool)
    delayed = await make_job(conn, version, delay=timedelta(seconds=1))
    await conn.execute("DELETE FROM flows WHERE project_id = $1", project)
    for delay in (None, timedelta(seconds=1)):
        with pytest.raises(asyncpg.NotNullViolationError):
            async with conn.transaction():
                await queue.enqueue(conn, [new_job(version, delay=delay)])
    await conn.execute("DELETE FROM pool_clocks WHERE pool = $1", pool)
    await lease_ends.requeue(conn, [(claimed.job_id, claimed.token, {"code": "node_lost"})])
    assert await stands_in(conn, claimed.job_id) == ["ready"]
    await conn.execute("UPDATE waiting_jobs SET due_at = now() - interval '1 second' WHERE job_id = $1", delayed)
    assert await queue.promote(conn, limit=10) == 1
    assert await stands_in(conn, delayed) == ["ready"]


async def test_a_delayed_job_waits_and_is_promoted_when_due(conn: Connection) -> None:
    project, pool = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project), delay=timedelta(minutes=10))
    assert await stands_in(conn, job) == ["waiting"]
    assert await queue.promote(conn, limit=10) == 0
    await conn.execute("UPDATE waiting_jobs SET due_at = now() WHERE job_id = $1", job)
    assert await queue.promote(conn, limit=10) == 1
    claimed = await claim_one(conn, await make_node(conn), pool)
    assert (claimed.job_id, claimed.attempt) == (job, 1)


async def test_a_promoted_flood_stands_behind_what_its_neighbours_have_queued(conn: Connection) -> None:
    """Virtual time is given when a job becomes claimable, not at submit (QUEUE, trap 5)."""
    flooder, pool = await make_project(conn)
    version = await make_version(conn, flooder)
    for _ in range(20):
        await make_job(conn, version, delay=timedelta(minutes=1))
    neighbour, _ = await make_project(conn, pool=pool)
    job = await make_job(conn, await make_version(conn, neighbour))
    await conn.execute("UPDATE waiting_jobs SET due_at = now()")
    assert await queue.promote(conn, limit=100) == 20
    node = await make_node(conn)
    assert job in [(await claim_one(conn, node, pool)).job_id for _ in range(2)]


async def test_cancelling_takes_out_what_waits_and_asks_for_what_runs(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    running = await make_job(conn, version)
    await claim_one(conn, await make_node(conn), pool)
    ready, delayed = await make_job(conn, version), await make_job(conn, version, delay=timedelta(hours=1))
    foreign, _ = await make_project(conn)
    wanted = [running, ready, delayed, JobId(uuid4())]
    assert await withdrawing.take_out(conn, foreign, wanted) == ([], set())
    taken, leased = await withdrawing.take_out(conn, project, wanted)
    assert ({each.job_id for each in taken}, leased) == ({ready, delayed}, {running})
    await withdrawing.end_unleased(conn, project, taken, status="cancelled")
    assert [await stands_in(conn, job) for job in (ready, delayed)] == [["cancelled"]] * 2


async def test_a_project_that_cancels_its_backlog_is_not_set_back_behind_the_others(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    backlog = [await make_job(conn, version) for _ in range(50)]
    taken, _ = await withdrawing.take_out(conn, project, backlog)
    assert len(taken) == 50
    neighbour, _ = await make_project(conn, pool=pool)
    theirs = await make_version(conn, neighbour)
    for _ in range(20):
        await make_job(conn, theirs)
    job = await make_job(conn, version)
    node = await make_node(conn)
    assert job in [(await claim_one(conn, node, pool)).job_id for _ in range(2)]


async def test_what_is_left_of_a_functions_jobs_is_found(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version, other = await make_version(conn, project), await make_version(conn, project, name="other")
    await make_job(conn, version)
    await claim_one(conn, await make_node(conn), pool)
    ready, delayed = await make_job(conn, version), await make_job(conn, version, delay=timedelta(hours=1))
    await make_job(conn, other)
    assert version.function_id is not None
    assert set(await withdrawing.unfinished_of(conn, project, version.function_id)) == {ready, delayed}


async def test_keys_are_forgotten_when_their_day_is_over(conn: Connection) -> None:
    project, _ = await make_project(conn)
    version = await make_version(conn, project)
    for key in ("a", "b", "c"):
        await make_job(conn, version, idempotency_key=key, body_hash=b"h")
    await conn.execute("UPDATE idempotency_keys SET expires_at = now() WHERE key <> 'c'")
    assert [await idempotency.forget(conn, limit=1) for _ in range(3)] == [1, 1, 0]
    assert await conn.fetchval("SELECT key FROM idempotency_keys") == "c"
