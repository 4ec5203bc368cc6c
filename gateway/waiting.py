"""Requests that wait for a job's outcome share one look at the database, however many they are."""

from __future__ import annotations

import asyncio

import structlog

from functions.db import Pool
from functions.ids import JobId
from scheduler.wakeups import Topic, Wakeups

log = structlog.get_logger(__name__)

FINISHED_AMONG = """
-- finished_among
SELECT job_id FROM outcomes WHERE job_id = ANY ($1)
"""


class OutcomeWaiters:
    """``run`` must be going for ``wait`` to return before its timeout."""

    def __init__(self, pool: Pool, wakeups: Wakeups, *, poll_s: float) -> None:
        self._pool = pool
        self._wakeups = wakeups
        self._poll_s = poll_s
        self._waiting: dict[JobId, asyncio.Event] = {}
        self._users: dict[JobId, int] = {}
        self._arrived = asyncio.Event()

    async def wait(self, job: JobId, timeout_s: float, stopping: asyncio.Event) -> bool:
        """True once the job has an outcome; False after ``timeout_s`` or when the process is stopping."""
        event = self._waiting.setdefault(job, asyncio.Event())
        self._users[job] = self._users.get(job, 0) + 1
        self._arrived.set()
        ended = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(stopping.wait())]
        try:
            await asyncio.wait(ended, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return event.is_set()
        finally:
            for future in ended:
                future.cancel()
            self._users[job] -= 1
            if not self._users[job]:
                del self._users[job], self._waiting[job]

    async def run(self) -> None:
        """Look until cancelled; survives the database's restarts."""
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            ticket = self._wakeups.ticket(Topic.OUTCOME)
            self._arrived.clear()
            try:
                await self._look()
            except Exception as error:
                log.warning("cannot look for outcomes, trying again", error=type(error).__name__)
                await asyncio.sleep(self._poll_s)
                continue
            # A request that has just come looks at once: its job may be finished already.
            arrived = asyncio.ensure_future(self._arrived.wait())
            hinted = asyncio.ensure_future(ticket.wait(self._poll_s))
            try:
                await asyncio.wait([arrived, hinted], return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrived.cancel()
                hinted.cancel()

    async def _look(self) -> None:
        async with self._pool.acquire() as conn:
            rows = await conn.fetch(FINISHED_AMONG, list(self._waiting))
        for row in rows:
            if (event := self._waiting.get(row["job_id"])) is not None:
                event.set()
