"""What a round looks at: the queue, by account, project and size; the nodes and what runs on them. Writes nothing.

The policy's times are seconds by the cloud's clock, the database's are its own: ``ahead`` is what the first is ahead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.ids import AccountId, NodeId, ProjectId
from functions.quantities import parse_duration
from nodes.durations import Durations
from nodes.offers import Offer
from nodes.policy.state import NEAR_S, Node, Phase, Queued, Running
from nodes.rented import Rented

LOOKED_AT = 5_000
"""Jobs of an account, a lane and a size that are counted: beyond any number of nodes that a round may buy."""
JUDGED = 50
"""The first of them say how long they run."""

# A loose scan of the claim's index: a probe for each size of each account, however many jobs there are.
QUEUE = """
-- queue_demand
WITH RECURSIVE kinds AS (
    (SELECT pool, lane, cls FROM ready_jobs ORDER BY pool, lane, cls LIMIT 1)
    UNION ALL
    SELECT later.pool, later.lane, later.cls FROM kinds CROSS JOIN LATERAL (
        SELECT pool, lane, cls FROM ready_jobs
         WHERE (pool, lane, cls) > (kinds.pool, kinds.lane, kinds.cls) ORDER BY pool, lane, cls LIMIT 1) later
)
SELECT kinds.pool, kinds.lane, kinds.cls, first.project_id, count(*) AS jobs, min(first.queued_at) AS oldest,
       mode() WITHIN GROUP (ORDER BY jobs.function_id) AS function_id,
       CASE kinds.lane WHEN 1 THEN jobs.version_id END AS version_id
  FROM kinds
 CROSS JOIN LATERAL (
    SELECT project_id, job_id, queued_at, row_number() OVER (ORDER BY vt, job_id) AS place FROM ready_jobs
     WHERE pool = kinds.pool AND lane = kinds.lane AND cls = kinds.cls
     ORDER BY vt, job_id LIMIT $1) first
  LEFT JOIN jobs ON jobs.id = first.job_id AND (first.place <= $2 OR kinds.lane = 1)
 GROUP BY kinds.pool, kinds.lane, kinds.cls, first.project_id, CASE kinds.lane WHEN 1 THEN jobs.version_id END,
          CASE kinds.lane WHEN 1 THEN date_trunc('minute', first.queued_at) END
"""

DEADLINES = """
-- lane_deadlines
SELECT id, manifest #>> '{spec,queue,deadline}' AS deadline FROM function_versions WHERE id = ANY ($1)
"""

RUNNING = """
-- running_by_node
SELECT leases.node_id, leases.project_id, leases.cls, leases.lane, leases.leased_at, jobs.function_id
  FROM leases JOIN jobs ON jobs.id = leases.job_id
"""

RUNNING_ON = """
-- running_on_nodes
SELECT leases.node_id, leases.project_id, leases.cls, leases.lane, leases.leased_at, jobs.function_id
  FROM leases JOIN jobs ON jobs.id = leases.job_id WHERE leases.node_id = ANY ($1)
"""

# Machines that are somebody's own.
OWN_NODES = """
-- own_nodes
SELECT id, slots, account_id FROM nodes
 WHERE state = 'ready' AND last_seen_at > now() - $1::interval
   AND NOT EXISTS (SELECT 1 FROM servers WHERE servers.node_id = nodes.id)
