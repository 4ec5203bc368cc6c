"""How statements run when their plan was made on empty tables and the tables have filled since (QUEUE, trap 6).

What is held is the number of blocks that a statement touches: it must not grow with the tables.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from functions import due_schedules, listening, schedules, webhooks
from functions.db import Connection
from gateway import dispatching
from gateway.database import open_pool
from scheduler import (
    backlog,
    claiming,
    deliveries,
    delivery_log,
    gates,
    idempotency,
    lease_ends,
    leasing,
    limits,
    live_events,
    overdue,
    pauses,
    queue,
    receipts,
    redelivering,
    relimiting,
    running_costs,
    schedule_runs,
    views,
    withdrawing,
)
from tests.scheduler.factories import make_node, make_project, make_version

MANY = 8_000
TABLES = (
    "jobs", "ready_jobs", "waiting_jobs", "leases", "outcomes", "job_attempts", "idempotency_keys", "deliveries",
    "delivery_attempts", "artifacts", "gates", "slots", "flow_marks", "callback_endpoints", "schedules", "schedule_runs",
    "webhooks", "webhook_receipts",
)  # fmt: skip

FILL = """
CREATE TEMP TABLE ids ON COMMIT DROP AS
    SELECT n, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id
      FROM generate_series(1, {many} * 4) n;
INSERT INTO jobs (id, project_id, function_id, version_id, trigger, params)
    SELECT id, {project}, '{function}', '{version}', '{{}}', '{{}}' FROM ids;
INSERT INTO ready_jobs (job_id, vt, pool, project_id, cls, attempt, losses)
    SELECT id, n, {pool}, {project}, 1, 0, 0 FROM ids WHERE n <= {many};
INSERT INTO waiting_jobs (job_id, pool, project_id, cls, attempt, losses, stage, due_at)
    SELECT id, {pool}, {project}, 1, 0, 0, 'delayed', now() + (n - {many} - 5) * interval '1 second'
      FROM ids WHERE n > {many} AND n <= 2 * {many};
INSERT INTO leases (job_id, token, node_id, pool, project_id, lane, cls, attempt, losses, queued_at, expires_at)
    SELECT id, id, CASE WHEN n % 500 = 17 THEN '{node}' ELSE id END, {pool}, {project}, 0, 1, 1, 0, now(),
           now() + interval '1 hour'
      FROM ids WHERE n > 2 * {many} AND n <= 2 * {many} + 2000;
INSERT INTO outcomes (job_id, project_id, status, attempt, losses, error)
    SELECT id, {project}, 'failed', 1, 0, '{{}}' FROM ids WHERE n > 3 * {many};
INSERT INTO job_attempts (job_id, attempt, project_id, token, node_id, error, queued_at, leased_at, next_at)
    SELECT id, 1, {project}, id, '{node}', '{{}}', now(), now(), now() FROM ids WHERE n > 3 * {many};
INSERT INTO idempotency_keys (project_id, function_id, key, body_hash, job_id, expires_at)
    SELECT {project}, '{function}', 'k' || n, '', id, now() + interval '1 day' FROM ids WHERE n <= {many};
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, due_at)
    SELECT id, {project}, id, 't', 'https://dead.example', 'https://dead.example:443', now() - interval '1 hour'
      FROM ids WHERE n > 3 * {many};
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, due_at)
    SELECT id, {project}, id, 't', 'https://well.example', 'https://well.example:443', now()
      FROM ids WHERE n <= 5;
INSERT INTO functions (id, project_id, name, current_number) SELECT id, {project}, 'f' || n, 1 FROM ids WHERE n <= {many};
INSERT INTO callback_endpoints (id, project_id, function_id, url, events)
    SELECT id, {project}, id, 'https://well.example', ARRAY['job.failed'] FROM ids WHERE n <= {many};
INSERT INTO callback_endpoints (id, project_id, url, events)
    SELECT gen_random_uuid(), {project}, 'https://well.example', ARRAY['job.failed'] FROM ids WHERE n <= 5;
UPDATE deliveries SET endpoint_id = (SELECT id FROM ids WHERE n = 7), state = 'exhausted'
 WHERE job_id = (SELECT id FROM ids WHERE n = 3 * {many} + 17);
