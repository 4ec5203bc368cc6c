"""Two schedulers over one database and one cloud, one in the middle of the other at each statement and each call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest

from functions.db import Pool
from nodes import fleet
from nodes.autoscaler import Autoscaler
from nodes.fleet import Replaced
from nodes.ledger import Ledger
from tests.hetzner.server import Emulator
from tests.nodes.balance import check_books
from tests.nodes.fleets import A_MINUTE, FORGET, SEALER, Clouded, Machines, make_clouded, user_data

BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SPOKEN = ("fetch", "fetchrow", "fetchval", "execute")
ASKED = ("list_servers", "create", "delete")


class Gate:
    """Counts steps, and lets something happen before one of them."""

    def __init__(self, at: int, then: Callable[[], Awaitable[None]]) -> None:
        self.passed, self._at, self._then = 0, at, then

    async def step(self) -> None:
        # Counted first: purchases are made side by side, and what happens meanwhile must happen once.
        step, self.passed = self.passed, self.passed + 1
        if step == self._at:
            await self._then()


class Gated:
    """An object some of whose methods are steps."""

    def __init__(self, inner: Any, gate: Gate, names: tuple[str, ...]) -> None:
        self._inner, self._gate, self._names = inner, gate, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found

        async def stepped(*args: Any, **kwargs: Any) -> Any:
            await self._gate.step()
            return await found(*args, **kwargs)

        return stepped

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        async with self._inner.acquire() as conn:
            yield Gated(conn, self._gate, SPOKEN)


def with_gate(clouded: Clouded, gate: Gate) -> Autoscaler:
    pool = cast("Pool", Gated(clouded.pool, gate, ()))
    provider = cast("Any", Gated(clouded.provider, gate, ASKED))
    return Autoscaler(
        pool, provider, clouded.wish, SEALER, user_data=user_data, lease=A_MINUTE * 0, books=Ledger(),
        clocks=clouded.clocks,
    )


async def meet(pool: Pool, at: int) -> int:
    """One scheduler's first round, with all of the other's in the middle of it; how many steps it had."""
    machines = Machines()
    with Emulator(machines=machines) as cloud:
        clouded = await make_clouded(cloud, pool, machines)
        await clouded.submit(3)
        other: asyncio.Task[None] | None = None

        async def interrupt() -> None:
            nonlocal other
            other = asyncio.ensure_future(clouded.round())
            while not other.done() and not await pool.fetchval(BLOCKED):
                await asyncio.sleep(0.002)

        gate = Gate(at, interrupt)
        first = with_gate(clouded, gate)
        try:
            while await first.once():
                pass
            if other is not None:
                await other
            await clouded.pass_time(2 * A_MINUTE)
            assert clouded.paid == (2, 2), (at, await clouded.history())
            assert await clouded.states() == ["ready", "ready"], (at, await clouded.history())
            await check_books(cloud, pool)
        finally:
            clouded.close()
            await pool.execute(FORGET)
        return gate.passed


async def test_two_schedulers_never_buy_twice_wherever_they_meet(pool: Pool) -> None:
    steps = await meet(pool, -1)
    assert steps > 30
    for at in range(steps):
        await meet(pool, at)


async def test_a_scheduler_that_was_replaced_stores_nothing_more(pool: Pool) -> None:
    first, second = uuid4(), uuid4()
    async with pool.acquire() as conn:
        epoch = await fleet.lead(conn, first, lease=A_MINUTE)
        assert epoch is not None
        assert await fleet.lead(conn, second, lease=A_MINUTE) is None
        await conn.execute("UPDATE fleet SET leads_until = now() - interval '1 second'")
        await fleet.hold(conn, epoch, lease=A_MINUTE * 0)
        assert await fleet.lead(conn, second, lease=A_MINUTE) == epoch + 1
        with pytest.raises(Replaced):
            await fleet.hold(conn, epoch, lease=A_MINUTE)
        await fleet.leave(conn, first)
        assert await fleet.lead(conn, first, lease=A_MINUTE) is None
        await fleet.leave(conn, second)
        assert await fleet.lead(conn, first, lease=A_MINUTE) == epoch + 2
