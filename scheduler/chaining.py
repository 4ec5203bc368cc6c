"""Makes the jobs that outcomes cause. The chain is locked, its job submitted and the chain ended in one transaction, so
that there is nothing between the two to crash in; and the id that the job gets was chosen with the outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import structlog

from functions import ids, registry, versions
from functions.artifacts import Artifact, Store
from functions.chaining import DEEPEST_CHAIN, fill_in, outputs_root
from functions.db import Connection, Pool
from functions.egress import EgressPolicy
from functions.errors import Conflict, RGridError, Unavailable
from functions.expressions import MissingValue
from functions.ids import JobId
from functions.versions import Version
from scheduler import chains, job_errors, jobs, limits, preparing
from scheduler.chains import Chain
from scheduler.gates import GateId
from scheduler.inputs import refused_inputs
from scheduler.preparing import Invocation, Sizing
from scheduler.queue import NewJob
from scheduler.spill import Spilling, loaded
from scheduler.views import JobRecord, job_object, read_jobs

log = structlog.get_logger(__name__)

AGAIN = timedelta(seconds=30)
REFUSED_ALONE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)

CAUSES = """
-- causes_of_chains
SELECT id, version_id FROM jobs WHERE id = ANY ($1)
"""


@dataclass(frozen=True, slots=True)
class Chained:
    """What one round did: jobs that were submitted, chains that ended for a reason."""

    submitted: int
    failed: int


@dataclass(frozen=True, slots=True)
class _Cause:
    """A job that has ended, with its whole params."""

    record: JobRecord
    version: Version
    params: Mapping[str, Any]


class _NoLinks:
    """Outputs go on by reference: the next job's params hold no address that ends."""

    def presigned(self, artifact: Artifact) -> tuple[str, datetime]:
        return "", datetime.now(UTC)

    def stable(self, artifact: Artifact) -> str:
        return ""


async def chain_once(
    pool: Pool,
    store: Store,
    sizing: Sizing,
    policy: EgressPolicy,
    *,
    limit: int = 100,
    reached: set[GateId] | None = None,
) -> Chained:
    """Submit the jobs that up to ``limit`` outcomes cause, in one transaction. Safe beside others and after a crash.

    Those that need the store while it is away wait for it. ``reached`` gets the gates that are to be advanced now.
    """
    async with pool.acquire() as conn, Spilling(pool, store) as spilling, conn.transaction():
        due = await chains.due(conn, limit=limit)
        if not due:
            return Chained(0, 0)
        causes = await _causes(conn, due)
        made: list[tuple[Chain, NewJob]] = []
        failed: dict[Chain, RGridError] = {}
        waiting: list[Chain] = []
        for chain in due:
            try:
                if chain.job_id not in causes:
                    raise Conflict("the job that it follows is not kept any more", code="job_not_found")
                record, version = causes[chain.job_id]
                params = json.loads(await loaded(conn, store, chain.project_id, record.row["params"]))
                new = await _next(conn, chain, _Cause(record, version, params), sizing, policy)
                made.append((chain, await spilling.spilled(new)))
            except Unavailable:
                waiting.append(chain)
            except RGridError as error:
                failed[chain] = error
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                raise  # the transaction is gone: all of it is tried again
            except Exception as error:  # one project's odd outcome must not stop everybody's chains
                log.error("chain broke", job_id=ids.encode(ids.JOB, chain.job_id), exc_info=error)
                failed[chain] = Conflict("the next job could not be made of this outcome", code="internal")
        async with pool.acquire() as other:
            await limits.make_gates(other, [new for _, new in made])
        failed |= await _submit(conn, made, reached)
        ended = [chain for chain in due if chain not in waiting]
        await chains.end(conn, [(chain, _error(failed[chain]) if chain in failed else None) for chain in ended])
        await chains.postpone(conn, waiting, AGAIN)
        spilling.made([new.id for chain, new in made if chain not in failed])
    for chain, reason in failed.items():
        name = ids.encode(ids.JOB, chain.job_id)
        log.warning("chain ended", job_id=name, function=chain.function, code=reason.code)
    return Chained(len(ended) - len(failed), len(failed))


