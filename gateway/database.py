"""The connection pool and the migrations: ``migrations/NNNN_what.sql``, forward only.

Owns ``schema_migrations``. A migration must be safe while the previous release still serves.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from functions.db import Connection, Pool
from functions.errors import Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 7_236_501_442  # any number, so long as every release uses the same
OLDEST_POSTGRES = 140_000
ACQUIRE_S = 5.0
HOT_PATH = {
    # Planning takes longer than running; and the plan must be the one for any values, at any size of the tables.
    "plan_cache_mode": "force_generic_plan",
    **dict.fromkeys(
        ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_hashjoin", "enable_mergejoin"), "off"
    ),
}


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(folder: Path = MIGRATIONS) -> list[Migration]:
    """All migrations in order; raises ``ValueError`` for a gap, a double number or an odd name."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if match is None:
            raise ValueError(f"{path.name}: a migration is called NNNN_what.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text("utf-8")))
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are numbered 0001, 0002, … without gaps")
    return found


async def migrate(conn: Connection) -> list[str]:
    """Bring the schema up to date and return the names of what ran now.

    However many processes start together, each migration runs once: the rest wait for the lock and find nothing to do.
    """
    version = int(await conn.fetchval("SELECT current_setting('server_version_num')"))
    if version < OLDEST_POSTGRES:
        raise Unavailable(f"PostgreSQL {version // 10000} is too old: RGrid needs 14 to 18")
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await conn.execute(
            """CREATE TABLE IF NOT EXISTS schema_migrations (
                number int PRIMARY KEY, name text NOT NULL, digest text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now())"""
        )
        rows = await conn.fetch("SELECT number, digest FROM schema_migrations")
        done: dict[int, str] = {row["number"]: row["digest"] for row in rows}
        ran = []
        for migration in load_migrations():
            if (digest := done.get(migration.number)) is not None:
                if digest != migration.digest:
                    raise Unavailable(
                        f"migration {migration.number:04} was applied with another text: "
                        "this database belongs to another build of RGrid"
                    )
                continue
            await conn.execute(migration.sql)
            await conn.execute(
                "INSERT INTO schema_migrations (number, name, digest) VALUES ($1, $2, $3)",
                migration.number, migration.name, migration.digest,
            )
            ran.append(migration.name)
        return ran


async def is_current(conn: Connection) -> bool:
    """Whether every migration of this build is applied; a database of a newer build counts as current."""
    if await conn.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return False
    newest = await conn.fetchval("SELECT coalesce(max(number), 0) FROM schema_migrations")
    return int(newest) >= len(load_migrations())


class PlainConnection(asyncpg.Connection):  # type: ignore[misc]
    """Nothing here outlives a transaction (no SET, LISTEN, session locks), so that a connection needs no reset
    statement when it goes back to its pool: a round trip less each time."""

    def get_reset_query(self) -> str:
        return ""


class PatientPool(asyncpg.Pool):  # type: ignore[misc]
    """Waits ``ACQUIRE_S`` for a connection, then raises ``TimeoutError``: nobody hangs on a database that is away."""

    __slots__ = ()

    def acquire(self, *, timeout: float | None = ACQUIRE_S) -> Any:
        return super().acquire(timeout=timeout)


async def open_pool(
    url: str, *, min_size: int = 1, max_size: int = 10, hot_path: bool = False, command_timeout_s: float = 65
) -> Pool:
    """A pool of connections; raises ``Unavailable`` in one line when the server cannot be reached.

    ``hot_path`` keeps one plan for each statement and turns off what the planner may only choose by mistake there: a
    plan that was made while the queue was empty would otherwise read all of it for ever (QUEUE, trap 6).
    """
    server_settings = {
        "application_name": "rgrid",
        "jit": "off",
        "idle_in_transaction_session_timeout": "60000",
        "statement_timeout": "60000",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "3",
        "tcp_keepalives_count": "3",
    }
    if hot_path:
        server_settings |= HOT_PATH
    pool = PatientPool(
        url, connection_class=PlainConnection, record_class=asyncpg.Record,
        init_size=min_size, min_size=min_size, max_size=max_size, max_queries=50_000,
        max_inactive_connection_lifetime=300, connect=None, setup=None, init=None, reset=None, loop=None,
        timeout=ACQUIRE_S, command_timeout=command_timeout_s, server_settings=server_settings,
    )  # fmt: skip
    try:
        return await pool
    except (OSError, OverflowError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        raise Unavailable(f"PostgreSQL does not answer: {error or type(error).__name__}") from error
