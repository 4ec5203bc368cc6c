"""A job's log as it grows: pieces in order, across its attempts, until there is nothing more to come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from functions.ids import JobId, ProjectId
from gateway.services import Services
from scheduler import logs
from scheduler.logs import LogState
from scheduler.wakeups import Topic

LOOK_S, SELDOM_S = 0.1, 0.5
"""Between two looks at least: hints come for every job's log, and those of the others are not this reader's. The longer
it finds nothing, the more seldom it looks."""
KEEP_ALIVE_S = 15.0


@dataclass(frozen=True, slots=True)
class Place:
    """A byte's position in the log of an attempt."""

    attempt: int
    position: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes at a place. ``last``: the attempt is over, and nothing comes after them."""

    place: Place
    data: bytes
    last: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """There is nothing more to come; ``status`` is the job's."""

    status: str


class Silence:
    """Nothing came for ``KEEP_ALIVE_S``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """``only``: one attempt, and not those that follow. Without ``follow``: what is there now. ``key_id`` is given
    for a key that sees nothing but its own jobs."""

    project: ProjectId
    job: JobId
    key_id: str | None
    only: int | None
    follow: bool


async def pieces(opened: Services, wanted: Wanted, begin: Place) -> AsyncIterator[Piece | End | Silence]:
    """From ``begin`` on. Without an ``End`` when the process is stopping: it goes on elsewhere, from the last place."""
    place, closed, heard_s, pause_s = begin, False, time.monotonic(), LOOK_S
    while not opened.stopping.is_set():
        look = _Look(opened)
        async with opened.pool.acquire() as conn:
            # First the state, then the bytes: what is not there once the attempt is over will not come.
            state = await logs.state(conn, wanted.project, wanted.job, wanted.key_id)
            data = b"" if closed else await logs.read(conn, wanted.job, place.attempt, place.position)
        over = _over(state, place.attempt)
        if data:
            yield Piece(place, data)
            place, heard_s, pause_s = Place(place.attempt, place.position + len(data)), time.monotonic(), LOOK_S
            if len(data) == logs.READ_BYTES or over or not wanted.follow:
                continue
        elif over or not wanted.follow:
            if not closed:
                closed = True
                yield Piece(place, b"", last=True)
            if wanted.only is None and state.attempt > place.attempt:
                place, closed = Place(place.attempt + 1), False
                continue
            if state.ended or wanted.only is not None or not wanted.follow:
                yield End(state.status)
                return
        await look.pause(pause_s)
        pause_s = min(2 * pause_s, SELDOM_S)
        if time.monotonic() - heard_s >= KEEP_ALIVE_S:
            heard_s = time.monotonic()
            yield Silence()


def _over(state: LogState, attempt: int) -> bool:
    """Whether nothing more is written to the attempt's log."""
    return state.ended or attempt < state.attempt or (attempt == state.attempt and not state.writing)


class _Look:
    """Made before one looks, so that a hint that comes meanwhile is not missed."""

    def __init__(self, opened: Services) -> None:
        self._tickets = [opened.wakeups.ticket(topic) for topic in (Topic.LOG, Topic.OUTCOME)]
        self._stopping = opened.stopping
        self._poll_s = opened.settings.poll_s
        self._began_s = time.monotonic()

    async def pause(self, least_s: float) -> None:
        """Return when another look may be worth it, ``least_s`` after this one, or when the process is stopping."""
        hints = [asyncio.ensure_future(ticket.wait(self._poll_s)) for ticket in self._tickets]
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([*hints, stopping], return_when=asyncio.FIRST_COMPLETED)
            early_s = self._began_s + least_s - time.monotonic()
            if early_s > 0:
                await asyncio.wait([stopping], timeout=early_s)
        finally:
            for future in (*hints, stopping):
                future.cancel()
