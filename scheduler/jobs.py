"""A job's life: submit (the one door in), finish, release, cancel, retry.

Every way in — HTTP, cron, hooks, chaining — prepares a ``NewJob`` and enters through ``submit``. Whatever ends a job
writes its outcome, its files and its deliveries in one transaction.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from functions import artifacts, endpoints, ids, versions
from functions.db import Connection, Pool, Row
from functions.endpoints import Listener
from functions.errors import Conflict, Invalid, LeaseLost, LimitReached, NotFound
from functions.ids import ArtifactId, BatchId, FunctionId, JobId, NodeId, ProjectId
from functions.jobspec import JobSpec
from functions.queue_spec import LANES, Lane, Queue, gates_of
from functions.rendering import Rendered, render
from functions.versions import Version
from scheduler import chains, gates, idempotency, leasing, limits, queue, withdrawing
from scheduler.callbacks import endpoints_of, event_of
from scheduler.chains import Chain, chains_of
from scheduler.deliveries import new_delivery
from scheduler.gates import GateId
from scheduler.inputs import pointer_of
from scheduler.leasing import Ending, Held, NewDelivery
from scheduler.queue import NO_FUNCTION, InputUrl, NewJob
from scheduler.receipts import NewReceipt
from scheduler.retry import RetryPolicy, retry_delay
from scheduler.withdrawing import Unleased

CALLBACKS_OF = """
-- callbacks_of
SELECT id, project_id, function_id, version_id, callback_url, callback_events FROM jobs WHERE id = ANY ($1)
"""

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

JOB_EXISTS = """
-- job_exists
SELECT EXISTS (SELECT 1 FROM outcomes WHERE job_id = jobs.id) AS finished FROM jobs WHERE id = $2 AND project_id = $1
"""

FUNCTION_OF = """
-- function_of_job
SELECT function_id FROM jobs WHERE id = $2 AND project_id = $1
"""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a slot is: its memory in bytes, and how many the largest node has."""

    slot_memory: int
    max_slots: int


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a trigger asks for, before the version's schema and template have seen it.

    ``lane`` and ``head_start`` go before what the manifest says.
    """

    params: Mapping[str, Any]
    trigger: Mapping[str, Any]
    callback_url: str | None = None
    callback_events: tuple[str, ...] | None = None
    delay: timedelta | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None
    traceparent: str | None = None
    retried_from: JobId | None = None
    key_id: str | None = None
    batch_id: BatchId | None = None
    lane: Lane | None = None
    head_start: timedelta | None = None
    cancel_after: timedelta | None = None
    receipt: NewReceipt | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """``created_at`` is None for a job that an earlier request with the same idempotency key had made; ``other_body``:
    a webhook's sender has sent something else under this id before."""

    job_id: JobId
    created_at: datetime | None
    other_body: bool = False

    @property
    def replayed(self) -> bool:
        return self.created_at is None


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


def prepare(project: ProjectId, version: Version, invocation: Invocation, sizing: Sizing) -> NewJob:
    """Check an invocation against a version and make the job of it; raises ``Invalid`` with pointers into the params.

    The template is rendered here for its errors and its inputs, which ``check_inputs`` vets: a lease renders it again
    from the same values, so that the wide row need not hold it.
    """
    manifest = version.manifest
    params = version.params_schema.complete(invocation.params)
    job = JobId(ids.new_uuid7())
    rendered = render(
        manifest.spec,
        params=params,
        trigger=invocation.trigger,
        job_id=ids.encode(ids.JOB, job),
        function=version.function_name,
        version=version.number,
    )
    return NewJob(
        id=job,
        project_id=project,
        function_id=version.function_id,
        version_id=version.id,
        trigger=json.dumps(invocation.trigger),
        params=json.dumps(params, ensure_ascii=False, separators=(",", ":")),
        slots=manifest.slots(sizing.slot_memory, sizing.max_slots),
        callback_url=invocation.callback_url,
        callback_events=invocation.callback_events,
        retried_from=invocation.retried_from,
        traceparent=invocation.traceparent,
        delay=invocation.delay,
        idempotency_key=invocation.idempotency_key,
        body_hash=invocation.body_hash,
        key_id=invocation.key_id,
        batch_id=invocation.batch_id,
        receipt=invocation.receipt,
        inputs=_input_urls(manifest.spec.job, rendered),
        **_queueing(version, params, invocation),
    )


def _queueing(version: Version, params: Mapping[str, Any], invocation: Invocation) -> dict[str, Any]:
    """What ``spec.queue`` and the invocation say about when the job may start."""
    spec, limited_by = version.manifest.spec.queue or Queue(), version.limits
    head_start = spec.priority if invocation.head_start is None else invocation.head_start
    limited = version.function_id is not None  # a job without a function has nobody to share a limit with
    return {
        "gates": gates_of(
            limited_by, params=params, trigger=invocation.trigger, foreign=version.current is not None
        )
        if limited
        else (),
        "on_limit": limited_by.concurrency.on_limit if limited and limited_by.concurrency is not None else "queue",
        "lane": LANES[invocation.lane or spec.lane],
        "head_start": head_start or None,
        "ttl": spec.ttl,
        "cancel_after": invocation.cancel_after,
    }


