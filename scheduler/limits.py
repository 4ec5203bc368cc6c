"""What becomes of a job whose function is at its limit and does not let it wait: rejected, or put in others' place.

Reads ``gates``, ``slots``, ``waiting_jobs`` and ``leases``; writes none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from functions.db import Connection
from functions.errors import LimitReached
from functions.ids import JobId
from functions.queue_spec import BY_KEY, IN_TOTAL, OF_STARTS
from scheduler import gates
from scheduler.gates import LOCK_GATES, GateId, Wanted
from scheduler.queue import NewJob

RETRY_S = 5
"""What a rejected client is told to wait: jobs take seconds to hours."""

# What waits at the gate was there before: after a retry, or since the limit was lowered. Said in this way, the
# condition does not match the index of open slots by job, which would be read as a whole.
FULL_GATES = """
-- full_gates
SELECT id, level, lim FROM gates
 WHERE id = ANY ($1)
   AND (lim <= (SELECT count(*) FROM slots WHERE slots.gate_id = gates.id AND (until IS NULL OR until > now()))
        OR EXISTS (SELECT 1 FROM waiting_jobs WHERE stage = 'gated' AND gate_id = gates.id))
 ORDER BY level
"""

REPLACEABLE = """
-- replaceable_jobs
SELECT job_id, NULL::timestamptz AS leased_at, false AS asked FROM waiting_jobs WHERE stage = 'gated' AND gate_id = $1
UNION ALL
SELECT slots.job_id, leases.leased_at, coalesce(leases.cancel_requested, false)
  FROM slots LEFT JOIN leases ON leases.job_id = slots.job_id
 WHERE slots.gate_id = $1 AND (until IS NULL OR until > now())
 ORDER BY leased_at, job_id
"""


def is_picky(job: NewJob) -> bool:
    """Whether the job does not just wait for its turn. One that starts later does: its limit may be free by then."""
    return job.on_limit != "queue" and job.delay is None and bool(job.gates)


async def gate_ids(conn: Connection, jobs: Sequence[NewJob], *levels: int) -> list[GateId]:
    """The gates of jobs, on these levels or on all."""
    wanted = [
        Wanted(job.project_id, job.function_id, spec)
        for job in jobs
        if job.function_id is not None
        for spec in job.gates
        if spec.level in (levels or (BY_KEY, IN_TOTAL, OF_STARTS))
    ]
    return list((await gates.ensure(conn, wanted)).values()) if wanted else []


async def lock(conn: Connection, jobs: Sequence[NewJob]) -> None:
    """Keep everybody else from giving slots of the jobs' gates, until the end of the transaction."""
    for level in (BY_KEY, IN_TOTAL, OF_STARTS):  # in the order in which everybody locks them
        if ids := await gate_ids(conn, jobs, level):
            await conn.fetch(LOCK_GATES, ids)


@dataclass(frozen=True, slots=True)
class Full:
    gate: GateId
    level: int
    limit: int


async def full(conn: Connection, job: NewJob) -> list[Full]:
    """Those of the job's limits that have no room for it; a rate is none of them: its jobs wait."""
    ids = await gate_ids(conn, [job], BY_KEY, IN_TOTAL)
    return [Full(row["id"], row["level"], row["lim"]) for row in await conn.fetch(FULL_GATES, ids)]


async def replaced(conn: Connection, job: NewJob, full: Sequence[Full]) -> list[JobId]:
    """The jobs to be cancelled in favour of a new one: all of its key that have not started, and of the running ones
    the oldest, as many as it takes to make room. Jobs of other keys stay, and the new one waits for them."""
    of_key = [each for each in full if each.level == min(spec.level for spec in job.gates)]
    if not of_key:
        return []
    rows = await conn.fetch(REPLACEABLE, of_key[0].gate)
    running = [row for row in rows if row["leased_at"] is not None]
    over = sum(not row["asked"] for row in running) - (of_key[0].limit - 1)
    return [row["job_id"] for row in rows if row["leased_at"] is None] + [
        row["job_id"] for row in running if not row["asked"]
    ][: max(over, 0)]


def reached() -> LimitReached:
    return LimitReached(
        "as many jobs of this function run as may, and it rejects what is over its limit: try again later",
        code="concurrency_rejected",
        retry_after_s=RETRY_S,
    )
