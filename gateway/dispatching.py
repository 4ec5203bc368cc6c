"""Which of the nodes that ask for work gets it: the one whose paid time it fits best, and none that it makes dearer.

Nodes pull. Those that wait at this gateway are compared with each other; a job that belongs on another one of them is
left to that one, which was woken by the same hint. A node that costs nothing by the hour takes whatever there is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from functions.db import Connection, Row
from functions.ids import AccountId, NodeId, ProjectId
from nodes import demand, fleet, rented
from nodes.durations import Durations
from nodes.policy.dispatch import best_node
from nodes.policy.state import Node, Queued, Rules, Running
from nodes.registry import Standing

FRESH_S = 0.5
JUDGED_S = 30.0
HEADS = 20
"""Jobs of an account, a lane and a size that are looked at in one go."""

# As the claim looks for its heads: probes of one index, and nothing is locked.
PEEK = """
-- peek_ready
SELECT p.pool, l.lane, r.*, jobs.function_id, jobs.version_id
  FROM unnest($1::bigint[]) p (pool)
 CROSS JOIN (VALUES (0::smallint), (1::smallint)) l (lane)
 CROSS JOIN generate_series(1, $2::int) c (cls)
 CROSS JOIN LATERAL (
    SELECT job_id, project_id, vt, cls, queued_at FROM ready_jobs
     WHERE pool = p.pool AND ready_jobs.lane = l.lane AND ready_jobs.cls = c.cls
       AND (least(ttl_at, cancel_at) > now()) IS NOT FALSE
     ORDER BY vt, job_id LIMIT $3) r
  LEFT JOIN jobs ON jobs.id = r.job_id
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a node may claim now: of these lanes, jobs that fill so many slots."""

    lanes: tuple[int, ...]
    slots: int


class Dispatcher:
    """One for a gateway."""

    def __init__(self, rules: Rules, *, slot_memory: int) -> None:
        self._rules = rules
        self._slot_memory = slot_memory
        self._durations = Durations()
        self._deadlines = demand.Deadlines()
        self._judged_at = -JUDGED_S
        self._waiting: dict[NodeId, int] = {}
        """Slots that they say are free."""
        self._serving: dict[tuple[int, ...], tuple[float, list[Node]]] = {}

    @property
    def nodes_waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def waiting(self, node: NodeId, free_slots: int) -> Iterator[None]:
        """The node asks for work as long as this is open."""
        self._waiting[node] = free_slots
        try:
            yield
        finally:
            self._waiting.pop(node, None)

    async def turns(
        self, conn: Connection, node: NodeId, standing: Standing, pools: Sequence[int], free_slots: int
    ) -> list[Turn]:
        """What ``node`` is to claim now, in order; nothing if no job is better off there."""
        if not standing.rented:
            return [Turn((0, 1), free_slots)]
        if standing.closed:
            return []
        rows = await conn.fetch(PEEK, list(pools), free_slots, HEADS)
        if not rows:
            return []
        now, ahead = await fleet.clock(conn)
        if time.monotonic() - self._judged_at >= JUDGED_S:
            self._judged_at = time.monotonic()
            await self._durations.refresh(conn)
        await self._deadlines.refresh(conn, (row["version_id"] for row in rows if row["lane"] == 1))
        jobs = [
            self._job(row, (row["queued_at"] + ahead).timestamp())
            for row in sorted(rows, key=lambda row: (row["lane"], row["vt"], row["job_id"]))
        ]
        mine = {0: 0, 1: 0}
        nodes = await self._nodes(conn, pools, node, free_slots)
        room = self._waiting | {node: free_slots}
        for job in self._share(nodes, jobs, room, node, now.timestamp()):
            mine[int(job.paid)] += job.slots
        return [Turn((lane,), slots) for lane, slots in mine.items() if slots]

    def _share(
        self, nodes: Sequence[Node], jobs: Sequence[Queued], room: dict[NodeId, int], mine: NodeId, now: float
    ) -> Iterator[Queued]:
        """The jobs that start on ``mine`` if each goes where it belongs; ``room`` is what nodes that ask have free."""
        serving = {each.id: each for each in nodes}
        for job in jobs:
            if mine not in serving or not min(serving[mine].free, room[mine]):
                return
            here = [each for each in serving.values() if room.get(each.id, 0) >= job.slots]
            # What waits for paid minutes leaves a part of all slots to others; else only those count that ask now.
            best = best_node(serving.values() if job.paid else here, job, now, self._rules)
            if best is None:
                continue
            started = Running(job.project, job.slots, now, job.expected, job.paid)
            serving[best.id] = replace(best, running=(*best.running, started))
            room[best.id] = room.get(best.id, best.free) - job.slots
            if best.id == mine:
                yield job

    def _job(self, row: Row, queued_at: float) -> Queued:
        within = self._deadlines.of(row["version_id"]) if row["lane"] == 1 else None
        return Queued(
            account=AccountId(row["pool"]),
            project=ProjectId(row["project_id"]),
            slots=row["cls"],
            memory=row["cls"] * self._slot_memory,
            count=1,
            oldest=queued_at,
            expected=self._durations.of(row["function_id"], row["project_id"]),
            paid=row["lane"] == 1,
            deadline=None if within is None else queued_at + within.total_seconds(),
        )

    async def _nodes(self, conn: Connection, pools: Sequence[int], mine: NodeId, free_slots: int) -> list[Node]:
        """Rented nodes that serve the accounts, as of half a second ago at most; ``mine`` as it is now."""
        key = tuple(sorted(pools))
        at, found = self._serving.get(key, (0.0, []))
        known = any(node.id == mine and node.free >= free_slots for node in found)
        if known and time.monotonic() - at < FRESH_S:
            return found
        _, ahead = await fleet.clock(conn)
        rows = await rented.serving(conn, pools)
        runs = await demand.running(conn, self._durations, ahead=ahead, nodes=[row.id for row in rows])
        found = [demand.rented_node(row, runs.get(row.id, ())) for row in rows]
        self._serving = {key: value for key, value in self._serving.items() if time.monotonic() - value[0] < FRESH_S}
        self._serving[key] = time.monotonic(), found
        return found