def _input_urls(spec: JobSpec, rendered: Rendered) -> tuple[InputUrl, ...]:
    return tuple(
        InputUrl(pointer_of(each.url, ("spec", "job", "files", "inputs", index, "url")), made.url)
        for index, (each, made) in enumerate(zip(spec.files.inputs, rendered.inputs, strict=True))
        if each.url is not None and made.url is not None
    )


async def submit(
    conn: Connection, jobs: Sequence[NewJob], reached: set[GateId] | None = None
) -> list[Submitted | Conflict | Invalid | LimitReached]:
    """Put jobs into the queue, durable when it returns; one answer for each, in order.

    A job whose idempotency key was used with the same body answers with the first job, with another body with
    ``Invalid``. The keys within one call must differ. One whose function rejects what is over its limit answers with
    ``LimitReached``; a webhook's is there and has failed. ``reached`` gets the gates at which jobs wait now: to be
    advanced after the commit.
    """
    return await _enter(conn, jobs, reached, record=False)


async def submit_or_record(
    conn: Connection, jobs: Sequence[NewJob], reached: set[GateId] | None = None
) -> list[Submitted | Conflict | Invalid]:
    """``submit`` for triggers whom nobody could tell: a job that its function rejects is there, and has failed."""
    answers = await _enter(conn, jobs, reached, record=True)
    return [answer for answer in answers if not isinstance(answer, LimitReached)]


async def _enter(
    conn: Connection, jobs: Sequence[NewJob], reached: set[GateId] | None, *, record: bool
) -> list[Submitted | Conflict | Invalid | LimitReached]:
    picky = [job for job in jobs if limits.is_picky(job)]
    rest = [job for job in jobs if not limits.is_picky(job)] if picky else jobs
    accepted: dict[JobId, datetime] = {}
    refused: set[JobId] = set()
    recorded = {job.id for job in picky if record or job.receipt is not None}
    # These first: they wait for locks that a statement of the others' would hold meanwhile.
    if picky:
        passed = await limits.make_gates(conn, picky)
        async with conn.transaction():
            accepted, refused = await _enter_picky(conn, picky, passed, reached, recorded)
    if rest:
        accepted |= await queue.enqueue(conn, rest, reached)
    return [
        Submitted(job.id, accepted[job.id])
        if job.id in accepted
        else limits.reached()
        if job.id in refused
        else await _replay(conn, job)
        for job in jobs
    ]


async def _enter_picky(
    conn: Connection,
    jobs: Sequence[NewJob],
    passed: limits.Passed,
    reached: set[GateId] | None,
    recorded: Collection[JobId],
) -> tuple[dict[JobId, datetime], set[JobId]]:
    """Enqueue jobs that do not wait behind others at their function's limit; those that went in, and those refused."""
    replacing = any(job.on_limit == "replace" for job in jobs)
    held = await limits.lock(conn, jobs, passed, cancels=replacing or bool(recorded))
    new = [
        job
        for job in jobs
        if job.idempotency_key is None
        or not await idempotency.find(conn, job.project_id, job.key_scope, job.idempotency_key)
    ]
    refused = await limits.over(conn, [job for job in new if job.on_limit == "reject"], passed)
    cancelled = await limits.replaced(conn, [job for job in new if job.on_limit == "replace"], passed, held)
    made = await queue.enqueue(conn, [job for job in new if job.id not in refused], reached)
    for project, victims in sorted(cancelled.items()):
        await cancel(conn, project, victims, reached)
    # Here already, so that the next ones of this transaction, or after it, find them counted.
    await gates.advance(conn, list(held), within=held, left=reached)
    if rejected := [job for job in new if job.id in refused and job.id in recorded]:
        made |= await _record_rejected(conn, rejected)
    return made, refused - made.keys()


async def _record_rejected(conn: Connection, jobs: Sequence[NewJob]) -> dict[JobId, datetime]:
    """Write jobs that have failed before they could wait, with what that causes."""
    # As delayed ones they stand at no gate, and nobody sees them before they have ended.
    made = await queue.enqueue(conn, [replace(job, delay=timedelta(0), gates=()) for job in jobs])
    error = {"code": "concurrency_rejected", "message": "as many jobs of this function run as may", "attempt": 0}
    for project in sorted({job.project_id for job in jobs}):
        mine = [job.id for job in jobs if job.project_id == project and job.id in made]
        taken, _ = await withdrawing.take_out(conn, project, mine)
        await end_unleased(conn, project, "failed", error, taken)
    return made


