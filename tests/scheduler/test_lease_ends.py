"""How leases end: an outcome, another attempt, or back in the queue."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from functions import ids
from functions.db import Connection
from functions.ids import MessageId
from scheduler import lease_ends, queue, withdrawing
from scheduler.lease_ends import Ending
from scheduler.new_deliveries import NewDelivery
from tests.scheduler.factories import (
    claim,
    claim_one,
    make_job,
    make_node,
    make_project,
    make_version,
    stands_in,
)


async def test_finishing_is_fenced_by_the_token_and_leaves_one_outcome(conn: Connection) -> None:
    project, pool = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project))
    claimed = await claim_one(conn, await make_node(conn), pool)
    assert await lease_ends.finish(conn, [Ending(job, uuid4(), "succeeded")]) == set()
    told = NewDelivery(MessageId(ids.new_uuid7()), job, "job.succeeded", "https://a.example/", "https://a.example:443")
    ending = Ending(job, claimed.token, "succeeded", 0, result="[1]", timeline={"started": 5})
    assert await lease_ends.finish(conn, [ending], [told]) == {job}
    assert await lease_ends.finish(conn, [ending], [told]) == set()
    assert await stands_in(conn, job) == ["succeeded"]
    row = await conn.fetchrow("SELECT * FROM outcomes WHERE job_id = $1", job)
    assert (row["attempt"], row["losses"], row["token"], row["exit_code"]) == (1, 0, claimed.token, 0)
    assert (row["result"], row["timeline"], row["node_id"] is not None) == ("[1]", '{"started": 5}', True)
    assert await conn.fetchval("SELECT project_id FROM deliveries WHERE id = $1", told.id) == project


async def test_finishing_many_at_once_tells_of_those_that_held(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    for _ in range(2):
        await make_job(conn, version)
    good, stale = await claim(conn, await make_node(conn), pool, free=2)
    told = [
        NewDelivery(MessageId(ids.new_uuid7()), each.job_id, "job.failed", "https://a.example/", "https://a.example:443")
        for each in (good, stale)
    ]
    endings = [
        Ending(good.job_id, good.token, "failed", 1, {"code": "exit_nonzero", "message": "", "attempt": 1}),
        Ending(stale.job_id, uuid4(), "failed", 1, {"code": "exit_nonzero", "message": "", "attempt": 1}),
    ]
    assert await lease_ends.finish(conn, endings, told) == {good.job_id}
    assert [row["id"] for row in await conn.fetch("SELECT id FROM deliveries")] == [told[0].id]


async def test_a_retry_waits_and_comes_back_as_the_next_attempt(conn: Connection) -> None:
    project, pool = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project))
    node = await make_node(conn)
    claimed = await claim_one(conn, node, pool)
    ending = Ending(job, claimed.token, "failed", 3, {"code": "exit_nonzero"})
    assert await lease_ends.retry(conn, ending, timedelta(seconds=5))
    assert not await lease_ends.retry(conn, ending, timedelta(seconds=5))
    assert await stands_in(conn, job) == ["waiting"]
    await conn.execute("UPDATE waiting_jobs SET due_at = now()")
    await queue.promote(conn, limit=1)
    assert (await claim_one(conn, node, pool)).attempt == 2
    row = await conn.fetchrow("SELECT * FROM job_attempts WHERE job_id = $1", job)
    assert (row["attempt"], row["exit_code"], row["token"]) == (1, 3, claimed.token)


async def test_a_retry_does_not_bring_back_a_job_that_was_cancelled(conn: Connection) -> None:
    project, pool = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project))
    claimed = await claim_one(conn, await make_node(conn), pool)
    await withdrawing.take_out(conn, project, [job])
    assert not await lease_ends.retry(conn, Ending(job, claimed.token, "failed", 1, {"code": "x"}), timedelta(0))
    assert await stands_in(conn, job) == ["leased"]


async def test_a_requeued_job_is_next_and_its_loss_is_not_the_users(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    job = await make_job(conn, version)
    node = await make_node(conn)
    claimed = await claim_one(conn, node, pool)
    for _ in range(3):
        await make_job(conn, version)
    lost = [(job, claimed.token, {"code": "node_lost"}), (job, uuid4(), {"code": "node_lost"})]
    assert await lease_ends.requeue(conn, lost[1:]) == set()
    assert await lease_ends.requeue(conn, lost[:1]) == {job}
    again = await claim_one(conn, node, pool)
    assert (again.job_id, again.attempt) == (job, 2)
    assert await conn.fetchval("SELECT losses FROM leases WHERE job_id = $1", job) == 1