INSERT INTO schedules (id, project_id, function_id, name, origin, cron, timezone, params, overlap, catch_up, jitter, next_at,
                       due_at)
    SELECT id, {project}, '{function}', 's' || n, 'api', '@hourly', 'UTC', '{{}}', 'skip', 'one', '0',
           now() + (n - 5) * interval '1 minute', now() + (n - 5) * interval '1 minute' FROM ids WHERE n <= {many};
INSERT INTO schedule_runs (schedule_id, planned_at, project_id, state, job_id, at)
    SELECT id, now() - interval '30 seconds', {project}, 'submitted', id, now() - n * interval '1 minute'
      FROM ids WHERE n <= {many};
INSERT INTO schedule_runs (schedule_id, planned_at, project_id, state, job_id, ended)
    SELECT '{ready}', now() - n * interval '1 minute', {project}, 'submitted', id, true FROM ids WHERE n <= {many};
INSERT INTO webhooks (id, project_id, function_id, name, origin, spec, secrets)
    SELECT id, {project}, id, 'in', 'api', '{{}}', ARRAY['TOKEN'] FROM ids WHERE n <= {many};
INSERT INTO webhook_receipts (id, webhook_id, project_id, verdict, head)
    SELECT id, CASE WHEN n <= {many} THEN '{ready}' ELSE id END, {project}, 'filtered', '{{}}' FROM ids;
INSERT INTO gates (id, project_id, function_id, level, key, lim, per) OVERRIDING SYSTEM VALUE
    SELECT n, {project}, '{function}', CASE WHEN n % 2 = 1 THEN 1 ELSE 3 END, sha256(n::text::bytea), 5,
           CASE WHEN n % 2 = 0 THEN interval '1 minute' END FROM ids WHERE n <= {many};
INSERT INTO slots (gate_id, job_id, attempt, until)
    SELECT n, id, 0, CASE WHEN n % 2 = 0 THEN now() + (n - 100) * interval '1 second' END FROM ids WHERE n <= {many};
INSERT INTO flow_marks (project_id, at, f) SELECT {project}, now() - n * interval '1 second', n FROM ids WHERE n <= {many};
CREATE TEMP TABLE held ON COMMIT DROP AS
    SELECT n, ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid AS id
      FROM generate_series(1, {many} * 3) n;
INSERT INTO jobs (id, project_id, function_id, version_id, trigger, params)
    SELECT id, {project}, '{function}', '{version}', '{{}}', '{{}}' FROM held;
INSERT INTO waiting_jobs (job_id, pool, project_id, cls, attempt, losses, stage, gates, gate_id, head, queued_at, ttl_at,
                          head_start)
    SELECT id, {pool}, {project}, 1, 0, 0, 'gated', ARRAY[g, g + 1], g, now() - n * interval '1 second', now(),
           now() + n * interval '1 hour', interval '1 minute'
      FROM held CROSS JOIN LATERAL (SELECT CASE WHEN n <= {many} THEN 7 ELSE n - {many} END AS g) gate
     WHERE n <= 2 * {many};
INSERT INTO waiting_jobs (job_id, pool, project_id, cls, attempt, losses, stage, function_id, head, queued_at, cancel_at)
    SELECT id, {pool}, {project}, 1, 0, 0, 'paused', '{function}', now() - n * interval '1 second', now(),
           now() + (n - 2 * {many} - 5) * interval '1 second'
      FROM held WHERE n > 2 * {many};
INSERT INTO delivery_attempts (delivery_id, attempt, duration_ms)
    SELECT id, 1, 0 FROM ids WHERE n > 3 * {many};
"""


def job(number: int) -> str:
    return str(UUID(int=(0x7000_8000 << 48) | number))


class Planned:
    """A connection on which statements are planned while the tables are empty, and run when they are full."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.values: dict[str, str] = {}

    async def prepare(self, name: str, statement: str, arguments: str) -> None:
        await self.conn.execute(f"PREPARE {name} AS {statement}")
        async with self.rolled_back():
            await self.conn.execute(f"EXECUTE {name} ({arguments.format(**self.values)})")

    @asynccontextmanager
    async def rolled_back(self) -> AsyncIterator[None]:
        transaction = self.conn.transaction()
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()

    async def run(self, name: str, arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """(blocks touched, nodes of the plan)."""
        call = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name} ({arguments.format(**self.values)})"
        async with self.rolled_back():
            (plan,) = json.loads(await self.conn.fetchval(call))
        nodes: list[dict[str, Any]] = []
        stack = [plan["Plan"]]
        while stack:
            nodes.append(node := stack.pop())
            stack += node.get("Plans", [])
        top = plan["Plan"]
        return top["Shared Hit Blocks"] + top["Shared Read Blocks"], nodes


