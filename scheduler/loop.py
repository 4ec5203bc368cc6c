"""Runs the rounds. Alone knows their intervals, what to do when one fails, and how they stop.

Every round is one batch that is safe to repeat and safe beside another scheduler's, so there is no leader.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from scheduler.round_records import Records
from scheduler.wakeups import Ticket

log = structlog.get_logger(__name__)

LONGEST_PAUSE_S = 30.0
GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class Round:
    """``once`` does one batch and says whether there is more to do right now.

    With ``ticket``, a hint ends the pause before the interval does, but not before ``apart_s``: hints come in floods.
    """

    name: str
    interval_s: float
    once: Callable[[], Awaitable[bool]]
    timeout_s: float = 60.0
    ticket: Callable[[], Ticket] | None = None
    apart_s: float = 0.0


async def run_rounds(
    rounds: Sequence[Round], stopping: asyncio.Event, *, grace_s: float = GRACE_S, records: Records | None = None
) -> None:
    """Run every round at its interval until ``stopping`` is set; the batch in hand may take ``grace_s`` more."""
    records = records or Records()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_repeat(each, stopping, records), name=each.name) for each in rounds]
        await stopping.wait()
        _, unfinished = await asyncio.wait(tasks, timeout=grace_s)
        for task in unfinished:
            log.warning("round cut short", round=task.get_name())
            task.cancel()


async def _repeat(each: Round, stopping: asyncio.Event, records: Records) -> None:
    failures = 0
    while not stopping.is_set():
        more = False
        # Taken before the look: a hint that comes during it counts.
        ticket = None if each.ticket is None else each.ticket()
        began_s = time.monotonic()
        try:
            # A statement that never comes back must not stop the round for ever (River #1251).
            async with asyncio.timeout(each.timeout_s):
                more = await each.once()
            failures = 0
        except Exception as error:  # a round outlives whatever happens to the database
            failures += 1
            ticket = None  # hints must not hurry what fails
            log.warning("round failed", round=each.name, error=f"{type(error).__name__}: {error}", failures=failures)
        took_s = time.monotonic() - began_s
        records.ran(each.name, interval_s=each.interval_s, took_s=took_s, failed=failures > 0)
        if not more:
            pause_s = min(each.interval_s * 2 ** min(failures, 10), max(each.interval_s, LONGEST_PAUSE_S))
            pause_s *= random.uniform(0.9, 1.1)  # noqa: S311
            apart_s = 0.0 if ticket is None else min(each.apart_s, pause_s)
            if apart_s:
                await _pause(stopping, None, apart_s)
            await _pause(stopping, ticket, pause_s - apart_s)


async def _pause(stopping: asyncio.Event, ticket: Ticket | None, seconds: float) -> None:
    waits: list[asyncio.Future[bool]] = [asyncio.ensure_future(stopping.wait())]
    if ticket is not None:
        waits.append(asyncio.ensure_future(ticket.wait(seconds)))
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
