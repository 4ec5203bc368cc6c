"""Jobs whose node fell silent: ready again, or over when that happened too often."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from functions import ids
from functions.db import Pool
from scheduler import finishing, job_errors, lease_ends, leasing
from scheduler.gates import GateId
from scheduler.lease_ends import Ending
from scheduler.leasing import Expired


@dataclass(frozen=True, slots=True)
class Reaped:
    requeued: int
    ended: int


async def reap_once(
    pool: Pool, sight: Sight, *, limit: int = 500, max_losses: int = 5, freed: set[GateId] | None = None
) -> Reaped:
    """Take back up to ``limit`` leases that ran out, in one transaction. Safe beside others and after a crash.

    A lost attempt is not one of the user's; after more than ``max_losses`` of them the job fails with ``node_lost``. A
    job with a cancel pending ends cancelled, one whose money is used up fails: its node can no longer say so. ``freed``
    gets the gates to be advanced afterwards.
    """
    over: list[Ending] = []
    back = []
    async with pool.acquire() as conn, conn.transaction():
        leases = await leasing.expired(conn, limit=limit)
        for lease in leases if sight.clear() else ():
            if lease.cancel_requested or lease.overdue or lease.unpaid or lease.lost_before >= max_losses:
                over.append(_ending(lease))
            else:
                back.append((lease.job_id, lease.token, _error(lease)))
        if over:
            await finishing.end_leased(conn, over, freed)
        if back:
            await lease_ends.requeue(conn, back, freed)
    return Reaped(len(back), len(over))


def _error(lease: Expired) -> dict[str, object]:
    node = ids.encode(ids.NODE, lease.node_id)
    return {"code": "node_lost", "message": f"{node} fell silent", "attempt": lease.attempt}


def _ending(lease: Expired) -> Ending:
    timeline = json.loads(lease.timeline)
    if lease.cancel_requested or lease.overdue or lease.unpaid:
        status, why = job_errors.stopped(lease.attempt, cancelled=lease.cancel_requested, overdue=lease.overdue)
        return Ending(lease.job_id, lease.token, status, error=why, timeline=timeline, reported=False)
    error = _error(lease) | {"message": f"the job lost {lease.lost_before + 1} nodes, the last one fell silent"}
    return Ending(lease.job_id, lease.token, "failed", error=error, timeline=timeline, reported=False)


class Sight:
    """Whether the database has been in sight for long enough to judge who is silent.

    While it is away no heartbeat can be written. What runs out meanwhile belongs to nodes that are well, and that
    renew it as soon as they can: for the length of one lease after every gap, nobody is taken for dead.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._since = self._last = clock()

    def clear(self) -> bool:
        """Call it each time the database has answered."""
        now = self._clock()
        # Shorter gaps are covered: a lease outlasts three heartbeats.
        if now - self._last > self._lease_s / 4:
            self._since = now
        self._last = now
        return now - self._since >= self._lease_s
