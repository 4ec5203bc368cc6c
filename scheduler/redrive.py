"""Finished jobs once more, as new ones: one of them, or all that a filter fits; with edited params or another version.

Reads ``jobs``; what it makes enters the queue as any other job does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from functions import ids, versions
from functions.artifacts import Store
from functions.db import Connection, Pool, Row
from functions.documents import merge_patch
from functions.egress import EgressPolicy
from functions.errors import Conflict, NotFound, RGridError
from functions.ids import JobId, ProjectId, VersionId
from functions.versions import Version
from scheduler.gates import GateId
from scheduler.inputs import refused_inputs
from scheduler.jobs import Invocation, Sizing, prepare, submit
from scheduler.queue import NewJob
from scheduler.spill import loaded, reference_of, spilled

JOBS_TO_RETRY = """
-- jobs_to_retry
SELECT jobs.id, jobs.params, jobs.callback_url, jobs.callback_events, functions.name AS function, functions.deleted_at,
       CASE WHEN $3::int IS NULL OR ($3 = 0 AND jobs.function_id IS NULL) THEN jobs.version_id
            -- No join: it would read all versions of a function for each job.
            ELSE (SELECT id FROM function_versions v
                   WHERE v.function_id = jobs.function_id
                     AND v.number = CASE WHEN $3 = 0 THEN functions.current_number ELSE $3 END) END AS version_id,
       EXISTS (SELECT 1 FROM outcomes WHERE job_id = jobs.id) AS finished,
       -- Not EXISTS, which may be done by reading all jobs at once.
       (SELECT true FROM jobs later WHERE later.retried_from = jobs.id AND later.retried_from IS NOT NULL LIMIT 1)
            IS TRUE AS retried
  FROM jobs
  LEFT JOIN functions ON functions.id = jobs.function_id
 WHERE jobs.id = ANY ($2) AND jobs.project_id = $1
"""

# One bulk retry of a project at a time: two of them would retry the same jobs twice.
LOCK_RETRIES = """
-- lock_bulk_retries
SELECT pg_advisory_xact_lock(hashtextextended('rgrid bulk retry', $1))
"""

CURRENT = 0
"""The number that stands for a function's current version."""


@dataclass(frozen=True, slots=True)
class Changes:
    """``params`` is a merge patch (RFC 7396) of the job's; ``version`` None is the job's own."""

    params: Mapping[str, Any] | None = None
    version: int | Literal["current"] | None = None

    @property
    def number(self) -> int | None:
        return CURRENT if self.version == "current" else self.version


@dataclass(frozen=True, slots=True)
class Redriving:
    """What retries are made with. ``key_id`` is the API key that asks for them."""

    pool: Pool
    store: Store
    sizing: Sizing
    policy: EgressPolicy
    changes: Changes = Changes()
    key_id: str | None = None


@dataclass(slots=True)
class Redriven:
    """``retried`` jobs have a new one, ``skipped`` had one before, ``refused`` cannot have one. ``reached`` are gates,
    to be advanced after the commit."""

    retried: int = 0
    skipped: int = 0
    refused: list[tuple[JobId, RGridError]] = field(default_factory=list)
    reached: set[GateId] = field(default_factory=set)


async def retry(conn: Connection, project: ProjectId, job: JobId, how: Redriving) -> NewJob:
    """A new job like a finished one, ready to be submitted.

    Raises ``NotFound``, ``Invalid`` when the changes do not fit, or ``Conflict`` while the job is not finished or when
    its function is gone.
    """
    row = await conn.fetchrow(JOBS_TO_RETRY, project, [job], how.changes.number)
    if row is None:
        raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
    version = _version_of(row, await _versions(conn, [row]), how.changes)
    large = await _large(conn, project, [row], how.store)
    return _again(project, row, large, version, how)


async def retry_many(conn: Connection, project: ProjectId, jobs: Sequence[JobId], how: Redriving) -> Redriven:
    """Retry those of the jobs that no other job was made from yet, in the caller's transaction; safe to repeat."""
    await conn.execute(LOCK_RETRIES, project)
    rows = await conn.fetch(JOBS_TO_RETRY, project, list(jobs), how.changes.number)
    done = Redriven(skipped=sum(row["retried"] for row in rows))
    rows = [row for row in rows if not row["retried"]]
    found, large = await _versions(conn, rows), await _large(conn, project, rows, how.store)

    def prepare_all() -> list[tuple[JobId, NewJob]]:
        made = []
        for row in sorted(rows, key=lambda row: row["id"]):
            try:
                made.append((row["id"], _again(project, row, large, _version_of(row, found, how.changes), how)))
            except RGridError as error:
                done.refused.append((row["id"], error))
        return made

    # Schemas and templates take their time, and other requests must not wait for it.
    made = await asyncio.to_thread(prepare_all)
    refused = await refused_inputs(conn, [new for _, new in made], how.policy)
    done.refused += [(old, refused[new.id]) for old, new in made if new.id in refused]
    made = [(old, (await spilled(how.pool, how.store, new))[0]) for old, new in made if new.id not in refused]
    answers = await submit(conn, [new for _, new in made], done.reached)
    for (old, _), answer in zip(made, answers, strict=True):
        if isinstance(answer, RGridError):
            done.refused.append((old, answer))
        else:
            done.retried += 1
    return done


async def count_unretried(conn: Connection, project: ProjectId, jobs: Sequence[JobId]) -> int:
    """How many of the jobs ``retry_many`` would look at."""
    rows = await conn.fetch(JOBS_TO_RETRY, project, list(jobs), None)
    return sum(not row["retried"] for row in rows)


async def _versions(conn: Connection, rows: Sequence[Row]) -> dict[VersionId, Version]:
    return await versions.by_ids(conn, {row["version_id"] for row in rows if row["version_id"] is not None})


def _version_of(row: Row, found: Mapping[VersionId, Version], changes: Changes) -> Version:
    name = ids.encode(ids.JOB, row["id"])
    if not row["finished"]:
        raise Conflict(f"{name} is not finished: cancel it first, or wait", code="job_not_finished")
    if row["deleted_at"] is not None:
        raise Conflict(f"the function of {name} was deleted: apply it again and invoke it", code="function_deleted")
    version = found.get(row["version_id"])
    if version is None:
        whose = "a job without a function" if row["function"] is None else f"function {row['function']}"
        raise NotFound(f"{whose} has no version {changes.version}", code="version_not_found")
    return version


async def _large(conn: Connection, project: ProjectId, rows: Sequence[Row], store: Store) -> dict[JobId, str]:
    """Params that lie in the store, as far as they are kept."""
    found = {}
    for row in rows:
        if reference_of(row["params"]) is not None:
            with suppress(NotFound):
                found[row["id"]] = await loaded(conn, store, project, row["params"])
    return found


def _again(project: ProjectId, row: Row, large: Mapping[JobId, str], version: Version, how: Redriving) -> NewJob:
    params, events = json.loads(large.get(row["id"], row["params"])), row["callback_events"]
    if isinstance(params, str):
        name = ids.encode(ids.JOB, row["id"])
        raise NotFound(f"the params of {name} are not kept any more", code="artifact_not_found")
    if how.changes.params is not None:
        params = merge_patch(params, how.changes.params)
    invocation = Invocation(
        params=params,
        trigger={"kind": "manual"},
        callback_url=row["callback_url"],
        callback_events=None if events is None else tuple(events),
        retried_from=row["id"],
        key_id=how.key_id,
    )
    return prepare(project, version, invocation, how.sizing)