async def _replay(conn: Connection, job: NewJob) -> Submitted | Conflict | Invalid:
    assert job.idempotency_key is not None and job.body_hash is not None
    for _ in range(3):
        first = await idempotency.find(conn, job.project_id, job.key_scope, job.idempotency_key)
        if first is not None:
            return _first(first, job.body_hash, other_body=job.receipt is not None)
        # The key's day ended between the two statements: it is free now.
        if accepted := await queue.enqueue(conn, [job]):
            return Submitted(job.id, accepted[job.id])
    return Conflict("requests with this Idempotency-Key keep changing: try again", code="idempotency_key_busy")


async def made_before(
    conn: Connection, project: ProjectId, function: FunctionId | None, key: str, body_hash: bytes
) -> Submitted | Invalid | None:
    """The answer to a request whose idempotency key was used before; None if the key is free."""
    first = await idempotency.find(conn, project, function or NO_FUNCTION, key)
    return None if first is None else _first(first, body_hash)


def _first(first: tuple[JobId, bytes], body_hash: bytes, *, other_body: bool = False) -> Submitted | Invalid:
    """The answer to a repeat; ``other_body``: one with another body is a repeat, too."""
    job_id, first_hash = first
    if first_hash != body_hash and not other_body:
        return Invalid(
            "this Idempotency-Key was used with another body in the last 24 hours: send a new key",
            code="idempotency_key_reused",
        )
    return Submitted(job_id, None, other_body=first_hash != body_hash)


async def retried_before(
    conn: Connection, project: ProjectId, job: JobId, key: str, body_hash: bytes
) -> Submitted | Invalid | None:
    """The answer to a retry of ``job`` whose idempotency key was used before; None if the key is free."""
    row = await conn.fetchrow(FUNCTION_OF, project, job)
    if row is None:
        return None
    return await made_before(conn, project, row["function_id"] or NO_FUNCTION, key, body_hash)


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
    status, error = report.status, None
    if status in ("failed", "timed_out"):
        error = {"code": report.code or "internal", "message": storable(report.message), "attempt": held.attempt}
        needs = None if sizing is None else await _larger(conn, version, job, report, sizing)
        over = held.cancel_requested or held.overdue
        delay = None if over else _next_try(version, held, report, grows=bool(needs))
        if delay is not None:
            ending = Ending(
                job, report.token, status, report.exit_code, error, timeline=report.timeline, needs=needs
            )
            if await leasing.retry(conn, ending, delay, freed):
                return "scheduled"
            # The lease was taken back in this very moment, or a cancel came: a cancelled job gets no other attempt.
            held = await leasing.find_held(conn, node, job, report.token)
            if held is None:
                raise _lease_lost(job)
        if held.cancel_requested or held.overdue:
            status, error = "cancelled", None
    if status == "cancelled" and held.overdue:
        error = deadline_exceeded(held.attempt)
    if status == "succeeded":
        await artifacts.mark_complete(conn, held.project_id, job, held.attempt, report.artifacts)
    ending = Ending(
        job, report.token, status, report.exit_code, error, report.result, report.timeline, report.rejected
    )
    deliveries = _deliveries(version, job, status, (held.callback_url, held.callback_events), held.listeners)
    if not await leasing.finish(conn, [ending], deliveries, freed):
        raise _lease_lost(job)
    await chains.record(conn, chains_of(version.manifest.spec.callbacks, held.project_id, job, event_of(status)))
    return status


def _lease_lost(job: JobId) -> LeaseLost:
    return LeaseLost(f"this lease on {ids.encode(ids.JOB, job)} is over: another attempt may be running")


def deadline_exceeded(attempt: int) -> dict[str, Any]:
    """The error of a job that was cancelled because its Cancel-After was over."""
    return {"code": "deadline_exceeded", "message": "not finished within its Cancel-After", "attempt": attempt}


def storable(text: str) -> str:
    """The text without what PostgreSQL cannot read again: a NUL in one message would fail every reaper's round."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


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


def _deliveries(
    version: Version,
    job: JobId,
    status: str,
    own: tuple[str | None, Sequence[str] | None],
    listeners: Sequence[Listener],
) -> list[NewDelivery]:
    """The messages that this outcome causes, one for each endpoint that wants it. ``own`` are the job's own URL and
    the events that it asks for."""
    kind = event_of(status)
    callbacks = version.manifest.spec.callbacks
    told = endpoints_of(callbacks, *own, kind, listeners=listeners, function=version.function_name)
    return [new_delivery(job, kind, endpoint) for endpoint in told]


async def end_leased(conn: Connection, leases: Sequence[Ending], freed: set[GateId] | None = None) -> None:
    """End leased jobs on the platform's own account (lost too often, cancelled while lost), with their deliveries."""
    deliveries, chained = await _caused_by(conn, {ending.job_id: ending.status for ending in leases})
    ended = await leasing.finish(conn, leases, deliveries, freed)
    await chains.record(conn, [chain for chain in chained if chain.job_id in ended])


