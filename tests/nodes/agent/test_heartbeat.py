from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.responses import JSONResponse, Response

from nodes.agent import heartbeat as heartbeat_module
from nodes.agent.gateway_client import GatewayClient
from nodes.agent.heartbeat import Heartbeat
from nodes.agent.holds import Hold, Holds, Interrupt
from nodes.protocol import Stage
from tests.nodes.agent.gateway import Job, TestGateway
from tests.nodes.agent.waiting import until


class Node:
    """Leases of the test gateway under a beating heart."""

    def __init__(self, gateway: TestGateway, client: GatewayClient) -> None:
        self.gateway, self.client, self.holds = gateway, client, Holds()
        self.told: list[str] = []
        self.heart = Heartbeat(
            client,
            self.holds,
            heartbeat_s=gateway.heartbeat_s,
            lease_s=gateway.lease_s,
            on_draining=lambda: self.told.append("draining"),
            on_revoked=lambda: self.told.append("revoked"),
        )

    async def claim(self) -> tuple[Job, Hold]:
        job = self.gateway.add("image")
        (lease,) = (await self.client.claim(1, 0)).leases
        hold = Hold(lease)
        self.holds.add(hold)
        return job, hold

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.heart.run())
        yield
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
def node(gateway: TestGateway, client: GatewayClient) -> Node:
    return Node(gateway, client)


async def test_leases_are_kept_for_longer_than_they_last(node: Node) -> None:
    node.gateway.lease_s = 1.0
    jobs = [await node.claim() for _ in range(3)]
    async with node.beating():
        await asyncio.sleep(2.5)
    assert all((job.lost, job.state, hold.interrupt) == (0, "leased", Interrupt.NONE) for job, hold in jobs)


