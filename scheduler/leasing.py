"""Leases on jobs while they are held: heartbeat, who holds what, and which ran out.

Owns ``leases``: ``claiming`` makes them, ``lease_ends`` ends them; ``withdrawing`` and ``overdue`` ask for a cancel,
``relimiting`` and ``running_costs`` change what limits them. A lease is fenced by its token: what comes with another
one changes nothing. A heartbeat also says in ``nodes`` that its node was heard of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from functions.db import Connection
from functions.ids import JobId, NodeId, ProjectId, VersionId
from functions.listening import Listener, listener

HEARTBEAT = """
-- heartbeat
WITH seen AS (
    UPDATE nodes SET last_seen_at = now() WHERE id = $1 AND state <> 'gone'
), mine AS (
    -- An index is read in its order, also for an array: rows are locked by id, as a cancel locks them, or the two
    -- statements would wait for each other.
    SELECT job_id, progress FROM leases WHERE job_id = ANY ($3) FOR NO KEY UPDATE
)
UPDATE leases SET expires_at = now() + $2::interval, progress = r.progress, timeline = r.timeline::json
  FROM unnest($3::uuid[], $4::uuid[], $5::real[], $6::text[]) r (job_id, token, progress, timeline)
 WHERE leases.job_id = r.job_id AND leases.token = r.token AND leases.node_id = $1
   AND (SELECT count(*) FROM mine) > 0
RETURNING leases.job_id, leases.cancel_requested OR (leases.pays_until <= now()) IS TRUE AS cancel_requested,
    -- Whether it got on and somebody may want to know: as with the start.
    leases.progress IS DISTINCT FROM (SELECT mine.progress FROM mine WHERE mine.job_id = leases.job_id)
    AND (SELECT 'job.progress' = ANY (jobs.callback_events)
                OR 'job.progress' = ANY ((SELECT live_events FROM function_versions v
                                           WHERE v.id = jobs.version_id)::text[])
                OR EXISTS (SELECT 1 FROM callback_endpoints e
                            WHERE e.project_id = jobs.project_id AND 'job.progress' = ANY (e.events)
                              AND coalesce(e.function_id, '00000000-0000-0000-0000-000000000000'::uuid)
                                  = '00000000-0000-0000-0000-000000000000')
           FROM jobs WHERE jobs.id = leases.job_id) IS TRUE AS heard
"""

HELD = """
-- held_leases
SELECT leases.job_id, leases.project_id, leases.attempt, leases.losses, leases.cancel_requested,
       (leases.cancel_at <= now()) IS TRUE AS overdue, (leases.pays_until <= now()) IS TRUE AS unpaid,
       CASE WHEN leases.pays_until < coalesce(leases.cancel_at, 'infinity') THEN leases.pays_until - leases.leased_at
            END AS pays,
       jobs.version_id, jobs.callback_url, jobs.callback_events,
       -- Here, so that an outcome costs no statement more for endpoints that few projects have.
       (SELECT json_agg(json_build_object(
                   'id', e.id, 'function_id', e.function_id, 'url', e.url, 'events', e.events,
                   'functions', e.functions, 'enabled', e.disabled_at IS NULL))
          FROM callback_endpoints e
         WHERE e.project_id = leases.project_id
           AND coalesce(e.function_id, '00000000-0000-0000-0000-000000000000'::uuid)
               = ANY (ARRAY['00000000-0000-0000-0000-000000000000'::uuid, jobs.function_id])) AS listeners
  FROM leases JOIN jobs ON jobs.id = leases.job_id
 WHERE leases.job_id = $1 AND leases.token = $2 AND leases.node_id = $3
   FOR UPDATE OF leases
