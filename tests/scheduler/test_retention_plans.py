"""A batch of what is let go of costs the same however much is kept: blocks that statements touch, on full tables."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from functions import expiring
from gateway.database import open_pool
from scheduler import chains, retention
from tests.scheduler.factories import make_node, make_project, make_version
from tests.scheduler.test_plans import Planned, job

MANY = 20_000
"""Of finished jobs; the first twenty of them are over."""
TABLES = (
    "jobs", "outcomes", "job_attempts", "log_chunks", "artifacts", "artifact_uses", "version_artifacts", "deliveries",
    "chains", "expiries",
)  # fmt: skip

FILL = """
CREATE TEMP TABLE ids ON COMMIT DROP AS
    SELECT n, ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id,
           ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid AS upload,
           CASE WHEN n <= 20 THEN now() - interval '40 days' ELSE now() - interval '20 days' END + n * interval '1 s' AS at
      FROM generate_series(1, {many}) n;
INSERT INTO jobs (id, project_id, function_id, version_id, trigger, params)
    SELECT id, {project}, '{function}', '{version}', '{{}}', '{{}}' FROM ids;
INSERT INTO outcomes (job_id, project_id, status, attempt, losses, finished_at)
    SELECT id, {project}, 'succeeded', 1, 0, at FROM ids;
INSERT INTO job_attempts (job_id, attempt, project_id, token, node_id, error, queued_at, leased_at, next_at)
    SELECT id, 1, {project}, id, '{node}', '{{}}', at, at, at FROM ids;
INSERT INTO log_chunks (job_id, attempt, position, data) SELECT id, 1, 0, 'x' FROM ids;
INSERT INTO artifacts (id, project_id, job_id, attempt, name, content_type, size, sha256, md5, object_key, link_token,
                       state, created_at)
    SELECT id, {project}, id, 1, 'f', 't', 1, repeat('a', 64), repeat('b', 32), 'k/' || n, 't/' || n,
           CASE WHEN n > 5 AND n <= 20 THEN 'expiring' ELSE 'complete' END, at FROM ids;
INSERT INTO artifacts (id, project_id, name, content_type, size, sha256, md5, object_key, link_token, state, created_at)
    SELECT upload, {project}, 'f', 't', 1, repeat('a', 64), repeat('b', 32), 'u/' || n, 'u/' || n, 'complete', at FROM ids;
INSERT INTO artifact_uses (artifact_id, job_id) SELECT upload, id FROM ids;
INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint, state)
    SELECT id, {project}, id, 't', 'https://a.example', 'https://a.example:443', 'delivered' FROM ids;
INSERT INTO chains (job_id, position, project_id, next_id, function, state, ended_at)
    SELECT id, 0, {project}, id, 'f', CASE WHEN n <= 20 THEN 'pending' ELSE 'submitted' END,
           CASE WHEN n > 20 THEN at END FROM ids;
INSERT INTO expiries (job_id, due_at, logs_at, artifacts_at, jobs_at)
    SELECT id, at + interval '30 days', NULL, NULL, at + interval '30 days' FROM ids;
UPDATE expiry_cursor SET finished_at = (SELECT at FROM ids WHERE n = {many} - 10), job_id = '{late}';
"""

TEN = "ARRAY['{a}', '{b}', '{c}', '{d}', '{e}', '{f}', '{g}', '{h}', '{i}', '{j}']::uuid[]"
STATEMENTS = {
    "note_expiries": (retention.NOTE_EXPIRIES, "10, '10 minutes', '30 days', '7 days', '7 days'", 200),
    "due_expiries": (retention.DUE_EXPIRIES, "10", 60),
    "delete_logs": (retention.DELETE_LOGS, f"{TEN}, 5000", 100),
    "expire_outputs": (expiring.EXPIRE_OUTPUTS, f"{TEN}, {TEN}, 5000, '1 hour'", 500),
    "unexpired_outputs": (expiring.UNEXPIRED_OUTPUTS, TEN, 100),
    "deletable": (retention.DELETABLE, TEN, 150),
    # Ten rows of nine tables, with their indexes.
    "delete_jobs": (retention.DELETE_JOBS, TEN, 300),
    "go_on": (
        retention.GO_ON,
        "ARRAY['{a}']::uuid[], ARRAY[true], ARRAY[true], ARRAY[true], '10 minutes'",
        60,
    ),
    "expire_uploads": (
        expiring.EXPIRE_UPLOADS,
        "'1970-01-01', '00000000-0000-0000-0000-000000000000', 10, '1 hour', '30 days'",
        700,
    ),
    "expiring": (expiring.EXPIRING, "10", 60),
    "expired": (expiring.EXPIRED, TEN, 400),
    "kept_between": (expiring.KEPT_BETWEEN, "'k/5', 'k/6', '{late}', 10", 60),
    "due_chains": (chains.DUE_CHAINS, "10", 60),
    "chains_of": (chains.CHAINS_OF, "{project}, '{a}'", 10),
}
"""Name → statement, arguments, and blocks that it may touch."""


@pytest.fixture
async def planned(database: str) -> AsyncIterator[Planned]:
    """The statements, planned while the tables were small."""
    pool = await open_pool(database, hot_path=True, max_size=1)
    async with pool.acquire() as conn:
        planned = Planned(conn)
        project, _ = await make_project(conn)
        version = await make_version(conn, project)
        planned.values = {name: job(number) for number, name in enumerate("abcdefghij", 1)} | {
            "project": str(project),
            "function": str(version.function_id),
            "version": str(version.id),
            "node": str(await make_node(conn)),
            "many": str(MANY),
            "late": job(MANY - 10),
        }
        for table in TABLES:
            await conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            await conn.execute(f"VACUUM ANALYZE {table}")
        for name, (statement, arguments, _) in STATEMENTS.items():
            await planned.prepare(name, statement, arguments)
        async with conn.transaction():
            await conn.execute(FILL.format(**planned.values))
        yield planned
    pool.terminate()


async def test_a_batch_costs_the_same_however_many_old_jobs_are_kept(planned: Planned) -> None:
    for name, (_, arguments, most) in STATEMENTS.items():
        blocks, nodes = await planned.run(name, arguments)
        # The top does not count what changes rows on the side.
        aside = [node for node in nodes if node["Node Type"] == "ModifyTable" and "Subplan Name" in node]
        blocks += sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in aside)
        assert blocks <= most, f"{name} touched {blocks} blocks"
