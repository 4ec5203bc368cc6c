"""The schedules of functions. Owns ``schedules``.

Those of a manifest are rows that an apply makes, changes and takes away in its own transaction; those that were made
over the API (origin ``api``) survive applies. A function that is deleted takes all of them with it. What happens to one
whose time has come is in ``due_schedules``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

from functions import faults, ids, versions
from functions.cron import Cron
from functions.db import Connection, Row
from functions.documents import pointer
from functions.errors import Conflict, NotFound
from functions.faults import Fault
from functions.ids import FunctionId, ProjectId, ScheduleId
from functions.quantities import format_duration
from functions.schedule_spec import MOST_SCHEDULES, ScheduleSpec

Origin = Literal["manifest", "api"]
MOST_OF_A_FUNCTION = 5 * MOST_SCHEDULES
LAST = UUID(int=2**128 - 1)
CACHED_CHARACTERS = 1000
"""Of params: of some thousands of schedules they stay in memory."""

CLOCK = """
-- clock
SELECT now()
"""

NAMES_TAKEN = """
-- schedule_names_taken
SELECT name FROM schedules WHERE function_id = $1 AND origin = 'api' AND name = ANY ($2)
"""

# One that goes on with its times keeps those that nobody has got to yet.
SYNC_SCHEDULES = """
-- sync_schedules
WITH wanted AS (
    SELECT * FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
                         $10::interval[], $11::timestamptz[])
        w (id, name, cron, timezone, params, overlap, catch_up, jitter, next_at)
), gone AS (
    DELETE FROM schedules WHERE function_id = $2 AND origin = 'manifest' AND name <> ALL ($4)
)
INSERT INTO schedules AS s (id, project_id, function_id, name, origin, cron, timezone, params, overlap, catch_up,
                            jitter, next_at, due_at)
SELECT id, $1, $2, name, 'manifest', cron, timezone, params::json, overlap, catch_up, jitter, next_at, next_at
  FROM wanted
ON CONFLICT (function_id, name) DO UPDATE
   SET cron = EXCLUDED.cron, timezone = EXCLUDED.timezone, params = EXCLUDED.params, overlap = EXCLUDED.overlap,
       catch_up = EXCLUDED.catch_up, jitter = EXCLUDED.jitter, updated_at = now(),
       next_at = CASE WHEN s.paused_at IS NOT NULL THEN NULL
                      WHEN (s.cron, s.timezone) = (EXCLUDED.cron, EXCLUDED.timezone) THEN s.next_at
                      ELSE EXCLUDED.next_at END,
       due_at = CASE WHEN s.paused_at IS NOT NULL THEN NULL
                     WHEN (s.cron, s.timezone) = (EXCLUDED.cron, EXCLUDED.timezone) THEN s.due_at
                     ELSE EXCLUDED.due_at END
 WHERE (s.cron, s.timezone, s.params::text, s.overlap, s.catch_up, s.jitter) IS DISTINCT FROM
       (EXCLUDED.cron, EXCLUDED.timezone, EXCLUDED.params::text, EXCLUDED.overlap, EXCLUDED.catch_up, EXCLUDED.jitter)
"""

LOCK_NAMED_FUNCTION = """
-- lock_function_of_schedule
SELECT id, now() AS now, (SELECT count(*) FROM schedules WHERE function_id = functions.id) AS schedules
  FROM functions WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL FOR NO KEY UPDATE
"""

ADD_SCHEDULE = """
-- add_schedule
INSERT INTO schedules (id, project_id, function_id, name, origin, cron, timezone, params, overlap, catch_up, jitter,
                       next_at, due_at)
