"""Makes the jobs of schedules whose time has come.

A schedule is locked, its jobs are submitted, what came of each planned time is written down and the schedule moved on
in one transaction: there is nothing between them to crash in, and two schedulers never have one schedule in hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog

from functions import due_schedules, ids, listening, versions
from functions.artifacts import Store
from functions.db import Connection, Pool
from functions.due_schedules import DueSchedule
from functions.egress import EgressPolicy
from functions.errors import Conflict, Invalid, RGridError, Unavailable
from functions.expressions import MissingValue
from functions.grammar import SCHEDULE_MISSED
from functions.ids import JobId, ProjectId, ScheduleId
from functions.schedule_spec import ScheduleSpec, params_of, time_text
from functions.versions import Version
from scheduler import cancelling, deliveries, job_errors, jobs, limits, preparing, schedule_runs
from scheduler.callbacks import endpoints_of
from scheduler.due_times import DueTimes, due_times, spread
from scheduler.gates import GateId
from scheduler.inputs import refused_inputs
from scheduler.preparing import Invocation, Sizing
from scheduler.queue import NewJob
from scheduler.schedule_runs import Run
from scheduler.spill import is_large, spilled
from scheduler.views import rfc3339

log = structlog.get_logger(__name__)

AT_ONCE = 500
"""Schedules of one transaction, as long as they have no more jobs than that together; one alone may have a thousand."""
AGAIN = timedelta(seconds=30)
PLAN_S = 1.0
"""After it no more schedules are looked at in a round: after a long downtime each may have a thousand times to find,
and nothing else runs meanwhile."""
SPILLING, SPILL_S = 6, 15.0
"""Params that are on their way to the store at once, and how long those of a round may take together: a round that is
cut off (``Round.timeout_s``) makes nobody's jobs."""
REFUSED_ALONE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


@dataclass(frozen=True, slots=True)
class Fired:
    """What one round did: schedules that it dealt with, and planned times by what came of them."""

    schedules: int = 0
    submitted: int = 0
    skipped: int = 0
    missed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Planned:
    """A planned time that has its job, or the reason why not."""

    schedule: DueSchedule
    at: datetime
    job: NewJob | None = None
    error: RGridError | None = None


@dataclass(slots=True)
class _Firing:
    """What one round is about to write."""

    planned: list[_Planned] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    moved: list[tuple[ScheduleId, datetime | None]] = field(default_factory=list)
    postponed: list[ScheduleId] = field(default_factory=list)
    unfinished: Mapping[ScheduleId, list[JobId]] = field(default_factory=dict)


async def fire_once(
    pool: Pool,
    store: Store,
    sizing: Sizing,
    policy: EgressPolicy,
    *,
    limit: int = AT_ONCE,
    reached: set[GateId] | None = None,
) -> Fired:
    """Deal with up to ``limit`` schedules whose time has come, in one transaction; safe beside others.

    ``reached`` gets the gates to be advanced after the commit.
    """
    async with pool.acquire() as conn, conn.transaction():
        due = await due_schedules.due(conn, limit=limit)
        if not due:
            return Fired()
        found = await versions.with_digests(conn, {each.version_id: each.image_digest for each in due})
        version_of = {each.id: found[each.version_id] for each in due}
        firing = await _plan(conn, due, version_of, sizing)
        await _prepare(conn, pool, store, firing, policy)
        async with pool.acquire() as other:
            await limits.make_gates(other, [each.job for each in firing.planned if each.job is not None])
        await _replace(conn, firing, reached)
        firing.runs += await _submit(conn, firing.planned, reached)
        await schedule_runs.record(conn, firing.runs)
        await due_schedules.move(conn, firing.moved)
        await due_schedules.postpone(conn, firing.postponed, AGAIN)
        await _tell(conn, firing.runs, {each.id: each for each in due}, version_of)
    states = [run.state for run in firing.runs]
    for run in firing.runs:
        if run.state == "failed":
            name = ids.encode(ids.SCHEDULE, run.schedule_id)
            log.warning("schedule made no job", schedule=name, code=(run.error or {})["code"])
    return Fired(
        len(firing.moved) + len(firing.postponed),
        *(states.count(state) for state in ("submitted", "skipped", "missed", "failed")),
    )


def trigger_of(schedule: ScheduleId, spec: ScheduleSpec, planned: datetime) -> dict[str, Any]:
    """What a job says of the schedule that made it."""
    return {
        "kind": "schedule",
        "name": spec.name,
        "schedule": ids.encode(ids.SCHEDULE, schedule),
        "time": time_text(planned),
    }


