"""Deliveries of callbacks: what is due, what came of each attempt, and what is tried again when.

Owns ``deliveries`` and ``delivery_attempts``. ``lease_ends`` and ``withdrawing`` insert those of outcomes, in the
statement that ends a job; ``redelivering`` makes them due anew.
``due_at`` is also the lease of who is sending: a sender that dies leaves a delivery that comes back with the same id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from functions import ids
from functions.db import Connection
from functions.egress import origin_of
from functions.errors import NotFound
from functions.grammar import PROGRESS
from functions.ids import EndpointId, JobId, MessageId, ProjectId
from scheduler.callbacks import Endpoint
from scheduler.new_deliveries import new_delivery

WALK_ENDPOINTS = """
-- walk_endpoints
WITH RECURSIVE walk AS (
    -- One probe of the index for each endpoint, however many deliveries it is behind with; one for a whole project that
    -- has no room.
    (SELECT project_id, endpoint, due_at, 1 AS step FROM deliveries
      WHERE state = 'pending' AND (project_id, endpoint) > ($1::bigint, $2::text)
      ORDER BY project_id, endpoint, due_at LIMIT 1)
    UNION ALL
    SELECT next.project_id, next.endpoint, next.due_at, walk.step + 1
      FROM walk CROSS JOIN LATERAL (
        SELECT project_id, endpoint, due_at FROM deliveries
         WHERE state = 'pending' AND (project_id, endpoint) > (
               walk.project_id + (walk.project_id = ANY ($4))::int,
               CASE WHEN walk.project_id = ANY ($4) THEN '' ELSE walk.endpoint END)
         ORDER BY project_id, endpoint, due_at LIMIT 1) next
     WHERE walk.step < $3
)
SELECT project_id, endpoint, due_at <= now() AS due FROM walk ORDER BY step
"""

# By the ids, which go with time: no index is there for it alone.
FRESH_ENDPOINTS = """
-- fresh_endpoints
SELECT DISTINCT project_id, endpoint FROM (
    SELECT project_id, endpoint FROM deliveries
     WHERE id >= $1 AND state = 'pending' AND tries = 0 AND due_at <= now() AND project_id <> ALL ($2)
     ORDER BY id DESC LIMIT $3) newest
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
UPDATE deliveries d SET due_at = now() + $4::interval WHERE id = ANY (ARRAY(SELECT id FROM next))
RETURNING id, project_id, job_id, type, url, endpoint, tries, occurred_at, due_at, endpoint_id, secrets, payload,
          -- An address that only this job has, and that has answered another event of it with 410.
          endpoint_id IS NULL AND tries = 0 AND EXISTS (
              SELECT FROM deliveries other
               WHERE other.job_id = d.job_id AND other.url = d.url AND other.endpoint_id IS NULL
                 AND other.project_id = d.project_id AND other.state = 'exhausted'
                 -- As an array, which is read by the key; a join might read all attempts that there ever were.
                 AND 410 = ANY (ARRAY(SELECT status FROM delivery_attempts WHERE delivery_id = other.id))) AS gone
"""

GIVE_UP = """
-- give_up_delivery
UPDATE deliveries SET state = 'exhausted', ended_reason = $3 WHERE id = $1 AND state = 'pending' AND due_at = $2
"""

RECORD_ATTEMPT = """
-- record_delivery_attempt
WITH told AS (
    -- Given up while it was under way, it is still what happened; that it was taken counts, that it failed does not.
    UPDATE deliveries SET tries = tries + 1, due_at = now() + $4::interval,
           state = CASE WHEN state = 'exhausted' AND $3 <> 'delivered' THEN state ELSE $3 END,
           ended_reason = CASE WHEN $3 <> 'delivered' THEN ended_reason END
     WHERE id = $1 AND due_at = $2 AND (state = 'pending' OR (state = 'exhausted' AND ended_reason IS NOT NULL))
    RETURNING id
)
INSERT INTO delivery_attempts (delivery_id, attempt, at, address, status, duration_ms, error, response)
SELECT id, (SELECT coalesce(max(attempt), 0) + 1 FROM delivery_attempts WHERE delivery_id = $1),
       now() - $7 * interval '1 millisecond', $5, $6, $7, $8, $9
  FROM told
