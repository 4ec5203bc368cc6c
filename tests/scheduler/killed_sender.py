"""A sender in a process of its own, for a test that kills it: arguments are the database's URL and a Fernet key."""

from __future__ import annotations

import asyncio
import sys

from functions.sealing import Sealer
from gateway.database import open_pool
from scheduler.attempts import Direct
from scheduler.sending import Sender
from tests.scheduler.factories import LOOPBACK
from tests.scheduler.links import NoLinks


async def main(database: str, key: str) -> None:
    pool = await open_pool(database, max_size=2)
    sender = Sender(pool, Direct(LOOPBACK), Sealer(key), NoLinks())
    await sender.deliver_once()
    await sender.idle()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
