"""One scheduler at a time looks after the fleet: it says so each round, and again while a round waits for the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import uuid4

import structlog

from functions.db import Connection, Pool
from nodes import fleet
from nodes.fleet import Fleet

log = structlog.get_logger(__name__)

KEPT_EVERY_S = 5.0
"""At the least; it also tells that the database is in sight: see ``scheduler.reaper.Sight``."""


class Leadership:
    def __init__(self, pool: Pool, *, lease: timedelta, answered: Callable[[], None]) -> None:
        """``lease`` is after how long another scheduler goes on in place of one that died. ``answered`` is called now
        and then while leadership is kept, each time the database has answered."""
        self._pool = pool
        self._lease = lease
        self._answered = answered
        self._holder = uuid4()
        self.epoch = 0

    async def take(self, conn: Connection) -> bool:
        """False while another one leads."""
        epoch = await fleet.lead(conn, self._holder, lease=self._lease)
        if epoch is not None:
            self.epoch = epoch
        return epoch is not None

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Nobody else leads while this is open, however long the cloud takes to answer; unless the database is away
        for longer than the lease."""
        keeping = asyncio.create_task(self._keep()) if self._lease else None
        try:
            yield
        finally:
            if keeping is not None:
                keeping.cancel()
                with suppress(asyncio.CancelledError):
                    await keeping

    @asynccontextmanager
    async def step(self) -> AsyncIterator[tuple[Connection, Fleet]]:
        """A transaction in which nobody else changes the fleet; raises ``fleet.Replaced``."""
        async with self._pool.acquire() as conn, conn.transaction():
            yield conn, await fleet.hold(conn, self.epoch, lease=self._lease)

    async def leave(self) -> None:
        """Let another one go on at once."""
        async with self._pool.acquire() as conn:
            await fleet.leave(conn, self._holder)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(min(self._lease.total_seconds() / 4, KEPT_EVERY_S))
            try:
                async with self._pool.acquire() as conn:
                    if not await fleet.renew(conn, self.epoch, lease=self._lease):
                        return  # the round's next step finds that out
            except Exception as error:  # the round goes on while its lease lasts
                log.warning("leadership was not renewed", error=f"{type(error).__name__}: {error}")
                continue
            self._answered()
