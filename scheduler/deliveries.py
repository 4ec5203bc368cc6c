"""Deliveries of callbacks: what is due, what came of each attempt, and what is tried again when.

Owns ``deliveries`` (the queue inserts them, in the statement of what they tell of) and ``delivery_attempts``.
``due_at`` is also the lease of who is sending: a sender that dies leaves a delivery that comes back with the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from functions import ids
from functions.db import Connection
from functions.errors import NotFound
from functions.ids import JobId, MessageId, ProjectId
from scheduler.callbacks import Endpoint

WALK_ENDPOINTS = """
-- walk_endpoints
WITH RECURSIVE walk AS (
    -- One probe of the index for each endpoint, however many deliveries it is behind with.
    (SELECT project_id, endpoint, due_at, 1 AS step FROM deliveries
      WHERE state = 'pending' AND (project_id, endpoint) > ($1::bigint, $2::text)
      ORDER BY project_id, endpoint, due_at LIMIT 1)
    UNION ALL
    SELECT next.project_id, next.endpoint, next.due_at, walk.step + 1
      FROM walk CROSS JOIN LATERAL (
        SELECT project_id, endpoint, due_at FROM deliveries
         WHERE state = 'pending' AND (project_id, endpoint) > (walk.project_id, walk.endpoint)
         ORDER BY project_id, endpoint, due_at LIMIT 1) next
     WHERE walk.step < $3
)
SELECT project_id, endpoint, due_at <= now() AS due FROM walk ORDER BY step
"""

CLAIM_DELIVERIES = """
-- claim_deliveries
WITH next AS (
    SELECT d.id FROM unnest($1::bigint[], $2::text[], $3::int[]) w (project_id, endpoint, most)
     CROSS JOIN LATERAL (
        SELECT id FROM deliveries
         WHERE state = 'pending' AND project_id = w.project_id AND endpoint = w.endpoint AND due_at <= now()
         ORDER BY due_at LIMIT w.most
           FOR UPDATE SKIP LOCKED) d
)
UPDATE deliveries SET due_at = now() + $4::interval WHERE id = ANY (ARRAY(SELECT id FROM next))
RETURNING id, project_id, job_id, type, url, endpoint, tries, occurred_at, due_at
"""

RECORD_ATTEMPT = """
-- record_delivery_attempt
WITH told AS (
    UPDATE deliveries SET state = $3, tries = tries + 1, due_at = now() + $4::interval
     WHERE id = $1 AND state = 'pending' AND due_at = $2
    RETURNING id
)
INSERT INTO delivery_attempts (delivery_id, attempt, at, address, status, duration_ms, error, response)
SELECT id, (SELECT coalesce(max(attempt), 0) + 1 FROM delivery_attempts WHERE delivery_id = $1),
       now() - $7 * interval '1 millisecond', $5, $6, $7, $8, $9
  FROM told
"""

LIST_DELIVERIES = """
-- list_deliveries
SELECT id, job_id, type, url, state, occurred_at, CASE WHEN state = 'pending' THEN due_at END AS next_at FROM deliveries
 WHERE project_id = $1 AND ($2::uuid IS NULL OR job_id = $2) AND ($3::text IS NULL OR state = $3)
   AND ($4::uuid IS NULL OR id < $4)
 ORDER BY id DESC LIMIT $5
"""

ATTEMPTS_OF = """
-- delivery_attempts_of
SELECT delivery_id, attempt, at, address, status, duration_ms, error, response FROM delivery_attempts
 WHERE delivery_id = ANY ($1) ORDER BY delivery_id, attempt
"""

# job_id says whose event it is: for batch.completed that is a batch.
ADD_DELIVERIES = """
-- add_deliveries
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint)
SELECT d.id, $1, $2, $3, d.url, d.endpoint FROM unnest($4::uuid[], $5::text[], $6::text[]) d (id, url, endpoint)
ON CONFLICT DO NOTHING
"""

REDELIVER = """
-- redeliver
UPDATE deliveries SET state = 'pending', tries = 0, due_at = now() WHERE project_id = $1 AND id = $2 RETURNING id
"""

STEPS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds from one attempt to the next; the first is made at once."""
GONE = 410


