"""The calls that change something at the cloud: purchases and deletions whose rows say that they are due.

Some at a time, and none that begins late in a round: what is left is due in the next one as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from functions import ids
from functions.ids import NodeId
from functions.sealing import Sealer
from nodes import servers
from nodes.alarms import Alarms
from nodes.fleet import FARTHEST, Replaced
from nodes.leadership import Leadership
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
from nodes.rented import Rented, State
from nodes.wish import Wish

log = structlog.get_logger(__name__)
T = TypeVar("T")

AT_ONCE = 4
BEGUN_WITHIN_S = 20.0
"""A call may take most of a minute: so that no round goes on much longer, however many are due."""
LATER = timedelta(seconds=60)
DELETE_AGAIN = timedelta(seconds=90)
STUCK_AFTER = timedelta(minutes=5)


class Errands:
    def __init__(
        self,
        provider: Provider,
        wish: Wish,
        leadership: Leadership,
        alarms: Alarms,
        sealer: Sealer,
        *,
        user_data: Callable[[NodeId, str], str],
        begun_within_s: float = BEGUN_WITHIN_S,
    ) -> None:
        """``user_data`` makes of node and join token what a server is told at its start."""
        self._provider = provider
        self._wish = wish
        self._leadership = leadership
        self._alarms = alarms
        self._sealer = sealer
        self._user_data = user_data
        self._begun_within_s = begun_within_s
        self._calls = asyncio.Semaphore(AT_ONCE)
        self._stuck_since: dict[NodeId, datetime] = {}
        self._refused_until: dict[str, datetime] = {}

    async def give_up(self, dead: Iterable[Rented]) -> None:
        """Servers that are off: each failed to start, or its host did."""
        await self._all(self._give_up, dead)

    async def run(self, due: Sequence[Rented]) -> bool:
        """Deletions first, then purchases. Returns whether to decide anew at once: an offer turned out to be none."""
        await self._all(self._delete, [row for row in due if row.state is State.DELETING and row.cloud_id is not None])
        planned = [row for row in due if row.state is State.PLANNED and row.cloud_id is None]
        return any(await self._all(self._buy, planned))

    def forget(self, rows: Iterable[Rented], now: datetime) -> None:
        """Alarms that are over: of what could not be deleted and is not among ``rows``, which are all that there are,
        and of offers that may be tried again."""
        self._stuck_since = {row.id: since for row in rows if (since := self._stuck_since.get(row.id)) is not None}
        self._alarms.keep("delete", {_deleting(row) for row in rows if row.id in self._stuck_since})
        refused = self._refused_until.items()
        self._refused_until = {about: until for about, until in refused if now < until <= now + FARTHEST}
        self._alarms.keep("refused", set(self._refused_until))

    async def _give_up(self, row: Rented) -> None:
        try:
            why = await self._provider.failure_of(row.cloud_id) if row.cloud_id is not None else None
        except ProviderError:
            why = None
        async with self._leadership.step() as (conn, _):
            now = self._provider.now()
            failed = row.state in (State.PLANNED, State.CREATING, State.BOOTING)
            await servers.delete(conn, row.id, reason=why or "the server is off", now=now, failed=failed)

    async def _delete(self, row: Rented) -> None:
        assert row.cloud_id is not None
        about = _deleting(row)
        try:
            await self._provider.delete(row.cloud_id)
        except ProviderError as error:
            now = self._provider.now()
            since = self._stuck_since[row.id] = min(self._stuck_since.get(row.id, now), now)
            until = error.until if isinstance(error, RateLimited) else now + max(SOON, min(now - since, LATER))
            if isinstance(error, Refused):
                until = now + LATER
            if isinstance(error, Refused) or now - since > STUCK_AFTER:
                self._alarms.say(about, f"{row.name} could not be deleted: {error.message}")
            async with self._leadership.step() as (conn, _):
                await servers.postpone(conn, row.id, until=until, error=error.message)
            return
        self._stuck_since.pop(row.id, None)
        self._alarms.say(about, None)
        async with self._leadership.step() as (conn, _):
            await servers.deleted(conn, row.id, now=self._provider.now(), again=DELETE_AGAIN)

    async def _buy(self, row: Rented) -> bool:
        """Try a purchase whose row stands. Whether its failure calls for another decision."""
        async with self._leadership.step() as (conn, state):
            now = self._provider.now()
            if state.frozen(now) is not None:
                return False
            token = await servers.ask(conn, self._sealer, row.id, now=now)
        if token is None:
            return False
        labels = {
            OWNER_LABEL: self._wish.owner,
            NODE_LABEL: row.id.hex,
            EPOCH_LABEL: str(self._leadership.epoch),
            POOL_LABEL: "shared" if row.account is None else str(row.account),
        }
        order = Order(row.name, row.offer, self._wish.image, self._user_data(row.id, token), labels)
        try:
            bought = await self._provider.create(order)
        except ProviderError as error:
            return await self._not_bought(row, error)
        async with self._leadership.step() as (conn, _):
            await servers.see(conn, row.id, bought, now=self._provider.now(), off=False)
        return False

    async def _not_bought(self, row: Rented, error: ProviderError) -> bool:
        log.warning("server not bought", node=ids.encode(ids.NODE, row.id), error=error.message)
        async with self._leadership.step() as (conn, _):
            failure = await not_bought(conn, row, error, now=self._provider.now())
        if failure.alarm is not None:
            about = "buy"
            if failure.until is not None:
                about = f"refused {row.offer.type} at {row.offer.location}"
                self._refused_until[about] = failure.until
            self._alarms.say(about, failure.alarm)
        return failure.again

    async def _all(self, call: Callable[[Rented], Coroutine[None, None, T]], rows: Iterable[Rented]) -> list[T]:
        """What they returned; what one of them raises does not keep the others from their end."""
        latest = time.monotonic() + self._begun_within_s

        async def one(row: Rented) -> list[T]:
            async with self._calls:
                return [await call(row)] if time.monotonic() < latest else []

        answers = await asyncio.gather(*(one(row) for row in rows), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, Replaced):
                raise answer
            if isinstance(answer, BaseException):
                log.error("a call about a node failed", exc_info=answer)
        return [each for answer in answers if not isinstance(answer, BaseException) for each in answer]


def _deleting(row: Rented) -> str:
    return f"delete {row.name}"
