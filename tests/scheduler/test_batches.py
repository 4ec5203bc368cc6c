"""The moment when the last job of a batch has its outcome: found by whoever looks, told once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID

import pytest
from svix.webhooks import Webhook

from functions import ids
from functions.db import Pool
from functions.errors import NotFound
from functions.ids import BatchId
from gateway.database import open_pool
from scheduler import batches, cancelling, finishing, jobs
from scheduler.batches import NewBatch, complete_once
from scheduler.finishing import Report
from tests.scheduler.factories import SECRET, World, claim, make_project, make_world, new_job
from tests.scheduler.test_sending import deliver, receiving, sender


async def make_batch(world: World, count: int, url: str | None = None) -> BatchId:
    assert world.version.function_id is not None
    batch = BatchId(ids.new_uuid7())
    row = NewBatch(batch, world.project, world.version.function_id, world.version.id, count, url, None)
    async with world.pool.acquire() as conn, conn.transaction():
        await batches.add(conn, row)
        await jobs.submit(conn, [replace(new_job(world.version), batch_id=batch) for _ in range(count)])
    return batch


async def look(pool: Pool) -> int:
    async with pool.acquire() as conn:
        return (await complete_once(conn, batches.FIRST, limit=50))[0]


async def test_of_last_jobs_that_end_together_one_is_the_last_and_it_is_told_once(pool: Pool) -> None:
    world = await make_world(pool)
    made = [await make_batch(world, 3, f"https://example.com/{number}") for number in range(8)]
    async with pool.acquire() as conn:
        held = await claim(conn, world.node, world.account, free=24)
    assert len(held) == 24

    async def finish(claimed: object) -> int:
        assert isinstance(claimed, type(held[0]))
        async with pool.acquire(timeout=60) as conn, conn.transaction():
            await finishing.finish(conn, world.node, claimed.job_id, Report(claimed.token, "succeeded", 0))
        return await look(pool)

    told = sum(await asyncio.gather(*(finish(each) for each in held))) + await look(pool)
    assert told == len(made)
    async with pool.acquire() as conn:
        rows = await conn.fetch("SELECT job_id, count(*) FROM deliveries WHERE type = 'batch.completed' GROUP BY job_id")
        assert {(row["job_id"], row["count"]) for row in rows} == {(batch, 1) for batch in made}
        found = await batches.read(conn, world.project, made[0])
    assert (found.counts, found.completed_at is not None) == ({"succeeded": 3}, True)


async def test_a_look_that_dies_before_its_commit_is_repeated(pool: Pool) -> None:
    world = await make_world(pool)
    batch = await make_batch(world, 1, "https://example.com/a")
    async with pool.acquire() as conn:
        (job,) = [row["id"] for row in await conn.fetch("SELECT id FROM jobs WHERE batch_id = $1", batch)]
        async with conn.transaction():
            await cancelling.cancel(conn, world.project, [job])
        transaction = conn.transaction()
        await transaction.start()
        assert (await complete_once(conn, batches.FIRST, limit=50))[0] == 1
        assert await look(pool) == 0, "another scheduler passes over what this one has in hand"
        await transaction.rollback()
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 0
    assert [await look(pool) for _ in range(2)] == [1, 0]
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM deliveries WHERE type = 'batch.completed'") == 1


async def test_a_round_looks_at_every_open_batch_in_turn(pool: Pool) -> None:
    world = await make_world(pool)
    made = [await make_batch(world, 1) for _ in range(5)]
    async with pool.acquire() as conn:
        seen, after = [], batches.FIRST
        while after is not None:
            _, found = await complete_once(conn, after, limit=2)
            seen.append(found)
            after = found
        assert seen == [made[1], made[3], None]


async def test_the_end_of_a_batch_is_sent_signed_with_its_counts(pool: Pool) -> None:
    world = await make_world(pool)
    async with receiving() as receiver:
        batch = await make_batch(world, 2, receiver.url)
        async with pool.acquire() as conn:
            found = [row["id"] for row in await conn.fetch("SELECT id FROM jobs")]
            async with conn.transaction():
                await cancelling.cancel(conn, world.project, found)
        assert await look(pool) == 1
        await deliver(sender(pool))
        ((_, headers, body),) = receiver.requests
    Webhook(SECRET).verify(body, headers)
    message = json.loads(body)
    assert (message["type"], message["data"]["id"]) == ("batch.completed", ids.encode(ids.BATCH, batch))
    assert (message["data"]["status"], message["data"]["counts"]["cancelled"]) == ("completed", 2)


async def test_a_batch_of_another_project_is_not_there(pool: Pool) -> None:
    world = await make_world(pool)
    batch = await make_batch(world, 1)
    async with pool.acquire() as conn:
        other, _ = await make_project(conn)
        with pytest.raises(NotFound):
            await batches.read(conn, other, batch)
        assert await batches.list_batches(conn, other, limit=5, before=None) == []


async def test_looks_go_over_each_job_once_however_many_outcomes_there_are(database: str) -> None:
    """On the hot path's connections, with plans that were made while the tables were empty."""
    pool = await open_pool(database, hot_path=True, max_size=1)
    world = await make_world(pool)
    assert await look(pool) == 0
    batch = await make_batch(world, 4000)
    async with pool.acquire() as conn:
        await conn.execute(
            """INSERT INTO outcomes (job_id, project_id, status, attempt, losses)
               SELECT gen_random_uuid(), $1, 'cancelled', 0, 0 FROM generate_series(1, 20000)""", world.project
        )  # fmt: skip
        first = await conn.fetchval("SELECT id FROM jobs ORDER BY id LIMIT 1")
        await conn.execute(
            """INSERT INTO outcomes (job_id, project_id, status, attempt, losses)
               SELECT id, project_id, 'cancelled', 0, 0 FROM jobs WHERE id <> $1""", first
        )  # fmt: skip
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
        name = "PREPARE look AS " + batches.LOOK_AT_BATCHES
        await conn.execute(name)
        touched = []
        for _ in range(2):
            (plan,) = json.loads(await conn.fetchval(f"{explain} EXECUTE look ('{UUID(int=0)}', 50)"))
            touched.append(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])
        assert await conn.fetchval("SELECT looked_to FROM batches WHERE id = $1", batch) == first
        assert touched[0] < 40_000 and touched[1] < 60, touched
    await pool.close()
