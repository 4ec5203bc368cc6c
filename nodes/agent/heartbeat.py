"""Keeps leases alive, hears what became of them, and ends them when the gateway cannot be heard.

Self-fencing: the gateway gives a job to another node when a lease was not renewed for ``lease_s``. A node
that cannot reach it must have stopped its containers by then, or the job would run twice at once. The
monotonic clock counts, from the moment at which the last renewing request was *sent*.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import structlog

from nodes.agent.gateway_client import CredentialRevoked, GatewayClient, Refused, Unreachable
from nodes.agent.holds import Hold, Holds, Interrupt
from nodes.protocol import HeartbeatAnswer

log = structlog.get_logger()

IDLE_S = 10.0
"""Between heartbeats while nothing is held: only to be seen alive."""
MARGIN = 0.15
"""Share of a lease that is left for stopping its container."""

_VERDICTS = {"keep": Interrupt.NONE, "cancel": Interrupt.CANCEL, "lost": Interrupt.LOST}


class Heartbeat:
    """``on_draining`` is called when the gateway wants this node empty, ``on_revoked`` when it does not know
    it."""

    def __init__(
        self,
        client: GatewayClient,
        holds: Holds,
        *,
        heartbeat_s: float,
        lease_s: float,
        on_draining: Callable[[], None],
        on_revoked: Callable[[], None],
    ) -> None:
        self._client = client
        self._holds = holds
        self._heartbeat_s = heartbeat_s
        self._lease_s = lease_s
        self._on_draining = on_draining
        self._on_revoked = on_revoked

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._fence())

    async def _beat(self) -> None:
        while True:
            sent_s = time.monotonic()
            try:
                await self.beat_once()
            except CredentialRevoked:
                self._on_revoked()
                return
            except Unreachable as error:
                log.warning("heartbeat failed", error=str(error), held=len(self._holds))
                # Not at once, and not all nodes together: the gateway may just be coming back.
                await asyncio.sleep(random.uniform(0.1, 0.4) * self._heartbeat_s)  # noqa: S311
                continue
            except Refused as error:
                log.error("heartbeat refused", error=str(error))
            await self._pause(sent_s)

    async def beat_once(self) -> None:
        """One call for all leases. Verdicts go to the leases that were asked about: a newer one of the same
        job may have come in meanwhile."""
        asked = {hold.job_id: hold for hold in self._holds if hold.interrupt < Interrupt.LOST}
        sent_s = time.monotonic()
        answer = await self._client.heartbeat(
            [hold.wire() for hold in asked.values()], timeout_s=max(1.0, self._lease_s / 4)
        )
        for verdict in answer.leases:
            if (hold := asked.get(verdict.job_id)) is not None:
                self._judge(hold, _VERDICTS[verdict.verdict], sent_s)
        self._adapt(answer)

    def _judge(self, hold: Hold, verdict: Interrupt, sent_s: float) -> None:
        if verdict is Interrupt.LOST:
            # A report that was just accepted ends its lease too: only work under way is worth a line.
            if not hold.ended:
                log.warning("lease lost", job_id=hold.job_id)
        else:
            hold.acknowledged_s = max(hold.acknowledged_s, sent_s)
        hold.interrupt_with(verdict)

    def _adapt(self, answer: HeartbeatAnswer) -> None:
        if answer.lease_s is not None and answer.heartbeat_s is not None:
            self._lease_s, self._heartbeat_s = answer.lease_s, answer.heartbeat_s
        if answer.draining:
            self._on_draining()

    async def _pause(self, sent_s: float) -> None:
        self._holds.arrived.clear()
        idle_s = max(IDLE_S, self._heartbeat_s)
        while True:
            interval_s = self._heartbeat_s if len(self._holds) else idle_s
            left_s = sent_s + interval_s - time.monotonic()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await self._holds.arrived.wait()
            except TimeoutError:
                return
            self._holds.arrived.clear()

    async def _fence(self) -> None:
        while True:
            now = time.monotonic()
            limit_s = self._lease_s * (1 - MARGIN)
            running = [hold for hold in self._holds if not hold.ended and hold.interrupt < Interrupt.LOST]
            for hold in running:
                if now - hold.acknowledged_s >= limit_s:
                    log.warning("lease not acknowledged in time: stopping its container", job_id=hold.job_id)
                    hold.interrupt_with(Interrupt.LOST)
            oldest_s = min((hold.acknowledged_s for hold in running), default=now)
            # A lease that comes in later ends later, so nothing is missed by sleeping on.
            await asyncio.sleep(max(0.05, oldest_s + limit_s - now))
