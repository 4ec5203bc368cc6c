"""Fixtures that every test may use: a real PostgreSQL (18 of the package, or RGRID_TEST_POSTGRES=15 of the system)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from functions.db import Connection, Pool
from functions.s3 import S3Store
from gateway.database import migrate, open_pool
from tests.postgres import Postgres, start_postgres
from tests.s3 import S3Server

# What a shell runs in the background ignores Ctrl-C, and so would the programs that tests press it for.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="rgrid-pg-"))
    server = start_postgres(folder, os.environ.get("RGRID_TEST_POSTGRES", "18"))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def template(postgres: Postgres) -> str:
    """A migrated database that others are copied from."""
    await postgres.execute("CREATE DATABASE rgrid_template")
    conn = await asyncpg.connect(postgres.url("rgrid_template"))
    await migrate(conn)
    await conn.close()
    return "rgrid_template"


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[str]:
    """URL of a fresh migrated database."""
    name = f"t_{uuid4().hex}"
    await postgres.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url(name)
    await postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    opened = await open_pool(database, max_size=10)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
async def rolled_back_connection(postgres: Postgres, template: str) -> AsyncIterator[Connection]:
    await postgres.execute(f"CREATE DATABASE rolled_back TEMPLATE {template}")
    opened = await asyncpg.connect(postgres.url("rolled_back"))
    yield opened
    await opened.close()


@pytest.fixture
async def conn(rolled_back_connection: Connection) -> AsyncIterator[Connection]:
    """One connection in a transaction that is rolled back after the test."""
    transaction = rolled_back_connection.transaction()
    await transaction.start()
    yield rolled_back_connection
    await transaction.rollback()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all; a test that stops or kills it starts an ``S3Server`` of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rgrid-s3-"))
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def store(s3_server: S3Server) -> AsyncIterator[S3Store]:
    """An open store on a fresh bucket."""
    async with S3Store(s3_server.config(bucket=f"t-{uuid4().hex}")) as opened:
        await opened.ensure_bucket()
        yield opened


def docker_works() -> bool:
    return shutil.which("docker") is not None and (
        subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )
