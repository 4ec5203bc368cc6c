"""What came of schedules' planned times. Owns ``schedule_runs``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from functions.db import Connection
from functions.ids import JobId, ProjectId, ScheduleId

State = Literal["submitted", "skipped", "missed", "failed"]

# Looked up one by one: a join may be done by going through all of the table.
RUNS_KNOWN = """
-- schedule_runs_known
SELECT schedule_id, planned_at FROM unnest($1::uuid[], $2::timestamptz[]) p (schedule_id, planned_at)
 WHERE (SELECT true FROM schedule_runs r WHERE r.schedule_id = p.schedule_id AND r.planned_at = p.planned_at)
"""

# One whose row is gone had ended long before. What is found to have ended is not asked again.
UNFINISHED_RUNS = """
-- unfinished_runs
WITH asked AS (
    SELECT r.ctid AS place, r.schedule_id, r.job_id,
           coalesce((SELECT true FROM outcomes WHERE outcomes.job_id = r.job_id),
                    (SELECT false FROM jobs WHERE jobs.id = r.job_id), true) AS over
      FROM schedule_runs r
     WHERE r.schedule_id = ANY ($1) AND r.job_id IS NOT NULL AND NOT r.ended
), closed AS (
    UPDATE schedule_runs SET ended = true WHERE ctid = ANY (ARRAY(SELECT place FROM asked WHERE over))
)
SELECT schedule_id, job_id FROM asked WHERE NOT over
"""

RECORD_RUNS = """
-- record_schedule_runs
INSERT INTO schedule_runs (schedule_id, planned_at, project_id, state, manual, job_id, error, until_at, count)
SELECT schedule_id, planned_at, project_id, state, manual, job_id, error::json, until_at, count
  FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::text[], $5::boolean[], $6::uuid[], $7::text[],
              $8::timestamptz[], $9::int[])
    AS r (schedule_id, planned_at, project_id, state, manual, job_id, error, until_at, count)
"""

LIST_RUNS = """
-- list_schedule_runs
SELECT * FROM schedule_runs
 WHERE project_id = $1 AND schedule_id = $2 AND planned_at < $3 AND ($5::text IS NULL OR state = $5)
 ORDER BY planned_at DESC
 LIMIT $4
"""

# Not one whose job has not ended, or the next one would overlap it: that waits for another age.
FORGET_RUNS = """
-- forget_schedule_runs
WITH old AS (
    SELECT ctid AS place,
           ended OR coalesce((SELECT true FROM outcomes WHERE outcomes.job_id = r.job_id),
                             (SELECT false FROM jobs WHERE jobs.id = r.job_id), true) AS over
      FROM schedule_runs r
     WHERE at < now() - $2::interval ORDER BY at LIMIT $1 FOR UPDATE SKIP LOCKED
), kept AS (
    UPDATE schedule_runs SET at = now() WHERE ctid = ANY (ARRAY(SELECT place FROM old WHERE NOT over))
)
DELETE FROM schedule_runs WHERE ctid = ANY (ARRAY(SELECT place FROM old WHERE over))
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a planned time. ``error`` says why there is no job; ``until_at`` is the last one of those that
    ``missed`` stands for, ``count`` how many they are (None: too many to count)."""

    schedule_id: ScheduleId
    planned_at: datetime
    project_id: ProjectId
    state: State
    manual: bool = False
    job_id: JobId | None = None
    error: Mapping[str, Any] | None = None
    until_at: datetime | None = None
    count: int | None = 1


async def known(
    conn: Connection, planned: Sequence[tuple[ScheduleId, datetime]]
) -> set[tuple[ScheduleId, datetime]]:
    """Those of the planned times that something has come of before."""
    if not planned:
        return set()
    rows = await conn.fetch(RUNS_KNOWN, [each for each, _ in planned], [at for _, at in planned])
    return {(row["schedule_id"], row["planned_at"]) for row in rows}


async def unfinished(conn: Connection, schedules: Sequence[ScheduleId]) -> dict[ScheduleId, list[JobId]]:
    """Jobs of these schedules that have no outcome yet."""
    found: dict[ScheduleId, list[JobId]] = {}
    for row in await conn.fetch(UNFINISHED_RUNS, list(schedules)) if schedules else ():
        found.setdefault(row["schedule_id"], []).append(row["job_id"])
    return found


async def record(conn: Connection, runs: Sequence[Run]) -> None:
    """Write down what came of planned times, in the transaction that made their jobs; each once, ever."""
    if runs:
        await conn.execute(
            RECORD_RUNS,
            [run.schedule_id for run in runs], [run.planned_at for run in runs], [run.project_id for run in runs],
            [run.state for run in runs], [run.manual for run in runs], [run.job_id for run in runs],
            [None if run.error is None else json.dumps(run.error) for run in runs],
            [run.until_at for run in runs], [run.count for run in runs],
        )  # fmt: skip


async def list_runs(
    conn: Connection,
    project: ProjectId,
    schedule: ScheduleId,
    *,
    limit: int,
    before: datetime,
    state: State | None = None,
) -> list[Run]:
    """What came of the schedule's times before ``before``, the newest first."""
    return [
        Run(
            row["schedule_id"], row["planned_at"], row["project_id"], row["state"], row["manual"], row["job_id"],
            None if row["error"] is None else json.loads(row["error"]), row["until_at"], row["count"],
        )
        for row in await conn.fetch(LIST_RUNS, project, schedule, before, limit, state)
    ]  # fmt: skip


async def forget(conn: Connection, *, age: timedelta, limit: int) -> int:
    """Forget what came of times so long ago, unless that is a job which has not ended; how many rows."""
    return int((await conn.execute(FORGET_RUNS, limit, age)).split()[-1])
