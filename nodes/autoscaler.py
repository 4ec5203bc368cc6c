"""The autoscaler: one round of reading, deciding, storing and calling the cloud, repeated for ever.

What is to be done stands in the database before the cloud is asked to do it, and what the cloud said after: a round may
end anywhere, by a crash too, and the next one, here or elsewhere, goes on from the rows and the cloud's list.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Protocol, TypeVar
from uuid import uuid4

import structlog

from functions import ids
from functions.db import Connection, Pool
from functions.ids import NodeId, ProjectId
from functions.sealing import Sealer
from nodes import demand, fleet, node_waits, servers
from nodes.fleet import Fleet, Replaced
from nodes.offers import HOUR, Catalogue, Offer, wanted
from nodes.outlook import Left, Outlook, Seen
from nodes.policy.decision import Decision
from nodes.policy.round import decide
from nodes.policy.state import COMING, Caps, Phase, Rules
from nodes.provider import (
    EPOCH_LABEL,
    NODE_LABEL,
    OWNER_LABEL,
    POOL_LABEL,
    Order,
    Provider,
    ProviderError,
    RateLimited,
    Refused,
)
from nodes.purchases import SOON, not_bought
from nodes.reconcile import reconcile
from nodes.servers import Rented, State
from scheduler.reaper import Sight

log = structlog.get_logger(__name__)
T = TypeVar("T")

LIST_EVERY = timedelta(seconds=20)
"""For each page of fifty servers: so many calls that the rate stays the same however many there are."""
LIST_EMPTY_EVERY = timedelta(seconds=60)
PAGE = 50
LATER = timedelta(seconds=60)
DELETE_AGAIN = timedelta(seconds=90)
STUCK_AFTER = timedelta(minutes=5)
AUDIT_EVERY = timedelta(days=1)
DELETING = "delete "
SILENT_FOR, SILENT_WITH_ALL = timedelta(minutes=2), timedelta(minutes=10)
"""After the second one also when nobody is heard: before, it may be the gateway that cannot."""
DEAF_FOR_S = 60.0
AT_ONCE = 4


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


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator wants and allows. ``provider`` is what nodes are said to come from."""

    owner: str
    provider: str
    types: tuple[str, ...]
    locations: tuple[str, ...]
    image: str
    ceiling: Decimal
    caps: Caps
    rules: Rules
    slot_memory: int
    delete_unknown: bool = False


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
    ) -> None:
        """``user_data`` makes of node and join token what a server is told at its start. ``lease`` is after how long
        another scheduler goes on in place of one that died."""
        self._pool = pool
        self._provider = provider
        self._wish = wish
        self._sealer = sealer
        self._user_data = user_data
        self._books = books
        self._lease = lease
        self._holder = uuid4()
        self._outlook = Outlook(slot_memory=wish.slot_memory)
        self._sight = Sight(SILENT_FOR.total_seconds())
        self._hearing = Sight(DEAF_FOR_S)
        self._prepare_at: datetime | None = datetime.min.replace(tzinfo=UTC)
        self._list_at: datetime | None = None
        self._listed = False
        self._stuck_since: dict[NodeId, datetime] = {}
        self._catalogue: Catalogue | None = None
        self._notices: Mapping[str, str] = {}
        self._audit_at: datetime | None = None
        self._alarms: dict[str, str] = {}
        self._calls = asyncio.Semaphore(AT_ONCE)

    async def once(self) -> bool:
        """One round; whether there is more to do right now. Does nothing while another scheduler does it."""
        async with self._pool.acquire() as conn:
            epoch = await fleet.lead(conn, self._holder, lease=self._lease)
        if epoch is None:
            self._list_at, self._listed = None, False  # what another one learns meanwhile is not known here
            return False
        try:
            await self._read_catalogue()
            await self._prepare()
            await self._list(epoch)
            await self._audit()
            async with self._step(epoch) as (conn, state):
                due = await self._plan(conn, state)
                await fleet.tell(conn, next(iter(self._alarms.values()), None))
            return await self._call(epoch, due)
        except Replaced:
            log.info("another scheduler looks after the fleet")
            return False

    async def leave(self) -> None:
        """No more rounds will follow here: let another scheduler go on at once."""
        async with self._pool.acquire() as conn:
            await fleet.leave(conn, self._holder)

    @asynccontextmanager
    async def _step(self, epoch: int) -> AsyncIterator[tuple[Connection, Fleet]]:
        """A transaction in which nobody else changes the fleet; raises ``Replaced``."""
        async with self._pool.acquire() as conn, conn.transaction():
            yield conn, await fleet.hold(conn, epoch, lease=self._lease)

    def _alarm(self, about: str, text: str | None) -> None:
        """Something that the operator must know, or that it is over."""
        if text is None:
            self._alarms.pop(about, None)
        elif self._alarms.get(about) != text:
            self._alarms[about] = text
            log.error("the fleet needs its operator", problem=text)

    # Reading the cloud

    async def _prepare(self) -> None:
        """Once, before anything is bought; tried again each minute until it works."""
        if self._prepare_at is None or self._provider.now() < self._prepare_at:
            return
        sold = () if self._catalogue is None else self._catalogue.offers
        kinds = {offer.architecture for offer in sold if offer.type in self._wish.types}
        try:
            warnings = await self._provider.prepare(self._wish.image, frozenset(kinds or {"x86"}))
        except ProviderError as error:
            self._prepare_at = self._provider.now() + LATER
            self._alarm("prepare", error.message if isinstance(error, Refused) else None)
            log.warning("the cloud is not ready", error=error.message)
            return
        self._prepare_at = None
        self._alarm("prepare", None)
        for warning in warnings:
            log.warning("the image of servers", notice=warning)

    async def _list(self, epoch: int) -> None:
        began = self._provider.now()
        if self._list_at is not None and began < self._list_at:
            return
        self._list_at = began + LIST_EVERY  # also when it fails
        try:
            listing = await self._provider.list_servers()
        except ProviderError as error:
            if isinstance(error, RateLimited):
                self._list_at = max(self._list_at, error.until)
            self._alarm("list", error.message if isinstance(error, Refused) else None)
            log.warning("servers not listed", error=error.message)
            return
        self._alarm("list", None)
        async with self._step(epoch) as (conn, _):
            found = await reconcile(
                conn,
                listing,
                began=began,
                provider=self._wish.provider,
                catalogue=self._catalogue,
                many=self._wish.delete_unknown,
            )
            any_left = await servers.any_live(conn)
        self._alarm("reconcile", found.alarm)
        self._listed = self._listed or listing.complete
        pages = max(1, math.ceil(found.servers / PAGE))
        self._list_at = began + (LIST_EVERY * pages if any_left else LIST_EMPTY_EVERY)
        for row in found.dead:
            await self._give_up(epoch, row)

    async def _give_up(self, epoch: int, row: Rented) -> None:
        """Of a server that is off: it failed to start, or its host did."""
        try:
            why = await self._provider.failure_of(row.cloud_id) if row.cloud_id is not None else None
        except ProviderError:
            why = None
        async with self._step(epoch) as (conn, _):
            now = self._provider.now()
            failed = row.state in (State.PLANNED, State.CREATING, State.BOOTING)
            await servers.delete(conn, row.id, reason=why or "the server is off", now=now, failed=failed)

    async def _read_catalogue(self) -> None:
        try:
            self._catalogue = await self._provider.catalogue()
        except ProviderError as error:
            log.warning("the cloud's catalogue was not read", error=error.message)

    async def _audit(self) -> None:
        """Once a day: what is paid for and belongs to nothing."""
        now = self._provider.now()
        if self._audit_at is None:
            self._audit_at = now + HOUR
        if now < self._audit_at:
            return
        self._audit_at = now + AUDIT_EVERY
        try:
            strays = await self._provider.stray_addresses()
        except ProviderError as error:
            log.warning("addresses were not looked at", error=error.message)
            return
        said = f"addresses that belong to no server cost money: delete {', '.join(strays)}" if strays else None
        self._alarm("addresses", said)

    # Deciding

    async def _plan(self, conn: Connection, state: Fleet) -> list[Rented]:
        """Store what is to be done, all of it in one transaction; returns what to call the cloud about."""
        now = self._provider.now()
        ahead = await fleet.compare_clocks(conn, now)
        await servers.follow_nodes(conn, now=now)
        deaf = await self._give_up_silent(conn, now)
        if state.frozen_until is not None and now < state.frozen_until:
            await servers.unplan(conn, reason="nothing is bought for now", now=now)
        else:
            self._alarm("buy", None)
        rows = await servers.live(conn)
        self._forget_stuck(rows)
        left = Left() if self._books is None else await self._books.left(conn, now)
        failed = await demand.failed_boots(conn, now=now)
        self._alarm("boots", failed.alarm)
        seen = Seen(now, ahead, state, rows, failed.hold(self._offers(now), now), left, deaf)
        decision = decide(await self._outlook.read(conn, seen), self._wish.caps, now.timestamp(), self._wish.rules)
        await self._store(conn, decision, {row.id: row for row in rows}, now)
        await node_waits.store(conn, decision.waits, ahead=ahead)
        return await servers.due(conn, now=now)

    def _forget_stuck(self, rows: list[Rented]) -> None:
        """What could not be deleted and is gone all the same."""
        self._stuck_since = {row.id: self._stuck_since[row.id] for row in rows if row.id in self._stuck_since}
        stuck = {_deleting(row) for row in rows if row.id in self._stuck_since}
        for about in [about for about in self._alarms if about.startswith(DELETING) and about not in stuck]:
            self._alarm(about, None)

    async def _give_up_silent(self, conn: Connection, now: datetime) -> bool:
        """Nodes that were not heard of for long; but not because nobody could be heard. Whether that is so for now, as
        after the database was away, or when all fall silent at once: then none is bought in their place."""
        clear = self._sight.clear()
        silences = await servers.silences(conn)
        heard = min(silences.values(), default=0.0) < SILENT_FOR.total_seconds() / 4
        after = (SILENT_FOR if heard else SILENT_WITH_ALL).total_seconds()
        for node, silent_s in silences.items() if clear else ():
            if silent_s > after:
                await servers.delete(conn, node, reason=f"not heard of for {silent_s:.0f} s", now=now)
        last = min(silences.values(), default=0.0)
        together = len(silences) > 1 and demand.HEARD.total_seconds() < last <= SILENT_FOR.total_seconds()
        return not self._hearing.clear() or together

    def _offers(self, now: datetime) -> tuple[Offer, ...]:
        """What may be bought: nothing before the cloud is prepared and all of its servers are known."""
        if self._catalogue is None or self._prepare_at is not None or not self._listed:
            return ()
        wish = self._wish
        found = wanted(self._catalogue, wish.types, ceiling=wish.ceiling, locations=wish.locations, now=now)
        ending = {each.type: f"{each.type} is sold until {each.gone_after}" for each in found.offers if each.gone_after}
        if (notices := {**ending, **found.skipped}) != self._notices:
            self._notices = notices
            for notice in notices.values():
                log.warning("a type of RGRID_NODE_TYPES", notice=notice)
        self._alarm("offers", None if found.offers else "no type of RGRID_NODE_TYPES can be bought")
        return found.offers

    async def _store(self, conn: Connection, decision: Decision, rows: Mapping[NodeId, Rented], now: datetime) -> None:
        for renewal in decision.renew:
            until = datetime.fromtimestamp(renewal.until, UTC)
            if await servers.renew(conn, renewal.node, until=until) and self._books is not None:
                price = rows[renewal.node].offer.hourly
                await self._books.reserved(conn, renewal.node, until=until, shares=renewal.shares, price=price)
        for drop in decision.drop:
            step = servers.drop_unjoined if Phase(rows[drop.node].state) in COMING else servers.drop_idle
            await step(conn, drop.node, reason=drop.reason, now=now)
        for bought in decision.buy:
            node = await servers.plan(
                conn, self._sealer, bought.offer, owner=self._wish.owner, provider=self._wish.provider,
                account=bought.account, payer=bought.payer, reason=bought.reason, now=now,
            )  # fmt: skip
            if self._books is not None:
                price = bought.offer.hourly
                shares = () if bought.payer is None else ((bought.payer, price),)
                await self._books.reserved(conn, node, until=now + HOUR, shares=shares, price=price)
        await servers.close(conn, decision.closed)

    # Calling the cloud

    async def _call(self, epoch: int, due: list[Rented]) -> bool:
        """Deletions first, then purchases. Returns whether to decide anew at once: an offer turned out to be none."""
        gone = [row for row in due if row.state is State.DELETING and row.cloud_id is not None]
        await _all(self._delete(epoch, row) for row in gone)
        planned = [row for row in due if row.state is State.PLANNED and row.cloud_id is None]
        return any(await _all(self._buy(epoch, row) for row in planned))

    async def _delete(self, epoch: int, row: Rented) -> None:
        assert row.cloud_id is not None
        about = _deleting(row)
        async with self._calls:
            try:
                await self._provider.delete(row.cloud_id)
            except ProviderError as error:
                now = self._provider.now()
                until = error.until if isinstance(error, RateLimited) else now + SOON
                since = self._stuck_since.setdefault(row.id, now)
                if isinstance(error, Refused):
                    until = now + LATER
                if isinstance(error, Refused) or now - since > STUCK_AFTER:
                    self._alarm(about, f"{row.name} could not be deleted: {error.message}")
                async with self._step(epoch) as (conn, _):
                    await servers.postpone(conn, row.id, until=until, error=error.message)
                return
            self._stuck_since.pop(row.id, None)
            self._alarm(about, None)
            async with self._step(epoch) as (conn, _):
                await servers.deleted(conn, row.id, now=self._provider.now(), again=DELETE_AGAIN)

    async def _buy(self, epoch: int, row: Rented) -> bool:
        """Try a purchase whose row stands. Whether its failure calls for another decision."""
        async with self._calls:
            async with self._step(epoch) as (conn, state):
                now = self._provider.now()
                if state.frozen_until is not None and now < state.frozen_until:
                    return False
                token = await servers.ask(conn, self._sealer, row.id, now=now)
            if token is None:
                return False
            labels = {
                OWNER_LABEL: self._wish.owner,
                NODE_LABEL: row.id.hex,
                EPOCH_LABEL: str(epoch),
                POOL_LABEL: "shared" if row.account is None else str(row.account),
            }
            order = Order(row.name, row.offer, self._wish.image, self._user_data(row.id, token), labels)
            try:
                bought = await self._provider.create(order)
            except ProviderError as error:
                log.warning("server not bought", node=ids.encode(ids.NODE, row.id), error=error.message)
                async with self._step(epoch) as (conn, _):
                    failure = await not_bought(conn, row, error, now=self._provider.now())
                if failure.alarm is not None:
                    self._alarm("buy", failure.alarm)
                return failure.again
            async with self._step(epoch) as (conn, _):
                await servers.see(conn, row.id, bought, now=self._provider.now(), off=False)
            return False


def _deleting(row: Rented) -> str:
    return f"{DELETING}{row.name}"


async def _all(calls: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """What they returned; what one of them raises does not keep the others from their end."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Replaced):
            raise answer
        if isinstance(answer, BaseException):
            log.error("a call about a node failed", exc_info=answer)
    return [answer for answer in answers if not isinstance(answer, BaseException)]
