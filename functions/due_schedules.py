"""Schedules whose time has come: rows of ``schedules`` that are dealt with, and moved on or postponed.

They move on in the transaction that makes the jobs of a planned time, by the database's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from pydantic import ValidationError

from functions import ids
from functions.db import Connection
from functions.ids import FunctionId, ProjectId, ScheduleId, VersionId
from functions.schedule_spec import ScheduleSpec
from functions.schedules import spec_of

log = structlog.get_logger(__name__)

ODD_AGAIN = timedelta(minutes=1)

# Whoever changes or deletes a schedule waits until its times of now are dealt with; another round passes it by.
DUE_SCHEDULES = """
-- due_schedules
WITH due AS (
    SELECT id, project_id, function_id, name, cron, timezone, params, overlap, catch_up, jitter, next_at
      FROM schedules WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
)
SELECT due.*, now() AS now, current.version_id, current.image_digest
  FROM due CROSS JOIN LATERAL (
    SELECT v.id AS version_id, v.image_digest
      FROM functions JOIN function_versions v ON v.function_id = functions.id AND v.number = functions.current_number
     WHERE functions.id = due.function_id LIMIT 1) current
"""

MOVE_SCHEDULES = """
-- move_schedules
UPDATE schedules SET next_at = m.next_at, due_at = m.next_at
  FROM unnest($1::uuid[], $2::timestamptz[]) m (id, next_at)
 WHERE schedules.id = m.id
"""

POSTPONE_SCHEDULES = """
-- postpone_schedules
UPDATE schedules SET due_at = now() + $2::interval WHERE id = ANY ($1)
"""

NEXT_DUE = """
-- next_due_schedule
SELECT extract(epoch FROM min(due_at) - now())::float8 FROM schedules WHERE due_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule whose time has come, by the database's clock, with its function's current version; locked."""

    id: ScheduleId
    project_id: ProjectId
    function_id: FunctionId
    version_id: VersionId
    image_digest: str | None
    spec: ScheduleSpec
    next_at: datetime
    now: datetime


async def due(conn: Connection, *, limit: int) -> list[DueSchedule]:
    """Lock and return schedules whose time has come. The caller moves or postpones them in the same transaction.

    One that this release cannot read (a newer one knows more time zones) waits, and does not stop the others.
    """
    found, odd = [], []
    for row in await conn.fetch(DUE_SCHEDULES, limit):
        try:
            spec = spec_of(row)
        except ValidationError as error:
            log.error("schedule cannot be read", schedule=ids.encode(ids.SCHEDULE, row["id"]), error=str(error))
            odd.append(row["id"])
            continue
        found.append(
            DueSchedule(
                row["id"], row["project_id"], row["function_id"], row["version_id"], row["image_digest"], spec,
                row["next_at"], row["now"],
            )
        )  # fmt: skip
    await postpone(conn, odd, ODD_AGAIN)
    return found


async def move(conn: Connection, moved: Sequence[tuple[ScheduleId, datetime | None]]) -> None:
    """Set when they come next, in the transaction that has dealt with the times before."""
    if moved:
        await conn.execute(MOVE_SCHEDULES, [each for each, _ in moved], [at for _, at in moved])


async def postpone(conn: Connection, schedules: Sequence[ScheduleId], pause: timedelta) -> None:
    """Look at them again after ``pause``: what their jobs need does not answer now. Their times stay."""
    if schedules:
        await conn.execute(POSTPONE_SCHEDULES, list(schedules), pause)


async def next_due_s(conn: Connection) -> float | None:
    """Seconds until the next one is due; below zero if one is. None if there is none."""
    found: float | None = await conn.fetchval(NEXT_DUE)
    return found