@dataclass(frozen=True, slots=True)
class Waiting:
    """An endpoint of a project with pending deliveries; ``due`` if one of them may be sent now."""

    project_id: ProjectId
    endpoint: str
    due: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is this sender's until ``due_at``. ``tries`` were made before, since it was last asked for.

    ``job_id`` is a batch's id where ``type`` is ``batch.completed``.
    """

    id: MessageId
    project_id: ProjectId
    job_id: JobId
    type: str
    url: str
    endpoint: str
    tries: int
    occurred_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One attempt. Without an answer ``status`` is None and ``error`` says why, in plain words."""

    duration_ms: int
    address: str | None = None
    status: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after_s: float | None = None


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
    """``next_at`` is when a pending one is sent next. Attempts are in their order. ``job_id``: as in ``Claimed``."""

    id: MessageId
    job_id: JobId
    type: str
    url: str
    state: str
    occurred_at: datetime
    next_at: datetime | None
    attempts: tuple[Attempt, ...]


def next_state(tries: int, exchanged: Exchanged, jitter: float) -> tuple[str, timedelta]:
    """What becomes of a delivery after its attempt number ``tries``, and how long it waits if it is still pending.

    ``jitter`` in [0, 1) spreads each step over ± 20 %. A receiver may ask for more patience, up to twice the step.
    """
    if exchanged.status is not None and 200 <= exchanged.status < 300:
        return "delivered", timedelta(0)
    if exchanged.status == GONE or tries > len(STEPS_S):
        return "exhausted", timedelta(0)
    step_s = STEPS_S[tries - 1] * (0.8 + 0.4 * jitter)
    return "pending", timedelta(seconds=min(max(step_s, exchanged.retry_after_s or 0), 2 * step_s))


async def add(
    conn: Connection, project: ProjectId, subject: UUID, kind: str, endpoints: Sequence[Endpoint]
) -> None:
    """An event of ``subject`` for each endpoint, in the transaction of what it tells; once, however often called."""
    await conn.execute(
        ADD_DELIVERIES, project, subject, kind, [ids.new_uuid7() for _ in endpoints],
        [each.url for each in endpoints], [each.key for each in endpoints],
    )  # fmt: skip


async def endpoints_waiting(
    conn: Connection, after: tuple[ProjectId, str], *, limit: int
) -> list[Waiting]:
    """Endpoints with pending deliveries, in order, from behind ``after`` on."""
    rows = await conn.fetch(WALK_ENDPOINTS, *after, limit)
    return [Waiting(**row) for row in rows]


async def claim(
    conn: Connection, wanted: Sequence[tuple[ProjectId, str, int]], *, lease: timedelta
) -> list[Claimed]:
    """Take due deliveries to send: of each (project, endpoint) at most so many. One statement, safe beside others."""
    rows = await conn.fetch(
        CLAIM_DELIVERIES, [project for project, *_ in wanted], [endpoint for _, endpoint, _ in wanted],
        [most for *_, most in wanted], lease,
    )  # fmt: skip
    return [Claimed(**row) for row in rows]


async def record(
    conn: Connection, claimed: Claimed, exchanged: Exchanged, state: str, pause: timedelta
) -> bool:
    """Write down an attempt and what it leads to.

    False if the delivery is no longer this sender's: it took too long, or somebody asked for it to be sent again.
    """
    done = await conn.execute(
        RECORD_ATTEMPT, claimed.id, claimed.due_at, state, pause, exchanged.address, exchanged.status,
        exchanged.duration_ms, exchanged.error, exchanged.response,
    )  # fmt: skip
    return bool(done == "INSERT 0 1")


async def list_deliveries(
    conn: Connection,
    project: ProjectId,
    *,
    job: JobId | None = None,
    state: str | None = None,
    limit: int,
    before: MessageId | None = None,
) -> list[Delivery]:
    """Deliveries of the project with all their attempts, newest first."""
    rows = await conn.fetch(LIST_DELIVERIES, project, job, state, before, limit)
    attempts: dict[MessageId, list[Attempt]] = {}
    for row in await conn.fetch(ATTEMPTS_OF, [row["id"] for row in rows]) if rows else ():
        values = dict(row)
        attempts.setdefault(values.pop("delivery_id"), []).append(Attempt(**values))
    return [Delivery(**row, attempts=tuple(attempts.get(row["id"], ()))) for row in rows]


async def redeliver(conn: Connection, project: ProjectId, delivery: MessageId) -> None:
    """Send it again now, with the whole schedule before it, whatever came of it so far; raises ``NotFound``."""
    if await conn.fetchval(REDELIVER, project, delivery) is None:
        raise NotFound(f"there is no delivery {ids.encode(ids.MESSAGE, delivery)}", code="delivery_not_found")