VALUES ($1, $2, $3, $4, 'api', $5, $6, $7, $8, $9, $10, $11, $11)
ON CONFLICT DO NOTHING
RETURNING id
"""

FORGET_SCHEDULES = """
-- forget_schedules_of_function
DELETE FROM schedules WHERE function_id = $1
"""

DELETE_SCHEDULE = """
-- delete_schedule
DELETE FROM schedules WHERE project_id = $1 AND id = $2 AND origin = 'api' RETURNING id
"""

HOLD_SCHEDULE = """
-- hold_schedule
SELECT true FROM schedules WHERE project_id = $1 AND id = $2 FOR KEY SHARE
"""

LOCK_SCHEDULE = """
-- lock_schedule
SELECT cron, timezone, paused_at, now() AS now FROM schedules WHERE project_id = $1 AND id = $2 FOR UPDATE
"""

PAUSE_SCHEDULE = """
-- pause_schedule
UPDATE schedules SET paused_at = now(), next_at = NULL, due_at = NULL WHERE id = $1
"""

RESUME_SCHEDULE = """
-- resume_schedule
UPDATE schedules SET paused_at = NULL, next_at = $2, due_at = $2 WHERE id = $1
"""

# The page first: names, and what came last, are looked up for it only.
LIST_SCHEDULES = """
-- list_schedules
SELECT page.*, functions.name AS function, last.planned_at AS last_planned_at, last.state AS last_state,
       last.job_id AS last_job_id
  FROM (SELECT * FROM schedules
         WHERE project_id = $1 AND id < $3
           AND ($4::text IS NULL OR function_id = (
                SELECT id FROM functions WHERE project_id = $1 AND name = $4 AND deleted_at IS NULL))
           AND ($5::text IS NULL OR name = $5)
         ORDER BY id DESC
         LIMIT $2) page
  JOIN functions ON functions.id = page.function_id
  LEFT JOIN LATERAL (
    SELECT planned_at, state, job_id FROM schedule_runs
     WHERE schedule_id = page.id ORDER BY planned_at DESC LIMIT 1) last ON true
 ORDER BY page.id DESC
"""

GET_SCHEDULE = """
-- get_schedule
SELECT s.*, functions.name AS function, last.planned_at AS last_planned_at, last.state AS last_state,
       last.job_id AS last_job_id
  FROM schedules s
  JOIN functions ON functions.id = s.function_id AND functions.deleted_at IS NULL
  LEFT JOIN LATERAL (
    SELECT planned_at, state, job_id FROM schedule_runs
     WHERE schedule_id = s.id ORDER BY planned_at DESC LIMIT 1) last ON true
 WHERE s.project_id = $1 AND s.id = $2
"""


@dataclass(frozen=True, slots=True)
class LastRun:
    planned_at: datetime
    state: str
    job_id: ids.JobId | None


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """``next_at`` is None while it is paused, or when its line has no more times."""

    id: ScheduleId
    project_id: ProjectId
    function: str
    origin: Origin
    spec: ScheduleSpec
    paused: bool
    next_at: datetime | None
    last: LastRun | None
    created_at: datetime
    updated_at: datetime

    def next_runs(self, count: int) -> list[datetime]:
        """The times that come next; none while it is paused."""
        if self.next_at is None:
            return []
        return [self.next_at, *self.spec.times.upcoming(self.next_at, count - 1)]


async def sync(conn: Connection, project: ProjectId, function: FunctionId, wanted: Sequence[ScheduleSpec]) -> None:
    """Make the function's schedules those of its manifest, in the transaction that changes it.

    Raises ``Invalid`` with a pointer to each whose name one of the API has.
    """
    names = [each.name for each in wanted]
    now = None
    if names:
        now = await clock(conn)
        taken = {row["name"] for row in await conn.fetch(NAMES_TAKEN, function, names)}
        faults.raise_all(
            [
                Fault(
                    pointer("spec", "triggers", "schedules", index, "name"),
                    f"the function has a schedule {name} that was made over the API: delete that, or take another name",
                    "schedule_exists",
                )
                for index, name in enumerate(names)
                if name in taken
            ]
        )
    await conn.execute(
        SYNC_SCHEDULES, project, function, [ids.new_uuid7() for _ in wanted], names,
        [each.cron for each in wanted], [each.timezone for each in wanted], [_params(each) for each in wanted],
        [each.overlap for each in wanted], [each.catch_up for each in wanted], [each.jitter for each in wanted],
        [None if now is None else each.times.after(now) for each in wanted],
    )  # fmt: skip


async def forget(conn: Connection, function: FunctionId) -> None:
    """Take all of a function's schedules away: none of them makes a job any more."""
    await conn.execute(FORGET_SCHEDULES, function)


