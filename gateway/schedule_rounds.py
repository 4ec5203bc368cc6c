"""The scheduler's rounds for schedules."""

from __future__ import annotations

from functions import due_schedules
from functions.artifacts import Store
from functions.db import Pool
from functions.egress import EgressPolicy
from gateway.advancing import advance
from gateway.settings import Settings
from scheduler import schedule_runs
from scheduler.cron import AT_ONCE, fire_once
from scheduler.gates import GateId
from scheduler.loop import Round
from scheduler.preparing import Sizing
from scheduler.wakeups import Alarm, Topic, Wakeups

BATCH = 5000
TIDY_S = 60
ALIKE_S = 0.1
"""Between looks for what is due and another scheduler has in hand."""


def schedule_rounds(settings: Settings, wakeups: Wakeups, *, hot_pool: Pool, store: Store) -> list[Round]:
    alarm = Alarm()
    sizing = Sizing(settings.slot_memory, settings.max_slots)
    egress = EgressPolicy(allow=settings.callback_allow)

    async def fire() -> bool:
        async with hot_pool.acquire() as conn:
            due_s = await due_schedules.next_due_s(conn)
        if due_s is None or due_s > 0:
            alarm.due_in(due_s)
            return False
        reached: set[GateId] = set()
        fired = await fire_once(hot_pool, store, sizing, egress, limit=AT_ONCE, reached=reached)
        if fired.submitted:
            wakeups.hint(Topic.READY)
        if fired.skipped or fired.missed or fired.failed:
            wakeups.hint(Topic.DELIVERY)
        await advance(hot_pool, wakeups, reached)
        alarm.due_in(ALIKE_S)
        return fired.schedules > 0

    async def forget() -> bool:
        async with hot_pool.acquire() as conn:
            return await schedule_runs.forget(conn, age=settings.retention_jobs, limit=BATCH) == BATCH

    return [
        Round("schedules", settings.poll_s, fire, ticket=lambda: alarm),
        Round("forget schedule runs", TIDY_S, forget),
    ]