def job_of(
    schedule: ScheduleId, spec: ScheduleSpec, planned: datetime, *, version: Version, sizing: Sizing, asked: Invocation
) -> NewJob:
    """The job for a planned time, as ``asked`` for; raises ``Invalid`` when the function takes none like it."""
    try:
        params = params_of(
            spec.params, spec.name, planned, function=version.function_name, version=version.number
        )
    except MissingValue as error:
        raise Invalid(str(error), code="template_invalid") from None
    invocation = replace(asked, params=params, trigger=trigger_of(schedule, spec, planned))
    return preparing.prepare(version.project_id, version, invocation, sizing)


async def _plan(
    conn: Connection, due: Sequence[DueSchedule], version_of: Mapping[ScheduleId, Version], sizing: Sizing
) -> _Firing:
    """Which of the planned times run; those of schedules that are too many for one transaction wait for the next."""
    chosen: list[tuple[DueSchedule, DueTimes]] = []
    count, until_s = 0, time.monotonic() + PLAN_S
    for each in due:
        if count >= AT_ONCE or (chosen and time.monotonic() >= until_s):
            break
        times = due_times(each.spec.times, each.spec.catch_up, each.next_at, each.now)
        chosen.append((each, times))
        count += len(times.run)
    before = await schedule_runs.known(
        conn,
        [(each.id, at) for each, times in chosen for at in times.run]
        + [(each.id, times.missed.first) for each, times in chosen if times.missed is not None],
    )
    careful = [each.id for each, times in chosen if times.run and each.spec.overlap != "allow"]
    firing = _Firing(unfinished=await schedule_runs.unfinished(conn, careful))
    for each, times in chosen:
        firing.moved.append((each.id, times.next_at))
        # A time that was dealt with comes again when its schedule is set anew while the clock is put back.
        if (missed := times.missed) is not None and (each.id, missed.first) not in before:
            firing.runs.append(
                Run(each.id, missed.first, each.project_id, "missed", until_at=missed.last, count=missed.count)
            )
        run = [at for at in times.run if (each.id, at) not in before]
        if each.id in firing.unfinished and each.spec.overlap == "skip":
            firing.runs += [Run(each.id, at, each.project_id, "skipped") for at in run]
            continue
        firing.planned += [_planned(each, at, version_of[each.id], sizing) for at in run]
    return firing


def _planned(each: DueSchedule, at: datetime, version: Version, sizing: Sizing) -> _Planned:
    late = each.now - at
    wait = spread(each.id, at, each.spec.jitter) - late
    asked = Invocation(params={}, trigger={}, delay=wait if wait > timedelta(0) else None)
    try:
        return _Planned(each, at, job_of(each.id, each.spec, at, version=version, sizing=sizing, asked=asked))
    except RGridError as error:
        return _Planned(each, at, error=error)
    except Exception as error:  # one project's odd schedule must not stop everybody's
        log.error("schedule broke", schedule=ids.encode(ids.SCHEDULE, each.id), exc_info=error)
        return _Planned(each, at, error=Conflict("the job could not be made", code="internal"))


async def _prepare(conn: Connection, pool: Pool, store: Store, firing: _Firing, policy: EgressPolicy) -> None:
    """Vet the inputs of the jobs, and put large params where they belong; without the store their schedules wait."""
    refused: dict[JobId, Invalid] = {}
    of_project: dict[ProjectId, list[NewJob]] = {}
    for each in firing.planned:
        if each.job is not None and each.job.inputs:
            of_project.setdefault(each.schedule.project_id, []).append(each.job)
    for made in of_project.values():
        refused |= await refused_inputs(conn, made, policy)
    ready: list[_Planned] = []
    for each in firing.planned:
        error = None if each.job is None else refused.get(each.job.id)
        ready.append(each if error is None else replace(each, job=None, error=error))
    large = [each.job for each in ready if each.job is not None and is_large(each.job)]
    stored = await _stored(pool, store, large) if large else {}
    late = {job.id for job in large} - stored.keys()
    waiting = {each.schedule.id for each in ready if each.job is not None and each.job.id in late}
    ready = [replace(each, job=stored.get(each.job.id, each.job)) if each.job is not None else each for each in ready]
    if waiting:
        ready = [each for each in ready if each.schedule.id not in waiting]
        firing.runs = [run for run in firing.runs if run.schedule_id not in waiting]
        firing.moved = [moved for moved in firing.moved if moved[0] not in waiting]
        firing.postponed = sorted(waiting)
    firing.planned = ready


