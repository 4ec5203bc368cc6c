"""After a change of ``RGRID_SECRET_KEY``: everything that is sealed in the database, sealed with the first key.

It may run beside gateways that know both keys, be broken off, and be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from functions.db import Pool
from functions.errors import Unavailable
from functions.sealing import Sealer

BATCH = 100


@dataclass(frozen=True, slots=True)
class _Sealed:
    """What stands sealed in one column. ``lock`` takes a limit and the id to go on behind."""

    what: str
    first: str
    lock: str
    reseal: str


SECRETS = _Sealed(
    "secret",
    "00000000-0000-0000-0000-000000000000",
    """
-- lock_secrets
SELECT id, sealed FROM secrets WHERE id > $2::text::uuid ORDER BY id LIMIT $1 FOR NO KEY UPDATE
""",
    """
-- reseal_secret
UPDATE secrets SET sealed = $2 WHERE id = $1
""",
)

PROJECT_SECRETS = _Sealed(
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

PROJECT_KEYS = _Sealed(
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

ENDPOINT_KEYS = _Sealed(
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

RETIRED_KEYS = _Sealed(
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
    closed: list[str] = []
    of_secrets = await _reseal(pool, sealer, SECRETS, batch, closed)
    of_callbacks = sum([await _reseal(pool, sealer, sealed, batch, closed) for sealed in OF_CALLBACKS])
    return Resealed(of_secrets, of_callbacks, tuple(closed))


async def _reseal(pool: Pool, sealer: Sealer, sealed: _Sealed, batch: int, closed: list[str]) -> int:
    """How many were sealed with another key; those that none opens come to ``closed``."""
    changed, after = 0, sealed.first
    while True:
        async with pool.acquire() as conn, conn.transaction():
            rows = await conn.fetch(sealed.lock, batch, after)
            for row in rows:
                try:
                    fresh = sealer.resealed(row["sealed"])
                except Unavailable:
                    closed.append(f"{sealed.what} {row['id']}")
                    continue
                if fresh is not None:
                    await conn.execute(sealed.reseal, row["id"], fresh)
                    changed += 1
        if len(rows) < batch:
            return changed
        after = str(rows[-1]["id"])
