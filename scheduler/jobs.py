"""Jobs enter: ``submit`` is the one door in.

Every way in — HTTP, cron, hooks, chaining — prepares a ``NewJob`` (``preparing``) and comes through here. How a job
that ran ends is in ``finishing``, how one that did not in ``cancelling``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from functions import ids
from functions.db import Connection
from functions.errors import Conflict, Invalid, LimitReached, NotFound
from functions.ids import FunctionId, JobId, ProjectId
from scheduler import cancelling, gates, idempotency, limits, queue, withdrawing
from scheduler.gates import GateId
from scheduler.queue import NO_FUNCTION, NewJob

JOB_EXISTS = """
-- job_exists
SELECT EXISTS (SELECT 1 FROM outcomes WHERE job_id = jobs.id) AS finished FROM jobs WHERE id = $2 AND project_id = $1
"""

FUNCTION_OF = """
-- function_of_job
SELECT function_id FROM jobs WHERE id = $2 AND project_id = $1
"""


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
        await cancelling.cancel(conn, project, victims, reached)
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
        await cancelling.end_unleased(conn, project, "failed", error, taken)
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


async def require(conn: Connection, project: ProjectId, job: JobId) -> bool:
    """Whether a job of the project is finished; raises ``NotFound``."""
    finished = await conn.fetchval(JOB_EXISTS, project, job)
    if finished is None:
        raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
    return bool(finished)