NOBODY = "'00000000-0000-0000-0000-000000000000'"
HOT = {
    "claim": (claiming.CLAIM_JOBS, "'{node}', ARRAY[{pool}], 8, 8, '20s', '30s', ARRAY[0, 1]::smallint[], 8", 250),
    "peek": (dispatching.PEEK, "ARRAY[{pool}], 2, 20", 200),
    "heartbeat": (
        leasing.HEARTBEAT,
        "'{node}', '20s', ARRAY['{leased}']::uuid[], ARRAY['{leased}']::uuid[], ARRAY[0.5]::real[], ARRAY['{{}}']",
        100,
    ),
    "held": (leasing.HELD, "'{leased}', '{leased}', '{node}'", 30),
    "finish": (
        lease_ends.FINISH_JOBS,
        "ARRAY['{leased}']::uuid[], ARRAY['{leased}']::uuid[], ARRAY['succeeded'], ARRAY[0], ARRAY[NULL]::text[],"
        " ARRAY[NULL]::text[], ARRAY['{{}}'], ARRAY['[]'], ARRAY[true],"
        ' ARRAY[\'[{{"id": "{fresh}", "type": "t", "url": "https://a.example", "endpoint": "https://a.example:443",'
        ' "state": "pending"}}]\']',
        150,
    ),
    "retry": (
        lease_ends.RETRY_JOBS,
        "ARRAY['{leased}']::uuid[], ARRAY['{leased}']::uuid[], ARRAY[1], ARRAY['{{}}'], ARRAY['{{}}'],"
        " ARRAY['5s']::interval[], ARRAY[NULL]::int[]",
        150,
    ),
    "requeue": (
        lease_ends.REQUEUE_JOBS,
        "ARRAY['{leased}']::uuid[], ARRAY['{leased}']::uuid[], ARRAY['{{}}']",
        150,
    ),
    "limit_leases": (running_costs.LIMIT_LEASES, "ARRAY['{leased}']::uuid[]", 60),
    "running_costs": (running_costs.RUNNING_COSTS, "{project}, ARRAY['{dead}', '{leased}']::uuid[]", 60),
    "promote": (queue.PROMOTE_JOBS, "10", 200),
    "cancel": (withdrawing.CANCEL_JOBS, "{project}, ARRAY['{ready}', '{waiting}', '{leased}']::uuid[]", 150),
    "find_gates": (
        gates.FIND_GATES,
        "ARRAY['{function}']::uuid[], ARRAY[1]::smallint[], ARRAY[sha256('7')]",
        30,
    ),
    "waited_for": (gates.WAITED_FOR, "ARRAY[1, 7, 77]::bigint[]", 40),
    "lock_gates": (gates.LOCK_GATES, "ARRAY[1, 7]::bigint[]", 40),
    "admit": (gates.ADMIT_JOBS, "ARRAY[7, 8]::bigint[], 500", 250),
    "take_overdue": (overdue.TAKE_OVERDUE, "5", 250),
    "free_starts": (gates.FREE_STARTS, "5", 60),
    "lock_limits": (limits.LOCK_LIMITS, "ARRAY[7, 8]::bigint[]", 40),
    "room": (limits.ROOM, "ARRAY[7, 8]::bigint[]", 40),
    "replaceable": (limits.REPLACEABLE, "ARRAY[8, 9]::bigint[]", 60),
    "lock_flows": (limits.LOCK_FLOWS, "ARRAY[{project}]::bigint[]", 10),
    "waiting_of_function": (relimiting.WAITING_OF_FUNCTION, f"{{project}}, '{{function}}', {NOBODY}, 5", 60),
    "ready_of_function": (relimiting.READY_OF_FUNCTION, f"{{project}}, '{{function}}', {NOBODY}, 5", 60),
    "leased_of_function": (relimiting.LEASED_OF_FUNCTION, f"{{project}}, '{{function}}', {NOBODY}, 5", 60),
    "move_waiting": (relimiting.MOVE_WAITING, "{project}, ARRAY['{waiting}']::uuid[], ARRAY['{{7,8}}']", 60),
    "move_ready": (relimiting.MOVE_READY, "{project}, ARRAY['{ready}']::uuid[], ARRAY['{{7,8}}']", 100),
    "move_leased": (relimiting.MOVE_LEASED, "{project}, ARRAY['{leased}']::uuid[], ARRAY['{{7,8}}']", 60),
    "resume": (pauses.RESUME_JOBS, "'{function}', 5", 250),
    "listeners": (listening.LISTENERS, "{project}, ARRAY['{zero}', '{function}']::uuid[]", 40),
    "asked_of": (live_events.ASKED_OF, "ARRAY['{leased}']::uuid[], 'job.progress', '0.5s'", 40),
    "find_idempotent": (idempotency.FIND_IDEMPOTENT, "{project}, '{function}', 'k7'", 30),
    "enqueue": (
        queue.ENQUEUE_JOBS,
        "ARRAY['{fresh}']::uuid[], ARRAY[{project}]::bigint[], ARRAY['{function}']::uuid[],"
        " ARRAY['{version}']::uuid[], ARRAY['{{}}'], ARRAY['{{}}'], ARRAY[NULL]::text[], ARRAY[NULL]::text[],"
        " ARRAY[NULL]::uuid[], ARRAY[NULL]::text[], ARRAY[1], ARRAY[NULL]::interval[], ARRAY['new'],"
        " ARRAY['']::bytea[], ARRAY[NULL]::text[], ARRAY[NULL]::uuid[], ARRAY[0]::smallint[],"
        " ARRAY['1m']::interval[], ARRAY['1h']::interval[], ARRAY['1h']::interval[], ARRAY[NULL]::text[],"
        " ARRAY['{fresh}']::uuid[], ARRAY['{ready}']::uuid[], ARRAY['{{}}'], ARRAY['']::bytea[],"
        " ARRAY[0.05]::numeric[]",
        170,
    ),
}
"""Name → statement, arguments, and blocks that it may touch."""

