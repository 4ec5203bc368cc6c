"""How a job that ran ends: by its node's report, by being handed back, or on the platform's own account.

Whatever ends a job writes its outcome, its files and its deliveries in one transaction.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from functions import artifacts, ids, versions
from functions.db import Connection
from functions.errors import Invalid, LeaseLost
from functions.ids import ArtifactId, JobId, NodeId
from functions.versions import Version
from scheduler import chains, lease_ends, leasing
from scheduler.callbacks import event_of
from scheduler.chains import chains_of
from scheduler.consequences import caused_by, deliveries_of
from scheduler.gates import GateId
from scheduler.job_errors import budget_exceeded, stopped, storable
from scheduler.lease_ends import Ending
from scheduler.leasing import Held
from scheduler.preparing import Sizing
from scheduler.retry import RetryPolicy, retry_delay

# A lease that was taken back was not reported: whoever held it must not think that its report came first.
REPORTED_BEFORE = """
-- reported_before
SELECT status FROM outcomes WHERE job_id = $1 AND token = $2
UNION ALL
SELECT 'scheduled' FROM job_attempts
 WHERE job_id = $1 AND token = $2 AND error ->> 'code' NOT IN ('node_lost', 'node_drained')
"""

RAN_OUT_OF_MEMORY = """
-- ran_out_of_memory
SELECT EXISTS (SELECT 1 FROM job_attempts WHERE job_id = $1 AND error ->> 'code' = 'oom_killed')
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of an attempt that ended. ``result`` is JSON text; ``code`` is None unless it failed; ``wish``
    is the wait that a failed job asks for itself."""

    token: UUID
    status: str
    exit_code: int | None = None
    code: str | None = None
    message: str = ""
    retryable: bool = True
    result: str | None = None
    artifacts: tuple[ArtifactId, ...] = ()
    rejected: tuple[Mapping[str, str], ...] = ()
    timeline: Mapping[str, int] = field(default_factory=dict)
    image_digest: str | None = None
    wish: timedelta | None = None


async def finish(
    conn: Connection,
    node: NodeId,
    job: JobId,
    report: Report,
    sizing: Sizing | None = None,
    *,
    freed: set[GateId] | None = None,
) -> str:
    """Record how an attempt ended, in the caller's transaction: outcome, files and deliveries, or the next attempt.

    Without ``sizing`` no attempt gets more memory than the one before. ``freed`` gets the gates to be advanced after
    the commit, here and below.
    Returns where the job is now: its outcome's status, or ``scheduled``. A report that comes twice gets the first
    one's answer; raises ``LeaseLost`` for one whose lease is not held any more.
    """
    if report.status == "succeeded" and report.exit_code not in (None, 0):
        raise Invalid(f"an attempt that exited with {report.exit_code} has not succeeded")
    held = await leasing.find_held(conn, node, job, report.token)
    if held is None:
        before = await conn.fetchval(REPORTED_BEFORE, job, report.token)
        if before is None:
            raise _lease_lost(job)
        return str(before)
    version = (await versions.by_ids(conn, [held.version_id]))[held.version_id]
    if report.image_digest is not None:
        await versions.pin_digest(conn, version.id, report.image_digest)
    error, delay, timeout = None, None, version.manifest.spec.job.timeout
    if report.status in ("failed", "timed_out"):
        error = {"code": report.code or "internal", "message": storable(report.message), "attempt": held.attempt}
        needs = None if sizing is None else await _larger(conn, version, job, report, sizing)
        delay = None if held.is_stopped else _next_try(version, held, report, grows=bool(needs))
        if delay is not None and not (held.unpaid or held.stopped_for_money(report.status, timeout)):
            ending = Ending(
                job, report.token, report.status, report.exit_code, error, timeline=report.timeline, needs=needs
            )
            if await lease_ends.retry(conn, ending, delay, freed):
                return "scheduled"
            # The lease was taken back in this very moment, or a cancel came: a cancelled job gets no other attempt.
            held = await leasing.find_held(conn, node, job, report.token)
            if held is None:
                raise _lease_lost(job)
    status, error = _outcome(held, report.status, error, timeout, again=delay is not None)
    if status == "succeeded":
        await artifacts.mark_complete(conn, held.project_id, job, held.attempt, report.artifacts)
    ending = Ending(
        job, report.token, status, report.exit_code, error, report.result, report.timeline, report.rejected
    )
    deliveries = deliveries_of(version, job, status, (held.callback_url, held.callback_events), held.listeners)
    if not await lease_ends.finish(conn, [ending], deliveries, freed):
        raise _lease_lost(job)
    await chains.record(conn, chains_of(version.manifest.spec.callbacks, held.project_id, job, event_of(status)))
    return status


def _outcome(
    held: Held, status: str, error: dict[str, Any] | None, timeout: timedelta, *, again: bool
) -> tuple[str, dict[str, Any] | None]:
    """Status and error of a job whose last attempt ended so. ``again``: were there money, it would have another one."""
    if status == "succeeded":
        return status, error
    if held.is_stopped or held.stopped_for_money(status, timeout):
        return stopped(held.attempt, cancelled=held.cancel_requested, overdue=held.overdue)
    if held.unpaid and again and error is not None:
        return status, budget_exceeded(held.attempt, error["message"])
    return status, error


def _lease_lost(job: JobId) -> LeaseLost:
    return LeaseLost(f"this lease on {ids.encode(ids.JOB, job)} is over: another attempt may be running")


async def _larger(conn: Connection, version: Version, job: JobId, report: Report, sizing: Sizing) -> int | None:
    """The slots of the first attempt after one that ran out of memory, if it may have more; else None."""
    slots = version.manifest.grown_slots(sizing.slot_memory) if report.code == "oom_killed" else None
    # The largest node may have been larger when the manifest was applied.
    if slots is None or slots > sizing.max_slots or await ran_out_of_memory(conn, job):
        return None
    return slots


async def ran_out_of_memory(conn: Connection, job: JobId) -> bool:
    """Whether an attempt before the last one did."""
    return bool(await conn.fetchval(RAN_OUT_OF_MEMORY, job))


def _next_try(version: Version, held: Held, report: Report, *, grows: bool) -> timedelta | None:
    rule = version.manifest.spec.retry
    return retry_delay(
        RetryPolicy(rule.attempts, frozenset(rule.on), rule.backoff.initial, rule.backoff.factor, rule.backoff.max),
        code=report.code or "internal",
        retryable=report.retryable,
        attempts_made=held.attempt - held.losses,
        exit_code=report.exit_code,
        wish=report.wish,
        grows=grows,
        jitter=random.random(),  # noqa: S311
    )


async def end_leased(conn: Connection, leases: Sequence[Ending], freed: set[GateId] | None = None) -> None:
    """End leased jobs on the platform's own account (lost too often, cancelled while lost), with their deliveries."""
    deliveries, chained = await caused_by(conn, {ending.job_id: ending.status for ending in leases})
    ended = await lease_ends.finish(conn, leases, deliveries, freed)
    await chains.record(conn, [chain for chain in chained if chain.job_id in ended])


async def release(
    conn: Connection,
    node: NodeId,
    leases: Sequence[tuple[JobId, UUID]],
    reason: str,
    freed: set[GateId] | None = None,
) -> set[JobId]:
    """Hand jobs back: ready again at once, or over if that was asked for or their money is used up. Returns those whose
    token still held."""
    message = storable(reason) or f"{ids.encode(ids.NODE, node)} handed the job back"
    error = {"code": "node_drained", "message": message}
    back = await lease_ends.requeue(conn, [(job, token, error) for job, token in leases], freed)
    rest = [(job, token) for job, token in leases if job not in back]
    over = []
    for job, token in rest:
        held = await leasing.find_held(conn, node, job, token)
        if held is not None and (held.cancel_requested or held.unpaid):
            status, why = stopped(held.attempt, cancelled=held.cancel_requested, overdue=held.overdue)
            over.append(Ending(job, token, status, error=why, reported=False))
    await end_leased(conn, over, freed)
    return back | {ending.job_id for ending in over}
