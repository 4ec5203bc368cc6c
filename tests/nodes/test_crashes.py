"""The control plane dies at every single call to the cloud of a scale-up and a scale-down, and goes on elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta

from functions.db import Pool
from tests.hetzner.rules import Call, Drop
from tests.hetzner.server import Emulator
from tests.nodes.balance import check_books
from tests.nodes.fleets import A_MINUTE, AN_HOUR, FORGET, Clouded, Machines, make_clouded

A_LITTLE = timedelta(seconds=25)
JOBS, CAP = 3, 2
DEADLY = 40
"""No scenario makes more calls: a test says so."""


class Mortal(Clouded):
    """Whose rounds can die at a call, and begin anew with nothing but the database."""

    doomed: int | None = None
    deaths = 0

    def await_death(self) -> None:
        loop = asyncio.get_running_loop()

        def seen(call: Call, phase: str) -> None:
            self.watch(call, phase)
            if call.index == self.doomed and phase == "after":
                loop.call_soon_threadsafe(self._kill)
                self.dead.wait(10)  # nobody is there any more to hear the answer

        self.dead = threading.Event()
        self.cloud.on_call = seen

    def _kill(self) -> None:
        self.task.cancel()

    async def round(self) -> None:
        while True:
            self.task = asyncio.ensure_future(super().round())
            try:
                await self.task
            except asyncio.CancelledError:
                self.deaths += 1
                self.dead.set()
                self.provider.close()
                self.provider = self.new_provider()
                self.autoscaler = self.new_autoscaler()
            else:
                break
        # Whatever exists is known, and there is no more of it than may be.
        assert {*self.existing} <= {row.name for row in await self.live()}
        assert len(self.existing) <= CAP

    async def live_through(self) -> None:
        """Jobs come, nodes are bought, work, and go at the end of their hour."""
        await self.submit(JOBS)
        await self.round()
        begun = 0
        while begun < JOBS:
            await self.pass_time(A_LITTLE)
            begun += len(await self.work())
        await self.pass_time(5 * A_MINUTE, step=5 * A_MINUTE)
        await self.finish()
        end = min(row.hours_from for row in await self.live()) + AN_HOUR
        await self.pass_time(end - self.cloud.now - 2 * A_MINUTE, step=AN_HOUR)
        while self.existing:
            await self.pass_time(A_LITTLE)
            assert self.cloud.now < end + AN_HOUR
        await self.pass_time(2 * AN_HOUR, step=AN_HOUR)


async def lived_through(pool: Pool, before: Callable[[Mortal], None]) -> Mortal:
    machines = Machines()
    with Emulator(machines=machines) as cloud:
        made = await make_clouded(cloud, pool, machines, kind=Mortal, nodes=CAP)
        assert isinstance(made, Mortal)
        made.await_death()
        before(made)
        try:
            await made.live_through()
            assert made.existing == []
            assert set(await made.states()) == {"gone"}, await made.history()
            await check_books(cloud, pool)
        finally:
            made.close()
            await pool.execute(FORGET)
        return made


async def test_no_server_is_unknown_bought_twice_or_kept_wherever_the_control_plane_dies(pool: Pool) -> None:
    whole = await lived_through(pool, lambda fleet: None)
    paid = whole.paid
    assert paid == (2, 2)
    assert len(whole.cloud.calls) < DEADLY
    for index, call in enumerate(whole.cloud.calls):
        fleet = await lived_through(pool, lambda fleet, index=index: setattr(fleet, "doomed", index))
        assert fleet.deaths == 1, (index, call)
        assert fleet.paid == paid, (index, call)


async def test_nor_if_it_dies_with_a_call_that_never_arrived(pool: Pool) -> None:
    whole = await lived_through(pool, lambda fleet: None)
    paid = whole.paid
    writes = [call.index for call in whole.cloud.calls if call.method != "GET"]

    def lose(fleet: Mortal, index: int) -> None:
        fleet.doomed = index
        fleet.cloud.inject(Drop(commit=False), where=lambda call: call.index == index)

    for index in writes:
        fleet = await lived_through(pool, lambda fleet, index=index: lose(fleet, index))
        assert fleet.deaths == 1, whole.cloud.calls[index]
        assert fleet.paid == paid, whole.cloud.calls[index]