async def _stored(pool: Pool, store: Store, large: Sequence[NewJob]) -> dict[JobId, NewJob]:
    """The jobs with their params in the store; without those that it does not take, or not in time."""
    done: dict[JobId, NewJob] = {}
    room = asyncio.Semaphore(SPILLING)

    async def put(job: NewJob) -> None:
        async with room:
            with suppress(Unavailable):
                done[job.id], _ = await spilled(pool, store, job)

    with suppress(TimeoutError):
        async with asyncio.timeout(SPILL_S), asyncio.TaskGroup() as group:
            for job in large:
                group.create_task(put(job))
    return done


async def _replace(conn: Connection, firing: _Firing, reached: set[GateId] | None) -> None:
    """Cancel the jobs in whose place new ones come."""
    replacing = {each.schedule.id: each.schedule.project_id for each in firing.planned if each.job is not None}
    victims: dict[ProjectId, list[JobId]] = {}
    for schedule, unfinished in firing.unfinished.items():
        if schedule in replacing:
            victims.setdefault(replacing[schedule], []).extend(unfinished)
    for project, of_project in sorted(victims.items()):
        await cancelling.cancel(conn, project, of_project, reached)


async def _submit(conn: Connection, planned: Sequence[_Planned], reached: set[GateId] | None) -> list[Run]:
    """Put the jobs into the queue; what came of each planned time."""
    runs = [_run(each, each.error) for each in planned if each.error is not None]
    made = [(each, each.job) for each in planned if each.job is not None]
    answers = await _enter(conn, [job for _, job in made], reached)
    return runs + [_run(each, answers.get(job.id), job) for each, job in made]


async def _enter(
    conn: Connection, made: Sequence[NewJob], reached: set[GateId] | None
) -> dict[JobId, RGridError]:
    """Those of the jobs that the queue refused, and why."""
    if not made:
        return {}
    try:
        async with conn.transaction():
            answers = await jobs.submit_or_record(conn, made, reached)
    except REFUSED_ALONE as error:
        if len(made) == 1:
            log.warning("scheduled job refused", error=f"{type(error).__name__}: {error}")
            return {made[0].id: Conflict("the job cannot be stored as it is", code="invalid_text")}
        # What one bad row does to the statement must not end its neighbours.
        return {job: why for each in made for job, why in (await _enter(conn, [each], reached)).items()}
    pairs = zip(made, answers, strict=True)
    return {job.id: answer for job, answer in pairs if isinstance(answer, RGridError)}


def _run(each: _Planned, error: RGridError | None, job: NewJob | None = None) -> Run:
    if error is not None:
        reason = {"code": error.code, "message": job_errors.storable(error.message)}
        return Run(each.schedule.id, each.at, each.schedule.project_id, "failed", error=reason)
    assert job is not None
    return Run(each.schedule.id, each.at, each.schedule.project_id, "submitted", job_id=job.id)


REASONS = {"skipped": "overlap", "missed": "late", "failed": "error"}


async def _tell(
    conn: Connection,
    runs: Sequence[Run],
    due: Mapping[ScheduleId, DueSchedule],
    version_of: Mapping[ScheduleId, Version],
) -> None:
    """Tell whoever wants to hear of planned times that came to no job: once of those that one round found alike."""
    alike: dict[tuple[ScheduleId, str], list[Run]] = {}
    for run in runs:
        if run.state in REASONS:
            alike.setdefault((run.schedule_id, run.state), []).append(run)
    for project in sorted({same[0].project_id for same in alike.values()}):
        mine = [same for same in alike.values() if same[0].project_id == project]
        functions = {due[same[0].schedule_id].function_id for same in mine}
        listeners = await listening.listeners(conn, project, functions)
        for same in mine:
            each, version = due[same[0].schedule_id], version_of[same[0].schedule_id]
            told = endpoints_of(
                version.manifest.spec.callbacks, None, None, SCHEDULE_MISSED,
                listeners=[one for one in listeners if one.function_id in (None, each.function_id)],
                function=version.function_name,
            )  # fmt: skip
            payload, moment = missed_object(same, each.spec, version.function_name), same[0].planned_at
            await deliveries.add(conn, project, each.id, SCHEDULE_MISSED, told, payload=payload, moment=moment)


def missed_object(same: Sequence[Run], spec: ScheduleSpec, function: str | None) -> dict[str, Any]:
    """What ``schedule.missed`` tells of planned times that came to the same, in order."""
    first, last = same[0], same[-1]
    name = ids.encode(ids.SCHEDULE, first.schedule_id)
    return {
        "schedule": name,
        "name": spec.name,
        "function": function,
        "reason": REASONS[first.state],
        "planned_at": rfc3339(first.planned_at),
        "until": rfc3339(last.until_at or last.planned_at),
        "count": first.count if len(same) == 1 else len(same),
        "error": first.error,
        "links": {"self": f"/v1/schedules/{name}", "runs": f"/v1/schedules/{name}/runs"},
    }
