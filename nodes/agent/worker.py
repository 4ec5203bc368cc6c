"""Keeps the node's slots busy: claims leases while slots are free, runs an attempt for each, winds down when
told to."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import structlog

from nodes.agent.adoption import Adopted
from nodes.agent.attempt import Attempt, Tools
from nodes.agent.failures import AttemptFailed
from nodes.agent.gateway_client import CredentialRevoked, GatewayError, LeaseLost, Refused
from nodes.agent.heartbeat import Heartbeat
from nodes.agent.holds import Hold, Interrupt
from nodes.agent.state import Record, usable_id
from nodes.protocol import JobLease

log = structlog.get_logger()

POLL_S = 20.0
BUSY_POLL_S = 5.0
"""A poll offers the slots that were free when it began; while jobs run, more may come free for a larger
job."""
EMPTY_S = 1.0
"""A gateway that answers sooner than asked and has nothing is asked again after about this long."""
TROUBLE_S, TROUBLE_MOST_S = 1.0, 30.0
"""Pause before the next claim after attempts that failed because of this machine."""
WIND_DOWN_S = 20.0
"""For attempts that were told to stop: kill, hand back, put away. What is left then is found at the next
start."""
LEAVE_S = 5.0


class Worker:
    """One session under one identity. ``slots`` is how much runs side by side; a lease may weigh several."""

    def __init__(
        self,
        tools: Tools,
        *,
        slots: int,
        heartbeat_s: float,
        lease_s: float,
        drain_s: float,
        leave_on_exit: bool,
    ) -> None:
        self._tools = tools
        self._slots = slots
        self._drain_s = drain_s
        self._leave_on_exit = leave_on_exit
        self._busy = 0
        self._running: set[asyncio.Task[None]] = set()
        self._troubles = 0
        """Attempts that failed because of this machine, in a row."""
        self._freed = asyncio.Event()
        self._draining = asyncio.Event()
        self._hurried = asyncio.Event()
        self._revoked = False
        self._holds = tools.holds
        self._heartbeat = Heartbeat(
            tools.client,
            self._holds,
            heartbeat_s=heartbeat_s,
            lease_s=lease_s,
            on_draining=self.drain,
            on_revoked=self._revoke,
        )

    async def run(self, adopted: Iterable[Adopted] = (), hand_back: Iterable[Record] = ()) -> None:
        """Until drained. Raises ``CredentialRevoked`` when the gateway does not know this node any more;
        nothing runs here by then."""
        async with asyncio.TaskGroup() as group:
            for each in adopted:
                lease = each.record.lease
                hold = Hold(lease, received_s=each.record.received_s, timeline=each.record.timeline)
                self._begin(group, Attempt(self._tools, lease, hold, each), hold)
            returning = [group.create_task(self._hand_back(record)) for record in hand_back]
            heart = group.create_task(self._heartbeat.run())
            await self._claim_until_draining(group)
            await self._wind_down()
            for task in (heart, *returning):
                task.cancel()
        if self._revoked:
            raise CredentialRevoked("the gateway does not know this node any more")
        if self._leave_on_exit:
            await self._leave()

    def drain(self) -> None:
        """Claim nothing more and end when the running attempts have, or ``drain_s`` is over. Called again:
        without waiting for them."""
        if not self._draining.is_set():
            log.info("draining", running=len(self._running), drain_s=self._drain_s)
            self._draining.set()

    def hurry(self) -> None:
        """Hand back at once what runs."""
        self.drain()
        self._hurried.set()

    def _revoke(self) -> None:
        self._revoked = True
        self._holds.interrupt_all(Interrupt.LOST)
        self.hurry()

    async def _claim_until_draining(self, group: asyncio.TaskGroup) -> None:
        while not self._draining.is_set():
            free = self._slots - self._busy
            if free <= 0:
                self._freed.clear()
                await self._unless_draining(self._freed.wait())
                continue
            if self._troubles and not await self._unless_draining(self._recover()):
                continue
            asked_s = time.monotonic()
            try:
                answer = await self._unless_draining(
                    self._tools.client.claim(free, POLL_S if self._busy == 0 else BUSY_POLL_S)
                )
            except CredentialRevoked:
                self._revoke()
                return
            except Refused as error:
                log.error("claim refused", error=str(error))
                await self._unless_draining(asyncio.sleep(random.uniform(2, 6)))  # noqa: S311
                continue
            if answer is None:
                return
            for lease in answer.leases:
                self._take(group, lease)
            if answer.draining:
                self.drain()
            elif not answer.leases and time.monotonic() - asked_s < EMPTY_S:
                await self._unless_draining(asyncio.sleep(random.uniform(0.5, 1) * EMPTY_S))  # noqa: S311

    async def _recover(self) -> bool:
        """Wait the longer the more attempts have failed here, and for Docker: a machine in trouble must not be
        the one that takes all the work because it is done with it so soon."""
        pause_s = min(TROUBLE_MOST_S, TROUBLE_S * 2.0 ** (self._troubles - 1))
        log.warning("claiming nothing for a while: this machine failed attempts", pause_s=pause_s)
        await asyncio.sleep(pause_s)
        try:
            await self._tools.engine.find()
        except AttemptFailed as failure:
            log.error("Docker is not usable", error=failure.message)
            self._troubles += 1
            return False
        return True

    def _take(self, group: asyncio.TaskGroup, lease: JobLease) -> None:
        if not usable_id(lease.job_id):
            log.error("lease with an unusable job id ignored")
            return
        hold = Hold(lease)
        self._begin(group, Attempt(self._tools, lease, hold), hold)

    def _begin(self, group: asyncio.TaskGroup, attempt: Attempt, hold: Hold) -> None:
        self._holds.add(hold)
        self._busy += hold.slots
        task = group.create_task(self._run(attempt, hold))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, attempt: Attempt, hold: Hold) -> None:
        try:
            await attempt.run()
        except Exception:
            # One attempt must not take the others with it. Its lease runs out, its leftovers go at the next
            # start.
            log.exception("attempt broke", job_id=hold.job_id)
            self._holds.remove(hold)
        else:
            self._troubles = self._troubles + 1 if attempt.node_failed else 0
        finally:
            self._busy -= hold.slots
            self._freed.set()

    async def _wind_down(self) -> None:
        if self._running and not self._hurried.is_set():
            hurried = asyncio.create_task(self._hurried.wait())
            ended = asyncio.create_task(asyncio.wait(set(self._running)))
            await asyncio.wait({hurried, ended}, timeout=self._drain_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            ended.cancel()
        self._holds.interrupt_all(Interrupt.RELEASE)
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=WIND_DOWN_S)
            for task in late:
                log.error("an attempt does not end, left for the next start")
                task.cancel()

    async def _hand_back(self, record: Record) -> None:
        """A lease of an earlier agent whose work did not survive."""
        try:
            await self._tools.client.release(
                record.lease.job_id, record.lease.token, "the node's agent stopped before the job ran"
            )
        except LeaseLost:
            pass
        except CredentialRevoked:
            self._revoke()
            return
        except GatewayError as error:
            log.warning("job not handed back", job_id=record.lease.job_id, error=str(error))
        self._tools.records.forget(record.key)

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._tools.client.leave()
        except (GatewayError, TimeoutError) as error:
            log.warning("could not say goodbye to the gateway", error=str(error) or "timeout")

    async def _unless_draining(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The work's result; None, and the work is stopped, if the node is told to drain."""
        task = asyncio.create_task(work)
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            draining.cancel()
