from __future__ import annotations

import asyncio

import asyncpg

from gateway.database import is_current, load_migrations, migrate
from tests.postgres import Postgres


async def test_migrations_run_once_however_many_processes_start_together(postgres: Postgres) -> None:
    await postgres.execute("CREATE DATABASE racing")
    connections = [await asyncpg.connect(postgres.url("racing")) for _ in range(8)]
    ran = await asyncio.gather(*(migrate(conn) for conn in connections))
    assert sorted(map(len, ran)) == [0] * 7 + [len(load_migrations())]
    assert await is_current(connections[0])
    for conn in connections:
        await conn.close()
    await postgres.execute("DROP DATABASE racing")


async def test_an_empty_database_is_not_current(postgres: Postgres) -> None:
    conn = await asyncpg.connect(postgres.url("postgres"))
    assert not await is_current(conn)
    await conn.close()