"""

HELD_BY = """
-- held_by_node
SELECT job_id, token FROM leases WHERE node_id = $1
"""

EXPIRED_LEASES = """
-- expired_leases
SELECT leases.job_id, leases.token, leases.project_id, leases.node_id, leases.attempt, leases.losses,
       leases.cancel_requested, (leases.cancel_at <= now()) IS TRUE AS overdue,
       (leases.pays_until <= now()) IS TRUE AS unpaid, leases.timeline,
       (SELECT count(*) FROM job_attempts
         WHERE job_attempts.job_id = leases.job_id AND error ->> 'code' = 'node_lost') AS lost_before
  FROM leases WHERE expires_at < now() ORDER BY expires_at LIMIT $1
   FOR UPDATE SKIP LOCKED
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that its node still holds, with what decides about its end. ``unpaid``: its ``max_cost`` is used up;
    ``pays`` is for how long that was enough, None if something else ends it before."""

    job_id: JobId
    project_id: ProjectId
    attempt: int
    losses: int
    cancel_requested: bool
    overdue: bool
    unpaid: bool
    pays: timedelta | None
    version_id: VersionId
    callback_url: str | None
    callback_events: tuple[str, ...] | None
    listeners: tuple[Listener, ...] = ()
    """The endpoints of the project and of the job's function."""

    @property
    def is_stopped(self) -> bool:
        """By a cancel, or by its Cancel-After: it gets no other attempt."""
        return self.cancel_requested or self.overdue

    def stopped_for_money(self, status: str, timeout: timedelta) -> bool:
        """Whether a node that reports ``status`` stopped it because its money was used up. What the node was told
        decides, and not the time alone: by this clock it may not be that late yet. ``timeout`` is the job's own."""
        ends = self.pays is not None and (status == "cancelled" or self.pays < timeout)
        return status in ("cancelled", "timed_out") and (self.unpaid or ends)


@dataclass(frozen=True, slots=True)
class Expired:
    job_id: JobId
    token: UUID
    project_id: ProjectId
    node_id: NodeId
    attempt: int
    losses: int
    cancel_requested: bool
    overdue: bool
    unpaid: bool
    timeline: str
    lost_before: int


async def heartbeat(
    conn: Connection,
    node: NodeId,
    held: Sequence[tuple[JobId, UUID, float | None, Mapping[str, int]]],
    *,
    lease: timedelta,
    heard: set[JobId] | None = None,
) -> dict[JobId, bool]:
    """Renew a node's leases, noting (job, token, progress, timeline). Returns job → whether to stop it.

    A job that is not in the answer is no longer this node's. ``heard`` gets those that got on, if somebody may want to
    be told.
    """
    rows = await conn.fetch(
        HEARTBEAT, node, lease, [job for job, *_ in held], [token for _, token, *_ in held],
        [progress for *_, progress, _ in held], [json.dumps(timeline) for *_, timeline in held],
    )  # fmt: skip
    if heard is not None:
        heard.update(row["job_id"] for row in rows if row["heard"])
    return {row["job_id"]: row["cancel_requested"] for row in rows}


async def find_held(conn: Connection, node: NodeId, job: JobId, token: UUID) -> Held | None:
    """The lease of this job, if ``node`` still holds it by ``token``.

    It is locked until the transaction's end: of two equal reports the second one sees what became of the first.
    """
    row = await conn.fetchrow(HELD, job, token, node)
    if row is None:
        return None
    events, listening = row["callback_events"], row["listeners"]
    return Held(
        **{
            **row,
            "callback_events": None if events is None else tuple(events),
            "listeners": () if listening is None else tuple(listener(each) for each in json.loads(listening)),
        }
    )


async def held_by(conn: Connection, node: NodeId) -> list[tuple[JobId, UUID]]:
    """Every lease that the node holds: job and token."""
    return [(row["job_id"], row["token"]) for row in await conn.fetch(HELD_BY, node)]


async def expired(conn: Connection, *, limit: int) -> list[Expired]:
    """Lock and return leases that ran out. The caller owns the transaction and ends or requeues them in it."""
    return [Expired(**row) for row in await conn.fetch(EXPIRED_LEASES, limit)]
