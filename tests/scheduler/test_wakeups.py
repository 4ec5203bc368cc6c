"""Hints between processes: they arrive, they may get lost, and the listener comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from functions.db import Pool
from scheduler import wakeups as module
from scheduler.wakeups import Topic, Wakeups

LISTENERS = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND (query ILIKE 'LISTEN %' OR query ILIKE 'SELECT pg_notify(%')
"""


@asynccontextmanager
async def running(database: str, pool: Pool, number: int = 1) -> AsyncIterator[list[Wakeups]]:
    made = [Wakeups(database) for _ in range(number)]
    tasks = [asyncio.ensure_future(each.run()) for each in made]
    try:
        await listening(pool, number)
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def listening(pool: Pool, number: int, other_than: int | None = None) -> list[int]:
    """Wait until so many listen; their server processes."""
    async with asyncio.timeout(20), pool.acquire() as conn:
        while True:
            found = [row["pid"] for row in await conn.fetch(LISTENERS) if row["pid"] != other_than]
            if len(found) == number:
                return found
            await asyncio.sleep(0.02)


async def test_a_hint_reaches_this_process_and_the_others(database: str, pool: Pool) -> None:
    async with running(database, pool, 2) as (mine, theirs):
        tickets = [each.ticket(Topic.READY) for each in (mine, theirs)]
        other = theirs.ticket(Topic.OUTCOME)
        mine.hint(Topic.READY)
        assert await asyncio.gather(*(ticket.wait(20) for ticket in tickets)) == [True, True]
        assert not await other.wait(0)


async def test_a_ticket_remembers_a_hint_that_came_before_the_wait_and_only_that(database: str) -> None:
    wakeups = Wakeups(database)
    before = wakeups.ticket(Topic.READY)
    wakeups.wake(Topic.READY)
    assert await before.wait(0.01)
    assert not await wakeups.ticket(Topic.READY).wait(0.01)


async def test_many_hints_at_once_are_few_notifications(database: str, pool: Pool) -> None:
    heard = 0

    def count(*_: object) -> None:
        nonlocal heard
        heard += 1

    async with running(database, pool) as (mine,), pool.acquire() as conn:
        await conn.add_listener(Topic.READY, count)
        last = asyncio.Event()
        await conn.add_listener(Topic.LOG, lambda *_: last.set())
        for _ in range(1000):
            mine.hint(Topic.READY)
        mine.hint(Topic.LOG)
        async with asyncio.timeout(20):
            await last.wait()
        await conn.remove_listener(Topic.READY, count)
        await conn.reset()
    assert 1 <= heard <= 2


async def test_a_listener_whose_connection_is_ended_comes_back(database: str, pool: Pool) -> None:
    async with running(database, pool, 1) as (mine,):
        (pid,) = await listening(pool, 1)
        async with pool.acquire() as conn:
            await conn.execute("SELECT pg_terminate_backend($1)", pid)
        await listening(pool, 1, other_than=pid)
        ticket = mine.ticket(Topic.READY)
        # The new connection is seen a moment before it listens to every topic: what was sent before that is lost.
        async with asyncio.timeout(20), pool.acquire() as conn:
            while not await ticket.wait(0.2):
                await conn.execute("SELECT pg_notify($1, '')", Topic.READY)


async def test_a_listener_that_has_gone_deaf_notices_by_itself(
    database: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(Wakeups):
        """Hears nothing on its first connection, as after some outages (asyncpg #519)."""

        first: int | None = None

        def _heard(self, conn: object, pid: int, channel: str, payload: object) -> None:
            self.first = self.first or pid
            if pid != self.first:
                super()._heard(conn, pid, channel, payload)

    monkeypatch.setattr(module, "PROBE_S", 0.1)
    task = asyncio.ensure_future(Deaf(database).run())
    try:
        (pid,) = await listening(pool, 1)
        await listening(pool, 1, other_than=pid)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
