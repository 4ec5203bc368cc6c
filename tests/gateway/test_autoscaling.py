"""The scheduler's round that buys nodes, as the settings put it together."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from functions import bucket_owner
from functions.db import Pool
from functions.errors import Unavailable
from gateway.autoscaling import autoscaling, wish_of
from gateway.settings import Settings
from nodes.policy.spare_hours import ALWAYS
from nodes.policy.state import Rules
from nodes.provider import OWNER_LABEL
from scheduler.loop import run_rounds
from scheduler.round_records import Records, Tally, read_tallies
from scheduler.wakeups import Topic, Wakeups
from tests.gateway.conftest import make_settings
from tests.hetzner.server import Emulator
from tests.s3 import S3Server
from tests.scheduler.factories import SEALER, make_job, make_world


@pytest.fixture
def agent_dir(tmp_path: Path) -> Path:
    """Stands for what `make agent` builds."""
    content = b"agent"
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / f"{sha256}.pyz").write_bytes(content)
    index = {"version": "1", "files": {"cp312-x86_64": {"sha256": sha256, "size": len(content)}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def rented(database: str, s3: S3Server, **more: object) -> Settings:
    return make_settings(database, s3, provider="hetzner", public_url="https://rgrid.example.com", **more)


async def test_a_queued_job_gets_a_server_that_is_told_how_to_join(
    database: str, s3_server: S3Server, pool: Pool, agent_dir: Path
) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'gone', gone_at = now()")
        await make_job(conn, world.version)
        owner = (await bucket_owner.instance(conn)).replace("-", "")[:12]
    with Emulator(start=datetime.now(UTC), speed=1) as cloud:
        settings = rented(
            database, s3_server, hcloud_token=cloud.token, hcloud_endpoint=cloud.url, agent_dir=agent_dir
        )
        records = Records()
        async with autoscaling(settings, pool, SEALER, Wakeups(database), records) as (each,):
            await each.once()
        await records.tell_once(pool)
        (server,) = cloud.cloud.servers.values()
    async with pool.acquire() as conn:
        assert 3 <= (await read_tallies(conn))[Tally.CLOUD_CALLS] <= 15, "what it took is told"
    assert await pool.fetchval("SELECT leads_until < now() FROM fleet"), "another scheduler goes on at once"
    assert server.labels[OWNER_LABEL] == owner
    assert server.user_data.startswith("#cloud-config\n")
    assert "https://rgrid.example.com" in server.user_data


async def test_the_months_limit_of_the_settings_holds(
    database: str, s3_server: S3Server, pool: Pool, agent_dir: Path
) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'gone', gone_at = now()")
        await make_job(conn, world.version)
    with Emulator(start=datetime.now(UTC), speed=1) as cloud:
        settings = rented(
            database, s3_server, hcloud_token=cloud.token, hcloud_endpoint=cloud.url, agent_dir=agent_dir,
            max_eur_month="0.0095",
        )  # fmt: skip
        async with autoscaling(settings, pool, SEALER, Wakeups(database)) as (each,):
            await each.once()
        assert cloud.cloud.servers == {}


async def test_what_becomes_ready_wakes_the_round(
    database: str, s3_server: S3Server, pool: Pool, agent_dir: Path
) -> None:
    world, wakeups, stopping = await make_world(pool), Wakeups(database), asyncio.Event()
    async with pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'gone', gone_at = now()")
    with Emulator(start=datetime.now(UTC), speed=1) as cloud:
        settings = rented(
            database, s3_server, hcloud_token=cloud.token, hcloud_endpoint=cloud.url, agent_dir=agent_dir
        )
        async with autoscaling(settings, pool, SEALER, wakeups) as (each,), asyncio.TaskGroup() as group:
            assert each.apart_s == 0.5
            seldom = replace(each, interval_s=1000)
            group.create_task(run_rounds([seldom], stopping))
            async with asyncio.timeout(30):
                while not await pool.fetchval("SELECT told_at IS NOT NULL FROM fleet"):
                    await asyncio.sleep(0.01)
                async with pool.acquire() as conn:
                    await make_job(conn, world.version)
                wakeups.wake(Topic.READY)
                while not cloud.cloud.servers:
                    await asyncio.sleep(0.01)
            stopping.set()


@pytest.mark.parametrize("missing", ["hcloud_token", "public_url"])
async def test_what_is_missing_is_said_at_the_start(
    database: str, s3_server: S3Server, pool: Pool, missing: str
) -> None:
    settings = rented(database, s3_server, hcloud_token="x" * 64).model_copy(update={missing: None})
    with pytest.raises(Unavailable, match=f"RGRID_{missing.upper()}"):
        async with autoscaling(settings, pool, SEALER, Wakeups(database)):
            pass


async def test_with_machines_of_ones_own_there_is_no_such_round(settings: Settings, pool: Pool) -> None:
    async with autoscaling(settings, pool, SEALER, Wakeups("")) as rounds:
        assert rounds == []


async def test_nodes_are_bought_by_the_rules_that_are_simulated(settings: Settings) -> None:
    assert wish_of(settings, "owner").rules == Rules()
    asked = settings.model_copy(update={"spare_hours": "always", "node_tenancy": "shared"})
    assert wish_of(asked, "owner").rules == Rules(spares=ALWAYS, exclusive=False)
