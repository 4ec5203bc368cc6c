"""What the gateway opens once and every request shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from functions.db import Pool
from gateway.auth import Keys
from gateway.database import open_pool
from gateway.settings import Settings

if TYPE_CHECKING:
    from functions.artifacts import Store
    from functions.sealing import Sealer


@dataclass
class Services:
    """``hot_pool`` is for the queue's statements (see ``open_pool``). ``stopping`` is set when the process is to
    end: whatever waits for long must then answer at once."""

    settings: Settings
    pool: Pool
    hot_pool: Pool
    store: Store
    sealer: Sealer
    keys: Keys
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connect to the database and the store; raises ``Unavailable``, in one line, when they do not answer."""
    from functions.s3 import S3Store
    from functions.sealing import Sealer

    async with AsyncExitStack() as stack:
        url = settings.database_url.get_secret_value()
        pool = await open_pool(url, max_size=10)
        stack.push_async_callback(_close, pool)
        hot_pool = await open_pool(url, max_size=10, hot_path=True)
        stack.push_async_callback(_close, hot_pool)
        sealer = Sealer(settings.secret_key.get_secret_value())
        store = await stack.enter_async_context(S3Store(settings))
        yield Services(settings, pool, hot_pool, store, sealer, Keys(pool))


async def _close(pool: Pool) -> None:
    """Let statements end, but not for ever: the process is going."""
    try:
        async with asyncio.timeout(2):
            await pool.close()
    except TimeoutError:
        pool.terminate()
