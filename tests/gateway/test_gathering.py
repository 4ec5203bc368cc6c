"""Group commit and shared waiting, without HTTP."""

from __future__ import annotations

import asyncio

import pytest

from functions.db import Pool
from functions.ids import JobId, new_uuid7
from gateway.gathering import Gatherer
from gateway.services import Services
from gateway.waiting import OutcomeWaiters
from scheduler.wakeups import Topic, Wakeups

ADD_OUTCOME = """
INSERT INTO outcomes (job_id, project_id, status, attempt, losses, token) VALUES ($1, 1, 'cancelled', 0, 0, NULL)
"""


class Refused(Exception):
    pass


class Flush:
    """Answers an item with its double; negative ones cannot be written. Goes on when it is let."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.let = asyncio.Event()

    async def __call__(self, items: list[int]) -> list[int]:
        self.calls.append(items)
        await self.let.wait()
        if any(item < 0 for item in items):
            raise Refused
        return [item * 2 for item in items]


def gatherer(flush: Flush, **options: int) -> Gatherer[int, int]:
    return Gatherer(flush, key=lambda item: item % 10 or None, alone=(Refused,), **options)


async def submit_all(gather: Gatherer[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Tasks of items that are all in hand, the first ones under way."""
    tasks = [asyncio.create_task(gather.submit(item)) for item in items]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_lone_item_is_not_kept_waiting_and_a_crowd_shares_the_next_calls() -> None:
    flush = Flush()
    tasks = await submit_all(gatherer(flush, lanes=1, largest=3), *range(10, 60, 10))
    assert flush.calls == [[10]]
    flush.let.set()
    assert await asyncio.gather(*tasks) == [20, 40, 60, 80, 100]
    assert flush.calls == [[10], [20, 30, 40], [50]]


async def test_items_of_one_key_stand_in_different_calls_and_pass_nobody() -> None:
    flush = Flush()
    tasks = await submit_all(gatherer(flush, lanes=1), 10, 1, 11, 2, 21)
    flush.let.set()
    await asyncio.gather(*tasks)
    assert flush.calls == [[10], [1, 2], [11], [21]]


async def test_an_item_that_is_refused_takes_no_other_with_it() -> None:
    flush = Flush()
    tasks = await submit_all(gatherer(flush, lanes=1), 10, 20, -30, 40)
    flush.let.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[:2] == [20, 40] and isinstance(answers[2], Refused) and answers[3] == 80


async def test_another_error_is_everybodys() -> None:
    async def fail(items: list[int]) -> list[int]:
        raise OSError("away")

    gather: Gatherer[int, int] = Gatherer(fail, key=lambda _: None, alone=(Refused,), lanes=1)
    for _ in range(2):  # a lane that failed is free again
        answers = await asyncio.gather(*(gather.submit(item) for item in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [OSError] * 3


async def test_a_request_that_goes_away_does_not_take_its_neighbours_along() -> None:
    flush = Flush()
    first, second = await submit_all(gatherer(flush, lanes=1), 10, 20)
    first.cancel()
    await asyncio.sleep(0)
    flush.let.set()
    assert await second == 40
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_waiting_outlives_a_database_that_was_away(pool: Pool, database: str) -> None:
    wakeups = Wakeups(database)  # nobody runs it: polling is the truth
    waiters = OutcomeWaiters(pool, wakeups, poll_s=0.05)
    running = asyncio.create_task(waiters.run())
    job, stopping = JobId(new_uuid7()), asyncio.Event()
    try:
        await pool.execute("ALTER TABLE outcomes RENAME TO away")
        waiting = asyncio.create_task(waiters.wait(job, 10, stopping))
        await asyncio.sleep(0.2)
        assert not waiting.done() and not running.done()
        await pool.execute("ALTER TABLE away RENAME TO outcomes")
        await pool.execute(ADD_OUTCOME, job)
        assert await waiting is True
        assert await waiters.wait(JobId(new_uuid7()), 0.05, stopping) is False
    finally:
        running.cancel()


async def test_a_hint_from_another_process_ends_the_wait_before_the_next_poll(
    services: Services, pool: Pool, database: str
) -> None:
    waiters = OutcomeWaiters(pool, services.wakeups, poll_s=60)
    elsewhere = Wakeups(database)
    tasks = [asyncio.create_task(waiters.run()), asyncio.create_task(elsewhere.run())]
    try:
        job = JobId(new_uuid7())
        waiting = asyncio.create_task(waiters.wait(job, 30, services.stopping))
        await pool.execute(ADD_OUTCOME, job)
        async with asyncio.timeout(10):
            while not waiting.done():
                elsewhere.hint(Topic.OUTCOME)
                await asyncio.wait([waiting], timeout=0.1)
        assert waiting.result() is True
    finally:
        for task in tasks:
            task.cancel()
