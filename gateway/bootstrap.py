"""The first account, project and key of an instance: a script needs nothing but the environment to start.

Owns ``accounts`` and ``projects``.
"""

from __future__ import annotations

import base64
import secrets

from functions.db import Connection
from functions.sealing import Sealer
from gateway.keys import digest
from gateway.settings import Settings

# Each statement inserts or leaves what is there: whoever comes second waits for the first's transaction and
# then finds its row.
ENSURE_ACCOUNT = """
-- ensure_account
INSERT INTO accounts (slug) VALUES ('default') ON CONFLICT (slug) DO NOTHING
"""

ENSURE_PROJECT = """
-- ensure_project
INSERT INTO projects (account_id, slug, callback_secret)
SELECT id, 'default', $1 FROM accounts WHERE slug = 'default'
ON CONFLICT (slug) DO NOTHING
"""

ENSURE_POOL_CLOCK = """
-- ensure_pool_clock
INSERT INTO pool_clocks (pool) SELECT id FROM accounts WHERE slug = 'default' ON CONFLICT (pool) DO NOTHING
"""

ENSURE_FLOW = """
-- ensure_flow
INSERT INTO flows (project_id, pool) SELECT id, account_id FROM projects WHERE slug = 'default'
ON CONFLICT (project_id) DO NOTHING
"""

ENSURE_KEY = """
-- ensure_bootstrap_key
INSERT INTO api_keys (id, project_id, name, hash, scopes)
SELECT 'bootstrap', id, 'bootstrap', $1, ARRAY ['admin'] FROM projects WHERE slug = 'default'
ON CONFLICT (id) DO UPDATE SET hash = EXCLUDED.hash, revoked_at = NULL WHERE api_keys.hash <> EXCLUDED.hash
"""


async def ensure_bootstrap(conn: Connection, settings: Settings, sealer: Sealer) -> None:
    """Make account and project ``default`` and let ``RGRID_BOOTSTRAP_KEY`` in. Many may do so at once.

    Another key than last time replaces the last one; without one, the last stays as it is.
    """
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    async with conn.transaction():
        await conn.execute(ENSURE_ACCOUNT)
        await conn.execute(ENSURE_PROJECT, sealer.seal(secret.encode()))
        await conn.execute(ENSURE_POOL_CLOCK)
        await conn.execute(ENSURE_FLOW)
        if settings.bootstrap_key is not None:
            await conn.execute(ENSURE_KEY, digest(settings.bootstrap_key.get_secret_value()))
