"""Lets jobs through their functions' limits once what freed a place is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

import structlog

from functions.db import Pool
from scheduler import gates
from scheduler.gates import GateId
from scheduler.wakeups import Topic, Wakeups

log = structlog.get_logger(__name__)


async def advance(pool: Pool, wakeups: Wakeups, changed: Collection[GateId]) -> None:
    """Advance these gates; costs nothing when there are none.

    What fails here is made good by the scheduler's round: it must not fail the call whose work is done.
    """
    if not changed:
        return
    try:
        async with pool.acquire() as conn:
            ready = await gates.advance(conn, changed)
    except Exception as error:
        log.warning("gates not advanced, the scheduler will", gates=len(changed), error=type(error).__name__)
        return
    if ready:
        wakeups.hint(Topic.READY)


class Advancer:
    """Advances gates beside the calls that reached them: a job is in the queue, and its client answered, before it is
    let through. One transaction at a time; what comes meanwhile shares the next one."""

    def __init__(self, pool: Pool, wakeups: Wakeups) -> None:
        self._pool = pool
        self._wakeups = wakeups
        self._reached: set[GateId] = set()
        self._task: asyncio.Task[None] | None = None

    def soon(self, reached: Collection[GateId]) -> None:
        """Advance these gates, whose jobs are committed."""
        self._reached.update(reached)
        if self._reached and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def settled(self, timeout_s: float | None = None) -> None:
        """Return once nothing is left to be advanced, or after ``timeout_s``: the scheduler does the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (task := self._task) is not None:
                    await asyncio.wait([task])

    async def _run(self) -> None:
        try:
            while self._reached:
                reached, self._reached = self._reached, set()
                await advance(self._pool, self._wakeups, reached)
        finally:
            self._task = None
