"""Leases while they are held."""

from __future__ import annotations

from uuid import uuid4

from functions.db import Connection
from scheduler import leasing, withdrawing
from tests.scheduler.factories import (
    LEASE,
    claim_one,
    make_job,
    make_node,
    make_project,
    make_version,
)


async def test_a_heartbeat_renews_what_the_node_holds_and_says_what_to_cancel(conn: Connection) -> None:
    project, pool = await make_project(conn)
    version = await make_version(conn, project)
    for _ in range(3):
        await make_job(conn, version)
    node, other = await make_node(conn), await make_node(conn)
    kept, cancelled, foreign = [await claim_one(conn, each, pool) for each in (node, node, other)]
    await withdrawing.take_out(conn, project, [cancelled.job_id])
    await conn.execute("UPDATE leases SET expires_at = now()")
    await conn.execute("UPDATE nodes SET last_seen_at = now() - interval '1 hour'")
    held = [(each.job_id, each.token, 0.5, {"pulling": 3}) for each in (kept, cancelled, foreign)]
    stale = (kept.job_id, uuid4(), None, {})
    assert await leasing.heartbeat(conn, node, held, lease=LEASE) == {kept.job_id: False, cancelled.job_id: True}
    assert await leasing.heartbeat(conn, node, [stale], lease=LEASE) == {}
    rows = await conn.fetch("SELECT job_id, progress, timeline FROM leases WHERE expires_at > now()")
    assert {row["job_id"] for row in rows} == {kept.job_id, cancelled.job_id}
    assert {(row["progress"], row["timeline"]) for row in rows} == {(0.5, '{"pulling": 3}')}
    seen = await conn.fetchval("SELECT last_seen_at = now() FROM nodes WHERE id = $1", node)
    assert seen
