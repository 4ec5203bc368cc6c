"""Tells the gateway how an attempt ended, or hands its job back: with patience, and not for ever."""

from __future__ import annotations

import asyncio

import structlog

from nodes.agent.gateway_client import GatewayClient, LeaseLost, Refused
from nodes.agent.holds import Hold, Interrupt
from nodes.agent.tasks import cancel_all
from nodes.protocol import AttemptError, AttemptReport, ErrorCode

log = structlog.get_logger()

RELEASE_S = 3.0
LAST_REPORT_S = 5.0
"""For a report that is still on its way when the node goes."""
REPORT_S = 600.0
"""A gateway that answers nothing usable for so long, though the lease lives, will not take this report."""


async def deliver(client: GatewayClient, hold: Hold, report: AttemptReport) -> bool:
    """Repeat the report until the gateway has answered it, the lease is lost, or the node has to go. False: it
    could not be told."""
    finish = asyncio.create_task(_finish(client, hold, report))
    patience = asyncio.create_task(_patience(hold))
    try:
        await asyncio.wait({finish, patience}, return_when=asyncio.FIRST_COMPLETED)
        if finish.done():
            finish.result()
            return True
        return hold.interrupt is Interrupt.LOST
    finally:
        await cancel_all(finish, patience)


async def hand_back(client: GatewayClient, hold: Hold, reason: str) -> bool:
    """Release the lease, so that the job is ready again at once. False: the gateway could not be told."""
    try:
        async with asyncio.timeout(RELEASE_S):
            await client.release(hold.job_id, hold.token, reason)
    except LeaseLost:
        return True
    except (Refused, TimeoutError) as error:
        log.warning("job not handed back", job_id=hold.job_id, error=str(error) or "timeout")
        return False
    log.info("job handed back", job_id=hold.job_id)
    return True


async def _finish(client: GatewayClient, hold: Hold, report: AttemptReport) -> None:
    said = log.bind(job_id=hold.job_id, status=report.status)
    try:
        try:
            async with asyncio.timeout(REPORT_S):
                answer = await client.finish(hold.job_id, report)
        except (Refused, TimeoutError) as error:
            said.error("report refused", error=str(error))
            async with asyncio.timeout(REPORT_S / 10):
                answer = await client.finish(hold.job_id, _plain(report, error))
    except LeaseLost:
        said.warning("report came too late: the lease is lost")
    except (Refused, TimeoutError) as error:
        # Its lease runs out now, and the job starts again.
        said.error("report given up", error=str(error))
    else:
        said.info("job reported", now=answer.status, ms=hold.age_ms())


def _plain(report: AttemptReport, error: Exception) -> AttemptReport:
    """What can be said instead of a report that the gateway does not take, whatever was wrong with it."""
    message = f"the gateway did not take the report of an attempt that {report.status}: {error or 'no answer'}"
    return AttemptReport(
        token=report.token,
        status="failed",
        error=AttemptError(code=ErrorCode.INTERNAL, message=message[:1000]),
        timeline=report.timeline,
    )


async def _patience(hold: Hold) -> None:
    """Return when the report must not, or need not, be tried any longer."""
    await hold.interrupted(Interrupt.RELEASE)
    try:
        async with asyncio.timeout(LAST_REPORT_S):
            await hold.interrupted(Interrupt.LOST)
    except TimeoutError:
        pass