async def test_a_machines_clock_that_is_wrong_or_jumps_changes_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SECURITY N08: durations are what counts, of a clock that goes on."""
    really = time.time
    shifts = itertools.cycle([600.0, -600.0, 3600.0, -3600.0])
    monkeypatch.setattr(time, "time", lambda: really() + next(shifts))
    node.gateway.lease_s = node.heart._lease_s = 1.0
    jobs = [await node.claim() for _ in range(3)]
    async with node.beating():
        await asyncio.sleep(1.5)
    assert all((job.lost, job.state, hold.interrupt) == (0, "leased", Interrupt.NONE) for job, hold in jobs)


async def test_all_leases_go_in_one_call_with_progress_and_timeline(node: Node) -> None:
    jobs = [await node.claim() for _ in range(3)]
    jobs[1][1].progress = 0.25
    jobs[1][1].stamp(Stage.PULLING)
    await node.heart.beat_once()
    assert node.gateway.count("heartbeat") == 1
    assert [job.progress for job, _ in jobs] == [None, 0.25, None]
    assert list(jobs[1][0].timeline) == ["pulling"]


async def test_an_idle_node_is_seen_alive_now_and_then_and_a_lease_wakes_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "IDLE_S", 3600)
    async with node.beating():
        await until(lambda: node.gateway.count("heartbeat") == 1)
        await asyncio.sleep(3 * node.gateway.heartbeat_s)
        assert node.gateway.count("heartbeat") == 1
        await node.claim()
        await until(lambda: node.gateway.count("heartbeat") >= 3)


async def test_a_cancel_and_a_loss_reach_the_right_attempts(node: Node) -> None:
    (kept, hold), (cancelled, cancelled_hold), (lost, lost_hold) = [await node.claim() for _ in range(3)]
    cancelled.cancel = True
    lost.enter("queued")
    await node.heart.beat_once()
    assert [each.interrupt for each in (hold, cancelled_hold, lost_hold)] == [
        Interrupt.NONE,
        Interrupt.CANCEL,
        Interrupt.LOST,
    ]
    # A lost one is asked about no more, or it would be renewed while it is being stopped.
    lost.enter("leased")
    before = lost.expires_s
    await node.heart.beat_once()
    assert lost.expires_s == before
    assert kept.expires_s > before


async def test_a_verdict_is_for_the_lease_that_was_asked_about(node: Node) -> None:
    job, old = await node.claim()
    claimed: list[Hold] = []

    def meanwhile(path: str) -> None:
        # While the heartbeat is on its way the lease runs out and this node claims the job's next attempt.
        if path == "heartbeat" and not claimed:
            job.enter("queued")
            claimed.append(Hold(node.gateway._lease(job)))
            node.holds.add(claimed[0])

    node.gateway.before = meanwhile  # type: ignore[assignment]
    await node.heart.beat_once()
    assert (old.interrupt, claimed[0].interrupt) == (Interrupt.LOST, Interrupt.NONE)
    await node.heart.beat_once()
    assert (job.state, claimed[0].interrupt) == ("leased", Interrupt.NONE)


async def test_the_gateway_can_ask_the_node_to_drain(node: Node) -> None:
    node.gateway.draining = True
    await node.heart.beat_once()
    assert node.told == ["draining"]


async def test_changed_settings_of_the_gateway_are_followed(node: Node) -> None:
    answer = {"leases": [], "heartbeat_s": 1, "lease_s": 7}
    node.gateway.before = lambda path: JSONResponse(answer)
    await node.heart.beat_once()
    assert (node.heart._heartbeat_s, node.heart._lease_s) == (1, 7)


async def test_a_node_that_was_struck_off_is_told_so(node: Node) -> None:
    async with node.beating():
        await until(lambda: node.gateway.count("heartbeat") == 1)
        node.gateway.credentials.clear()
        node.holds.add(Hold(node.gateway.add("image").lease))
        await until(lambda: node.told == ["revoked"])


Outage = Callable[[TestGateway], Awaitable[None]]


async def gone(gateway: TestGateway) -> None:
    await asyncio.to_thread(gateway.stop)


async def silent(gateway: TestGateway) -> None:
    def hang(path: str) -> Response:
        time.sleep(0.3)
        return Response(status_code=503)

    gateway.before = hang


@pytest.mark.parametrize("outage", [gone, silent])
async def test_a_lease_that_nobody_renews_is_given_up_before_it_runs_out(node: Node, outage: Outage) -> None:
    node.gateway.lease_s = node.heart._lease_s = 2.0
    job, hold = await node.claim()
    async with node.beating():
        await asyncio.sleep(1)
        await outage(node.gateway)
        async with asyncio.timeout(5):
            await hold.interrupted(Interrupt.LOST)
        # The gateway would give the job away at this moment at the earliest.
        assert time.monotonic() < job.expires_s
        assert time.monotonic() > job.expires_s - 1.0
    if outage is gone:
        node.gateway.start()


async def test_a_short_outage_ends_nothing(node: Node) -> None:
    node.gateway.lease_s = node.heart._lease_s = 4.0
    _, hold = await node.claim()
    async with node.beating():
        await asyncio.sleep(0.5)
        await asyncio.to_thread(node.gateway.stop)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(node.gateway.start)
        before = node.gateway.count("heartbeat")
        await until(lambda: node.gateway.count("heartbeat") >= before + 5)
    assert hold.interrupt is Interrupt.NONE


async def test_a_report_on_its_way_is_not_fenced(node: Node) -> None:
    node.gateway.lease_s = node.heart._lease_s = 1.0
    _, running = await node.claim()
    _, reporting = await node.claim()
    reporting.ended = True
    await asyncio.to_thread(node.gateway.stop)
    async with node.beating():
        async with asyncio.timeout(5):
            await running.interrupted(Interrupt.LOST)
        await asyncio.sleep(1)
        assert reporting.interrupt is Interrupt.NONE
    node.gateway.start()


async def test_reasons_to_stop_only_grow_stronger(node: Node) -> None:
    _, hold = await node.claim()
    waiting = asyncio.create_task(hold.interrupted(Interrupt.LOST))
    for reason in (Interrupt.CANCEL, Interrupt.RELEASE, Interrupt.CANCEL):
        hold.interrupt_with(reason)
        await asyncio.sleep(0)
    assert hold.interrupt is Interrupt.RELEASE
    assert not waiting.done()
    hold.interrupt_with(Interrupt.LOST)
    await waiting
