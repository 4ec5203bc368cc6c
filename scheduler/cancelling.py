"""Jobs that are cancelled: at once those in the queue, a running one when its node has stopped it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from functions.db import Connection, Pool
from functions.ids import JobId, ProjectId
from scheduler import chains, withdrawing
from scheduler.consequences import caused_by
from scheduler.gates import GateId
from scheduler.withdrawing import Unleased


async def cancel(
    conn: Connection, project: ProjectId, jobs: Sequence[JobId], freed: set[GateId] | None = None
) -> int:
    """Cancel jobs: those in the queue end now, a running one when its node has stopped it (≤ 5 s). Finished ones stay
    as they are. In the caller's transaction; ids that are not the project's are passed over. Returns how many end now
    or are asked to."""
    rest, hit = set(jobs), 0
    # A job that moves from one table to another while the statement runs may be seen in neither: look again.
    for _ in range(5):
        taken, leased = await withdrawing.take_out(conn, project, sorted(rest), freed)
        await end_unleased(conn, project, "cancelled", None, taken)
        found = leased | {job.job_id for job in taken}
        rest -= found
        hit += len(found)
        if not rest:
            break
    return hit


async def end_unleased(
    conn: Connection,
    project: ProjectId,
    status: str,
    error: Mapping[str, Any] | None,
    taken: Sequence[Unleased],
) -> None:
    """End jobs that were taken out of the queue in this transaction, with their deliveries."""
    if taken:
        deliveries, chained = await caused_by(conn, {job.job_id: status for job in taken})
        await withdrawing.end_unleased(conn, project, taken, status=status, error=error, deliveries=deliveries)
        await chains.record(conn, chained)


async def cancel_after_delete(pool: Pool, *, limit: int, within: timedelta = timedelta(minutes=15)) -> int:
    """Cancel jobs that were put into the queue while their function was being deleted; how many.

    The delete itself cannot see them: they may be committed after it, by a request that had found the function.
    """
    async with pool.acquire() as conn, conn.transaction():
        found: dict[ProjectId, list[JobId]] = {}
        for project, job in await withdrawing.queued_after_delete(conn, within=within, limit=limit):
            found.setdefault(project, []).append(job)
        for project, left in sorted(found.items()):
            await cancel(conn, project, left)
    return sum(map(len, found.values()))
