"""Hints that something may be there to do: LISTEN/NOTIFY between processes, an event inside one.

Polling is the truth: a hint that gets lost costs at most one poll interval. NOTIFY carries no payload and is sent
outside the jobs' transactions, at most some tens a second, since each notifying commit takes one lock of the whole
database.
"""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum

import asyncpg
import structlog

log = structlog.get_logger(__name__)

FLUSH_S = 0.03
PROBE_S = 10.0
PROBE = "rgrid_probe"


class Topic(StrEnum):
    READY = "rgrid_ready"
    OUTCOME = "rgrid_outcome"
    DELIVERY = "rgrid_delivery"
    LOG = "rgrid_log"


class Ticket:
    """Taken before one looks, waited on after: a hint in between is not missed."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def wait(self, timeout_s: float) -> bool:
        """True when a hint came, False after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class Alarm(Ticket):
    """Ends a pause when something is known to be due."""

    def __init__(self) -> None:
        super().__init__(asyncio.Event())
        self._due_s: float | None = None

    def due_in(self, seconds: float | None) -> None:
        """From now on; None for nothing."""
        self._due_s = None if seconds is None else time.monotonic() + seconds

    async def wait(self, timeout_s: float) -> bool:
        left_s = timeout_s if self._due_s is None else max(self._due_s - time.monotonic(), 0)
        await asyncio.sleep(min(left_s, timeout_s))
        return left_s <= timeout_s


class Wakeups:
    """One per process. ``run`` carries hints to and from the other processes and survives the database's restarts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._events = {topic: asyncio.Event() for topic in Topic}
        self._outgoing: set[Topic] = set()
        self._flush = asyncio.Event()
        self._probed = asyncio.Event()

    def ticket(self, topic: Topic) -> Ticket:
        return Ticket(self._events[topic])

    def hint(self, topic: Topic) -> None:
        """Tell everyone, here at once and elsewhere within some tens of milliseconds. Call it after the commit."""
        self.wake(topic)
        self._outgoing.add(topic)
        self._flush.set()

    def wake(self, topic: Topic) -> None:
        """Tell this process only."""
        event = self._events[topic]
        self._events[topic] = asyncio.Event()
        event.set()

    def _heard(self, _conn: object, _pid: int, channel: str, _payload: object) -> None:
        if channel == PROBE:
            self._probed.set()
        else:
            self.wake(Topic(channel))

    async def run(self) -> None:
        """Listen and notify until cancelled."""
        pause_s = 0.1
        while True:
            try:
                conn = await asyncpg.connect(self._url, timeout=5, command_timeout=5)
                try:
                    # Else an idle connection that breaks is noticed by the next probe only.
                    conn.add_termination_listener(lambda _: self._flush.set())
                    for channel in (*Topic, PROBE):
                        await conn.add_listener(channel, self._heard)
                    pause_s = 0.1
                    await self._carry(conn)
                finally:
                    conn.terminate()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                log.warning("hints are down, polling goes on", error=type(error).__name__)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5)

    async def _carry(self, conn: asyncpg.Connection) -> None:
        """Send what is pending; raise when the connection does not hear itself any more (asyncpg #519)."""
        while True:
            try:
                async with asyncio.timeout(PROBE_S):
                    await self._flush.wait()
            except TimeoutError:
                self._probed.clear()
                await conn.execute("SELECT pg_notify($1, '')", PROBE)
                async with asyncio.timeout(PROBE_S):
                    await self._probed.wait()
                continue
            self._flush.clear()
            topics, self._outgoing = self._outgoing, set()
            await conn.execute("SELECT pg_notify(t, '') FROM unnest($1::text[]) t", list(topics))
            await asyncio.sleep(FLUSH_S)
