"""The autoscaler: one round of reading, deciding, storing and calling the cloud, repeated for ever.

What is to be done stands in the database before the cloud is asked to do it, and what the cloud said after: a round may
end anywhere, by a crash too, and the next one, here or elsewhere, goes on from the rows and the cloud's list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol

import structlog

from functions.db import Connection, Pool
from functions.ids import NodeId, ProjectId
from functions.sealing import Sealer
from nodes import boots, demand, fleet, node_waits, rented, servers
from nodes.alarms import Alarms
from nodes.errands import BEGUN_WITHIN_S, Errands
from nodes.fleet import Fleet, Replaced
from nodes.leadership import Leadership
from nodes.offers import HOUR
from nodes.outlook import Left, Outlook, Seen
from nodes.policy.decision import Decision
from nodes.policy.round import decide
from nodes.policy.spare_hours import NEVER
from nodes.policy.state import COMING, Phase
from nodes.provider import CLOCKS_APART, Provider
from nodes.rented import Rented, State
from nodes.survey import Survey
from nodes.wish import Wish
from scheduler.reaper import Sight

log = structlog.get_logger(__name__)

SILENT_FOR, SILENT_WITH_ALL = timedelta(minutes=2), timedelta(minutes=10)
"""After the second one also when nobody is heard: before, it may be the gateway that cannot."""
DEAF_FOR_S = 60.0


class Books(Protocol):
    """Who keeps account of hours. Called in the transaction that stores what they tell of, one round at a time."""

    async def left(self, conn: Connection, now: datetime) -> Left: ...

    async def reserved(
        self,
        conn: Connection,
        node: NodeId,
        *,
        until: datetime,
        shares: tuple[tuple[ProjectId, Decimal], ...],
        price: Decimal,
    ) -> None:
        """An hour is to be paid for, that ends at ``until``: the first of a node, or a later one."""
        ...


class Autoscaler:
    def __init__(
        self,
        pool: Pool,
        provider: Provider,
        wish: Wish,
        sealer: Sealer,
        *,
        user_data: Callable[[NodeId, str], str],
        books: Books | None = None,
        lease: timedelta = timedelta(seconds=30),
        clocks: Callable[[Connection], Awaitable[tuple[datetime, datetime]]] = fleet.clocks,
        calls_begin_within_s: float = BEGUN_WITHIN_S,
    ) -> None:
        """``user_data`` makes of node and join token what a server is told at its start. ``lease`` is after how long
        another scheduler goes on in place of one that died. ``clocks`` tells our time and what the cloud's is by it."""
        self._pool = pool
        self._provider = provider
        self._wish = wish
        self._sealer = sealer
        self._books = books
        self._clocks = clocks
        self._outlook = Outlook(slot_memory=wish.slot_memory, spares=wish.rules.spares != NEVER)
        self._sight = Sight(SILENT_FOR.total_seconds())
        self._hearing = Sight(DEAF_FOR_S)
        self._alarms = Alarms()
        self._leadership = Leadership(pool, lease=lease, answered=self._in_sight)
        self._survey = Survey(provider, wish, self._leadership, self._alarms)
        self._errands = Errands(
            provider, wish, self._leadership, self._alarms, sealer,
            user_data=user_data, begun_within_s=calls_begin_within_s,
        )  # fmt: skip

    async def once(self) -> bool:
        """One round; whether there is more to do right now. Does nothing while another scheduler does it."""
        async with self._pool.acquire() as conn:
            if not await self._leadership.take(conn):
                self._survey.forget()
                return False
            self._provider.compare_clock(*await self._clocks(conn))
        try:
            async with self._leadership.kept():
                await self._errands.give_up(await self._survey.look())
                async with self._leadership.step() as (conn, state):
                    due = await self._plan(conn, state)
                    await fleet.tell(conn, self._alarms)
                return await self._errands.run(due)
        except Replaced:
            log.info("another scheduler looks after the fleet")
            return False

    async def leave(self) -> None:
        """No more rounds will follow here: let another scheduler go on at once."""
        await self._leadership.leave()

    def _in_sight(self) -> None:
        """The database has answered, in the middle of a round that may be long."""
        self._sight.clear()
        self._hearing.clear()

    async def _plan(self, conn: Connection, state: Fleet) -> list[Rented]:
        """Store what is to be done, all of it in one transaction; returns what to call the cloud about."""
        now = self._provider.now()
        doubt = await self._compare_clocks(conn, now)
        ahead = await fleet.compare_clocks(conn, now, doubt=doubt)
        if self._survey.in_doubt():
            return [row for row in await rented.due(conn, now=now) if row.state is State.DELETING]
        await servers.follow_nodes(conn, now=now)
        rows = await rented.live(conn)
        silent, deaf = self._silent(rows)
        for node, silent_s in silent.items():
            await servers.delete(conn, node, reason=f"not heard of for {silent_s:.0f} s", now=now)
        frozen = state.frozen(now) is not None
        if frozen:
            await servers.unplan(conn, reason="nothing is bought for now", now=now)
        else:
            self._alarms.say("buy", None)
        if silent or frozen:
            rows = await rented.live(conn)
        self._errands.forget(rows, now)
        left = Left() if self._books is None else await self._books.left(conn, now - doubt)
        failed = await boots.failed_in_a_row(conn, now=now)
        self._alarms.say("boots", failed.alarm)
        offers = failed.hold(self._survey.offers(now), now)
        seen = Seen(now, ahead, state, rows, offers, left, deaf, self._survey.unknown)
        decision = decide(await self._outlook.read(conn, seen), self._wish.caps, now.timestamp(), self._wish.rules)
        planned = await self._store(conn, decision, {row.id: row for row in rows}, now)
        await node_waits.store(conn, decision.waits, planned, ahead=ahead)
        return await rented.due(conn, now=now)

    async def _compare_clocks(self, conn: Connection, now: datetime) -> timedelta:
        """How much later than the slower clock ``now`` is, the cloud's time as far as it is believed."""
        ours, _ = await self._clocks(conn)
        said = self._provider.said_now() or now
        apart = said - ours
        text = None
        if abs(apart) > CLOCKS_APART:
            which = "ahead of" if apart > timedelta() else "behind"
            text = (
                f"the cloud's clock is {abs(apart.total_seconds()):.0f} s {which} the database's: set the clock of the "
                "database's machine, if it is that one that is wrong; paid hours are counted by the cloud's"
            )
        self._alarms.say("clock", text)
        return max(now - min(ours, said), timedelta())

    def _silent(self, rows: Sequence[Rented]) -> tuple[dict[NodeId, float], bool]:
        """Nodes that were not heard of for so many seconds that they are given up; but not because nobody was heard.

        And whether that is so now, as after the database was away, or when all fall silent at once: then none is bought
        in their place."""
        clear = self._sight.clear()
        joined = (row for row in rows if row.state in (State.READY, State.DRAINING))
        silences = {row.id: row.silent_s for row in joined if row.silent_s is not None}
        last = min(silences.values(), default=0.0)
        after = (SILENT_FOR if last < SILENT_FOR.total_seconds() / 4 else SILENT_WITH_ALL).total_seconds()
        silent = {node: silent_s for node, silent_s in silences.items() if clear and silent_s > after}
        together = len(silences) > 1 and demand.HEARD.total_seconds() < last <= SILENT_FOR.total_seconds()
        return silent, not self._hearing.clear() or together

    async def _store(
        self, conn: Connection, decision: Decision, rows: Mapping[NodeId, Rented], now: datetime
    ) -> list[NodeId]:
        """The nodes that its purchases will be, in their order."""
        for renewal in decision.renew:
            until = datetime.fromtimestamp(renewal.until, UTC)
            if await servers.renew(conn, renewal.node, until=until) and self._books is not None:
                price = rows[renewal.node].offer.hourly
                await self._books.reserved(conn, renewal.node, until=until, shares=renewal.shares, price=price)
        for drop in decision.drop:
            step = servers.drop_unjoined if Phase(rows[drop.node].state) in COMING else servers.drop_idle
            await step(conn, drop.node, reason=drop.reason, now=now)
        planned = []
        for bought in decision.buy:
            node = await servers.plan(
                conn, self._sealer, bought.offer, owner=self._wish.owner, provider=self._wish.provider,
                account=bought.account, payer=bought.payer, reason=bought.reason, now=now,
            )  # fmt: skip
            if self._books is not None:
                price = bought.offer.hourly
                shares = () if bought.payer is None else ((bought.payer, price),)
                await self._books.reserved(conn, node, until=now + HOUR, shares=shares, price=price)
            planned.append(node)
        await servers.close(conn, decision.closed)
        return planned
