"""Limits of a function: of a key, in total, and of starts in a time."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import timedelta
from typing import Any

import pytest

from functions import registry
from functions.db import Connection, Pool
from functions.errors import LimitReached
from functions.ids import JobId
from gateway.database import open_pool
from scheduler import cancelling, finishing, gates, jobs, leasing, pauses, queue
from scheduler.claiming import Claimed
from scheduler.finishing import Report
from scheduler.gates import GateId
from scheduler.jobs import Submitted
from scheduler.relimiting import relimit_once
from scheduler.views import read_jobs
from tests.scheduler.factories import (
    LEASE,
    STORE,
    World,
    claim,
    make_node,
    make_project,
    make_version,
    make_world,
    new_job,
    stands_in,
)

BY_CUSTOMER = {"properties": {"customer": {"type": ["string", "null"], "default": None}}}
KEY = "{{ params.customer }}"


async def enter(conn: Connection, world: World, *customers: str | None, **more: Any) -> list[JobId]:
    """Submit a job for each customer, and let through what may go."""
    reached: set[GateId] = set()
    made = [new_job(world.version, params={"customer": each}, **more) for each in customers]
    answers = await jobs.submit(conn, made, reached)
    await gates.advance(conn, reached)
    return [answer.job_id for answer in answers if isinstance(answer, Submitted)]


async def end(conn: Connection, world: World, claimed: Claimed, status: str = "succeeded") -> None:
    freed: set[GateId] = set()
    code = None if status == "succeeded" else "exit_nonzero"
    async with conn.transaction():
        await finishing.finish(conn, world.node, claimed.job_id, Report(claimed.token, status, code=code), freed=freed)
    await gates.advance(conn, freed)


async def take(conn: Connection, world: World, most: int = 100) -> list[Claimed]:
    return await claim(conn, world.node, world.account, free=most)


async def slots(conn: Connection) -> int:
    held: int = await conn.fetchval("SELECT count(*) FROM slots WHERE until IS NULL")
    return held


async def limited(pool: Pool, **spec: Any) -> World:
    return await make_world(pool, params=BY_CUSTOMER, queue=spec)


async def test_no_more_jobs_are_let_in_than_the_limit_and_the_next_one_when_one_has_ended(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        made = await enter(conn, world, *["a"] * 5)
        first = await take(conn, world)
        assert [each.job_id for each in first] == made[:2]
        assert await take(conn, world) == []
        await end(conn, world, first[0])
        (next_one,) = await take(conn, world)
        assert next_one.job_id == made[2], "in the order in which they came"
        assert await slots(conn) == 2


async def test_each_key_has_its_limit_and_a_flooding_key_hides_no_other(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 4, "perKey": 2, "key": KEY})
    async with pool.acquire() as conn:
        await enter(conn, world, *["a"] * 50)
        ours = await enter(conn, world, "b", None, None, None)
        taken = [each.job_id for each in await take(conn, world)]
        assert len(taken) == 4
        assert taken[2:] == ours[:2], "null is a key of its own"
        assert await conn.fetchval("SELECT count(*) FROM gates WHERE level = 1") == 3


async def test_a_limit_holds_over_all_versions_and_a_new_one_from_the_next_admission_on(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        await enter(conn, world, *["a"] * 4)
        running = await take(conn, world)
        world.version = await make_version(
            conn, world.project, params=BY_CUSTOMER, queue={"concurrency": {"limit": 1}}
        )
        function = world.version.function_id
        assert function is not None
        await gates.set_limits(conn, function, world.version.manifest.spec.queue)
        await enter(conn, world, "a")
        await end(conn, world, running[0])
        assert await take(conn, world) == [], "one is running, and no more may"
        await end(conn, world, running[1])
        assert len(await take(conn, world)) == 1


async def test_a_rate_counts_starts_also_those_of_attempts_that_failed(pool: Pool) -> None:
    world = await make_world(pool, retry={"attempts": 2, "backoff": {"initial": "0s", "max": "0s"}},
                             queue={"rate": {"limit": 2, "per": "1m"}})  # fmt: skip
    async with pool.acquire() as conn:
        reached: set[GateId] = set()
        await jobs.submit(conn, [new_job(world.version) for _ in range(3)], reached)
        await gates.advance(conn, reached)
        first, second = await take(conn, world)
        assert await slots(conn) == 0
        await end(conn, world, first, "failed")
        await end(conn, world, second)
        await queue.promote(conn, limit=10, reached=reached)
        await gates.advance(conn, reached)
        assert await take(conn, world) == []
        waiting = await read_jobs(conn, world.project, [first.job_id])
        assert (waiting[0].status, waiting[0].row["wait_reason"]) == ("queued", "rate")
        left = await gates.next_start_s(conn)
        assert left is not None
        assert 50 < left <= 60
        assert await gates.free_starts(conn, limit=10) == []
        await conn.execute("UPDATE slots SET until = now() WHERE job_id = $1", first.job_id)
        await gates.advance(conn, await gates.free_starts(conn, limit=10))
        (third,) = await take(conn, world)
        assert third.attempt == 1, "the one that has waited since before the other failed"


async def test_a_job_that_is_cancelled_gives_its_place_back(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1, "perKey": 1, "key": KEY}, rate={"limit": 1, "per": "1h"})
    async with pool.acquire() as conn:
        let_in, waiting, next_one = await enter(conn, world, "a", "a", "b")
        freed: set[GateId] = set()
        async with conn.transaction():
            await cancelling.cancel(conn, world.project, [let_in, waiting], freed)
        await gates.advance(conn, freed)
        assert await stands_in(conn, next_one) == ["ready"], "what never started is no start of the rate"
        assert await slots(conn) == 3


async def test_a_job_whose_node_was_lost_passes_its_gates_again_before_the_others(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        lost, _ = await enter(conn, world, "a", "a")
        (claimed,) = await take(conn, world)
        freed: set[GateId] = set()
        async with conn.transaction():
            await finishing.release(conn, world.node, [(lost, claimed.token)], "drained", freed)
        await gates.advance(conn, freed)
        (again,) = await take(conn, world)
        assert (again.job_id, again.attempt) == (lost, 2)


async def test_a_delayed_job_takes_its_place_when_it_is_due(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        (delayed,) = await enter(conn, world, "a", delay=timedelta(minutes=1))
        assert await slots(conn) == 0
        await enter(conn, world, "a")
        await conn.execute("UPDATE waiting_jobs SET due_at = now()")
        reached: set[GateId] = set()
        await queue.promote(conn, limit=10, reached=reached)
        await gates.advance(conn, reached)
        (record,) = await read_jobs(conn, world.project, [delayed])
        assert (record.status, record.row["wait_reason"]) == ("queued", "concurrency")


async def test_rejecting_refuses_what_is_over_the_limit_and_makes_no_job(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1, "onLimit": "reject"})
    async with pool.acquire() as conn:
        first = new_job(world.version, params={}, idempotency_key="k", body_hash=b"")
        (answer, refused) = await jobs.submit(conn, [first, new_job(world.version)])
        assert isinstance(answer, Submitted)
        assert isinstance(refused, LimitReached)
        assert (refused.code, refused.retry_after_s is not None) == ("concurrency_rejected", True)
        (again,) = await jobs.submit(conn, [new_job(world.version, idempotency_key="k", body_hash=b"")])
        assert again == Submitted(answer.job_id, None), "a repeat has its answer"
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 1
        (claimed,) = await take(conn, world)
        await end(conn, world, claimed)
        assert len(await enter(conn, world, "a")) == 1


async def test_replacing_cancels_the_waiting_one_at_once_and_starts_when_the_running_one_has_ended(pool: Pool) -> None:
    world = await limited(pool, concurrency={"perKey": 1, "key": KEY, "onLimit": "replace"})
    async with pool.acquire() as conn:
        await enter(conn, world, "a", "b")
        running, other = await take(conn, world)
        (second,) = await enter(conn, world, "a")
        (third,) = await enter(conn, world, "a")
        assert await stands_in(conn, second) == ["cancelled"]
        asked = await conn.fetch("SELECT job_id FROM leases WHERE cancel_requested")
        assert [row["job_id"] for row in asked] == [running.job_id]
        assert await take(conn, world) == []
        await end(conn, world, running)
        assert [each.job_id for each in await take(conn, world)] == [third]
        assert await stands_in(conn, other.job_id) == ["leased"], "another key's"


@pytest.mark.parametrize("on_limit", ["reject", "replace"])
async def test_jobs_that_come_together_are_decided_in_as_many_statements_as_one(pool: Pool, on_limit: str) -> None:
    world = await limited(pool, concurrency={"limit": 90, "perKey": 40, "key": KEY, "onLimit": on_limit})
    said: list[int] = []
    async with pool.acquire() as conn:
        for count in (1, 100):
            seen: list[str] = []
            with conn.query_logger(lambda record, seen=seen: seen.append(record.query)):
                made = [new_job(world.version, params={"customer": f"{count}-{number % 2}"}) for number in range(count)]
                answers = await jobs.submit(conn, made)
            said.append(len(seen))
        assert said[1] <= said[0] + 8, said
        queued = [job.id for job in made if await stands_in(conn, job.id) == ["ready"]]
        if on_limit == "reject":
            assert queued == [job.id for job in made[:80]], "the first ones have the room"
            assert [isinstance(answer, LimitReached) for answer in answers] == [False] * 80 + [True] * 20
        else:
            assert queued == [job.id for job in made[20:]], "the last ones go on"
            assert [await stands_in(conn, job.id) for job in made[:20]] == [["cancelled"]] * 20


async def test_a_set_that_is_partly_of_other_keys_is_rejected_by_the_total_limit_too(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 3, "perKey": 2, "key": KEY, "onLimit": "reject"})
    async with pool.acquire() as conn:
        made = [new_job(world.version, params={"customer": each}) for each in "aaabbcc"]
        answers = await jobs.submit(conn, made)
        assert [isinstance(answer, Submitted) for answer in answers] == [True, True, False, True, False, False, False]
        assert await slots(conn) == 6, "three of keys, three of the function"


async def test_a_trigger_that_nobody_waits_at_leaves_a_failed_job_when_it_is_rejected(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project, account = await make_project(conn)
        await make_version(conn, project, name="sorry")
        told: list[dict[str, Any]] = [
            {"url": "http://127.0.0.1:1/", "events": ["job.failed"]},
            {"function": "sorry", "events": ["job.failed"], "params": {}},
        ]
        rejecting = {"concurrency": {"limit": 1, "onLimit": "reject"}}
        version = await make_version(conn, project, queue=rejecting, callbacks=told, retry={"attempts": 3})
        world = World(pool, project, account, version, await make_node(conn))
        first, second = new_job(version), new_job(version, idempotency_key="k", body_hash=b"")
        answers = await jobs.submit_or_record(conn, [first, second])
        assert [answer.job_id for answer in answers if isinstance(answer, Submitted)] == [first.id, second.id]
        (record,) = await read_jobs(conn, project, [second.id])
        assert (record.status, json.loads(record.row["error"])["code"]) == ("failed", "concurrency_rejected")
        assert await conn.fetchval("SELECT array_agg(type) FROM deliveries WHERE job_id = $1", second.id) == ["job.failed"]
        assert await conn.fetchval("SELECT function FROM chains WHERE job_id = $1", second.id) == "sorry"
        again = new_job(version, idempotency_key="k", body_hash=b"")
        assert await jobs.submit_or_record(conn, [again]) == [Submitted(second.id, None)]
        assert (await slots(conn), len(await take(conn, world))) == (1, 1)


@pytest.mark.parametrize("stage", ["retry", "paused"])
async def test_replacing_cancels_those_too_that_stand_aside_and_would_come_back(pool: Pool, stage: str) -> None:
    world = await make_world(pool, params=BY_CUSTOMER, retry={"attempts": 2},
                             queue={"concurrency": {"perKey": 1, "key": KEY, "onLimit": "replace"}})  # fmt: skip
    async with pool.acquire() as conn:
        first, other = await enter(conn, world, "a", "b")
        function = world.version.function_id
        assert function is not None
        if stage == "retry":
            for each in await take(conn, world):
                await end(conn, world, each, "failed")
        else:
            await registry.set_paused(conn, world.project, "fn", paused=True)
            await pauses.pause(conn, world.project, function, limit=10)
        assert {row["stage"] for row in await conn.fetch("SELECT stage FROM waiting_jobs")} == {stage}
        (second,) = await enter(conn, world, "a")
        assert await stands_in(conn, first) == ["cancelled"]
        assert await stands_in(conn, other) == ["waiting"], "another key's"
        assert await stands_in(conn, second) == ["ready" if stage == "retry" else "waiting"]


async def test_a_gate_that_is_forgotten_while_a_job_of_it_is_submitted_is_made_anew(pool: Pool) -> None:
    world = await limited(pool, concurrency={"perKey": 1, "key": KEY})
    async with pool.acquire() as conn, pool.acquire() as other:
        (job,) = await enter(conn, world, "a")
        await cancelling.cancel(conn, world.project, [job])
        await conn.execute("UPDATE gates SET used_at = now() - interval '3 days'")
        forgotten = 0

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(conn, name)

            async def fetch(self, statement: str, *values: Any) -> Any:
                nonlocal forgotten
                rows = await conn.fetch(statement, *values)
                if statement == gates.FIND_GATES:
                    forgotten += await gates.forget(other, limit=10)
                return rows

        watched: Any = Watched()
        (second,) = await enter(watched, world, "a")
        assert forgotten == 1
        assert await stands_in(conn, second) == ["ready"]


async def test_who_replaces_waits_for_a_cancel_of_its_project_before_it_holds_any_limit(pool: Pool) -> None:
    """Holding one, it would have let jobs through it for whose rows that cancel then waits."""
    world = await limited(pool, concurrency={"perKey": 1, "key": KEY, "onLimit": "replace"})
    async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as watch:
        (old,) = await enter(one, world, "a")
        pid = await one.fetchval("SELECT pg_backend_pid()")
        async with two.transaction():
            await cancelling.cancel(two, world.project, [new_job(world.version).id])
            entering = asyncio.ensure_future(enter(one, world, "a", "b"))
            while not await watch.fetchval("SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted", pid):
                await asyncio.sleep(0.001)
            async with watch.transaction():
                assert await watch.fetch("SELECT id FROM gates FOR UPDATE NOWAIT")
            await cancelling.cancel(two, world.project, [old])
        assert len(await entering) == 2
        assert await stands_in(watch, old) == ["cancelled"]


async def test_jobs_that_came_while_their_function_was_deleted_do_not_wait_at_its_limit(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        waiting = (await enter(conn, world, *"aaaa"))[2:]
        running = await take(conn, world, 1)
        await registry.delete(conn, world.project, "fn")
        await end(conn, world, running[0])
        assert await stands_in(conn, waiting[0]) == ["waiting"], "nobody is let in"
        assert await cancelling.cancel_after_delete(pool, limit=10) == 3
        await jobs.submit(conn, [new_job(world.version)])
        await conn.execute("UPDATE functions SET deleted_at = now() - interval '1 day'")
        assert await cancelling.cancel_after_delete(pool, limit=10) == 1, "however late"
        assert await conn.fetchval("SELECT count(*) FROM outcomes WHERE status = 'cancelled'") == 4
        assert await slots(conn) == 0


async def test_a_job_that_waits_for_its_limit_holds_up_nothing_else_of_its_project(pool: Pool) -> None:
    """Virtual time is given when a job is let in (QUEUE, trap 5)."""
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        await enter(conn, world, *["a"] * 200)
        free = await make_version(conn, world.project, name="free")
        (answer,) = await jobs.submit(conn, [new_job(free)])
        assert isinstance(answer, Submitted)
        assert answer.job_id in [each.job_id for each in await take(conn, world, 2)]


async def test_what_a_dead_process_did_not_advance_is_healed_by_the_round(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 2})
    async with pool.acquire() as conn:
        await jobs.submit(conn, [new_job(world.version) for _ in range(3)])
        assert await take(conn, world) == []
        assert await gates.advance_all(conn) == 2
        assert len(await take(conn, world)) == 2


async def test_gates_that_nobody_has_used_are_forgotten(pool: Pool) -> None:
    world = await limited(pool, concurrency={"perKey": 1, "key": KEY})
    async with pool.acquire() as conn:
        await enter(conn, world, "running", "ended")
        for each in await take(conn, world):
            if each.params == '{"customer":"ended"}':
                await end(conn, world, each)
        await enter(conn, world, "later", delay=timedelta(hours=1))
        await conn.execute("UPDATE gates SET used_at = now() - interval '3 days'")
        assert await gates.forget(conn, limit=10) == 1


@pytest.mark.parametrize("per_key", [1, 3])
async def test_eight_workers_at_once_never_deadlock_or_let_in_too_many(database: str, per_key: int) -> None:
    pool = await open_pool(database, hot_path=True, max_size=10)
    world = await limited(pool, concurrency={"limit": 5, "perKey": per_key, "key": KEY}, rate={"limit": 40, "per": "1s"})
    made: list[JobId] = []
    most = 0

    async def produce(turn: int) -> None:
        async with pool.acquire(timeout=60) as conn:
            for number in range(30):
                made.extend(await enter(conn, world, f"c{(number * turn) % 4}"))

    async def cancel() -> None:
        async with pool.acquire(timeout=60) as conn:
            while len(made) < 120:
                freed: set[GateId] = set()
                async with conn.transaction():
                    await cancelling.cancel(conn, world.project, made[-3:], freed)
                await gates.advance(conn, freed)
                await asyncio.sleep(0.05)

    async def work(worker: int) -> None:
        nonlocal most
        async with pool.acquire(timeout=60) as conn:
            node = await make_node(conn, slots=2)
            while await conn.fetchval("SELECT count(*) FROM outcomes") < 120:
                await gates.advance(conn, await gates.free_starts(conn, limit=100))
                taken = await claim(conn, node, world.account, free=2)
                held = await conn.fetch(
                    "SELECT gate_id, count(*) AS n, min(lim) AS lim FROM slots JOIN gates ON gates.id = gate_id"
                    " WHERE until IS NULL GROUP BY gate_id"
                )
                assert all(row["n"] <= row["lim"] for row in held)
                most = max([most, *(row["n"] for row in held)])
                for number, each in enumerate(taken):
                    freed: set[GateId] = set()
                    async with conn.transaction():
                        if (worker + number) % 3 == 0:
                            await finishing.release(conn, node, [(each.job_id, each.token)], "", freed)
                        else:
                            await finishing.finish(conn, node, each.job_id, Report(each.token, "succeeded"), freed=freed)
                    await gates.advance(conn, freed)
                if not taken:
                    await asyncio.sleep(0.005)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for turn in range(4):
            group.create_task(produce(turn + 1))
        for worker in range(4):
            group.create_task(work(worker + 1))
        group.create_task(cancel())
    async with pool.acquire() as conn:
        assert await slots(conn) == 0
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 120
        assert most >= 2
    await pool.close()


@pytest.mark.parametrize("changing", [False, True], ids=["", "limits-change"])
async def test_whatever_comes_together_no_place_leaks_no_limit_is_passed_and_every_job_ends(
    database: str, changing: bool
) -> None:
    """Advance, finish, cancel, retry, replace and pause: many short transactions in an order that chance makes. The
    pool's connections fail their test by a deadlock."""
    pool = await open_pool(database, hot_path=True, max_size=14)
    spec = {"concurrency": {"limit": 4, "perKey": 2, "key": KEY, "onLimit": "replace"}}
    async with pool.acquire() as conn:
        project, account = await make_project(conn)
        retry = {"attempts": 2, "backoff": {"initial": "0s", "max": "0s"}}
        version = await make_version(conn, project, params=BY_CUSTOMER, retry=retry, queue=spec)
        world = World(pool, project, account, version, await make_node(conn))
        steady = await make_version(
            conn, project, name="steady", params=BY_CUSTOMER, retry=retry,
            queue={"concurrency": {"limit": 3, "perKey": 2, "key": KEY}, "rate": {"limit": 50, "per": "1s"}},
        )  # fmt: skip
    chance = random.Random(4)
    made: list[JobId] = []
    producing = 6

    async def produce() -> None:
        nonlocal producing
        async with pool.acquire(timeout=60) as conn:
            for _ in range(15):
                which = chance.choice([world.version, steady])
                several = [
                    new_job(which, params={"customer": chance.choice("abc")}) for _ in range(chance.randint(1, 4))
                ]
                reached: set[GateId] = set()
                answers = await jobs.submit(conn, several, reached)
                made.extend(answer.job_id for answer in answers if isinstance(answer, Submitted))
                await gates.advance(conn, reached)
        producing -= 1

    async def cancel() -> None:
        async with pool.acquire(timeout=60) as conn:
            while producing:
                freed: set[GateId] = set()
                async with conn.transaction():
                    for _ in range(2):
                        await cancelling.cancel(conn, project, chance.sample(made, min(len(made), 6)), freed)
                await gates.advance(conn, freed)

    async def disturb() -> None:
        async with pool.acquire(timeout=60) as conn:
            while producing:
                paused = (await registry.set_paused(conn, project, "steady", paused=True)).id
                await pauses.pause(conn, project, paused, limit=100)
                await registry.set_paused(conn, project, "steady", paused=False)
                await pauses.resume(conn, paused, limit=100)
                if changing:
                    queue_of = chance.choice([spec, {}, {"concurrency": {"limit": 4}}])
                    world.version = await make_version(conn, project, params=BY_CUSTOMER, retry=retry, queue=queue_of)
                    await relimit_once(pool, STORE)
                await gates.advance_all(conn)

    async def work() -> None:
        async with pool.acquire(timeout=60) as conn:
            node = await make_node(conn, slots=2)
            while producing or await conn.fetchval("SELECT count(*) FROM outcomes") < len(made):
                await gates.advance(conn, await gates.free_starts(conn, limit=100))
                await conn.execute("UPDATE waiting_jobs SET due_at = now() WHERE due_at > now()")
                reached: set[GateId] = set()
                await queue.promote(conn, limit=100, reached=reached)
                await gates.advance(conn, reached)
                if not producing:
                    await pauses.heal(conn, limit=100, reached=reached)
                    await gates.advance_all(conn)
                over = await conn.fetch(
                    "SELECT gate_id FROM slots JOIN gates ON gates.id = gate_id WHERE until IS NULL"
                    " GROUP BY gate_id, lim HAVING count(*) > lim"
                )
                assert changing or not over
                for each in await claim(conn, node, account, free=2):
                    freed: set[GateId] = set()
                    asked = await leasing.heartbeat(conn, node, [(each.job_id, each.token, None, {})], lease=LEASE)
                    async with conn.transaction():
                        status = "cancelled" if asked.get(each.job_id) else chance.choice(["succeeded", "failed", ""])
                        if status:
                            code = "exit_nonzero" if status == "failed" else None
                            report = Report(each.token, status, code=code)
                            await finishing.finish(conn, node, each.job_id, report, freed=freed)
                        else:
                            await finishing.release(conn, node, [(each.job_id, each.token)], "", freed)
                    await gates.advance(conn, freed)

    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        for task in (*(produce() for _ in range(producing)), cancel(), cancel(), disturb(), *(work() for _ in range(4))):
            group.create_task(task)
    async with pool.acquire() as conn:
        assert await slots(conn) == 0
        assert await conn.fetchval("SELECT count(*) FROM outcomes") == await conn.fetchval("SELECT count(*) FROM jobs")
    await pool.close()


async def test_other_projects_are_not_touched(pool: Pool) -> None:
    world = await limited(pool, concurrency={"limit": 1})
    async with pool.acquire() as conn:
        other, account = await make_project(conn)
        theirs = World(
            pool, other, account,
            await make_version(conn, other, params=BY_CUSTOMER, queue={"concurrency": {"limit": 1}}), world.node,
        )  # fmt: skip
        await enter(conn, world, "a")
        await enter(conn, theirs, "a")
        assert len(await take(conn, theirs)) == len(await take(conn, world)) == 1