async def _causes(conn: Connection, due: Sequence[Chain]) -> dict[JobId, tuple[JobRecord, Version]]:
    """The jobs whose outcomes these are, with their versions."""
    found: dict[JobId, tuple[JobRecord, Version]] = {}
    rows = await conn.fetch(CAUSES, [chain.job_id for chain in due])
    parsed = await versions.by_ids(conn, {row["version_id"] for row in rows})
    of_job = {row["id"]: parsed[row["version_id"]] for row in rows}
    for project in {chain.project_id for chain in due}:
        wanted = {chain.job_id for chain in due if chain.project_id == project}
        for record in await read_jobs(conn, project, sorted(wanted)):
            found[record.id] = record, of_job[record.id]
    return found


async def _next(
    conn: Connection,
    chain: Chain,
    cause: _Cause,
    sizing: Sizing,
    policy: EgressPolicy,
) -> NewJob:
    """The job that this outcome causes; raises why there can be none."""
    record = cause.record
    callback = cause.version.manifest.spec.callbacks[chain.position]
    trigger = json.loads(record.row["trigger"])
    depth = int(trigger.get("depth", 0)) + 1
    if depth >= DEEPEST_CHAIN:
        raise Conflict(f"{DEEPEST_CHAIN} jobs were caused by one another, and no more are", code="chain_too_deep")
    try:
        params = fill_in(callback.params or {}, _roots(cause, trigger))
    except MissingValue as error:
        raise Conflict(str(error), code="template_invalid") from None
    target = await registry.current(conn, chain.project_id, chain.function)
    invocation = Invocation(
        params=params,
        trigger={"kind": "function"}
        | ({} if record.row["function"] is None else {"name": record.row["function"]})
        | {"job": ids.encode(ids.JOB, record.id), "depth": depth},
    )
    new = replace(preparing.prepare(target.project_id, target, invocation, sizing), id=chain.next_id)
    if refused := await refused_inputs(conn, [new], policy):
        raise refused[new.id]
    return new


def _roots(cause: _Cause, trigger: Mapping[str, Any]) -> dict[str, Any]:
    """What the look-ups of a callback's params may find: the job object's values, and nothing else."""
    job = job_object(cause.record, _NoLinks())
    return {
        "params": cause.params,
        "trigger": {key: trigger[key] for key in ("kind", "name") if trigger.get(key) is not None},
        "job": {key: job[key] for key in ("id", "status", "attempt", "exit_code")},
        "error": job["error"] or {},
        "result": job["result"],
        "outputs": outputs_root(job["outputs"]),
        "function": {"version": job["version"]} | ({} if job["function"] is None else {"name": job["function"]}),
    }


async def _submit(
    conn: Connection, made: Sequence[tuple[Chain, NewJob]], reached: set[GateId] | None
) -> dict[Chain, RGridError]:
    """Put the jobs into the queue; those that it refused, and why."""
    if not made:
        return {}
    try:
        async with conn.transaction():
            answers = await jobs.submit_or_record(conn, [job for _, job in made], reached)
    except REFUSED_ALONE as error:
        if len(made) == 1:
            log.warning("chained job refused", error=f"{type(error).__name__}: {error}")
            return {made[0][0]: Conflict("the job cannot be stored as it is", code="invalid_text")}
        # What one bad row does to the statement must not end its neighbours.
        return {chain: why for each in made for chain, why in (await _submit(conn, [each], reached)).items()}
    pairs = zip(made, answers, strict=True)
    return {chain: answer for (chain, _), answer in pairs if isinstance(answer, RGridError)}


def _error(error: RGridError) -> str:
    return json.dumps({"code": error.code, "message": job_errors.storable(error.message)})