"""

ADD_DELIVERIES = """
-- add_deliveries
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, endpoint_id, secrets, state, ended_reason, payload,
                        moment)
SELECT d.id, $1, d.job_id, d.type, d.url, d.endpoint, d.endpoint_id, d.secrets, d.state, d.ended_reason, d.payload,
       d.moment
  FROM json_to_recordset($2::json)
    AS d (id uuid, job_id uuid, type text, url text, endpoint text, endpoint_id uuid, secrets text[], state text,
          ended_reason text, payload json, moment timestamptz)
ON CONFLICT DO NOTHING
RETURNING id
"""

# By its origin, which the index of what is pending has.
END_PENDING = """
-- end_pending_deliveries
UPDATE deliveries SET state = 'exhausted', ended_reason = $4
 WHERE project_id = $1 AND endpoint = $2 AND endpoint_id = $3 AND state = 'pending'
"""

# In order: two events may be answered at once, and both answers end the other one. By the job's index: + 0 keeps the
# planner from reading all that the project has waiting.
LOCK_PENDING_OF_JOB = """
-- lock_pending_deliveries_of_job
SELECT FROM deliveries
 WHERE project_id + 0 = $1 AND job_id = $2 AND url = $3 AND endpoint_id IS NULL AND state = 'pending'
 ORDER BY type, id FOR NO KEY UPDATE
"""

END_PENDING_OF_JOB = """
-- end_pending_deliveries_of_job
UPDATE deliveries SET state = 'exhausted', ended_reason = $4
 WHERE project_id + 0 = $1 AND job_id = $2 AND url = $3 AND endpoint_id IS NULL AND state = 'pending'
"""

# Others go with their job or batch.
FORGET_DELIVERIES = """
-- forget_deliveries
DELETE FROM deliveries WHERE id = ANY (ARRAY(
    SELECT id FROM deliveries
     WHERE type IN ('schedule.missed', 'callback.test', 'callback.disabled') AND occurred_at < now() - $2::interval
     ORDER BY occurred_at LIMIT $1 FOR UPDATE SKIP LOCKED))
"""

TEST = "callback.test"
PASSING = (PROGRESS, TEST)
"""Not worth telling late: one attempt, and no more. That it fails says nothing of the endpoint."""
APART_MS = 60_000
"""How far the clock that makes ids may be from the database's."""
DELETED = "the endpoint was deleted"
GONE = "the address answered 410 to an event of the same job"


