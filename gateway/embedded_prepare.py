"""What ``rgrid up`` asks of its database before the rest starts, in a process of its own that ends again.

``python -P -m gateway.embedded_prepare [SLOTS]``: makes the database, applies migrations and, with ``SLOTS``,
prints a join token for the local node. Safe to repeat."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

import asyncpg

from functions.errors import RGridError
from gateway.database import migrate
from gateway.embedded_postgres import DATABASE
from nodes.registry import mint_join_token

JOIN_TTL = timedelta(minutes=10)


async def prepare(url: str, slots: int | None) -> str | None:
    """The join token, when one was asked for."""
    server = await asyncpg.connect(url, database="postgres", timeout=10)
    try:
        if not await server.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
            await server.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await server.close(timeout=5)
    conn = await asyncpg.connect(url, timeout=10)
    try:
        await migrate(conn)
        if slots is None:
            return None
        minted = await mint_join_token(
            conn, name="local", provider="local", slots=slots, account_id=None, ttl=JOIN_TTL
        )
        return minted.token
    finally:
        await conn.close(timeout=5)


def main() -> int:
    slots = int(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        token = asyncio.run(prepare(os.environ["RGRID_DATABASE_URL"], slots))
    except RGridError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 1
    if token is not None:
        print(token)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