HOT |= {
    "due_schedules": (due_schedules.DUE_SCHEDULES, "500", 90),
    "move_schedules": (due_schedules.MOVE_SCHEDULES, "ARRAY['{ready}']::uuid[], ARRAY[now()]::timestamptz[]", 60),
    "postpone_schedules": (due_schedules.POSTPONE_SCHEDULES, "ARRAY['{ready}']::uuid[], '30s'", 60),
    "runs_known": (schedule_runs.RUNS_KNOWN, "ARRAY['{ready}']::uuid[], ARRAY[now()]::timestamptz[]", 30),
    "unfinished_runs": (schedule_runs.UNFINISHED_RUNS, "ARRAY['{ready}']::uuid[]", 60),
    "list_schedule_runs": (schedule_runs.LIST_RUNS, "{project}, '{ready}', now(), 5, NULL", 30),
    "forget_runs": (schedule_runs.FORGET_RUNS, "5, '5 days'", 90),
    "count_jobs": (backlog.COUNT_JOBS, "20", 180),
    "oldest_ready": (backlog.OLDEST, "20", 30),
    "count_overdue": (backlog.OVERDUE, "20", 40),
    "count_due": (backlog.DUE, "20, 5", 200),
    "count_waiting": (backlog.WAITING, "20", 40),
    "count_ended": (backlog.ENDED, "20", 60),
}

