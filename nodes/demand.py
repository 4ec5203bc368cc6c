"""What a round looks at: the queue, by account, project and size; the nodes and what runs on them. Writes nothing.

The policy's times are seconds by the cloud's clock, the database's are its own: ``ahead`` is what the first is ahead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from functions.db import Connection
from functions.ids import AccountId, NodeId, ProjectId
from functions.quantities import parse_duration
from nodes.durations import Durations
from nodes.offers import Offer
from nodes.policy.state import HOUR, Node, Phase, Queued, Running
from nodes.servers import Rented

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

BOOTS = """
-- boot_times
SELECT type, location, percentile_disc(0.9) WITHIN GROUP (
           ORDER BY extract(epoch FROM ready_at - created_at)::float8) AS seconds
  FROM servers WHERE ready_at > $1 AND created_at IS NOT NULL
 GROUP BY type, location HAVING count(*) >= 3
"""

BOOTS_FAILED = """
-- boots_failed
SELECT type, location, count(*) AS times, max(boot_failed_at) AS last FROM servers failed
 WHERE boot_failed_at > $1
   AND NOT EXISTS (SELECT 1 FROM servers since
                    WHERE since.ready_at > failed.boot_failed_at AND since.type = failed.type
                      AND since.location = failed.location)
 GROUP BY type, location
"""

# Judged by when they were bought: those of one purchase that fail do so minutes after the others have joined.
BOOTS_FAILED_IN_A_ROW = """
-- boots_failed_in_a_row
SELECT count(*) AS times, max(boot_failed_at) AS last,
       EXISTS (SELECT 1 FROM servers WHERE ended_at IS NULL AND state IN ('planned', 'creating', 'booting')) AS trying
  FROM servers
 WHERE boot_failed_at > $1
   AND created_at > coalesce((SELECT max(created_at) FROM (
        SELECT created_at FROM servers WHERE ready_at IS NOT NULL ORDER BY ready_at DESC LIMIT 50) joined), '-infinity')
"""

SUNK = """
-- sunk_hours
SELECT coalesce(sum(hourly), 0) FROM servers
 WHERE ended_at > $1::timestamptz - interval '1 hour' AND created_at IS NOT NULL
   AND created_at + greatest(ceil(extract(epoch FROM ended_at - created_at) / 3600), 1) * interval '1 hour' > $1
"""

ARRIVED = """
-- arrived_since
SELECT projects.account_id, sum(newer.jobs)::bigint AS jobs, max(newer.last::text)::uuid AS last
  FROM projects CROSS JOIN LATERAL (
    SELECT count(*) AS jobs, max(newest.id::text) AS last FROM (
        SELECT id FROM jobs WHERE project_id = projects.id AND id > $1 ORDER BY id DESC LIMIT 1000) newest) newer
 WHERE newer.jobs > 0
 GROUP BY projects.account_id
"""

IN_A_ROW = 3
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
    near = [each for each in groups if not each.paid or (each.deadline is not None and each.deadline < now + HOUR)]
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
    return Node(
        id=row.id,
        offer=row.offer,
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


async def boot_times(conn: Connection, *, now: datetime) -> dict[tuple[str, str], float]:
    """How long nine of ten servers of a type and location took to join, of the last week's."""
    return {
        (row["type"], row["location"]): row["seconds"] for row in await conn.fetch(BOOTS, now - timedelta(days=7))
    }


async def without_bad_boots(conn: Connection, offers: Sequence[Offer], *, now: datetime) -> tuple[Offer, ...]:
    """The offers, those whose servers failed to join of late not to be had for a while: longer each time."""
    rows = await conn.fetch(BOOTS_FAILED, now - timedelta(hours=1))
    pauses = {row: timedelta(minutes=min(2 ** (row["times"] - 1), 15)) for row in rows}
    until = {(row["type"], row["location"]): row["last"] + pause for row, pause in pauses.items()}
    return tuple(
        replace(offer, available=False, again_at=max(until[offer.key], offer.again_at or now))
        if until.get(offer.key, now) > now
        else offer
        for offer in offers
    )


@dataclass(frozen=True, slots=True)
class FailedBoots:
    """Servers of whatever type that never joined, ``times`` of them since one last did. Then it is not the cloud:
    the gateway is out of their reach, or what they are told is wrong, and the next ones would be money for nothing."""

    times: int
    until: datetime | None

    @property
    def alarm(self) -> str | None:
        if self.until is None:
            return None
        return f"the last {self.times} servers did not become nodes, fewer are bought: see the events of `rgrid nodes`"

    def hold(self, offers: Sequence[Offer], now: datetime) -> tuple[Offer, ...]:
        """The offers, none to be had until the next attempt."""
        if self.until is None or self.until <= now:
            return tuple(offers)
        return tuple(
            replace(offer, available=False, again_at=max(self.until, offer.again_at or now)) for offer in offers
        )


async def failed_boots(conn: Connection, *, now: datetime) -> FailedBoots:
    """After three in a row one more round of purchases is tried at a time, with longer and longer pauses."""
    row = await conn.fetchrow(BOOTS_FAILED_IN_A_ROW, now - timedelta(hours=6))
    assert row is not None
    if row["times"] < IN_A_ROW:
        return FailedBoots(row["times"], None)
    until = row["last"] + timedelta(minutes=min(2 ** min(row["times"] - IN_A_ROW, 10), 30))
    return FailedBoots(row["times"], max(until, now + timedelta(minutes=1)) if row["trying"] else until)


async def sunk(conn: Connection, *, now: datetime) -> Decimal:
    """EUR per hour of servers that are gone, in an hour of theirs that is not over."""
    found: Decimal = await conn.fetchval(SUNK, now)
    return found


class Arrivals:
    """How many jobs come to each account per second, lately."""

    def __init__(self, span_s: float = 600) -> None:
        self._span_s = span_s
        self._last: UUID | None = None
        self._at: datetime | None = None
        self._rates: dict[AccountId, float] = {}

    async def refresh(self, conn: Connection, *, now: datetime) -> Mapping[AccountId, float]:
        if self._last is None or self._at is None:
            newest = await conn.fetchval(NEWEST_JOB)
            self._last, self._at = newest or UUID(int=0), now
            return {}
        rows = await conn.fetch(ARRIVED, self._last)
        passed = max((now - self._at).total_seconds(), 1e-3)
        kept = 0.5 ** (passed / self._span_s)
        came = {AccountId(row["account_id"]): row["jobs"] for row in rows}
        self._last, self._at = max([self._last, *(row["last"] for row in rows)]), now
        self._rates = {
            account: rate
            for account in self._rates.keys() | came.keys()
            if (rate := kept * self._rates.get(account, 0.0) + (1 - kept) * came.get(account, 0) / passed) > 1e-6
        }
        return self._rates


NEWEST_JOB = """
-- newest_job
SELECT max(id::text)::uuid FROM (
    SELECT newest.id FROM projects CROSS JOIN LATERAL (
        SELECT id FROM jobs WHERE project_id = projects.id ORDER BY id DESC LIMIT 1) newest) newest
"""
