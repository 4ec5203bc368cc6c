"""Everything that a round knows, put together for the policy; and what must be remembered between rounds for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from functions.db import Connection
from functions.ids import AccountId, ProjectId
from nodes import boots, demand, rented
from nodes.durations import Durations
from nodes.fleet import Fleet
from nodes.new_jobs import NewJobs
from nodes.offers import Offer
from nodes.policy.state import FleetState, Node
from nodes.rented import Rented

MEMORY_S = 3600.0
"""Use by accounts is forgotten by half in this time."""


@dataclass(frozen=True, slots=True)
class Left:
    """What may still be spent this month, all reservations taken off: by projects that have a budget, and by all."""

    budgets: Mapping[ProjectId, Decimal] = field(default_factory=dict)
    month: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the round has found out already. ``now`` is the cloud's clock, ``ahead`` how much it is ahead of the
    database's. ``deaf``: that nodes are silent says nothing about them."""

    now: datetime
    ahead: timedelta
    fleet: Fleet
    rows: Sequence[Rented]
    offers: Sequence[Offer]
    left: Left
    deaf: bool = False
    unknown: Sequence[Offer] = ()
    """What servers cost that have no row."""


class Outlook:
    """One for a process; what it remembers only makes guesses better."""

    def __init__(self, *, slot_memory: int, spares: bool) -> None:
        """``spares``: some may be wanted, so that it must be known how many jobs come."""
        self._slot_memory = slot_memory
        self._durations = Durations()
        self._deadlines = demand.Deadlines()
        self._new_jobs = NewJobs() if spares else None
        self._used: dict[AccountId, float] = {}
        self._used_at: datetime | None = None

    async def read(self, conn: Connection, seen: Seen) -> FleetState:
        await self._durations.refresh(conn)
        now, frozen = seen.now, seen.fleet.frozen(seen.now)
        memory = self._slot_memory
        runs = await demand.running(conn, self._durations, ahead=seen.ahead)
        nodes = [demand.rented_node(row, runs.get(row.id, ()), deaf=seen.deaf) for row in seen.rows]
        nodes += await demand.own_nodes(conn, runs, slot_memory=memory)
        return FleetState(
            nodes=tuple(nodes),
            queue=await demand.queue(
                conn, self._durations, self._deadlines, now=now, ahead=seen.ahead, slot_memory=memory
            ),
            offers=await boots.without_bad(conn, seen.offers, now=now),
            boot_s=await boots.times(conn, now=now),
            frozen_until=0.0 if frozen is None else frozen.timestamp(),
            server_limit=seen.fleet.limit(now),
            sunk=sum((each.hourly for each in seen.unknown), await rented.sunk(conn, now=now)),
            unknown=len(seen.unknown),
            budgets=seen.left.budgets,
            month_left=seen.left.month,
            used=self._use(nodes, now),
            arrivals={} if self._new_jobs is None else await self._new_jobs.rates(conn, now=now, ahead=seen.ahead),
        )

    def _use(self, nodes: Iterable[Node], now: datetime) -> Mapping[AccountId, float]:
        """Slot-seconds that accounts used of late."""
        passed = 0.0 if self._used_at is None else max((now - self._used_at).total_seconds(), 0.0)
        self._used_at = now
        kept = 0.5 ** (passed / MEMORY_S)
        self._used = {account: used * kept for account, used in self._used.items() if used * kept > 1}
        for node in nodes:
            if node.account is not None and node.rented:
                busy = sum(job.slots for job in node.running)
                self._used[node.account] = self._used.get(node.account, 0.0) + busy * passed
        return self._used
