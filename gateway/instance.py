"""The whole instance in numbers, as the database has them: read at most every few seconds, however many ask.

Over a connection of its own, opened when somebody asks: a pool that is in use up to its last connection must not keep
the numbers from saying so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from functions import endpoint_health
from functions.db import Pool
from gateway.database import open_pool
from gateway.settings import Settings
from nodes import census
from nodes.census import Census
from scheduler import backlog, round_records
from scheduler.backlog import Backlog
from scheduler.round_records import RoundRecord, Tally

log = structlog.get_logger(__name__)

FRESH_S = 5.0
WITHIN_S = 1.5
"""A database that has not answered by then counts as away."""
GIVEN_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class Instance:
    backlog: Backlog
    census: Census
    rounds: Sequence[RoundRecord]
    tallies: Mapping[Tally, int]
    disabled_callbacks: int


class InstanceReader:
    def __init__(self, pool: Pool, *, provider: str, lease: timedelta) -> None:
        """``pool`` is of the hot path."""
        self._pool = pool
        self._provider = provider
        self._lease = lease
        self._reading: asyncio.Task[Instance] | None = None
        self._found: Instance | None = None
        self._at_s = 0.0

    async def read(self) -> Instance | None:
        """As of ``FRESH_S`` ago at most; None, within ``WITHIN_S``, if the database does not answer."""
        if self._found is not None and time.monotonic() - self._at_s < FRESH_S:
            return self._found
        self._found = None
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_look_at)
        reading = self._reading
        # It goes on for others: a connection that is cut off from the database takes longer to give up than that.
        done, _ = await asyncio.wait([reading], timeout=WITHIN_S)
        return reading.result() if done and not reading.cancelled() and reading.exception() is None else None

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading], timeout=WITHIN_S)

    async def _read(self) -> Instance:
        async with asyncio.timeout(GIVEN_UP_S), self._pool.acquire() as conn:
            found = Instance(
                await backlog.read(conn),
                await census.read(conn, provider=self._provider, lease=self._lease),
                await round_records.read_rounds(conn),
                await round_records.read_tallies(conn),
                await endpoint_health.count_disabled(conn),
            )
        self._found, self._at_s = found, time.monotonic()
        return found


def _look_at(reading: asyncio.Task[Instance]) -> None:
    """So that nobody's failure goes unlooked at."""
    if not reading.cancelled() and (error := reading.exception()) is not None:
        log.warning("numbers for metrics not read", error=f"{type(error).__name__}: {error}"[:200])


@asynccontextmanager
async def instance_reader(settings: Settings) -> AsyncIterator[InstanceReader]:
    url = settings.database_url.get_secret_value()
    pool = await open_pool(url, min_size=0, max_size=1, hot_path=True, command_timeout_s=GIVEN_UP_S)
    reader = InstanceReader(pool, provider=settings.provider, lease=timedelta(seconds=settings.lease_s))
    try:
        yield reader
    finally:
        await reader.close()
        pool.terminate()