@dataclass(frozen=True, slots=True)
class Waiting:
    """An endpoint of a project with pending deliveries; ``due`` if one of them may be sent now."""

    project_id: ProjectId
    endpoint: str
    due: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is this sender's until ``due_at``. ``tries`` were made before, since it was last asked for.

    ``job_id`` is whose event it is: a batch's id where ``type`` is ``batch.completed``, and so on. ``endpoint_id`` and
    ``secrets``: as in ``callbacks.Endpoint``. ``payload`` is what is told (JSON text), where that was written down.
    ``gone``: its address, which only one job has, has said that it wants no more of that job.
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
    endpoint_id: EndpointId | None = None
    secrets: tuple[str, ...] | None = None
    payload: str | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One attempt. Without an answer ``status`` is None and ``error`` says why, in plain words.

    ``unwanted``: the receiver asks for no more attempts of this message. ``by_receiver`` is False where somebody else
    answered, who sends it on: that says nothing of the endpoint.
    """

    duration_ms: int
    address: str | None = None
    status: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after_s: float | None = None
    timed_out: bool = False
    unwanted: bool = False
    by_receiver: bool = True

    @property
    def taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


async def add(
    conn: Connection,
    project: ProjectId,
    subject: UUID,
    kind: str,
    told: Sequence[Endpoint],
    *,
    payload: Mapping[str, Any] | None = None,
    moment: datetime | None = None,
) -> list[MessageId]:
    """An event of ``subject`` for each endpoint, in the transaction of what it tells; once, however often called.

    ``payload`` is told as it is; without it the object is made when it is sent, with fresh links. An event that comes
    again and again has the ``moment`` that tells one from the next. Returns the ids of what is new.
    """
    if not told:
        return []
    more = {"payload": payload, "moment": None if moment is None else moment.isoformat()}
    new = [new_delivery(subject, kind, each).as_json() | more for each in told]
    return [row["id"] for row in await conn.fetch(ADD_DELIVERIES, project, json.dumps(new))]


async def endpoints_waiting(
    conn: Connection, after: tuple[ProjectId, str], *, limit: int, full: Collection[ProjectId] = ()
) -> list[Waiting]:
    """Endpoints with pending deliveries, in order, from behind ``after`` on; of a project in ``full`` one only."""
    rows = await conn.fetch(WALK_ENDPOINTS, *after, limit, list(full))
    return [Waiting(**row) for row in rows]


async def fresh_endpoints(
    conn: Connection, since: datetime, *, limit: int, full: Collection[ProjectId] = ()
) -> list[tuple[ProjectId, str]]:
    """Endpoints of projects that are not ``full``, with deliveries written ``since`` and not tried yet: of that many of
    them, the newest."""
    rows = await conn.fetch(FRESH_ENDPOINTS, ids.first_of(since), list(full), limit)
    return [(row["project_id"], row["endpoint"]) for row in rows]


async def claim(
    conn: Connection, wanted: Sequence[tuple[ProjectId, str, int]], *, lease: timedelta
) -> list[Claimed]:
    """Take due deliveries to send: of each (project, endpoint) at most so many. One statement, safe beside others."""
    rows = await conn.fetch(
        CLAIM_DELIVERIES, [project for project, *_ in wanted], [endpoint for _, endpoint, _ in wanted],
        [most for *_, most in wanted], lease,
    )  # fmt: skip
    return [
        Claimed(**{**row, "secrets": None if row["secrets"] is None else tuple(row["secrets"])}) for row in rows
    ]


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


async def give_up(conn: Connection, claimed: Claimed, reason: str) -> None:
    """End a delivery that there is nobody to send to, if it is still this sender's."""
    await conn.execute(GIVE_UP, claimed.id, claimed.due_at, reason)


async def end_pending(conn: Connection, project: ProjectId, endpoint: EndpointId, url: str, reason: str) -> int:
    """Give up what waits to be sent to an endpoint at ``url``; how many."""
    return int((await conn.execute(END_PENDING, project, origin_of(url), endpoint, reason)).split()[-1])


async def lock_pending_of_job(conn: Connection, project: ProjectId, job: JobId, url: str) -> None:
    """Before the first of what ``end_pending_of_job`` ends is changed, in the same transaction."""
    await conn.execute(LOCK_PENDING_OF_JOB, project, job, url)


async def end_pending_of_job(conn: Connection, project: ProjectId, job: JobId, url: str, reason: str) -> int:
    """Give up what waits to be sent of a job to an address that only it has; how many."""
    return int((await conn.execute(END_PENDING_OF_JOB, project, job, url, reason)).split()[-1])


async def forget(conn: Connection, *, age: timedelta, limit: int) -> int:
    """Delete deliveries of that age that tell of no job; how many."""
    return int((await conn.execute(FORGET_DELIVERIES, limit, age)).split()[-1])


def not_found(delivery: MessageId) -> NotFound:
    return NotFound(f"there is no delivery {ids.encode(ids.MESSAGE, delivery)}", code="delivery_not_found")
