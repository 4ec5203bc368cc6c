"""Schedules: one job for each planned time, with two schedulers and over crashes, and what becomes of the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest

from functions import due_schedules, ids, registry, schedules
from functions.db import Connection, Pool
from functions.errors import Invalid, Unavailable
from functions.ids import ScheduleId
from functions.manifest import parse_manifest
from functions.schedule_spec import ScheduleSpec
from scheduler import cancelling, claiming, cron, finishing, schedule_runs
from scheduler.claiming import VirtualClocks
from scheduler.cron import Fired, fire_once
from scheduler.due_times import spread
from scheduler.queue import NewJob
from scheduler.views import rfc3339
from tests.scheduler.factories import (
    LEASE,
    LOOPBACK,
    SIZING,
    STORE,
    World,
    claim_one,
    make_job,
    make_world,
    stands_in,
)

HOUR = timedelta(hours=1)
SPEC: dict[str, Any] = {"name": "hourly", "cron": "@hourly"}
AWAY: Any = SimpleNamespace(put=AsyncMock(side_effect=Unavailable("the store does not answer")))
JOBS = "SELECT id, trigger, params, key_id FROM jobs ORDER BY id"


async def add(conn: Connection, world: World, **spec: Any) -> ScheduleId:
    """A schedule whose next time is up to an hour from now."""
    row = await schedules.add(conn, world.project, "fn", ScheduleSpec.model_validate(SPEC | spec))
    return row.id


async def pass_hours(conn: Connection, schedule: ScheduleId, hours: int = 1, *, late_s: float = 0) -> datetime:
    """Let the clock come to the last of so many planned times, and ``late_s`` further: everything before lies in the past.

    Returns the first of them.
    """
    # Rather than now, the line is moved: its minute becomes the one of now.
    now = await schedules.clock(conn)
    last = (now - timedelta(seconds=late_s)).replace(second=0, microsecond=0)
    first = last - (hours - 1) * HOUR
    await conn.execute(
        "UPDATE schedules SET cron = $2, next_at = $3, due_at = $3 WHERE id = $1", schedule, f"{last.minute} * * * *", first
    )
    return first


async def fire(pool: Pool, **more: Any) -> Fired:
    return await fire_once(pool, STORE, SIZING, LOOPBACK, **more)


async def runs_of(conn: Connection, world: World, schedule: ScheduleId) -> list[tuple[str, datetime]]:
    """In the order of their times."""
    far = await schedules.clock(conn) + 1000 * HOUR
    found = await schedule_runs.list_runs(conn, world.project, schedule, limit=2000, before=far)
    return [(run.state, run.planned_at) for run in reversed(found)]


async def test_a_planned_time_makes_one_job_that_knows_it(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        params = {"day": "{{ schedule.time }}", "who": "{{ trigger.name }} of {{ function.name }}", "n": 3, "none": None}
        schedule = await add(conn, world, params=params)
        assert await fire(pool) == Fired()
        at = await pass_hours(conn, schedule)
        assert await fire(pool) == Fired(schedules=1, submitted=1)
        assert await fire(pool) == Fired()
        (job,) = await conn.fetch(JOBS)
        text = at.strftime("%Y-%m-%dT%H:%M:00Z")
        assert json.loads(job["params"]) == {"day": text, "who": "hourly of fn", "n": 3, "none": None}
        name = ids.encode(ids.SCHEDULE, schedule)
        assert json.loads(job["trigger"]) == {"kind": "schedule", "name": "hourly", "schedule": name, "time": text}
        assert job["key_id"] is None
        assert await stands_in(conn, job["id"]) == ["ready"]
        row = await schedules.get(conn, world.project, schedule)
        assert row.next_at == at + HOUR
        assert row.last is not None and (row.last.state, row.last.job_id) == ("submitted", job["id"])
        assert await runs_of(conn, world, schedule) == [("submitted", at)]


async def test_schedulers_side_by_side_make_one_job_each_time(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        made = [await add(conn, world, name=f"s{n}") for n in range(40)]
        for each in made:
            await pass_hours(conn, each)

    async def scheduler() -> int:
        count = 0
        while fired := (await fire(pool, limit=3)).submitted:
            count += fired
        return count

    counts = await asyncio.gather(*(scheduler() for _ in range(4)))
    while (left := (await fire(pool)).submitted):  # what the last of them had passed by
        counts.append(left)
    assert sum(counts) == 40
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(DISTINCT trigger ->> 'name') FROM jobs") == 40
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 40


@pytest.mark.parametrize("where", ["record", "move"])
async def test_a_crash_before_the_commit_loses_nothing_and_doubles_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world)
        at = await pass_hours(conn, schedule)

        async def die(*_: object) -> None:
            raise ConnectionError("the process is gone")

        with monkeypatch.context() as patch:
            patch.setattr(schedule_runs if where == "record" else due_schedules, where, die)
            with pytest.raises(ConnectionError):
                await fire(pool)
        assert await conn.fetch(JOBS) == [] and await runs_of(conn, world, schedule) == []
        assert await fire(pool) == Fired(schedules=1, submitted=1)
        assert await runs_of(conn, world, schedule) == [("submitted", at)]


# Overlap


async def test_skip_makes_no_job_beside_one_that_has_not_ended(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world)
        await pass_hours(conn, schedule)
        assert (await fire(pool)).submitted == 1
        job = await claim_one(conn, world.node, world.account)
        await move_runs_back(conn)
        at = await pass_hours(conn, schedule)
        assert await fire(pool) == Fired(schedules=1, skipped=1)
        assert (await runs_of(conn, world, schedule))[-1] == ("skipped", at)
        await finishing.finish(conn, world.node, job.job_id, finishing.Report(job.token, "succeeded"))
        await move_runs_back(conn)
        await pass_hours(conn, schedule)
        assert await fire(pool) == Fired(schedules=1, submitted=1)
        assert await conn.fetchval("SELECT count(*) FROM schedule_runs WHERE ended") == 1


async def move_runs_back(conn: Connection) -> None:
    """As if they had been an hour earlier: the time of now comes again in a test."""
    await conn.execute("UPDATE schedule_runs SET planned_at = planned_at - interval '1 day' * (SELECT count(*) FROM jobs)")


async def test_a_job_whose_retention_is_over_holds_up_nothing(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world)
        await pass_hours(conn, schedule)
        assert (await fire(pool)).submitted == 1
        await conn.execute("DELETE FROM ready_jobs")
        await conn.execute("DELETE FROM jobs")
        await conn.execute("UPDATE schedule_runs SET planned_at = planned_at - interval '1 day'")
        await pass_hours(conn, schedule)
        assert (await fire(pool)).submitted == 1


async def test_allow_makes_a_job_beside_the_others(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, overlap="allow")
        for _ in range(2):
            await move_runs_back(conn)
            await pass_hours(conn, schedule)
            assert await fire(pool) == Fired(schedules=1, submitted=1)


async def test_replace_cancels_what_has_not_ended(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, overlap="replace")
        await pass_hours(conn, schedule)
        await fire(pool)
        running = (await claim_one(conn, world.node, world.account)).job_id
        await move_runs_back(conn)
        await pass_hours(conn, schedule)
        assert await fire(pool) == Fired(schedules=1, submitted=1)
        assert await conn.fetchval("SELECT cancel_requested FROM leases WHERE job_id = $1", running)
        (waiting,) = await conn.fetch("SELECT job_id FROM ready_jobs")
        await move_runs_back(conn)
        await pass_hours(conn, schedule)
        assert await fire(pool) == Fired(schedules=1, submitted=1)
        assert await stands_in(conn, waiting["job_id"]) == ["cancelled"]
        assert await conn.fetchval("SELECT count(*) FROM ready_jobs") == 1


async def test_replace_cancels_nothing_for_a_job_that_cannot_be_made(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, overlap="replace")
        await pass_hours(conn, schedule)
        await fire(pool)
        await apply(conn, world, params={"type": "object", "required": ["a"]})
        await move_runs_back(conn)
        await pass_hours(conn, schedule)
        assert await fire(pool) == Fired(schedules=1, failed=1)
        assert await conn.fetchval("SELECT count(*) FROM ready_jobs") == 1


# After a downtime (F49)


@pytest.mark.parametrize(
    ("catch_up", "states"),
    [
        ("none", ["missed"]),
        ("one", ["missed", "submitted"]),
        ("all", ["submitted", "submitted", "submitted"]),
    ],
)
async def test_three_planned_times_that_nobody_was_there_for(pool: Pool, catch_up: str, states: list[str]) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, catchUp=catch_up)
        first = await pass_hours(conn, schedule, 3, late_s=600)
        await fire(pool)
        assert await fire(pool) == Fired()
        runs = await runs_of(conn, world, schedule)
        assert [state for state, _ in runs] == states
        assert [at for _, at in runs] == {
            "none": [first], "one": [first, first + 2 * HOUR], "all": [first, first + HOUR, first + 2 * HOUR],
        }[catch_up]  # fmt: skip
        missed = await conn.fetch("SELECT until_at, count FROM schedule_runs WHERE state = 'missed'")
        expected = {"none": [(first + 2 * HOUR, 3)], "one": [(first + HOUR, 2)], "all": []}[catch_up]
        assert [tuple(row) for row in missed] == expected
        assert await conn.fetchval("SELECT count(*) FROM jobs") == states.count("submitted")
        assert (await schedules.get(conn, world.project, schedule)).next_at == first + 3 * HOUR


async def test_a_thousand_times_are_caught_up_in_bounded_steps(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        made = [await add(conn, world, name=f"s{n}", catchUp="all", overlap="allow") for n in range(2)]
        for each in made:
            await pass_hours(conn, each, 1300, late_s=60)
        fired = [await fire(pool) for _ in made]
        assert [(each.schedules, each.submitted, each.missed) for each in fired] == [(1, 1000, 1)] * 2
        assert await fire(pool) == Fired()
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 2000
        assert await conn.fetchval("SELECT bool_and(count IS NULL) FROM schedule_runs WHERE state = 'missed'")


# Clocks, jitter


async def test_long_params_do_not_stay_in_memory(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        before = schedules._parsed.cache_info().currsize
        for name, length in (("long", 60_000), ("short", 10)):
            await add(conn, world, name=name, params={"x": "x" * length})
        found = await schedules.list_schedules(conn, world.project, limit=10, before=None)
    assert [len(row.spec.params["x"]) for row in found] == [10, 60_000]
    assert schedules._parsed.cache_info().currsize == before + 1


async def test_schedules_that_take_long_to_plan_are_dealt_with_in_several_rounds(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cron, "PLAN_S", 0)
    world = await make_world(pool)
    async with pool.acquire() as conn:
        for name in ("a", "b"):
            await pass_hours(conn, await add(conn, world, name=name))
        assert [await fire(pool) for _ in range(3)] == [Fired(schedules=1, submitted=1)] * 2 + [Fired()]


async def test_a_clock_that_is_put_back_runs_no_time_twice(pool: Pool) -> None:
    """F50: somebody pauses and resumes while the clock shows the minute before a time that has run."""
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, overlap="allow")
        at = await pass_hours(conn, schedule)
        assert (await fire(pool)).submitted == 1
        await conn.execute("UPDATE schedules SET next_at = $1, due_at = $1", at)
        assert await fire(pool) == Fired(schedules=1)
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 1
        assert (await schedules.get(conn, world.project, schedule)).next_at == at + HOUR
        for times in range(2):  # missed before, and once more
            await conn.execute("UPDATE schedules SET catch_up = 'none', next_at = $1, due_at = $1", at - 5 * HOUR)
            assert await fire(pool) == Fired(schedules=1, missed=1 - times)


async def test_jitter_delays_the_job_and_not_its_planned_time(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, jitter="1d")
        at = await pass_hours(conn, schedule)
        await fire(pool)
        (row,) = await conn.fetch("SELECT due_at, stage FROM waiting_jobs")
        assert (row["stage"], row["due_at"]) == ("delayed", at + spread(schedule, at, timedelta(days=1)))
        assert await runs_of(conn, world, schedule) == [("submitted", at)]
        await move_runs_back(conn)
        await pass_hours(conn, schedule)
        assert (await fire(pool)).skipped == 1  # a job that still waits has not ended


# What stops or changes a schedule


async def apply(conn: Connection, world: World, *listed: Mapping[str, Any], **spec: Any) -> None:
    spec = {"job": {"image": "busybox"}, "triggers": {"schedules": list(listed)}} | spec
    document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": "fn"}, "spec": spec}
    await registry.apply(conn, world.project, parse_manifest(json.dumps(document).encode(), yaml=False, policy=LOOPBACK))


async def listed(conn: Connection, world: World) -> dict[str, Any]:
    found = await schedules.list_schedules(conn, world.project, limit=100, before=None)
    return {row.spec.name: row for row in found}


async def test_an_apply_makes_changes_and_takes_away_the_schedules_of_a_manifest(pool: Pool) -> None:
    world = await make_world(pool)
    a, b = {"name": "a", "cron": "0 3 * * *"}, {"name": "b", "cron": "0 4 * * *", "timezone": "Europe/Berlin"}
    async with pool.acquire() as conn:
        own = await add(conn, world, name="own")
        await apply(conn, world, a, b)
        first = await listed(conn, world)
        assert {name: row.origin for name, row in first.items()} == {"a": "manifest", "b": "manifest", "own": "api"}
        past = await schedules.clock(conn) - 5 * HOUR
        await conn.execute("UPDATE schedules SET next_at = $1, due_at = $1 WHERE name = 'a'", past)
        # Other params, or other metadata, are no reason to forget a time that nobody has got to yet.
        await apply(conn, world, a | {"params": {"x": 1}}, b | {"cron": "0 5 * * *"})
        second = await listed(conn, world)
        assert (second["a"].id, second["a"].next_at, second["a"].spec.params) == (first["a"].id, past, {"x": 1})
        assert second["b"].next_at not in (None, first["b"].next_at)
        await apply(conn, world, b)
        assert (await listed(conn, world)).keys() == {"b", "own"}
        await registry.rollback(conn, world.project, "fn", 2)
        third = await listed(conn, world)
        assert third.keys() == {"a", "b", "own"} and third["a"].id != first["a"].id
        assert third["own"].id == own


async def test_an_apply_leaves_a_paused_schedule_paused(pool: Pool) -> None:
    world = await make_world(pool)
    a = {"name": "a", "cron": "0 3 * * *"}
    async with pool.acquire() as conn:
        await apply(conn, world, a)
        row = (await listed(conn, world))["a"]
        assert (await schedules.set_paused(conn, world.project, row.id, paused=True)).next_runs(5) == []
        await apply(conn, world, a | {"cron": "* * * * *"})
        row = (await listed(conn, world))["a"]
        assert (row.paused, row.next_at, row.spec.cron) == (True, None, "* * * * *")
        assert await fire(pool) == Fired()
        row = await schedules.set_paused(conn, world.project, row.id, paused=False)
        now = await schedules.clock(conn)
        assert row.next_at is not None and timedelta(0) < row.next_at - now <= timedelta(minutes=1)


async def test_a_manifest_may_not_take_the_name_of_a_schedule_of_the_api(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        await add(conn, world, name="own")
        with pytest.raises(Invalid) as refused:
            await apply(conn, world, {"name": "a", "cron": "@daily"}, {"name": "own", "cron": "@daily"})
        assert [error.pointer for error in refused.value.errors] == ["/spec/triggers/schedules/1/name"]
        assert refused.value.code == "schedule_exists"


async def test_a_function_that_is_deleted_stops_its_schedules_at_once(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn, pool.acquire() as other:
        await pass_hours(conn, await add(conn, world))
        # The round passes by what a delete has in hand, and there is nothing after it.
        async with conn.transaction():
            await registry.delete(conn, world.project, "fn")
            assert await fire(pool) == Fired()
        assert await fire(pool) == Fired()
        assert await other.fetchval("SELECT count(*) FROM schedules") == 0


async def test_a_delete_waits_for_the_round_that_has_the_schedule_and_finds_its_job(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn, pool.acquire() as other:
        schedule = await add(conn, world)
        await pass_hours(conn, schedule)
        async with conn.transaction():
            assert [each.id for each in await due_schedules.due(conn, limit=10)] == [schedule]
            deleting = asyncio.create_task(schedules.delete(other, world.project, schedule))
            await blocked(pool)
            await due_schedules.move(conn, [(schedule, None)])
        await deleting


async def blocked(pool: Pool) -> None:
    """Return when a statement waits for a lock."""
    async with pool.acquire() as conn, asyncio.timeout(10):
        while not await conn.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)


async def test_the_version_that_is_current_then_runs(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world)
        await apply(conn, world, job={"image": "busybox:2"})
        await pass_hours(conn, schedule)
        await fire(pool)
        number = "SELECT number FROM jobs JOIN function_versions v ON v.id = version_id"
        assert await conn.fetchval(number) == 2


# Times that come to no job


async def test_a_function_that_takes_the_params_no_more_fails_its_own_schedule_only(pool: Pool) -> None:
    world, other = await make_world(pool), await make_world(pool)
    async with pool.acquire() as conn:
        schedule, fine = await add(conn, world), await add(conn, other)
        await apply(conn, world, params={"type": "object", "required": ["a"]})
        for each in (schedule, fine):
            await pass_hours(conn, each)
        assert await fire(pool) == Fired(schedules=2, submitted=1, failed=1)
        error = json.loads(await conn.fetchval("SELECT error FROM schedule_runs WHERE state = 'failed'"))
        assert error["code"] == "params_invalid" and "a" in error["message"]
        assert (await runs_of(conn, other, fine))[0][0] == "submitted"
        assert (await schedules.get(conn, world.project, schedule)).next_at is not None


async def test_one_that_its_function_rejects_is_a_failed_job(pool: Pool) -> None:
    world = await make_world(pool, queue={"concurrency": {"limit": 1, "onLimit": "reject"}})
    async with pool.acquire() as conn:
        made = [await add(conn, world, name=name) for name in ("a", "b")]
        for each in made:
            await pass_hours(conn, each)
        assert await fire(pool) == Fired(schedules=2, submitted=2)
        (failed,) = await conn.fetch("SELECT job_id, status, error FROM outcomes")
        assert (failed["status"], json.loads(failed["error"])["code"]) == ("failed", "concurrency_rejected")
        assert await conn.fetchval("SELECT state FROM schedule_runs WHERE job_id = $1", failed["job_id"]) == "submitted"


async def test_a_job_that_the_database_refuses_ends_no_others(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        for name in ("a", "b", "c"):
            await pass_hours(conn, await add(conn, world, name=name))
        made = cron.job_of

        def odd(schedule: ScheduleId, spec: ScheduleSpec, planned: datetime, **more: Any) -> NewJob:
            job = made(schedule, spec, planned, **more)
            return replace(job, slots=0) if spec.name == "b" else job

        monkeypatch.setattr(cron, "job_of", odd)
        assert await fire(pool) == Fired(schedules=3, submitted=2, failed=1)


async def test_large_params_wait_for_a_store_that_is_away(pool: Pool) -> None:
    big = {"type": "object", "properties": {"x": {"type": "string", "default": "x" * 200_000}}}
    world = await make_world(pool, params=big)
    other = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world)
        at = await pass_hours(conn, schedule)
        await pass_hours(conn, await add(conn, other))
        assert await fire_once(pool, AWAY, SIZING, LOOPBACK) == Fired(schedules=2, submitted=1)
        assert await fire(pool) == Fired()
        assert await runs_of(conn, world, schedule) == []
        row = await conn.fetchrow("SELECT next_at, due_at - now() AS pause FROM schedules WHERE id = $1", schedule)
        assert row is not None and row["next_at"] == at and row["pause"] > timedelta(seconds=20)


async def test_a_store_that_does_not_answer_holds_up_nobody_else(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(cron, "SPILL_S", 0.2)
    big = {"type": "object", "properties": {"x": {"type": "string", "default": "x" * 200_000}}}
    world, other = await make_world(pool, params=big), await make_world(pool)
    async with pool.acquire() as conn:
        names = [f"large-{n}" for n in range(2 * cron.SPILLING)]
        for schedule in [await add(conn, world, name=name) for name in names] + [await add(conn, other)]:
            await pass_hours(conn, schedule)
        hanging: Any = SimpleNamespace(put=never)
        fired = await fire_once(pool, hanging, SIZING, LOOPBACK)
        assert fired == Fired(schedules=len(names) + 1, submitted=1)
        assert await conn.fetchval("SELECT count(*) FROM schedules WHERE due_at > next_at + interval '20 s'") == len(names)


# schedule.missed


@pytest.mark.parametrize("reason", ["late", "overlap", "error"])
async def test_whoever_wants_to_know_is_told_of_times_that_come_to_no_job(pool: Pool, reason: str) -> None:
    callbacks = [
        {"url": "http://127.0.0.1:1/missed", "events": ["schedule.missed"]},
        {"url": "http://127.0.0.1:1/other", "events": ["job.failed"]},
    ]
    world = await make_world(pool, callbacks=callbacks)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, catchUp="none")
        if reason == "late":
            at = await pass_hours(conn, schedule, 3, late_s=600)
        else:
            at = await pass_hours(conn, schedule)
        if reason == "overlap":
            run = schedule_runs.Run(schedule, at - HOUR, world.project, "submitted", job_id=await make_job(conn, world.version))
            await schedule_runs.record(conn, [run])
        if reason == "error":
            await apply(conn, world, params={"type": "object", "required": ["a"]}, callbacks=callbacks)
        assert (await fire(pool)).submitted == 0
        (told,) = await conn.fetch("SELECT * FROM deliveries")
        assert (told["type"], told["url"]) == ("schedule.missed", "http://127.0.0.1:1/missed")
        data = json.loads(told["payload"])
        assert (data["schedule"], data["name"], data["function"]) == (ids.encode(ids.SCHEDULE, schedule), "hourly", "fn")
        assert (data["reason"], data["count"]) == (reason, 3 if reason == "late" else 1)
        assert (data["error"] or {}).get("code") == ("params_invalid" if reason == "error" else None)
        # Told once, however often.
        await conn.execute("UPDATE schedules SET next_at = $1, due_at = $1", at)
        await fire(pool)
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 1


async def test_what_came_of_times_is_forgotten_when_it_is_old(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = ScheduleId(uuid4())
        now = await schedules.clock(conn)
        runs = [schedule_runs.Run(schedule, now - n * HOUR, world.project, "skipped") for n in range(10)]
        await schedule_runs.record(conn, runs)
        await conn.execute("UPDATE schedule_runs SET at = planned_at")
        assert await schedule_runs.forget(conn, age=timedelta(hours=4, minutes=30), limit=3) == 3
        assert await schedule_runs.forget(conn, age=timedelta(hours=4, minutes=30), limit=3) == 2
        assert [at for _, at in await runs_of(conn, world, schedule)] == [now - n * HOUR for n in range(4, -1, -1)]


async def test_a_job_that_waits_for_long_is_not_forgotten_and_not_overlapped(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        schedule = await add(conn, world)
        await pass_hours(conn, schedule)
        assert (await fire(pool)).submitted == 1
        await conn.execute("UPDATE schedule_runs SET planned_at = planned_at - interval '40 days', at = at - interval '40 days'")
        assert await schedule_runs.forget(conn, age=timedelta(days=30), limit=10) == 0
        await pass_hours(conn, schedule)
        assert (await fire(pool)).skipped == 1
        await cancelling.cancel(conn, world.project, [row["id"] for row in await conn.fetch(JOBS)])
        assert await schedule_runs.forget(conn, age=timedelta(0), limit=10) == 2


async def test_a_schedule_that_cannot_be_read_stops_no_others(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        odd, plain = [await add(conn, world, name=name) for name in ("odd", "plain")]
        for schedule in (odd, plain):
            await pass_hours(conn, schedule)
        await conn.execute("UPDATE schedules SET timezone = 'Mars/Olympus' WHERE id = $1", odd)
        assert await fire(pool) == Fired(schedules=1, submitted=1)
        assert await conn.fetchval("SELECT due_at > now() AND next_at <= now() FROM schedules WHERE id = $1", odd)
        # Nobody looks at it again and again.
        assert await fire(pool) == Fired()


async def test_a_node_runs_what_a_schedule_asks_for(pool: Pool) -> None:
    world = await make_world(pool, job={"command": ["echo", "{{ params.day }}", "{{ trigger.name }}"]})
    async with pool.acquire() as conn:
        schedule = await add(conn, world, params={"day": "{{ schedule.time }}"})
        await pass_hours(conn, schedule)
        await fire(pool)
        (claimed,) = await claiming.claim(
            conn, VirtualClocks(), world.node, pools=[world.account], free_slots=1, node_slots=1, lease=LEASE
        )
        assert json.loads(claimed.trigger)["kind"] == "schedule"


async def test_times_that_one_round_finds_alike_are_told_together(pool: Pool) -> None:
    callbacks = [{"url": "http://127.0.0.1:1/missed", "events": ["schedule.missed"]}]
    world = await make_world(pool, callbacks=callbacks)
    async with pool.acquire() as conn:
        schedule = await add(conn, world, catchUp="all")
        at = await pass_hours(conn, schedule, 5)
        run = schedule_runs.Run(schedule, at - HOUR, world.project, "submitted", job_id=await make_job(conn, world.version))
        await schedule_runs.record(conn, [run])
        assert await fire(pool) == Fired(schedules=1, skipped=5)
        data = json.loads(await conn.fetchval("SELECT payload FROM deliveries"))
        assert (data["reason"], data["count"]) == ("overlap", 5)
        assert [data["planned_at"], data["until"]] == [rfc3339(at), rfc3339(at + 4 * HOUR)]
