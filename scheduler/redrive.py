"""Finished jobs once more, as new ones: one of them, or all that a filter fits; with edited params or another version.

Reads ``jobs``; what it makes enters the queue as any other job does.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from functions import ids, versions
from functions.artifacts import Store
from functions.db import Connection, Pool, Row
from functions.documents import merge_patch
from functions.egress import EgressPolicy
from functions.errors import Conflict, NotFound, RGridError
from functions.ids import JobId, ProjectId, VersionId
from functions.versions import Version
from scheduler import limits
from scheduler.gates import GateId
from scheduler.inputs import refused_inputs
from scheduler.jobs import submit
from scheduler.preparing import Invocation, Sizing, prepare
from scheduler.queue import NewJob
from scheduler.spill import Spilling, file_of, read_text, reference_of

JOBS_TO_RETRY = """
-- jobs_to_retry
SELECT jobs.id, jobs.params, jobs.callback_url, jobs.callback_events, jobs.max_cost,
       functions.name AS function, functions.deleted_at,
       CASE WHEN $3::int IS NULL OR ($3 = 0 AND jobs.function_id IS NULL) THEN jobs.version_id
            -- No join: it would read all versions of a function for each job.
            ELSE (SELECT id FROM function_versions v
                   WHERE v.function_id = jobs.function_id
                     AND v.number = CASE WHEN $3 = 0 THEN functions.current_number ELSE $3 END) END AS version_id,
       (SELECT id FROM function_versions v
         WHERE v.function_id = jobs.function_id AND v.number = functions.current_number) AS current_id,
       EXISTS (SELECT 1 FROM outcomes WHERE job_id = jobs.id) AS finished
  FROM jobs
  LEFT JOIN functions ON functions.id = jobs.function_id
 WHERE jobs.id = ANY ($2) AND jobs.project_id = $1
"""

SIZES = """
-- sizes_of_params
SELECT id, octet_length(params::text) AS size FROM jobs WHERE id = ANY ($2) AND project_id = $1 ORDER BY id
"""

UNRETRIED = """
-- unretried_jobs
SELECT id FROM jobs
 WHERE id = ANY ($2) AND project_id = $1
   -- Not NOT EXISTS, which may be done by reading all jobs at once.
   AND (SELECT true FROM jobs later WHERE later.retried_from = jobs.id AND later.retried_from IS NOT NULL LIMIT 1)
       IS NOT TRUE
"""

# One bulk retry of a project at a time: two of them would retry the same jobs twice.
LOCK_RETRIES = """
-- lock_bulk_retries
SELECT pg_advisory_xact_lock(hashtextextended('rgrid bulk retry', $1))
"""

PORTION_BYTES = 4 * 1024 * 1024
"""Of params, as they are and as they become: so much of a bulk retry is in memory at once, and one job's more."""
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


@dataclass(slots=True)
class Portion:
    """``made``: new jobs, each with the one that it is a retry of; of the ``refused`` none can be made."""

    made: list[tuple[JobId, NewJob]] = field(default_factory=list)
    refused: list[tuple[JobId, RGridError]] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def looked(self) -> list[JobId]:
        return [job for job, _ in (*self.made, *self.refused)]


async def retry(project: ProjectId, job: JobId, how: Redriving) -> NewJob:
    """A new job like a finished one, ready to be submitted.

    Raises ``NotFound``, ``Invalid`` when the changes do not fit, or ``Conflict`` while the job is not finished or when
    its function is gone.
    """
    async with how.pool.acquire() as conn:
        row = await conn.fetchrow(JOBS_TO_RETRY, project, [job], how.changes.number)
        if row is None:
            raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
        version = _version_of(row, await _versions(conn, [row]), how.changes)
    return _again(project, row, await _params(how, project, row), version, how)


async def portions(project: ProjectId, jobs: Sequence[JobId], how: Redriving) -> AsyncGenerator[Portion, None]:
    """What ``retry_portion`` makes of those jobs that no other one was made from yet, in the order of their ids.

    Nothing is held meanwhile: neither a transaction nor a connection while the store is asked.
    """
    async with how.pool.acquire() as conn:
        left = await unretried(conn, project, jobs)
        sizes = await conn.fetch(SIZES, project, left)
    for some in _portioned(sizes):
        async with how.pool.acquire() as conn:
            rows = await conn.fetch(JOBS_TO_RETRY, project, some, how.changes.number)
            found = await _versions(conn, rows)
        waiting = deque(sorted(rows, key=lambda row: row["id"]))
        portion = Portion()
        while waiting:
            large: str | None = None
            if reference_of(waiting[0]["params"]) is not None:
                try:
                    large = await _params(how, project, waiting[0])
                except NotFound as error:
                    portion.refused.append((waiting.popleft()["id"], error))
                    continue
            # In a thread: schemas and templates take their time, and other requests must not wait for it.
            await asyncio.to_thread(_fill, portion, waiting, project, how, found=found, large=large)
            if portion.size_bytes > PORTION_BYTES:
                yield await _checked(portion, how)
                portion = Portion()
        if portion.looked:
            yield await _checked(portion, how)


