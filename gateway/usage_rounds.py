"""The scheduler's rounds that settle what nodes cost, count what projects used, and warn of budgets."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from functions.db import Pool
from functions.money import euros
from nodes import budgets, ledger, usage
from scheduler.loop import Round

log = structlog.get_logger(__name__)

SETTLE_S = 20
COUNT_S = 60
WARN_S = 30
HOURS = 100
JOBS = 500


def usage_rounds(pool: Pool) -> list[Round]:
    """Each does one batch and says whether there is more. They go on after the last node was rented."""

    async def settle() -> bool:
        return await ledger.settle_once(pool, limit=HOURS) == HOURS

    async def count() -> bool:
        async with pool.acquire() as conn:
            return await usage.count_once(conn, limit=JOBS) == JOBS

    async def warn() -> bool:
        # Said before the commit: rather twice than never.
        async with pool.acquire() as conn, conn.transaction():
            for low in await budgets.warn_once(conn, datetime.now(UTC)):
                log.warning(
                    "budget nearly used up",
                    project=low.project,
                    used_eur=euros(low.used),
                    monthly_eur=euros(low.monthly),
                )
        return False

    return [
        Round("settle hours", SETTLE_S, settle),
        Round("count usage", COUNT_S, count),
        Round("warn of budgets", WARN_S, warn),
    ]
