"""The scheduler's rounds that settle what nodes cost and count what projects used."""

from __future__ import annotations

from functions.db import Pool
from nodes import ledger, usage
from scheduler.loop import Round

SETTLE_S = 20
COUNT_S = 60
HOURS = 100
JOBS = 500


def usage_rounds(pool: Pool) -> list[Round]:
    """Each does one batch and says whether there is more. They go on after the last node was rented."""

    async def settle() -> bool:
        return await ledger.settle_once(pool, limit=HOURS) == HOURS

    async def count() -> bool:
        async with pool.acquire() as conn:
            return await usage.count_once(conn, limit=JOBS) == JOBS

    return [Round("settle hours", SETTLE_S, settle), Round("count usage", COUNT_S, count)]