async def add(conn: Connection, project: ProjectId, function: str, spec: ScheduleSpec) -> ScheduleRow:
    """A schedule of the API, in the caller's transaction; raises ``NotFound`` and ``Conflict``."""
    versions.require_name(function)
    # A delete that comes now waits, and takes this one with it.
    owner = await conn.fetchrow(LOCK_NAMED_FUNCTION, project, function)
    if owner is None:
        raise versions.function_not_found(function)
    if owner["schedules"] >= MOST_OF_A_FUNCTION:
        raise Conflict(f"a function has no more than {MOST_OF_A_FUNCTION} schedules", code="limit_reached")
    schedule = ScheduleId(ids.new_uuid7())
    made = await conn.fetchval(
        ADD_SCHEDULE, schedule, project, owner["id"], spec.name, spec.cron, spec.timezone, _params(spec), spec.overlap,
        spec.catch_up, spec.jitter, spec.times.after(owner["now"]),
    )  # fmt: skip
    if made is None:
        raise Conflict(f"the function {function} has a schedule {spec.name}", code="schedule_exists")
    return await get(conn, project, schedule)


async def delete(conn: Connection, project: ProjectId, schedule: ScheduleId) -> None:
    """Raises ``NotFound``, or ``Conflict`` for one of a manifest."""
    if await conn.fetchval(DELETE_SCHEDULE, project, schedule) is None:
        found = await get(conn, project, schedule)
        raise Conflict(
            f"the schedule is of the manifest of {found.function}: take it out there, or pause it",
            code="schedule_of_manifest",
        )


async def set_paused(conn: Connection, project: ProjectId, schedule: ScheduleId, *, paused: bool) -> ScheduleRow:
    """Pause or resume it, in the caller's transaction; raises ``NotFound``. An apply does not change that, and times of
    the pause are not caught up."""
    held = await conn.fetchrow(LOCK_SCHEDULE, project, schedule)
    if held is None:
        raise not_found()
    if paused and held["paused_at"] is None:
        await conn.execute(PAUSE_SCHEDULE, schedule)
    if not paused and held["paused_at"] is not None:
        await conn.execute(RESUME_SCHEDULE, schedule, _times(held).after(held["now"]))
    return await get(conn, project, schedule)


async def hold(conn: Connection, project: ProjectId, schedule: ScheduleId) -> None:
    """Keep it from being deleted until the transaction's end: a delete that comes now finds what this one makes.
    Raises ``NotFound``."""
    if not await conn.fetchval(HOLD_SCHEDULE, project, schedule):
        raise not_found()


async def get(conn: Connection, project: ProjectId, schedule: ScheduleId) -> ScheduleRow:
    """Raises ``NotFound``."""
    row = await conn.fetchrow(GET_SCHEDULE, project, schedule)
    if row is None:
        raise not_found()
    return _row(row)


async def list_schedules(
    conn: Connection,
    project: ProjectId,
    *,
    limit: int,
    before: ScheduleId | None,
    function: str | None = None,
    name: str | None = None,
) -> list[ScheduleRow]:
    """Newest first, those made before ``before``; of one function, or of one name."""
    return [_row(row) for row in await conn.fetch(LIST_SCHEDULES, project, limit, before or LAST, function, name)]


async def clock(conn: Connection) -> datetime:
    """The database's."""
    now: datetime = await conn.fetchval(CLOCK)
    return now


def not_found() -> NotFound:
    return NotFound("there is no such schedule", code="schedule_not_found")


def _params(spec: ScheduleSpec) -> str:
    return json.dumps(spec.params, ensure_ascii=False, separators=(",", ":"))


def _row(row: Row) -> ScheduleRow:
    last = None
    if row["last_planned_at"] is not None:
        last = LastRun(row["last_planned_at"], row["last_state"], row["last_job_id"])
    return ScheduleRow(
        row["id"], row["project_id"], row["function"], row["origin"], spec_of(row), row["paused_at"] is not None,
        row["next_at"], last, row["created_at"], row["updated_at"],
    )  # fmt: skip


def _times(row: Row) -> Cron:
    return Cron(row["cron"], row["timezone"])


def spec_of(row: Row) -> ScheduleSpec:
    """Of a row of ``schedules``; raises ``ValidationError`` for what only a newer release can read."""
    parse = _parsed if len(row["params"]) <= CACHED_CHARACTERS else _parsed.__wrapped__
    return parse(
        *((key, row[key]) for key in ("name", "cron", "timezone", "params", "overlap")),
        ("catchUp", row["catch_up"]),
        ("jitter", format_duration(row["jitter"])),
    )


@lru_cache(maxsize=4096)
def _parsed(*written: tuple[str, str]) -> ScheduleSpec:
    document: dict[str, Any] = dict(written)
    return ScheduleSpec.model_validate(document | {"params": json.loads(document["params"])})
