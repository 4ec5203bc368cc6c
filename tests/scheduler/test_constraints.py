"""The database refuses every state that a job may not be in, whatever the code does."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest

from functions.db import Connection

OUTCOME = {
    "job_id": "gen_random_uuid()", "project_id": "1", "status": "'succeeded'", "attempt": "1", "losses": "0",
    "exit_code": "0", "error": "NULL", "node_id": "gen_random_uuid()", "queued_at": "now()", "leased_at": "now()",
}  # fmt: skip
LEASE = {
    "job_id": "gen_random_uuid()", "token": "gen_random_uuid()", "node_id": "gen_random_uuid()", "pool": "1",
    "project_id": "1", "lane": "0", "cls": "1", "attempt": "1", "losses": "0", "queued_at": "now()",
    "expires_at": "now()",
}  # fmt: skip
READY = {
    "job_id": "gen_random_uuid()", "vt": "1", "pool": "1", "project_id": "1", "cls": "1", "attempt": "0",
    "losses": "0",
}  # fmt: skip
WAITING = READY | {"stage": "'delayed'", "due_at": "now()"}
del WAITING["vt"]
DELIVERY = {
    "id": "gen_random_uuid()", "project_id": "1", "job_id": "gen_random_uuid()", "type": "'t'", "url": "'u'",
    "endpoint": "'e'",
}  # fmt: skip
GATED = {
    "stage": "'gated'", "due_at": "NULL", "gate_id": "1", "gates": "'{1}'", "head": "now()", "queued_at": "now()",
}  # fmt: skip
GATE = {"project_id": "1", "function_id": "gen_random_uuid()", "level": "1", "key": "''", "lim": "1"}
SLOT = {"gate_id": "1", "job_id": "gen_random_uuid()", "attempt": "0"}
ROWS = {
    "gates": GATE, "slots": SLOT,
    "outcomes": OUTCOME, "leases": LEASE, "ready_jobs": READY, "waiting_jobs": WAITING, "deliveries": DELIVERY,
}  # fmt: skip

ILLEGAL = [
    ("outcomes", {"status": "'running'"}),
    ("outcomes", {"error": "'{}'"}),
    ("outcomes", {"exit_code": "1"}),
    ("outcomes", {"status": "'failed'"}),
    ("outcomes", {"attempt": "0"}),
    ("outcomes", {"status": "'timed_out'", "error": "'{}'", "attempt": "0", "node_id": "NULL", "leased_at": "NULL"}),
    ("outcomes", {"status": "'expired'", "error": "'{}'"}),
    ("outcomes", {"node_id": "NULL"}),
    ("outcomes", {"leased_at": "NULL"}),
    ("outcomes", {"losses": "2"}),
    ("outcomes", {"losses": "-1"}),
    ("outcomes", {"status": "'failed'", "error": "'{}'", "attempt": "0", "losses": "0"}),
    ("leases", {"attempt": "0"}),
    ("leases", {"losses": "2"}),
    ("leases", {"progress": "1.5"}),
    ("ready_jobs", {"lane": "2"}),
    ("ready_jobs", {"cls": "0"}),
    ("ready_jobs", {"attempt": "-1"}),
    ("ready_jobs", {"losses": "1"}),
    ("waiting_jobs", {"attempt": "1"}),
    ("waiting_jobs", {"stage": "'blocked'"}),
    ("waiting_jobs", {"due_at": "NULL"}),
    ("waiting_jobs", {"head": "now()"}),
    ("waiting_jobs", {"queued_at": "now()"}),
    ("waiting_jobs", {"function_id": "gen_random_uuid()"}),
    ("waiting_jobs", {"gate_id": "1", "gates": "'{1}'"}),
    ("waiting_jobs", {"head_start": "'0'"}),
    ("waiting_jobs", GATED | {"gates": "'{2}'"}),
    ("waiting_jobs", GATED | {"gate_id": "NULL"}),
    ("waiting_jobs", GATED | {"head": "NULL"}),
    ("waiting_jobs", GATED | {"due_at": "now()"}),
    ("waiting_jobs", GATED | {"stage": "'paused'"}),
    ("gates", {"lim": "0"}),
    ("gates", {"level": "4"}),
    ("gates", {"level": "3"}),
    ("gates", {"per": "'1 s'"}),
    ("gates", {"level": "3", "per": "'0'"}),
    ("gates", {"key": "'short'"}),
    ("slots", {"attempt": "-1"}),
    ("deliveries", {"state": "'lost'"}),
    ("deliveries", {"tries": "-1"}),
]


def insert(table: str, change: dict[str, str]) -> str:
    row = ROWS[table] | change
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"


@pytest.mark.parametrize("table", list(ROWS))
async def test_a_legal_row_goes_in(conn: Connection, table: str) -> None:
    await conn.execute(insert(table, {}))


@pytest.mark.parametrize(("table", "change"), ILLEGAL)
async def test_an_illegal_row_is_refused(conn: Connection, table: str, change: dict[str, str]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await conn.execute(insert(table, change))


@pytest.mark.parametrize("table", ["outcomes", "leases", "ready_jobs", "waiting_jobs"])
async def test_a_job_stands_in_a_table_once(conn: Connection, table: str) -> None:
    job = {"job_id": f"'{uuid4()}'"}
    await conn.execute(insert(table, job))
    with pytest.raises(asyncpg.UniqueViolationError):
        await conn.execute(insert(table, job))


async def test_an_event_of_a_job_reaches_an_endpoint_under_one_id(conn: Connection) -> None:
    job = {"job_id": f"'{uuid4()}'"}
    await conn.execute(insert("deliveries", job))
    with pytest.raises(asyncpg.UniqueViolationError):
        await conn.execute(insert("deliveries", job))
