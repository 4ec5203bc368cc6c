"""What becomes of jobs whose function is at its limit and does not let them wait: rejected, or put in others' place.

Jobs that come together are decided as one set: what it costs does not grow with them. Reads ``gates``, ``slots``,
``waiting_jobs`` and ``leases``; writes none of them.

Locks are taken in one order: ``flows`` of the projects, then gates by level and id. A cancel holds its project's flow
and waits for rows that were let through a gate; who holds a gate must never wait for a flow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from functions.db import Connection, Row
from functions.errors import LimitReached
from functions.ids import JobId, ProjectId
from functions.queue_spec import OF_STARTS
from scheduler import gates
from scheduler.gates import GateId, Wanted
from scheduler.queue import NewJob

RETRY_S = 5
"""What a rejected client is told to wait: jobs take seconds to hours."""

LOCK_FLOWS = """
-- lock_flows
SELECT project_id FROM flows WHERE project_id = ANY ($1) ORDER BY project_id FOR NO KEY UPDATE
"""

LOCK_LIMITS = """
-- lock_limits
SELECT id, lim FROM gates WHERE id = ANY ($1) ORDER BY level, id FOR NO KEY UPDATE
"""

# What waits at the gate was there before: after a retry, or since the limit was lowered. Said in this way, the
# condition does not match the index of open slots by job, which would be read as a whole.
ROOM = """
-- room_of_gates
SELECT id, CASE WHEN EXISTS (SELECT 1 FROM waiting_jobs WHERE stage = 'gated' AND gate_id = gates.id) THEN 0
                ELSE lim - (SELECT count(*) FROM slots
                             WHERE slots.gate_id = gates.id AND (until IS NULL OR until > now())) END AS room
  FROM gates WHERE id = ANY ($1)
"""

# A job that waits for a retry, or stands aside while its function is paused, holds no slot and comes back to its gates.
REPLACEABLE = """
-- replaceable_jobs
SELECT w.id AS gate_id, found.* FROM unnest($1::bigint[]) w (id) CROSS JOIN LATERAL (
    SELECT job_id, NULL::timestamptz AS leased_at, false AS asked FROM waiting_jobs
     WHERE stage = 'gated' AND gate_id = w.id
    UNION ALL
    SELECT job_id, NULL, false FROM waiting_jobs
     WHERE stage IN ('retry', 'paused') AND gates IS NOT NULL AND gates[1] = w.id
    UNION ALL
    SELECT slots.job_id, leases.leased_at, coalesce(leases.cancel_requested, false)
      FROM slots LEFT JOIN leases ON leases.job_id = slots.job_id
     WHERE slots.gate_id = w.id AND (until IS NULL OR until > now())) found
 ORDER BY w.id, leased_at, job_id
"""

Passed = Mapping[JobId, Sequence[GateId]]
"""The gates of jobs, in the order of their levels."""


def is_picky(job: NewJob) -> bool:
    """Whether the job does not just wait for its turn. One that starts later does: its limit may be free by then."""
    return job.on_limit != "queue" and job.delay is None and bool(job.gates)


async def make_gates(conn: Connection, jobs: Iterable[NewJob]) -> dict[JobId, list[GateId]]:
    """The gates of jobs, made where there are none yet.

    Outside of a transaction, before one that submits the jobs: nobody then waits for it to end to have the same gates.
    """
    wanted = {
        job.id: [Wanted(job.project_id, job.function_id, spec) for spec in job.gates]
        for job in jobs
        if job.function_id is not None and job.gates
    }
    if not wanted:
        return {}
    found = await gates.ensure(conn, [each for passed in wanted.values() for each in passed])
    return {job: [found[each.name] for each in passed] for job, passed in wanted.items()}


async def lock(conn: Connection, jobs: Sequence[NewJob], passed: Passed, *, cancels: bool) -> dict[GateId, int]:
    """Keep everybody else from giving slots of these gates, until the end of the transaction; the limits they have now.

    ``cancels``: jobs of the projects are going to be taken out of the queue.
    """
    if cancels:
        await conn.execute(LOCK_FLOWS, sorted({job.project_id for job in jobs}))
    held = {gate for each in passed.values() for gate in each}
    return {row["id"]: row["lim"] for row in await conn.fetch(LOCK_LIMITS, list(held))}


async def lock_all(conn: Connection, jobs: Sequence[NewJob]) -> None:
    """``lock`` for all jobs that one transaction is going to submit in several calls."""
    if picky := [job for job in jobs if is_picky(job)]:
        await lock(conn, picky, await make_gates(conn, picky), cancels=any(job.on_limit == "replace" for job in picky))


async def over(conn: Connection, jobs: Sequence[NewJob], passed: Passed) -> set[JobId]:
    """Those that come too many; the first ones get what room there is. A rate refuses nobody: its jobs wait."""
    counted = {
        job.id: [gate for gate, spec in zip(passed[job.id], job.gates, strict=True) if spec.level != OF_STARTS]
        for job in jobs
    }
    rows = await conn.fetch(ROOM, list({gate for each in counted.values() for gate in each}))
    room = {row["id"]: row["room"] for row in rows}
    refused = set()
    for job in jobs:
        if all(room[gate] > 0 for gate in counted[job.id]):
            for gate in counted[job.id]:
                room[gate] -= 1
        else:
            refused.add(job.id)
    return refused


@dataclass(frozen=True, slots=True)
class _Group:
    """Jobs of one key that come together."""

    project: ProjectId
    limit: int
    new: list[JobId]


async def replaced(
    conn: Connection, jobs: Sequence[NewJob], passed: Passed, held: Mapping[GateId, int]
) -> dict[ProjectId, list[JobId]]:
    """The jobs to be cancelled in favour of new ones: all of their key that have not started, and of the running ones
    the oldest, as many as it takes to make room; of the new ones themselves all but the last that fit. None if there is
    room for all. Jobs of other keys stay, and the new ones wait for them."""
    groups: dict[GateId, _Group] = {}
    for job in jobs:
        gate = passed[job.id][0]
        groups.setdefault(gate, _Group(job.project_id, held[gate], [])).new.append(job.id)
    there: dict[GateId, list[Row]] = defaultdict(list)
    for row in await conn.fetch(REPLACEABLE, list(groups)):
        if not row["asked"]:
            there[row["gate_id"]].append(row)
    cancelled: dict[ProjectId, list[JobId]] = defaultdict(list)
    for gate, group in groups.items():
        if len(there[gate]) + len(group.new) <= group.limit:
            continue
        stay = min(len(group.new), group.limit)
        running = [row["job_id"] for row in there[gate] if row["leased_at"] is not None]
        cancelled[group.project] += [row["job_id"] for row in there[gate] if row["leased_at"] is None]
        cancelled[group.project] += running[: max(len(running) + stay - group.limit, 0)]
        cancelled[group.project] += group.new[: len(group.new) - stay]
    return cancelled


def reached() -> LimitReached:
    return LimitReached(
        "as many jobs of this function run as may, and it rejects what is over its limit: try again later",
        code="concurrency_rejected",
        retry_after_s=RETRY_S,
    )
