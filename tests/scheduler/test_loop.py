"""The loop that runs rounds: it outlives their failures, hears hints, and stops when asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from scheduler import loop
from scheduler.loop import Round, run_rounds
from scheduler.wakeups import Ticket, Topic, Wakeups

NEVER_S = 3600.0


class Counting:
    """Calls ``then`` on each run, with how many there were; sets ``reached`` at ``goal``."""

    def __init__(self, goal: int, then: Callable[[int], Awaitable[bool]]) -> None:
        self.runs = 0
        self.reached = asyncio.Event()
        self._goal, self._then = goal, then

    async def __call__(self) -> bool:
        self.runs += 1
        if self.runs == self._goal:
            self.reached.set()
        return await self._then(self.runs)


async def until(reached: asyncio.Event, *rounds: Round, grace_s: float = 1) -> None:
    stopping = asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(run_rounds(rounds, stopping, grace_s=grace_s))
        await reached.wait()
        stopping.set()


async def test_a_round_goes_on_after_whatever_happens_in_it() -> None:
    async def fails(run: int) -> bool:
        raise [ConnectionError("gone"), ValueError("odd"), TimeoutError(), KeyError("k")][run % 4]

    once = Counting(5, fails)
    await until(once.reached, Round("fails", 0.001, once))


async def test_one_rounds_failure_does_not_hold_up_another() -> None:
    async def fails(run: int) -> bool:
        raise ConnectionError

    async def works(run: int) -> bool:
        return False

    failing, working = Counting(1, fails), Counting(20, works)
    await until(working.reached, Round("fails", NEVER_S, failing), Round("works", 0.001, working))
    assert failing.runs == 1


async def test_a_round_with_more_to_do_does_not_pause() -> None:
    async def more(run: int) -> bool:
        return run < 10

    once = Counting(10, more)
    await until(once.reached, Round("more", NEVER_S, once))


async def test_a_round_that_hangs_is_cut_and_repeated() -> None:
    async def hangs(run: int) -> bool:
        if run == 1:
            await asyncio.Event().wait()
        return False

    once = Counting(2, hangs)
    await until(once.reached, Round("hangs", 0.001, once, timeout_s=0.05))


async def test_a_hint_ends_the_pause_also_one_that_came_during_the_look() -> None:
    wakeups = Wakeups("")
    ran = asyncio.Event()

    async def look(run: int) -> bool:
        if run == 1:
            wakeups.wake(Topic.DELIVERY)
        ran.set()
        return False

    once = Counting(3, look)
    async with asyncio.TaskGroup() as group:
        each = Round("hinted", NEVER_S, once, ticket=lambda: wakeups.ticket(Topic.DELIVERY))
        group.create_task(until(once.reached, each))
        while once.runs < 2:
            await ran.wait()
            ran.clear()
        wakeups.wake(Topic.DELIVERY)


async def test_hints_do_not_hurry_a_round_that_fails() -> None:
    wakeups = Wakeups("")

    async def fails(run: int) -> bool:
        wakeups.wake(Topic.DELIVERY)
        raise ConnectionError

    async def works(run: int) -> bool:
        wakeups.wake(Topic.DELIVERY)
        return False

    failing, working = Counting(1, fails), Counting(50, works)
    await until(
        working.reached,
        Round("fails", NEVER_S, failing, ticket=lambda: wakeups.ticket(Topic.DELIVERY)),
        Round("works", NEVER_S, working, ticket=lambda: wakeups.ticket(Topic.DELIVERY)),
    )
    assert failing.runs == 1


async def test_stopping_lets_the_batch_in_hand_end_and_cuts_one_that_does_not() -> None:
    begun, ended, cut = asyncio.Event(), asyncio.Event(), asyncio.Event()
    proceed = asyncio.Event()

    async def ends() -> bool:
        await proceed.wait()
        ended.set()
        return True

    async def hangs() -> bool:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut.set()
            raise
        return True

    stopping = asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(run_rounds([Round("ends", 1, ends), Round("hangs", 1, hangs)], stopping, grace_s=0.1))
        await begun.wait()
        stopping.set()
        proceed.set()
    assert ended.is_set() and cut.is_set()


async def test_a_flood_of_hints_makes_no_more_rounds_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    wakeups = Wakeups("")
    pauses: list[float] = []
    really = loop._pause

    async def pause(stopping: asyncio.Event, ticket: Ticket | None, seconds: float) -> None:
        pauses.append(round(seconds, 3))
        await really(stopping, ticket, seconds)

    async def floods(run: int) -> bool:
        wakeups.wake(Topic.DELIVERY)
        return False

    monkeypatch.setattr(loop, "_pause", pause)
    once = Counting(5, floods)
    hinted = Round("hinted", NEVER_S, once, ticket=lambda: wakeups.ticket(Topic.DELIVERY), apart_s=0.02)
    began = time.monotonic()
    await until(once.reached, hinted)
    assert time.monotonic() - began >= 4 * 0.02, "each waited so long, and no longer for hints"
    assert pauses[::2] == [0.02] * 5
