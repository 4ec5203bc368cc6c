"""A job's states as a machine that Hypothesis drives: whatever comes in whatever order, what must hold holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from functions import registry
from functions.db import Pool
from functions.errors import Conflict, Invalid, LeaseLost
from functions.ids import JobId
from functions.versions import Version
from gateway.database import open_pool
from scheduler import cancelling, finishing, gates, jobs, leasing, pauses, queue, redrive
from scheduler.finishing import Report
from scheduler.gates import GateId
from scheduler.jobs import Submitted
from scheduler.overdue import end_overdue
from scheduler.reaper import Sight, reap_once
from scheduler.redrive import Redriving
from scheduler.relimiting import relimit_once
from tests.scheduler.factories import LEASE, LOOPBACK, SIZING, STORE, World, claim, make_version, make_world, new_job

T = TypeVar("T")
MAX_LOSSES = 5

BROKEN = """
WITH places AS (
    SELECT job_id, attempt, losses FROM ready_jobs WHERE project_id = $1
    UNION ALL SELECT job_id, attempt, losses FROM waiting_jobs WHERE project_id = $1
    UNION ALL SELECT job_id, attempt - 1, losses FROM leases WHERE project_id = $1
    UNION ALL SELECT job_id, attempt, losses FROM outcomes WHERE project_id = $1
)
SELECT 'a job stands in ' || count(places.job_id) || ' places' AS fault FROM jobs
  LEFT JOIN places ON places.job_id = jobs.id
 WHERE jobs.project_id = $1 GROUP BY jobs.id HAVING count(places.job_id) <> 1
UNION ALL
SELECT 'a job was lost too often' FROM places WHERE losses > $2
UNION ALL
SELECT 'attempts are missing' FROM places
 WHERE (SELECT count(*) FROM job_attempts a WHERE a.job_id = places.job_id) NOT IN (places.attempt, places.attempt - 1)
UNION ALL
SELECT 'an attempt number is doubtful' FROM job_attempts a JOIN places ON places.job_id = a.job_id
 WHERE a.attempt > places.attempt
UNION ALL
SELECT 'an outcome was told ' || count(d.id) || ' times' FROM outcomes LEFT JOIN deliveries d
    ON d.job_id = outcomes.job_id AND d.type = 'job.' || outcomes.status
 WHERE outcomes.project_id = $1 GROUP BY outcomes.job_id HAVING count(d.id) <> 1
UNION ALL
SELECT 'something was told that is not the outcome' FROM deliveries d LEFT JOIN outcomes ON outcomes.job_id = d.job_id
 WHERE d.project_id = $1 AND d.type IS DISTINCT FROM 'job.' || outcomes.status
UNION ALL
SELECT 'a limit of ' || lim || ' has ' || count(*) || ' taken' FROM slots JOIN gates ON gates.id = gate_id
 WHERE gates.project_id = $1 GROUP BY gates.id, lim HAVING count(*) > lim
UNION ALL
SELECT 'a place is held for nobody' FROM slots JOIN gates ON gates.id = gate_id
 WHERE gates.project_id = $1 AND until IS NULL
   AND NOT EXISTS (SELECT 1 FROM ready_jobs r WHERE r.job_id = slots.job_id AND r.attempt = slots.attempt)
   AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.job_id = slots.job_id AND l.attempt - 1 = slots.attempt)
   AND NOT EXISTS (SELECT 1 FROM waiting_jobs w WHERE w.job_id = slots.job_id AND w.attempt = slots.attempt
                      AND array_position(w.gates, w.gate_id) > array_position(w.gates, slots.gate_id))
UNION ALL
SELECT 'a job has passed a gate without a place' FROM (
    SELECT job_id, gates, attempt FROM ready_jobs WHERE project_id = $1
    UNION ALL SELECT job_id, gates, attempt - 1 FROM leases WHERE project_id = $1) j CROSS JOIN unnest(j.gates) g (id)
  JOIN gates ON gates.id = g.id AND gates.per IS NULL
 WHERE NOT EXISTS (SELECT 1 FROM slots s WHERE s.gate_id = g.id AND s.job_id = j.job_id AND s.attempt = j.attempt)
UNION ALL
SELECT 'a start is not counted from its time' FROM leases l CROSS JOIN unnest(l.gates) g (id)
  JOIN gates ON gates.id = g.id AND gates.per IS NOT NULL
  JOIN slots s ON s.gate_id = g.id AND s.job_id = l.job_id AND s.attempt = l.attempt - 1
 WHERE l.project_id = $1 AND s.until IS NULL
UNION ALL
SELECT 'a paused function has claimable jobs' FROM ready_jobs JOIN jobs ON jobs.id = ready_jobs.job_id
  JOIN functions ON functions.id = jobs.function_id AND functions.paused_at IS NOT NULL
 WHERE ready_jobs.project_id = $1
