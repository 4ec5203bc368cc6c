"""What the gateway opens once and every request shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from functions.artifacts import Store
from functions.db import Pool
from functions.errors import Unavailable
from functions.s3 import S3Config, S3Store
from functions.sealing import Sealer
from gateway.auth import Keys
from gateway.bootstrap import ensure_bootstrap
from gateway.database import is_current, migrate, open_pool
from gateway.settings import Settings

STATEMENT_S = 15
"""A request's statement is given up after this long: the database is a black hole or far behind."""
CLOSING_S = 2


@dataclass
class Services:
    """``hot_pool`` is for the queue's statements (see ``open_pool``). ``stopping`` is set when the process is
    to end: whatever waits for long must then answer at once."""

    settings: Settings
    pool: Pool
    hot_pool: Pool
    store: Store
    sealer: Sealer
    keys: Keys
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connect to the database and the store, and see to it that both are fit to serve from.

    Raises ``Unavailable``, in one line, when they do not answer or the schema is old.
    """
    async with AsyncExitStack() as stack:
        sealer = Sealer(settings.secret_key.get_secret_value())
        url = settings.database_url.get_secret_value()
        pool = await open_pool(url, command_timeout_s=STATEMENT_S)
        stack.push_async_callback(_close, pool)
        await _prepare(pool, settings, sealer)
        hot_pool = await open_pool(url, hot_path=True, command_timeout_s=STATEMENT_S)
        stack.push_async_callback(_close, hot_pool)
        store = await stack.enter_async_context(S3Store(_s3_config(settings)))
        await store.ensure_bucket()
        yield Services(settings, pool, hot_pool, store, sealer, Keys(pool))


async def _prepare(pool: Pool, settings: Settings, sealer: Sealer) -> None:
    async with pool.acquire() as conn:
        if settings.migrate_at_start:
            await migrate(conn)
        elif not await is_current(conn):
            raise Unavailable("the database's schema is older than this release: run `rgrid migrate` first")
        await ensure_bootstrap(conn, settings, sealer)


def _s3_config(settings: Settings) -> S3Config:
    return S3Config(
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint or settings.s3_endpoint,
        region=settings.s3_region,
        bucket=settings.s3_bucket,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        upload_s=settings.upload_s,
    )


async def _close(pool: Pool) -> None:
    """Let statements end, but not for ever: the process is going."""
    try:
        async with asyncio.timeout(CLOSING_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()