async def _caused_by(
    conn: Connection, statuses: Mapping[JobId, str]
) -> tuple[list[NewDelivery], list[Chain]]:
    """What outcomes of these statuses cause: messages, and jobs of functions."""
    rows = await conn.fetch(CALLBACKS_OF, list(statuses))
    found = await versions.by_ids(conn, {row["version_id"] for row in rows})
    listening = await _listeners(conn, rows)
    chained = [
        chain
        for row in rows
        for chain in chains_of(
            found[row["version_id"]].manifest.spec.callbacks,
            row["project_id"],
            row["id"],
            event_of(statuses[row["id"]]),
        )
    ]
    deliveries = [
        delivery
        for row in rows
        for delivery in _deliveries(
            found[row["version_id"]],
            row["id"],
            statuses[row["id"]],
            (row["callback_url"], row["callback_events"]),
            [each for each in listening[row["project_id"]] if each.function_id in (None, row["function_id"])],
        )
    ]
    return deliveries, chained


async def _listeners(conn: Connection, rows: Sequence[Row]) -> dict[ProjectId, list[Listener]]:
    """The endpoints of each project that has jobs among ``rows``, and of their functions."""
    functions: dict[ProjectId, set[FunctionId | None]] = {}
    for row in rows:
        functions.setdefault(row["project_id"], set()).add(row["function_id"])
    return {project: await endpoints.listeners(conn, project, wanted) for project, wanted in functions.items()}


async def release(
    conn: Connection,
    node: NodeId,
    leases: Sequence[tuple[JobId, UUID]],
    reason: str,
    freed: set[GateId] | None = None,
) -> set[JobId]:
    """Hand jobs back: ready again at once, or cancelled if that was asked for. Returns those whose token still held."""
    message = storable(reason) or f"{ids.encode(ids.NODE, node)} handed the job back"
    error = {"code": "node_drained", "message": message}
    back = await leasing.requeue(conn, [(job, token, error) for job, token in leases], freed)
    rest = [(job, token) for job, token in leases if job not in back]
    cancelled = [
        Ending(
            job, token, "cancelled", error=deadline_exceeded(held.attempt) if held.overdue else None, reported=False
        )
        for job, token in rest
        if (held := await leasing.find_held(conn, node, job, token)) is not None and held.cancel_requested
    ]
    await end_leased(conn, cancelled, freed)
    return back | {ending.job_id for ending in cancelled}


async def cancel(
    conn: Connection, project: ProjectId, jobs: Sequence[JobId], freed: set[GateId] | None = None
) -> int:
    """Cancel jobs: those in the queue end now, a running one when its node has stopped it (≤ 5 s). Finished ones stay
    as they are. In the caller's transaction; ids that are not the project's are passed over. Returns how many end now
    or are asked to."""
    rest, hit = set(jobs), 0
    # A job that moves from one table to another while the statement runs may be seen in neither: look again.
    for _ in range(5):
        taken, leased = await withdrawing.take_out(conn, project, sorted(rest), freed)
        await end_unleased(conn, project, "cancelled", None, taken)
        found = leased | {job.job_id for job in taken}
        rest -= found
        hit += len(found)
        if not rest:
            break
    return hit


async def end_unleased(
    conn: Connection,
    project: ProjectId,
    status: str,
    error: Mapping[str, Any] | None,
    taken: Sequence[Unleased],
) -> None:
    """End jobs that were taken out of the queue in this transaction, with their deliveries."""
    if taken:
        deliveries, chained = await _caused_by(conn, {job.job_id: status for job in taken})
        await withdrawing.end_unleased(conn, project, taken, status=status, error=error, deliveries=deliveries)
        await chains.record(conn, chained)


async def cancel_after_delete(pool: Pool, *, limit: int, within: timedelta = timedelta(minutes=15)) -> int:
    """Cancel jobs that were put into the queue while their function was being deleted; how many.

    The delete itself cannot see them: they may be committed after it, by a request that had found the function.
    """
    async with pool.acquire() as conn, conn.transaction():
        found: dict[ProjectId, list[JobId]] = {}
        for project, job in await withdrawing.queued_after_delete(conn, within=within, limit=limit):
            found.setdefault(project, []).append(job)
        for project, left in sorted(found.items()):
            await cancel(conn, project, left)
    return sum(map(len, found.values()))


async def require(conn: Connection, project: ProjectId, job: JobId) -> bool:
    """Whether a job of the project is finished; raises ``NotFound``."""
    finished = await conn.fetchval(JOB_EXISTS, project, job)
    if finished is None:
        raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
    return bool(finished)
