"""One key, one job, however many requests carry it at once."""

from __future__ import annotations

import asyncio

from functions.db import Pool
from functions.errors import Invalid
from scheduler import jobs
from scheduler.jobs import Submitted
from tests.scheduler.factories import World, make_world, new_job


async def submit(world: World, key: str, body: bytes = b"same") -> Submitted | object:
    async with world.pool.acquire(timeout=60) as conn:
        (answer,) = await jobs.submit(conn, [new_job(world.version, idempotency_key=key, body_hash=body)])
        return answer


async def test_200_requests_with_one_key_make_one_job(pool: Pool) -> None:
    world = await make_world(pool)
    answers = await asyncio.gather(*(submit(world, "k") for _ in range(200)))
    made = [answer for answer in answers if isinstance(answer, Submitted)]
    assert len(made) == 200
    assert len({answer.job_id for answer in made}) == 1
    assert len([answer for answer in made if answer.created_at is not None]) == 1, "the others are told it is a replay"
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 1
        assert await conn.fetchval("SELECT count(*) FROM ready_jobs") == 1


async def test_another_body_under_the_same_key_is_refused_and_the_first_stays(pool: Pool) -> None:
    world = await make_world(pool)
    first = await submit(world, "k")
    refused = await submit(world, "k", b"other")
    assert isinstance(refused, Invalid)
    assert refused.code == "idempotency_key_reused"
    again = await submit(world, "k")
    assert isinstance(first, Submitted) and isinstance(again, Submitted)
    assert first.job_id == again.job_id


async def test_a_key_is_free_again_after_its_day(pool: Pool) -> None:
    world = await make_world(pool)
    first = await submit(world, "k")
    async with pool.acquire() as conn:
        await conn.execute("UPDATE idempotency_keys SET expires_at = now()")
    second = await submit(world, "k", b"other")
    assert isinstance(first, Submitted) and isinstance(second, Submitted)
    assert first.job_id != second.job_id
    assert second.created_at is not None


async def test_batches_with_the_same_keys_in_other_orders_do_not_wait_for_each_other_for_ever(pool: Pool) -> None:
    world = await make_world(pool)
    keys = [f"k{number}" for number in range(40)]

    async def batch(order: list[str]) -> list[object]:
        async with pool.acquire(timeout=60) as conn:
            new = [new_job(world.version, idempotency_key=key, body_hash=b"") for key in order]
            return list(await jobs.submit(conn, new))

    answers = await asyncio.gather(*(batch(keys if turn % 2 else keys[::-1]) for turn in range(10)))
    assert all(isinstance(answer, Submitted) for batch in answers for answer in batch)
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM jobs") == len(keys)


async def test_keys_of_two_functions_have_nothing_to_do_with_each_other(pool: Pool) -> None:
    world, other = await make_world(pool), await make_world(pool)
    one, two = await submit(world, "k"), await submit(other, "k", b"other")
    assert isinstance(one, Submitted) and isinstance(two, Submitted)
    assert one.job_id != two.job_id
