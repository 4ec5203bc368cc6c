"""The leases that this node holds now, and what may interrupt the work under each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from enum import IntEnum

from nodes.protocol import HeldLease, JobLease, Stage, Timeline


class Interrupt(IntEnum):
    """Why an attempt must stop, weakest first: a stronger reason replaces a weaker one, never the other
    way."""

    NONE = 0
    CANCEL = 1
    """The user asked: stop the container within its grace, report it cancelled."""
    RELEASE = 2
    """The node is going: kill the container, hand the job back."""
    LOST = 3
    """The lease is over: kill the container, report nothing."""


class Hold:
    """One held lease. Times are seconds of the monotonic clock, which goes on while the process is
    stopped."""

    def __init__(
        self, lease: JobLease, *, received_s: float | None = None, timeline: Timeline | None = None
    ) -> None:
        now = time.monotonic()
        self.job_id = lease.job_id
        self.token = lease.token
        self.slots = lease.slots
        self.progress: float | None = None
        self.timeline: Timeline = dict(timeline or {})
        self.received_s = now if received_s is None else received_s
        self.acknowledged_s = now
        """When the gateway is known to have last renewed it, at the earliest."""
        self.ended = False
        """Nothing runs under it any more; only the report is left, which the gateway judges by its token."""
        self.interrupt = Interrupt.NONE
        self._changed = asyncio.Event()

    def stamp(self, stage: Stage) -> None:
        self.timeline[stage] = self.age_ms()

    def set_progress(self, value: float) -> None:
        self.progress = value

    def age_ms(self) -> int:
        return max(0, round((time.monotonic() - self.received_s) * 1000))

    def interrupt_with(self, reason: Interrupt) -> None:
        if reason > self.interrupt:
            self.interrupt = reason
            self._changed.set()
            self._changed = asyncio.Event()

    async def interrupted(self, at_least: Interrupt) -> None:
        """Return when there is a reason to stop that is this strong."""
        while self.interrupt < at_least:
            await self._changed.wait()

    def wire(self) -> HeldLease:
        return HeldLease(
            job_id=self.job_id, token=self.token, progress=self.progress, timeline=dict(self.timeline)
        )


class Holds:
    """What is held, by job. At most one lease of a job: a second one means that the first is over."""

    def __init__(self) -> None:
        self._by_job: dict[str, Hold] = {}
        self.arrived = asyncio.Event()
        """Set when a lease comes in; the heartbeat clears it."""

    def __iter__(self) -> Iterator[Hold]:
        return iter(list(self._by_job.values()))

    def __len__(self) -> int:
        return len(self._by_job)

    def add(self, hold: Hold) -> None:
        if (older := self._by_job.get(hold.job_id)) is not None:
            older.interrupt_with(Interrupt.LOST)
        self._by_job[hold.job_id] = hold
        self.arrived.set()

    def remove(self, hold: Hold) -> None:
        if self._by_job.get(hold.job_id) is hold:
            del self._by_job[hold.job_id]

    def interrupt_all(self, reason: Interrupt) -> None:
        for hold in self:
            hold.interrupt_with(reason)
