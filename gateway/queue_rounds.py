"""The scheduler's rounds for limits, pauses, head starts, and jobs whose time is over."""

from __future__ import annotations

from functions.artifacts import Store
from functions.db import Pool
from gateway.advancing import advance
from gateway.settings import Settings
from scheduler import gates, head_starts, overdue, pauses
from scheduler.gates import GateId
from scheduler.loop import Round
from scheduler.relimiting import relimit_once
from scheduler.wakeups import Alarm, Topic, Wakeups

BATCH = 500
HEAL_S = 10
"""Between looks for what a process that died has left at a limit or a pause."""
TIDY_S = 60
RELIMIT_S = 60
"""For one function with very many jobs in the queue."""


def queue_rounds(
    settings: Settings, wakeups: Wakeups, *, pool: Pool, hot_pool: Pool, store: Store
) -> list[Round]:
    alarm = Alarm()

    async def end_overdue() -> bool:
        freed: set[GateId] = set()
        ended = await overdue.end_overdue(hot_pool, limit=BATCH, freed=freed)
        if ended:
            wakeups.hint(Topic.OUTCOME)
            wakeups.hint(Topic.DELIVERY)
        await advance(hot_pool, wakeups, freed)
        return ended >= BATCH

    async def free_starts() -> bool:
        async with hot_pool.acquire() as conn:
            freed = await gates.free_starts(conn, limit=BATCH)
            alarm.due_in(await gates.next_start_s(conn))
        await advance(hot_pool, wakeups, set(freed))
        return len(freed) == BATCH

    async def heal() -> bool:
        reached: set[GateId] = set()
        async with hot_pool.acquire() as conn:
            moved = await pauses.heal(conn, limit=BATCH, reached=reached)
            moved += await gates.advance_all(conn)
        if moved:
            wakeups.hint(Topic.READY)
        return False

    async def relimit() -> bool:
        if await relimit_once(hot_pool, store, within_s=RELIMIT_S, limit=BATCH):
            wakeups.hint(Topic.READY)
        return False

    async def mark() -> bool:
        async with pool.acquire() as conn:
            await head_starts.mark(conn)
        return False

    async def forget() -> bool:
        async with pool.acquire() as conn:
            return await gates.forget(conn, limit=BATCH) == BATCH

    return [
        Round("end overdue jobs", settings.poll_s, end_overdue),
        Round("free starts", settings.poll_s, free_starts, ticket=lambda: alarm),
        Round("heal limits and pauses", HEAL_S, heal),
        Round("make changed limits hold", HEAL_S, relimit),
        Round("mark flows", head_starts.MARK_S, mark),
        Round("forget gates", TIDY_S, forget),
    ]
