"""Lets jobs through their functions' limits once what freed a place is committed."""

from __future__ import annotations

from collections.abc import Collection

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
