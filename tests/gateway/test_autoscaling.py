"""The scheduler's round that buys nodes, as the settings put it together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from functions import bucket_owner
from functions.db import Pool
from functions.errors import Unavailable
from gateway.autoscaling import autoscaling
from gateway.settings import Settings
from nodes.provider import OWNER_LABEL
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
    with Emulator() as cloud:
        settings = rented(
            database, s3_server, hcloud_token=cloud.token, hcloud_endpoint=cloud.url, agent_dir=agent_dir
        )
        async with autoscaling(settings, pool, SEALER) as (each,):
            await each.once()
        (server,) = cloud.cloud.servers.values()
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
    with Emulator() as cloud:
        settings = rented(
            database, s3_server, hcloud_token=cloud.token, hcloud_endpoint=cloud.url, agent_dir=agent_dir,
            max_eur_month="0.0095",
        )  # fmt: skip
        async with autoscaling(settings, pool, SEALER) as (each,):
            await each.once()
        assert cloud.cloud.servers == {}


@pytest.mark.parametrize("missing", ["hcloud_token", "public_url"])
async def test_what_is_missing_is_said_at_the_start(
    database: str, s3_server: S3Server, pool: Pool, missing: str
) -> None:
    settings = rented(database, s3_server, hcloud_token="x" * 64).model_copy(update={missing: None})
    with pytest.raises(Unavailable, match=f"RGRID_{missing.upper()}"):
        async with autoscaling(settings, pool, SEALER):
            pass


async def test_with_machines_of_ones_own_there_is_no_such_round(settings: Settings, pool: Pool) -> None:
    async with autoscaling(settings, pool, SEALER) as rounds:
        assert rounds == []
