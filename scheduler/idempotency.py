"""Requests that are sent again with the same Idempotency-Key.

Owns ``idempotency_keys``; ``queue.enqueue`` writes them with the jobs, in one statement.
"""

from __future__ import annotations

from uuid import UUID

from functions.db import Connection
from functions.ids import JobId, ProjectId

FIND_IDEMPOTENT = """
-- find_idempotent
SELECT job_id, body_hash, expires_at <= now() AS expired FROM idempotency_keys
 WHERE project_id = $1 AND function_id = $2 AND key = $3
"""

FORGET_IDEMPOTENT = """
-- forget_idempotent
DELETE FROM idempotency_keys WHERE project_id = $1 AND function_id = $2 AND key = $3 AND expires_at <= now()
"""

FORGET_KEYS = """
-- forget_keys
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
"""


async def find(
    conn: Connection, project: ProjectId, scope: UUID, key: str
) -> tuple[JobId, bytes] | None:
    """The job that this key made first, and the hash of its body; None when the key is free, maybe again."""
    row = await conn.fetchrow(FIND_IDEMPOTENT, project, scope, key)
    if row is None:
        return None
    if row["expired"]:
        await conn.execute(FORGET_IDEMPOTENT, project, scope, key)
        return None
    return row["job_id"], row["body_hash"]


async def forget(conn: Connection, *, limit: int) -> int:
    """Delete idempotency keys whose day is over; how many."""
    return int((await conn.execute(FORGET_KEYS, limit)).split()[-1])