"""
LIMITS = {
    "ttl": "1h",
    "priority": "10s",
    "concurrency": {"limit": 3, "perKey": 2, "key": "{{ params.customer }}"},
    "rate": {"limit": 4, "per": "1h"},
}
CHANGED: list[dict[str, Any]] = [
    LIMITS,
    {"priority": "10s"},
    {"concurrency": {"limit": 3}},
    {"concurrency": {"perKey": 2, "key": "{{ trigger.kind }}"}, "rate": LIMITS["rate"]},
]


class Machine(RuleBasedStateMachine):
    """One project of its own for each run, on one database."""

    loop: asyncio.AbstractEventLoop
    pool: Pool

    def __init__(self) -> None:
        super().__init__()
        callbacks = [{"url": "http://127.0.0.1:1/"}]
        self.world: World = self.run(make_world(self.pool, retry={"attempts": 3}, callbacks=callbacks))
        self.limited: Version = self.do(
            make_version, self.world.project, retry={"attempts": 3}, callbacks=callbacks, queue=LIMITS, name="limited"
        )
        self.changed = False
        self.jobs: list[JobId] = []
        self.keys: dict[str, JobId] = {}
        self.numbers = count()
        self.tokens: list[tuple[JobId, UUID]] = []
        self.reported: dict[UUID, str] = {}
        self.outcomes: dict[JobId, tuple[Any, ...]] = {}

    def run(self, what: Awaitable[T]) -> T:
        return self.loop.run_until_complete(what)  # type: ignore[arg-type]

    async def _with(self, call: Any, *arguments: Any, **more: Any) -> Any:
        async with self.pool.acquire() as conn, conn.transaction():
            return await call(conn, *arguments, **more)

    def do(self, call: Any, *arguments: Any, **more: Any) -> Any:
        """Call with a connection in a transaction."""
        return self.run(self._with(call, *arguments, **more))

    def sql(self, statement: str, *values: Any) -> list[Any]:
        async def fetch(conn: asyncpg.Connection) -> Any:
            return await conn.fetch(statement, *values)

        return list(self.do(fetch))

    @rule(delay=st.booleans(), key=st.booleans())
    def submit(self, delay: bool, key: bool) -> None:
        name = f"k{next(self.numbers)}" if key else None
        new = new_job(
            self.world.version,
            delay=timedelta(minutes=1) if delay else None,
            idempotency_key=name,
            body_hash=b"body" if key else None,
        )
        (answer,) = self.do(jobs.submit, [new])
        assert isinstance(answer, Submitted) and answer.created_at is not None
        self.jobs.append(answer.job_id)
        if name is not None:
            self.keys[name] = answer.job_id

    @rule(customer=st.sampled_from(["a", "b"]), delay=st.booleans(), more=st.booleans(), advance=st.booleans())
    def submit_limited(self, customer: str, delay: bool, more: bool, advance: bool) -> None:
        """Without ``advance`` its process has died after the commit."""
        new = new_job(
            self.limited,
            params={"customer": customer},
            delay=timedelta(minutes=1) if delay else None,
            cancel_after=timedelta(hours=2) if more else None,
        )
        reached: set[GateId] = set()
        (answer,) = self.do(jobs.submit, [new], reached)
        self.jobs.append(answer.job_id)
        if advance:
            self.do(gates.advance, reached)

    @rule(queue=st.sampled_from(CHANGED))
    def change_limits(self, queue: dict[str, Any]) -> None:
        """From now on more may hold a place than the limit lets in: those that were in before."""
        self.changed = True
        callbacks = [{"url": "http://127.0.0.1:1/"}]
        self.limited = self.do(
            make_version, self.world.project, retry={"attempts": 3}, callbacks=callbacks, queue=queue, name="limited"
        )
        self.run(relimit_once(self.pool, STORE, function=self.limited.function_id))

    @rule()
    def heal(self) -> None:
        self.do(pauses.heal, limit=100, reached=set())
        self.do(gates.advance_all)

    @rule()
    def free_starts(self) -> None:
        self.sql("UPDATE slots SET until = now() WHERE until IS NOT NULL")
        self.do(gates.advance, self.do(gates.free_starts, limit=100))

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        function = self.do(registry.set_paused, self.world.project, "limited", paused=paused).id
        if paused:
            self.do(pauses.pause, self.world.project, function, limit=100)
        else:
            self.do(pauses.resume, function, limit=100)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), expires=st.booleans())
    def time_passes(self, data: st.DataObject, expires: bool) -> None:
        """A job's ttl or its Cancel-After is over."""
        job = data.draw(st.sampled_from(self.jobs))
        column = "ttl_at" if expires else "cancel_at"
        for table in ("ready_jobs", "waiting_jobs", *([] if expires else ["leases"])):
            self.sql(f"UPDATE {table} SET {column} = now() WHERE job_id = $1 AND {column} IS NOT NULL", job)
        self.run(end_overdue(self.pool, limit=100))

    @precondition(lambda self: self.keys)
    @rule(data=st.data(), same=st.booleans())
    def submit_again(self, data: st.DataObject, same: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.keys)))
        new = new_job(self.world.version, idempotency_key=key, body_hash=b"body" if same else b"other")
        (answer,) = self.do(jobs.submit, [new])
        if same:
            assert answer == Submitted(self.keys[key], None)
        else:
            assert isinstance(answer, Invalid)

    @rule()
    def claim(self) -> None:
        for each in self.do(claim, self.world.node, self.world.account, free=2):
            self.tokens.append((each.job_id, each.token))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        job, token = data.draw(st.sampled_from(self.tokens))
        kept = self.do(leasing.heartbeat, self.world.node, [(job, token, 0.5, {"started": 1})], lease=LEASE)
        assert (job in kept) == bool(self.sql("SELECT 1 FROM leases WHERE job_id = $1 AND token = $2", job, token))

    @rule(all_of_them=st.booleans())
    def reap(self, all_of_them: bool) -> None:
        self.sql(
            """UPDATE leases SET expires_at = now() - interval '1 s' WHERE project_id = $1
                AND ($2 OR job_id = (SELECT min(job_id::text)::uuid FROM leases WHERE project_id = $1))""",
            self.world.project, all_of_them,
        )  # fmt: skip
        self.run(reap_once(self.pool, Sight(0), max_losses=MAX_LOSSES))

    @precondition(lambda self: self.tokens)
    @rule(
        data=st.data(),
        status=st.sampled_from(["succeeded", "failed", "timed_out", "cancelled"]),
        retryable=st.booleans(),
    )
    def report(self, data: st.DataObject, status: str, retryable: bool) -> None:
        """In time, late or twice: whichever token is drawn."""
        job, token = data.draw(st.sampled_from(self.tokens))
        held = bool(self.sql("SELECT 1 FROM leases WHERE job_id = $1 AND token = $2", job, token))
        code = None if status in ("succeeded", "cancelled") else "exit_nonzero"
        report = Report(token, status, None, code, retryable=retryable)
        try:
            answer = self.do(finishing.finish, self.world.node, job, report)
        except LeaseLost:
            assert not held
            assert token not in self.reported
            return
        if held:
            self.reported[token] = answer
        assert self.reported.get(token) == answer, "who reports twice gets the first answer"

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.tokens))
        before = self.sql("SELECT losses FROM leases WHERE job_id = $1 AND token = $2", *lease)
        if before and before[0]["losses"] >= MAX_LOSSES:
            return  # drains are not bounded; the invariant on losses is about nodes that fell silent
        self.do(finishing.release, self.world.node, [lease], "")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        self.do(cancelling.cancel, self.world.project, [job])
        (row,) = self.sql(
            """SELECT EXISTS (SELECT 1 FROM outcomes WHERE job_id = $1) AS ended,
                      EXISTS (SELECT 1 FROM leases WHERE job_id = $1 AND cancel_requested) AS asked""",
            job,
        )
        assert row["ended"] != row["asked"]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        try:
            new = self.run(redrive.retry(self.world.project, job, Redriving(self.pool, STORE, SIZING, LOOPBACK)))
        except Conflict:
            assert job not in self.outcomes
            return
        assert job in self.outcomes
        (answer,) = self.do(jobs.submit, [new])
        self.jobs.append(answer.job_id)

    @rule()
    def promote(self) -> None:
        self.sql("UPDATE waiting_jobs SET due_at = now() WHERE project_id = $1 AND due_at IS NOT NULL", self.world.project)
        self.do(queue.promote, limit=100)

    @invariant()
    def nothing_is_broken(self) -> None:
        faults = [row["fault"] for row in self.sql(BROKEN, self.world.project, MAX_LOSSES)]
        assert not [fault for fault in faults if not (self.changed and fault.startswith("a limit of"))], faults

    @invariant()
    def an_outcome_never_changes(self) -> None:
        rows = self.sql(
            """SELECT outcomes.*, deliveries.id AS message FROM outcomes JOIN deliveries USING (job_id)
                WHERE outcomes.project_id = $1""",
            self.world.project,
        )
        found = {row["job_id"]: tuple(row) for row in rows}
        assert found == {**found, **self.outcomes}
        self.outcomes = found


async def test_whatever_happens_every_job_is_in_one_state_and_ends_once(database: str) -> None:
    def drive() -> None:
        loop = asyncio.new_event_loop()
        pool = loop.run_until_complete(open_pool(database, max_size=2, hot_path=True))
        machine = type("OnThisDatabase", (Machine,), {"loop": loop, "pool": pool})
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=50,
                    stateful_step_count=30,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            loop.run_until_complete(pool.close())
            loop.close()

    await asyncio.to_thread(drive)
