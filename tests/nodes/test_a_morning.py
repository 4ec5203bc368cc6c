"""Hours of jobs on the emulated cloud: what they cost by the cloud's own bill, against the least that was possible."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from decimal import Decimal

from functions.ids import JobId
from gateway.dispatching import Dispatcher
from nodes import registry, rented, servers
from nodes.policy.state import Caps, Rules
from nodes.simulate import bound
from nodes.simulate.baselines import POLICIES
from nodes.simulate.bound import Span
from nodes.simulate.clouds import even, offer
from nodes.simulate.engine import play
from nodes.simulate.loads import Job
from nodes.simulate.report import billed_hours
from scheduler import finishing
from scheduler.finishing import Report
from tests.nodes.fleets import A_MINUTE, AN_HOUR, Clouded, wish_of
from tests.scheduler.factories import SIZING, claim

STEP = timedelta(seconds=30)
STARTED = """
UPDATE leases SET leased_at = now() - ($2::timestamptz - started)
  FROM unnest($1::uuid[], $3::timestamptz[]) s (job_id, started) WHERE s.job_id = leases.job_id
"""


class Work:
    """Jobs that run for as long as was drawn for them, by the emulator's clock."""

    def __init__(self, clouded: Clouded) -> None:
        self._clouded = clouded
        self._lasts: dict[JobId, timedelta] = {}
        self._began: dict[JobId, datetime] = {}
        self._came: dict[JobId, datetime] = {}
        self.spans: list[Span] = []
        self.waited: list[timedelta] = []

    async def comes(self, lasts: timedelta) -> None:
        now = self._clouded.cloud.now
        (job,) = await self._clouded.submit()
        self._lasts[job], self._came[job] = lasts, now
        self.spans.append((now.timestamp(), (now + lasts).timestamp(), 1))

    async def goes_on(self) -> None:
        """To be called after each step of time."""
        now = self._clouded.cloud.now
        over = {job for job, began in self._began.items() if now - began >= self._lasts[job]}
        async with self._clouded.pool.acquire() as conn:
            held = await conn.fetch("SELECT job_id, token, node_id FROM leases WHERE job_id = ANY ($1)", list(over))
            await conn.execute(STARTED, list(self._began), now, list(self._began.values()))
            for row in held:
                await finishing.finish(conn, row["node_id"], row["job_id"], Report(row["token"], "succeeded", 0))
        assert len(held) == len(over)
        self._began = {job: began for job, began in self._began.items() if job not in over}
        if len(self.waited) == len(self._came):
            return
        for job in await self._dispatched():
            self._began[job] = now
            self.waited.append(now - self._came[job])

    async def _dispatched(self) -> list[JobId]:
        """What nodes get that all ask at once, as the gateway gives it out."""
        account, given = self._clouded.world.account, []
        dispatcher = Dispatcher(self._clouded.wish.rules, slot_memory=SIZING.slot_memory)  # it remembers nothing old
        async with self._clouded.pool.acquire() as conn, AsyncExitStack() as waiting:
            free = {
                row.id: row.offer.slots - await conn.fetchval(servers.HELD, row.id)
                for row in await rented.live(conn)
                if row.node_state == "ready"
            }
            for node, slots in free.items():
                waiting.enter_context(dispatcher.waiting(node, slots))
            for node, slots in free.items():
                standing = await registry.standing(conn, node)
                assert standing is not None
                for turn in await dispatcher.turns(conn, node, standing, [account], slots) if slots else ():
                    given += await claim(conn, node, account, free=turn.slots, slots=2, lanes=turn.lanes)
        return [each.job_id for each in given]


def simulated_hours(spans: Sequence[Span]) -> int:
    first = min(start for start, *_ in spans)
    jobs = [Job(at=start - first, runs=end - start) for start, end, _ in spans]
    run = play(jobs, even([offer("cx23")]), POLICIES["rgrid"](), caps=Caps(10), rules=Rules(), seed=1)
    return sum(billed_hours(machine) for machine in run.machines)


async def test_a_morning_costs_no_more_than_a_fifth_over_the_least_and_leaves_nothing(clouded: Clouded) -> None:
    dice = random.Random(2)
    clouded.wish = wish_of(nodes=10, types=("cx23",))
    clouded.autoscaler = clouded.new_autoscaler()
    work = Work(clouded)
    ends = clouded.cloud.now + 1.5 * AN_HOUR
    comes = clouded.cloud.now
    while clouded.cloud.now < ends or clouded.existing:
        while comes <= clouded.cloud.now < ends:
            await work.comes(math.ceil(dice.lognormvariate(5.3, 0.8) / STEP.total_seconds()) * STEP)
            comes += timedelta(hours=dice.expovariate(40))
        await clouded.pass_time(STEP, step=STEP)
        await work.goes_on()
        assert clouded.cloud.now < ends + 3 * AN_HOUR
    servers, hours = clouded.paid
    least, simulated = bound.hours(work.spans, 2), simulated_hours(work.spans)
    print(f"{len(work.spans)} jobs, {servers} servers, {hours} hours, at least {least}, simulated {simulated}")
    assert least <= hours <= simulated + 1
    assert hours <= 1.2 * least
    assert clouded.cloud.cloud.bill.total(clouded.cloud.now) == hours * Decimal("0.0096")
    assert sorted(work.waited)[len(work.waited) * 95 // 100] <= 2 * A_MINUTE