"""

HEARD = timedelta(seconds=30)
"""A node that has been silent for longer is not counted on."""


class Deadlines:
    """By when jobs of the paid lane must have started, by their version: it never changes."""

    def __init__(self) -> None:
        self._known: dict[UUID, timedelta | None] = {}

    async def refresh(self, conn: Connection, versions: Iterable[UUID | None]) -> None:
        new = [version for version in set(versions) if version is not None and version not in self._known]
        if not new:
            return
        self._known |= dict.fromkeys(new)
        for row in await conn.fetch(DEADLINES, new):
            text = row["deadline"]
            self._known[row["id"]] = None if text is None else parse_duration(text)

    def of(self, version: UUID | None) -> timedelta | None:
        return None if version is None else self._known.get(version)


async def queue(
    conn: Connection, durations: Durations, deadlines: Deadlines, *, now: datetime, ahead: timedelta, slot_memory: int
) -> tuple[Queued, ...]:
    """What waits for a node, in groups of jobs that are alike."""
    rows = await conn.fetch(QUEUE, LOOKED_AT, JUDGED)
    await deadlines.refresh(conn, (row["version_id"] for row in rows))
    groups: list[Queued] = []
    for row in rows:
        oldest, within = (row["oldest"] + ahead).timestamp(), deadlines.of(row["version_id"])
        groups.append(
            Queued(
                account=AccountId(row["pool"]),
                project=ProjectId(row["project_id"]),
                slots=row["cls"],
                memory=row["cls"] * slot_memory,
                count=row["jobs"],
                oldest=oldest,
                expected=durations.of(row["function_id"], row["project_id"]),
                paid=row["lane"] == 1,
                deadline=None if within is None else oldest + within.total_seconds(),
            )
        )
    return tuple(_merged(groups, now.timestamp()))


def _merged(groups: Sequence[Queued], now: float) -> list[Queued]:
    """Jobs of the paid lane whose deadlines are far off need not be told apart."""
    near = [each for each in groups if not each.paid or (each.deadline is not None and each.deadline < now + NEAR_S)]
    far: dict[tuple[object, ...], Queued] = {}
    for each in groups:
        if each in near:
            continue
        key = (each.account, each.project, each.slots, each.deadline is None)
        if (other := far.get(key)) is None:
            far[key] = each
            continue
        ends = None if each.deadline is None or other.deadline is None else min(each.deadline, other.deadline)
        far[key] = replace(
            other, count=other.count + each.count, oldest=min(other.oldest, each.oldest), deadline=ends
        )
    return [*near, *far.values()]


async def running(
    conn: Connection, durations: Durations, *, ahead: timedelta, nodes: Sequence[NodeId] | None = None
) -> Mapping[NodeId, tuple[Running, ...]]:
    """What runs, by node: on all, or on these."""
    found: dict[NodeId, list[Running]] = defaultdict(list)
    for row in await (conn.fetch(RUNNING) if nodes is None else conn.fetch(RUNNING_ON, list(nodes))):
        found[NodeId(row["node_id"])].append(_running(row, durations, ahead))
    return {node: tuple(jobs) for node, jobs in found.items()}


def _running(row: Any, durations: Durations, ahead: timedelta) -> Running:
    return Running(
        project=ProjectId(row["project_id"]),
        slots=row["cls"],
        started_at=(row["leased_at"] + ahead).timestamp(),
        expected=durations.of(row["function_id"], row["project_id"]),
        paid=row["lane"] == 1,
    )


def rented_node(row: Rented, runs: tuple[Running, ...], *, deaf: bool = False) -> Node:
    """A server as the policy sees it; one that fell silent is not counted on, but where we are ``deaf`` it is."""
    silent = not deaf and row.silent_s is not None and row.silent_s > HEARD.total_seconds()
    offer = row.offer
    if row.node_slots is not None and row.node_slots < offer.slots:
        offer = replace(offer, slots=row.node_slots)
    return Node(
        id=row.id,
        offer=offer,
        phase=Phase(row.state),
        account=row.account,
        payer=row.payer,
        created_at=row.hours_from.timestamp(),
        reserved_until=row.reserved_until.timestamp(),
        running=runs,
        closed=row.closed or silent,
    )


def own_node(id: NodeId, slots: int, account: AccountId | None, memory: int, runs: tuple[Running, ...]) -> Node:
    """A machine that costs nothing by the hour."""
    offer = Offer("own", "", slots, memory, Decimal(0), Decimal(0))
    return Node(id, offer, Phase.READY, account, None, 0.0, float("inf"), runs, rented=False)


async def own_nodes(
    conn: Connection, runs: Mapping[NodeId, tuple[Running, ...]], *, slot_memory: int
) -> list[Node]:
    rows = await conn.fetch(OWN_NODES, HEARD)
    return [
        own_node(row["id"], row["slots"], row["account_id"], row["slots"] * slot_memory, runs.get(row["id"], ()))
        for row in rows
    ]
