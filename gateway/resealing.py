"""After a change of ``RGRID_SECRET_KEY``: everything that is sealed in the database, sealed with the first key.

It may run beside gateways that know both keys, be broken off, and be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from functions import secrets
from functions.db import Connection, Pool
from functions.errors import Unavailable
from functions.sealing import Sealer

BATCH = 100


@dataclass(frozen=True, slots=True)
class _Keys:
    """Sealed keys of callbacks that stand in one column. ``lock`` takes a limit and the id to go on behind."""

    what: str
    first: str
    lock: str
    reseal: str


PROJECT_SECRETS = _Keys(
    "callback secret of project",
    "0",
    """
-- lock_callback_secrets
SELECT id, callback_secret AS sealed FROM projects WHERE id > $2::text::bigint ORDER BY id LIMIT $1 FOR NO KEY UPDATE
""",
    """
-- reseal_callback_secret
UPDATE projects SET callback_secret = $2 WHERE id = $1
""",
)

PROJECT_KEYS = _Keys(
    "signing key of project",
    "0",
    """
-- lock_signing_keys
SELECT id, signing_key AS sealed FROM projects
 WHERE id > $2::text::bigint AND signing_key IS NOT NULL ORDER BY id LIMIT $1 FOR NO KEY UPDATE
""",
    """
-- reseal_signing_key
UPDATE projects SET signing_key = $2 WHERE id = $1
""",
)

ENDPOINT_KEYS = _Keys(
    "secret of callback",
    "00000000-0000-0000-0000-000000000000",
    """
-- lock_endpoint_keys
SELECT id, signing_key AS sealed FROM callback_endpoints
 WHERE id > $2::text::uuid AND signing_key IS NOT NULL ORDER BY id LIMIT $1 FOR NO KEY UPDATE
""",
    """
-- reseal_endpoint_key
UPDATE callback_endpoints SET signing_key = $2 WHERE id = $1
""",
)

RETIRED_KEYS = _Keys(
    "earlier key of callbacks",
    "00000000-0000-0000-0000-000000000000",
    """
-- lock_retired_keys
SELECT id, sealed FROM retired_keys WHERE id > $2::text::uuid ORDER BY id LIMIT $1 FOR NO KEY UPDATE
""",
    """
-- reseal_retired_key
UPDATE retired_keys SET sealed = $2 WHERE id = $1
""",
)

OF_CALLBACKS = (PROJECT_SECRETS, PROJECT_KEYS, ENDPOINT_KEYS, RETIRED_KEYS)


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
        of_callbacks = 0
        for keys in OF_CALLBACKS:
            last: Any = keys.first
            while last is not None:
                async with conn.transaction():
                    count, unknown, last = await _reseal_keys(conn, sealer, keys, batch, last)
                of_callbacks += count
                closed += [f"{keys.what} {each}" for each in unknown]
        return Resealed(changed, of_callbacks, tuple(closed))


async def _reseal_keys(
    conn: Connection, sealer: Sealer, keys: _Keys, limit: int, after: Any
) -> tuple[int, list[str], Any]:
    rows = await conn.fetch(keys.lock, limit, str(after))
    changed, closed = 0, []
    for row in rows:
        try:
            fresh = sealer.resealed(row["sealed"])
        except Unavailable:
            closed.append(str(row["id"]))
            continue
        if fresh is not None:
            await conn.execute(keys.reseal, row["id"], fresh)
            changed += 1
    return changed, closed, rows[-1]["id"] if len(rows) == limit else None
