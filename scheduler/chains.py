"""Jobs of a function that the outcome of another job causes, each exactly once. Owns ``chains``.

A row is written in the outcome's transaction and has the id that the next job will have; ``scheduler/chaining.py``
makes the job of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from functions import ids
from functions.db import Connection, Row
from functions.grammar import Callback
from functions.ids import JobId, ProjectId

RECORD_CHAINS = """
-- record_chains
INSERT INTO chains (job_id, position, project_id, next_id, function)
SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::uuid[], $5::text[])
"""

DUE_CHAINS = """
-- due_chains
SELECT job_id, position, project_id, next_id, function FROM chains
 WHERE state = 'pending' AND due_at <= now() ORDER BY due_at LIMIT $1
   FOR UPDATE SKIP LOCKED
"""

END_CHAINS = """
-- end_chains
UPDATE chains SET state = CASE WHEN e.error IS NULL THEN 'submitted' ELSE 'failed' END, error = e.error::json,
       ended_at = now()
  FROM unnest($1::uuid[], $2::int[], $3::text[]) e (job_id, position, error)
 WHERE chains.job_id = e.job_id AND chains.position = e.position
"""

POSTPONE_CHAINS = """
-- postpone_chains
UPDATE chains SET due_at = now() + $3::interval
  FROM unnest($1::uuid[], $2::int[]) e (job_id, position)
 WHERE chains.job_id = e.job_id AND chains.position = e.position
"""

CHAINS_OF = """
-- chains_of
SELECT function, next_id, state, error, ended_at FROM chains
 WHERE job_id = $2 AND project_id = $1 AND state <> 'pending' ORDER BY position
"""


@dataclass(frozen=True, slots=True)
class Chain:
    """A job of ``function`` that follows ``job_id``; ``position`` is the callback's in the version's manifest."""

    job_id: JobId
    position: int
    project_id: ProjectId
    next_id: JobId
    function: str


def chains_of(callbacks: Sequence[Callback], project: ProjectId, job: JobId, kind: str) -> list[Chain]:
    """What event ``kind`` of the job causes, with new ids."""
    return [
        Chain(job, position, project, JobId(ids.new_uuid7()), each.function)
        for position, each in enumerate(callbacks)
        if each.function is not None and kind in each.events
    ]


async def record(conn: Connection, chains: Sequence[Chain]) -> None:
    """Write them down, in the transaction of the outcome."""
    if chains:
        await conn.execute(
            RECORD_CHAINS,
            [each.job_id for each in chains], [each.position for each in chains],
            [each.project_id for each in chains], [each.next_id for each in chains],
            [each.function for each in chains],
        )  # fmt: skip


async def due(conn: Connection, *, limit: int) -> list[Chain]:
    """Lock and return chains whose jobs are to be made. The caller owns the transaction and ends them in it."""
    return [Chain(**row) for row in await conn.fetch(DUE_CHAINS, limit)]


async def end(conn: Connection, ended: Sequence[tuple[Chain, str | None]]) -> None:
    """Note what came of chains: their jobs are in the queue, or the error (JSON text) for which there are none."""
    await conn.execute(
        END_CHAINS, [chain.job_id for chain, _ in ended], [chain.position for chain, _ in ended],
        [error for _, error in ended],
    )  # fmt: skip


async def postpone(conn: Connection, chains: Sequence[Chain], pause: timedelta) -> None:
    """Look at them again after ``pause``: what they need does not answer now."""
    if chains:
        jobs, positions = [each.job_id for each in chains], [each.position for each in chains]
        await conn.execute(POSTPONE_CHAINS, jobs, positions, pause)


async def chain_events(conn: Connection, project: ProjectId, job: JobId) -> list[tuple[datetime, dict[str, Any]]]:
    """What came of the job's chains, as events of the job."""
    return [(row["ended_at"], _event(row)) for row in await conn.fetch(CHAINS_OF, project, job)]


def _event(row: Row) -> dict[str, Any]:
    if row["state"] == "submitted":
        return {"type": "chained", "function": row["function"], "job": ids.encode(ids.JOB, row["next_id"])}
    return {"type": "chain_failed", "function": row["function"], "error": json.loads(row["error"])}