def _fill(
    portion: Portion,
    waiting: deque[Row],
    project: ProjectId,
    how: Redriving,
    *,
    found: Mapping[VersionId, Version],
    large: str | None,
) -> None:
    """Move jobs into the portion until it is full, or the next one's params are in the store. ``large``: what the first
    one's are there."""
    while waiting and portion.size_bytes <= PORTION_BYTES:
        row = waiting[0]
        text: str = row["params"]
        if reference_of(text) is not None:
            if large is None:
                return
            text, large = large, None
        waiting.popleft()
        try:
            new = _again(project, row, text, _version_of(row, found, how.changes), how)
        except RGridError as error:
            portion.refused.append((row["id"], error))
        else:
            portion.made.append((row["id"], new))
            portion.size_bytes += len(new.params)


async def retry_portion(pool: Pool, project: ProjectId, portion: Portion, how: Redriving) -> Redriven:
    """Put the new jobs into the queue, in one transaction; but none for a job that has been retried meanwhile. Safe to
    repeat and beside others."""
    done = Redriven(refused=list(portion.refused))
    async with Spilling(how.pool, how.store) as spilling:
        made = [(old, await spilling.spilled(new)) for old, new in portion.made]
        async with pool.acquire() as conn:
            await limits.make_gates(conn, [new for _, new in made])
            async with conn.transaction():
                await conn.execute(LOCK_RETRIES, project)
                left = set(await unretried(conn, project, [old for old, _ in made]))
                made = [(old, new) for old, new in made if old in left]
                answers = await submit(conn, [new for _, new in made], done.reached)
                entered = []
                for (old, new), answer in zip(made, answers, strict=True):
                    if isinstance(answer, RGridError):
                        done.refused.append((old, answer))
                    else:
                        entered.append(new.id)
                spilling.made(entered)
    done.retried = len(entered)
    done.skipped = len(portion.made) - len(left)
    return done


async def unretried(conn: Connection, project: ProjectId, jobs: Sequence[JobId]) -> list[JobId]:
    """Those of the jobs that no other one was made from."""
    return [row["id"] for row in await conn.fetch(UNRETRIED, project, list(jobs))]


def _portioned(sizes: Sequence[Row]) -> Iterator[list[JobId]]:
    portion: list[JobId] = []
    total = 0
    for row in sizes:
        if portion and total + row["size"] > PORTION_BYTES:
            yield portion
            portion, total = [], 0
        portion.append(row["id"])
        total += row["size"]
    if portion:
        yield portion


async def _checked(portion: Portion, how: Redriving) -> Portion:
    """The portion, with those refused whose inputs cannot be had."""
    async with how.pool.acquire() as conn:
        refused = await refused_inputs(conn, [new for _, new in portion.made], how.policy)
    portion.refused += [(old, refused[new.id]) for old, new in portion.made if new.id in refused]
    portion.made = [(old, new) for old, new in portion.made if new.id not in refused]
    return portion


async def _versions(conn: Connection, rows: Sequence[Row]) -> dict[VersionId, Version]:
    wanted = {row[column] for row in rows for column in ("version_id", "current_id")}
    return await versions.by_ids(conn, wanted - {None})


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
    # The limits are those of the current one.
    return version if row["current_id"] in (None, version.id) else replace(version, current=found[row["current_id"]])


async def _params(how: Redriving, project: ProjectId, row: Row) -> str:
    """The job's params, from the store if they lie there; raises ``NotFound`` when they are kept no longer."""
    params: str = row["params"]
    if reference_of(params) is None:
        return params
    try:
        async with how.pool.acquire() as conn:
            file = await file_of(conn, project, params)
        return params if file is None else await read_text(how.store, file)
    except NotFound:
        name = ids.encode(ids.JOB, row["id"])
        raise NotFound(f"the params of {name} are not kept any more", code="artifact_not_found") from None


def _again(project: ProjectId, row: Row, text: str, version: Version, how: Redriving) -> NewJob:
    params, events = json.loads(text), row["callback_events"]
    if how.changes.params is not None:
        params = merge_patch(params, how.changes.params)
    invocation = Invocation(
        params=params,
        trigger={"kind": "manual"},
        callback_url=row["callback_url"],
        callback_events=None if events is None else tuple(events),
        retried_from=row["id"],
        key_id=how.key_id,
        max_cost=row["max_cost"],
    )
    return prepare(project, version, invocation, how.sizing)