ORDINARY = {
    "get_webhook": (webhooks.GET_WEBHOOK, "{project}, '{ready}'", 30),
    "sync_webhooks": (
        webhooks.SYNC_WEBHOOKS,
        "{project}, '{function}', ARRAY['{fresh}']::uuid[], ARRAY['other'], ARRAY['{{}}'], ARRAY['{{TOKEN}}']",
        60,
    ),
    "list_receipts": (receipts.LIST_RECEIPTS, "'{ready}', {project}, 5, '{waiting}', NULL", 200),
    "get_receipt": (receipts.GET_RECEIPT, "'{ready}', {project}, '{ready}'", 20),
    "next_webhook": (receipts.NEXT_WEBHOOK, "'{zero}'", 20),
    "forget_receipts": (receipts.FORGET_RECEIPTS, "'{ready}', '{zero}', 100, 5", 200),
    "get_schedule": (schedules.GET_SCHEDULE, "{project}, '{ready}'", 30),
    "walk": (deliveries.WALK_ENDPOINTS, "0, '', 500, '{{}}'", 60),
    "claim_deliveries": (
        deliveries.CLAIM_DELIVERIES,
        "ARRAY[{project}]::bigint[], ARRAY['https://well.example:443'], ARRAY[4], '30s'",
        150,
    ),
    "record": (deliveries.RECORD_ATTEMPT, "'{dead}', now(), 'pending', '5s', NULL, NULL, 1, NULL, NULL", 60),
    "recover": (
        redelivering.RECOVER,
        "{project}, '{endpoint}', '{zero}', '2020-01-01', NULL, 100, ARRAY['callback.test']",
        60,
    ),
    "end_of_job": (deliveries.END_PENDING_OF_JOB, "{project}, '{dead}', 'https://well.example/', 'x'", 60),
    "lock_of_job": (deliveries.LOCK_PENDING_OF_JOB, "{project}, '{dead}', 'https://well.example/'", 60),
    "attempts_of": (delivery_log.ATTEMPTS_OF, "ARRAY['{dead}']::uuid[]", 30),
    "job_rows": (views.JOB_ROWS, "{project}, ARRAY['{ready}', '{waiting}', '{leased}', '{dead}']::uuid[]", 150),
    "gap": (views.LARGEST_GAP, "{project}", 250),
    "forget_keys": (idempotency.FORGET_KEYS, "500", 60),
}


async def _planned(
    database: str, statements: dict[str, tuple[str, str, int]], *, hot: bool, vacuumed: bool
) -> AsyncIterator[Planned]:
    pool = await open_pool(database, hot_path=hot, max_size=1)
    async with pool.acquire() as conn:
        planned = Planned(conn)
        project, account = await make_project(conn)
        version = await make_version(conn, project)
        node = await make_node(conn, slots=8)
        planned.values = {
            "project": str(project),
            "pool": str(account),
            "function": str(version.function_id),
            "version": str(version.id),
            "node": str(node),
            "many": str(MANY),
            "fresh": job(0xFFFFFFF),
            "zero": str(UUID(int=0)),
            "endpoint": job(7),
            "ready": job(17),
            "waiting": job(MANY + 17),
            "leased": job(2 * MANY + 17),
            "dead": job(3 * MANY + 17),
        }
        for table in TABLES:
            # An ANALYZE in between would make another plan, and hide what this is about.
            await conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            if vacuumed:  # a table that was never vacuumed is planned for as if it had 10 pages
                await conn.execute(f"VACUUM ANALYZE {table}")
        if not hot:  # there it is a setting of the pool's
            await conn.execute("SET plan_cache_mode = force_generic_plan")
        for name, (statement, arguments, _) in statements.items():
            await planned.prepare(name, statement, arguments)
        async with conn.transaction():
            await conn.execute(FILL.format(**planned.values))
        yield planned
    pool.terminate()


@pytest.fixture(params=[True, False], ids=["vacuumed", "fresh"])
async def hot(database: str, request: pytest.FixtureRequest) -> AsyncIterator[Planned]:
    async for planned in _planned(database, HOT, hot=True, vacuumed=request.param):
        yield planned


@pytest.fixture
async def ordinary(database: str) -> AsyncIterator[Planned]:
    async for planned in _planned(database, ORDINARY, hot=False, vacuumed=True):
        yield planned


async def test_the_hot_path_keeps_its_plans_and_its_cost_when_the_tables_grow(hot: Planned) -> None:
    scans = {}
    for name, (_, arguments, most) in HOT.items():
        blocks, nodes = await hot.run(name, arguments)
        scans[name] = [node for node in nodes if "Relation Name" in node and "Scan" in node["Node Type"]]
        assert blocks <= most, f"{name} touched {blocks} blocks"
        assert not [node for node in scans[name] if node["Node Type"] == "Seq Scan"], name
    indexes = {node.get("Index Name") for node in scans["claim"] if node["Relation Name"] == "ready_jobs"}
    assert indexes == {"ready_jobs_next", "ready_jobs_id"}


async def test_the_other_statements_cost_the_same_when_the_tables_grow(ordinary: Planned) -> None:
    for name, (_, arguments, most) in ORDINARY.items():
        blocks, _ = await ordinary.run(name, arguments)
        assert blocks <= most, f"{name} touched {blocks} blocks"
