"""The scheduler process: what it does by itself, what it survives, and how it ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from functions.db import Pool
from functions.errors import Unavailable
from functions.sealing import Sealer
from gateway.database import migrate, open_pool
from gateway.scheduling import schedule
from gateway.settings import Settings
from scheduler import cancelling, finishing, gates
from scheduler.finishing import Report
from scheduler.round_records import Tally, read_rounds, read_tallies
from tests.gateway.conftest import make_settings
from tests.postgres import start_postgres
from tests.receivers import raw_server, read_request
from tests.s3 import S3Server
from tests.scheduler.factories import (
    SECRET,
    World,
    claim_one,
    expire,
    make_job,
    make_node,
    make_world,
    stands_in,
)
from tests.scheduler.test_chaining import ended, make_chain

A_MINUTE = timedelta(minutes=1)
QUICK: dict[str, Any] = {"poll_s": 0.05, "lease_s": 0.3, "heartbeat_s": 0.05, "callback_allow": "127.0.0.0/8"}


@asynccontextmanager
async def scheduling(*settings: Settings) -> AsyncIterator[None]:
    """Schedulers, ended in order."""
    stopping = asyncio.Event()
    tasks = [asyncio.ensure_future(schedule(each, stopping)) for each in settings]
    try:
        yield
    finally:
        stopping.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)


async def eventually(what: Callable[[], Awaitable[bool]], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not await what():
            await asyncio.sleep(0.02)


@pytest.fixture
def quick(database: str, s3_server: S3Server) -> Settings:
    return make_settings(database, s3_server, **QUICK)


async def seal_for(settings: Settings, world: World) -> None:
    """Give the project a secret that opens with these settings."""
    sealer = Sealer(settings.secret_key.get_secret_value())
    async with world.pool.acquire() as conn:
        sealed = sealer.seal(SECRET.encode())
        await conn.execute("UPDATE projects SET callback_secret = $2 WHERE id = $1", world.project, sealed)


async def test_a_chained_job_passes_its_functions_limit_without_a_round_that_heals(
    quick: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Any) -> int:
        return 0

    monkeypatch.setattr(gates, "advance_all", nothing)
    world = await make_chain(pool, {}, publish={"queue": {"concurrency": {"limit": 1}}})
    async with pool.acquire() as conn, scheduling(quick):
        await ended(conn, world)

        async def let_in() -> bool:
            return await conn.fetchval("SELECT count(*) FROM ready_jobs") == 1

        await eventually(let_in)


async def test_due_jobs_become_ready_lost_ones_come_back_and_callbacks_go_out(quick: Settings, pool: Pool) -> None:
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await read_request(reader))[2])
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")

    async with raw_server(handle) as port:
        world = await make_world(pool, callbacks=[{"url": f"http://127.0.0.1:{port}/"}])
        await seal_for(quick, world)
        async with pool.acquire() as conn:
            finished = await make_job(conn, world.version)
            claimed = await claim_one(conn, world.node, world.account)
            await finishing.finish(conn, world.node, finished, Report(claimed.token, "succeeded"))
            lost = await make_job(conn, world.version)
            await expire(conn, await claim_one(conn, world.node, world.account))
            due = await make_job(conn, world.version, delay=A_MINUTE)
            await conn.execute("UPDATE waiting_jobs SET due_at = now()")

            async def done() -> bool:
                return await stands_in(conn, lost) == await stands_in(conn, due) == ["ready"] and len(requests) == 1

            # Two side by side: what one has in hand the other one passes by.
            async with scheduling(quick, quick):
                await eventually(done)
            assert await conn.fetchval("SELECT count(*) FROM delivery_attempts") == 1


async def test_jobs_that_came_in_beside_the_delete_of_their_function_are_cancelled(
    quick: Settings, pool: Pool
) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        running = await make_job(conn, world.version)
        await claim_one(conn, world.node, world.account)
        ready = await make_job(conn, world.version)
        delayed = await make_job(conn, world.version, delay=A_MINUTE)
        # Committed by requests that had found the function: the delete that took place meanwhile did not see them.
        await conn.execute("UPDATE functions SET deleted_at = now()")
        assert await cancelling.cancel_after_delete(pool, limit=1) == 1

        async def done() -> bool:
            return await stands_in(conn, ready) == await stands_in(conn, delayed) == ["cancelled"]

        async with scheduling(quick):
            await eventually(done)
        assert await stands_in(conn, running) == ["leased"]
        assert {row["status"] for row in await conn.fetch("SELECT status FROM outcomes")} == {"cancelled"}


async def test_an_unjoined_node_is_gone_when_its_token_has_run_out(quick: Settings, pool: Pool) -> None:
    async with pool.acquire() as conn:
        node = await make_node(conn)
        await conn.execute(
            """UPDATE nodes SET state = 'joining', joined_at = NULL, join_hash = 'x',
                      join_expires_at = now() - interval '1 s' WHERE id = $1""",
            node,
        )

        async def gone() -> bool:
            return bool(await conn.fetchval("SELECT state = 'gone' FROM nodes WHERE id = $1", node))

        async with scheduling(quick):
            await eventually(gone)


async def test_a_scheduler_tells_of_all_of_its_rounds(
    quick: Settings, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.scheduling.TELL_S", 0.05)

    async def told() -> bool:
        async with pool.acquire() as conn:
            done = {each.name: each for each in await read_rounds(conn)}
        went_well = {name for name, each in done.items() if each.succeeded_at is not None and not each.failures}
        return went_well > {"promote", "reap", "deliver", "tell of rounds", "settle hours", "sweep artifacts"}

    async with scheduling(quick):
        await eventually(told)


async def test_what_a_scheduler_counted_last_is_told_before_it_ends(quick: Settings, pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        lost = await make_job(conn, world.version)
        await expire(conn, await claim_one(conn, world.node, world.account))

        async def back() -> bool:
            return await stands_in(conn, lost) == ["ready"]

        async with scheduling(quick):
            await eventually(back)
        assert (await read_tallies(conn))[Tally.LEASES_LOST] == 1


async def test_an_old_schema_is_refused_in_one_line(quick: Settings, pool: Pool) -> None:
    async with pool.acquire() as conn:
        await conn.execute("DELETE FROM schema_migrations")
    with pytest.raises(Unavailable, match="rgrid migrate"):
        await schedule(quick, asyncio.Event())


async def test_a_database_that_is_away_is_outlived(s3_server: S3Server) -> None:
    folder = Path(tempfile.mkdtemp(prefix="rgrid-pg-"))
    server = start_postgres(folder, os.environ.get("RGRID_TEST_POSTGRES", "18"))
    try:
        conn = await asyncpg.connect(server.url())
        await migrate(conn)
        await conn.close()
        settings = make_settings(server.url(), s3_server, **QUICK)
        async with scheduling(settings), await open_pool(server.url()) as pool:
            world = await make_world(pool)

            async def one_is_promoted() -> None:
                async with pool.acquire() as conn:
                    job = await make_job(conn, world.version, delay=A_MINUTE)
                    await conn.execute("UPDATE waiting_jobs SET due_at = now()")

                async def ready() -> bool:
                    async with pool.acquire() as conn:
                        return await stands_in(conn, job) == ["ready"]

                await eventually(ready, within_s=45)

            await one_is_promoted()
            await asyncio.to_thread(server.stop)
            refused = await _is_refused(server.url())
            await asyncio.to_thread(server.start)
            assert refused
            await one_is_promoted()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _is_refused(url: str) -> bool:
    try:
        await asyncpg.connect(url, timeout=2)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_in_order(
    database: str, s3_server: S3Server, asked: signal.Signals, tmp_path: Path
) -> None:
    settings = make_settings(database, s3_server)
    env = {
        "PATH": os.environ["PATH"],
        "RGRID_DATABASE_URL": database,
        "RGRID_S3_ENDPOINT": settings.s3_endpoint,
        "RGRID_S3_ACCESS_KEY_ID": settings.s3_access_key_id,
        "RGRID_S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key.get_secret_value(),
        "RGRID_SECRET_KEY": settings.secret_key.get_secret_value(),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli.running", "scheduler", env=env, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        assert b"scheduler started" in await process.stderr.readline()
    process.send_signal(asked)
    async with asyncio.timeout(3):
        rest = await process.stderr.read()
        assert await process.wait() == 0
    assert b"scheduler ended" in rest
    assert b"Traceback" not in rest
