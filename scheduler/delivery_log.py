"""What became of deliveries: lists of them with every attempt. Reads ``deliveries`` and ``delivery_attempts``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from functions import ids
from functions.db import Connection, Row
from functions.ids import EndpointId, JobId, MessageId, ProjectId
from scheduler.deliveries import APART_MS, not_found

FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)

LIST_DELIVERIES = """
-- list_deliveries
SELECT id, job_id, type, url, endpoint_id, state, ended_reason, occurred_at,
       CASE WHEN state = 'pending' THEN due_at END AS next_at
  FROM deliveries
 WHERE project_id = $1 AND ($2::uuid IS NULL OR job_id = $2) AND ($3::uuid IS NULL OR endpoint_id = $3)
   AND ($4::text IS NULL OR state = $4) AND ($5::text IS NULL OR type = $5)
   AND ($6::timestamptz IS NULL OR occurred_at >= $6) AND ($7::timestamptz IS NULL OR occurred_at < $7)
   AND id < $8 AND id >= $9
 ORDER BY id DESC LIMIT $10
"""

READ_DELIVERY = """
-- read_delivery
SELECT id, job_id, type, url, endpoint_id, state, ended_reason, occurred_at,
       CASE WHEN state = 'pending' THEN due_at END AS next_at
  FROM deliveries WHERE project_id = $1 AND id = $2
"""

ATTEMPTS_OF = """
-- delivery_attempts_of
SELECT delivery_id, attempt, at, address, status, duration_ms, error, response FROM delivery_attempts
 WHERE delivery_id = ANY ($1) ORDER BY delivery_id, attempt
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt as it is listed. ``response`` is the beginning of the answer's body."""

    attempt: int
    at: datetime
    address: str | None
    status: int | None
    duration_ms: int
    error: str | None
    response: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """``next_at`` is when a pending one is sent next. Attempts are in their order. ``job_id``: as in ``Claimed``.

    ``ended_reason`` is why it is exhausted, where no attempt says so.
    """

    id: MessageId
    job_id: JobId
    type: str
    url: str
    endpoint_id: EndpointId | None
    state: str
    ended_reason: str | None
    occurred_at: datetime
    next_at: datetime | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list shows; None is everything. ``job`` is whose event it is. ``since`` counts itself in, ``until`` does
    not."""

    job: UUID | None = None
    endpoint: EndpointId | None = None
    state: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING = Filters()


async def list_deliveries(
    conn: Connection,
    project: ProjectId,
    filters: Filters = EVERYTHING,
    *,
    limit: int,
    before: MessageId | None = None,
) -> list[Delivery]:
    """Deliveries of the project with all their attempts, newest first."""
    upper = LAST if filters.until is None else ids.first_of(filters.until, later_ms=APART_MS)
    lower = FIRST if filters.since is None else ids.first_of(filters.since, later_ms=-APART_MS)
    rows = await conn.fetch(
        LIST_DELIVERIES, project, filters.job, filters.endpoint, filters.state, filters.type, filters.since,
        filters.until, min(before or LAST, upper), lower, limit,
    )  # fmt: skip
    return await _with_attempts(conn, rows)


async def read(conn: Connection, project: ProjectId, delivery: MessageId) -> Delivery:
    """Raises ``NotFound``."""
    rows = await conn.fetch(READ_DELIVERY, project, delivery)
    if not rows:
        raise not_found(delivery)
    return (await _with_attempts(conn, rows))[0]


async def _with_attempts(conn: Connection, rows: Sequence[Row]) -> list[Delivery]:
    attempts: dict[MessageId, list[Attempt]] = {}
    for row in await conn.fetch(ATTEMPTS_OF, [row["id"] for row in rows]) if rows else ():
        values = dict(row)
        attempts.setdefault(values.pop("delivery_id"), []).append(Attempt(**values))
    return [Delivery(**row, attempts=tuple(attempts.get(row["id"], ()))) for row in rows]
