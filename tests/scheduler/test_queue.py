"""Every statement of the queue, on one connection."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from functions import ids
from functions.db import Connection
from functions.ids import JobId, MessageId
from scheduler import idempotency, leasing, queue, withdrawing
from scheduler.leasing import Ending, NewDelivery, VirtualClocks
from tests.scheduler.factories import (
    LEASE,
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
    await leasing.requeue(conn, [(claimed.job_id, claimed.token, {"code": "node_lost"})])
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


async def test_a_claim_fills_at_most_the_free_slots(conn: Connection) -> None:
    project, pool = await make_project(conn)
    small = await make_version(conn, project)
    large = await make_version(conn, project, job={"resources": {"cpu": 3}}, name="large")
    for version in (small, large, small, small, small):
        await make_job(conn, version)
    node = await make_node(conn, slots=4)
    taken = [each.slots for each in await claim(conn, node, pool, free=4)]
    assert sorted(taken) == [1, 3]
    assert [each.slots for each in await claim(conn, node, pool, free=2, slots=4)] == [1, 1]
    assert await claim(conn, node, pool, free=0, slots=4) == []


async def test_a_job_of_many_slots_is_claimed_by_a_node_that_has_them(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project, job={"resources": {"cpu": 20}})
    job = await make_job(conn, version)
    assert await claim(conn, await make_node(conn, slots=19), pool, free=19) == []
    assert [each.job_id for each in await claim(conn, await make_node(conn, slots=20), pool, free=20)] == [job]


async def test_a_large_job_that_waited_long_holds_the_node_until_it_fits(conn: Connection) -> None:
    project, pool = await make_project(conn)
    small = await make_version(conn, project)
    large = await make_version(conn, project, job={"resources": {"cpu": 2}}, name="large")
    waiting = await make_job(conn, large)
    for _ in range(3):
        await make_job(conn, small)
    node = await make_node(conn)
    assert len(await claim(conn, node, pool, free=1, slots=2)) == 1, "it is not starving yet"
    await conn.execute("UPDATE ready_jobs SET queued_at = now() - interval '1 minute' WHERE job_id = $1", waiting)
    assert await claim(conn, node, pool, free=1, slots=2) == []
    assert len(await claim(conn, await make_node(conn, slots=1), pool, free=1)) == 1, "a node too small need not wait"
    assert [each.job_id for each in await claim(conn, node, pool, free=2)] == [waiting]


async def test_several_pools_take_turns_whatever_their_virtual_times_are(conn: Connection) -> None:
    old, old_pool = await make_project(conn)
    await conn.execute("UPDATE pool_clocks SET v = 1000000 WHERE pool = $1", old_pool)
    new, new_pool = await make_project(conn)
    for project in (old, new):
        version = await make_version(conn, project)
        for _ in range(4):
            await make_job(conn, version)
    node = await make_node(conn, slots=4)
    for pools in ((old_pool, new_pool), (new_pool, old_pool)):
        claimed = await claim(conn, node, *pools, free=3)
        assert sorted(pools.index(old_pool if each.project_id == old else new_pool) for each in claimed) == [0, 0, 1]


@pytest.mark.parametrize("state", ["draining", "gone"])
async def test_only_a_ready_node_gets_jobs(conn: Connection, state: str) -> None:
    project, pool = await make_project(conn)
    await make_job(conn, await make_version(conn, project))
    node = await make_node(conn)
    await conn.execute(
        "UPDATE nodes SET state = $2, gone_at = CASE WHEN $2 = 'gone' THEN now() END WHERE id = $1", node, state
    )
    assert await claim(conn, node, pool) == []


async def test_a_claim_moves_the_clock_and_not_more_often_than_it_should(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    for _ in range(3):
        await make_job(conn, version)
    node, clocks = await make_node(conn), VirtualClocks(interval_s=3600)
    await claim_one(conn, node, pool)  # the first one starts at 0

    async def v() -> float:
        await leasing.claim(conn, clocks, node, pools=[pool], free_slots=1, node_slots=1, lease=LEASE)
        found: float = await conn.fetchval("SELECT v FROM pool_clocks WHERE pool = $1", pool)
        return found

    assert [await v(), await v()] == [1, 1]


async def test_a_heartbeat_renews_what_the_node_holds_and_says_what_to_cancel(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    for _ in range(3):
        await make_job(conn, version)
    node, other = await make_node(conn), await make_node(conn)
    kept, cancelled, foreign = [await claim_one(conn, each, pool) for each in (node, node, other)]
    await withdrawing.take_out(conn, project, [cancelled.job_id])
    await conn.execute("UPDATE leases SET expires_at = now()")
    await conn.execute("UPDATE nodes SET last_seen_at = now() - interval '1 hour'")
    held = [(each.job_id, each.token, 0.5, {"pulling": 3}) for each in (kept, cancelled, foreign)]
    stale = (kept.job_id, uuid4(), None, {})
    assert await leasing.heartbeat(conn, node, held, lease=LEASE) == {kept.job_id: False, cancelled.job_id: True}
    assert await leasing.heartbeat(conn, node, [stale], lease=LEASE) == {}
    rows = await conn.fetch("SELECT job_id, progress, timeline FROM leases WHERE expires_at > now()")
    assert {row["job_id"] for row in rows} == {kept.job_id, cancelled.job_id}
    assert {(row["progress"], row["timeline"]) for row in rows} == {(0.5, '{"pulling": 3}')}
    seen = await conn.fetchval("SELECT last_seen_at = now() FROM nodes WHERE id = $1", node)
    assert seen


async def test_finishing_is_fenced_by_the_token_and_leaves_one_outcome(conn: Connection) -> None:
    project, pool = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project))
    claimed = await claim_one(conn, await make_node(conn), pool)
    assert await leasing.finish(conn, [Ending(job, uuid4(), "succeeded")]) == set()
    told = NewDelivery(MessageId(ids.new_uuid7()), job, "job.succeeded", "https://a.example/", "https://a.example:443")
    ending = Ending(job, claimed.token, "succeeded", 0, result="[1]", timeline={"started": 5})
    assert await leasing.finish(conn, [ending], [told]) == {job}
    assert await leasing.finish(conn, [ending], [told]) == set()
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
    assert await leasing.finish(conn, endings, told) == {good.job_id}
    assert [row["id"] for row in await conn.fetch("SELECT id FROM deliveries")] == [told[0].id]


async def test_a_retry_waits_and_comes_back_as_the_next_attempt(conn: Connection) -> None:
    project, pool = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project))
    node = await make_node(conn)
    claimed = await claim_one(conn, node, pool)
    ending = Ending(job, claimed.token, "failed", 3, {"code": "exit_nonzero"})
    assert await leasing.retry(conn, ending, timedelta(seconds=5))
    assert not await leasing.retry(conn, ending, timedelta(seconds=5))
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
    assert not await leasing.retry(conn, Ending(job, claimed.token, "failed", 1, {"code": "x"}), timedelta(0))
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
    assert await leasing.requeue(conn, lost[1:]) == set()
    assert await leasing.requeue(conn, lost[:1]) == {job}
    again = await claim_one(conn, node, pool)
    assert (again.job_id, again.attempt) == (job, 2)
    assert await conn.fetchval("SELECT losses FROM leases WHERE job_id = $1", job) == 1


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
