"""After a change of ``RGRID_SECRET_KEY``: everything that is sealed in the database, sealed with the first key.

It may run beside gateways that know both keys, be broken off, and be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from functions import secrets
from functions.db import Connection, Pool
from functions.errors import Unavailable
from functions.sealing import Sealer

BATCH = 100

LOCK_PROJECTS = """
-- lock_callback_secrets
SELECT id, callback_secret FROM projects WHERE id > $2 ORDER BY id LIMIT $1 FOR NO KEY UPDATE
"""

RESEAL_PROJECT = """
-- reseal_callback_secret
UPDATE projects SET callback_secret = $2 WHERE id = $1
"""


@dataclass(frozen=True, slots=True)
class Resealed:
    """How many were sealed with another key than the first. ``closed``: those that no key opens, left as they are."""

    secrets: int
    callback_secrets: int
    closed: tuple[str, ...]


async def reseal(pool: Pool, sealer: Sealer, *, batch: int = BATCH) -> Resealed:
    """One pass over all projects, ``batch`` rows in a transaction."""
    async with pool.acquire() as conn:
        changed, closed = 0, []
        after = None
        while True:
            async with conn.transaction():
                count, unknown, after = await secrets.reseal(conn, sealer, limit=batch, after=after)
            changed += count
            closed += [f"secret {each}" for each in unknown]
            if after is None:
                break
        of_callbacks, last = 0, 0
        while True:
            async with conn.transaction():
                count, unknown, end = await _reseal_callback_secrets(conn, sealer, batch, last)
            of_callbacks += count
            closed += [f"callback secret of project {each}" for each in unknown]
            if end is None:
                return Resealed(changed, of_callbacks, tuple(closed))
            last = end


async def _reseal_callback_secrets(
    conn: Connection, sealer: Sealer, limit: int, after: int
) -> tuple[int, list[str], int | None]:
    rows = await conn.fetch(LOCK_PROJECTS, limit, after)
    changed, closed = 0, []
    for row in rows:
        try:
            fresh = sealer.resealed(row["callback_secret"])
        except Unavailable:
            closed.append(str(row["id"]))
            continue
        if fresh is not None:
            await conn.execute(RESEAL_PROJECT, row["id"], fresh)
            changed += 1
    return changed, closed, rows[-1]["id"] if len(rows) == limit else None
