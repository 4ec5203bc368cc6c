"""What ``rgrid doctor`` says about a deployment by its settings. That of ``rgrid up`` is in ``test_up.py``."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import asyncpg
import pytest

from functions.s3 import S3Config, S3Store
from gateway.cli.doctor import machine, servers
from gateway.cli.doctor.findings import State
from gateway.embedded_folder import Folder
from gateway.settings import Settings
from tests.gateway.cli.conftest import Connected, Rgrid
from tests.postgres import free_port
from tests.s3 import S3Server


@pytest.fixture
def deployment(home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that ``settings`` could have been read from."""
    for name in ("database_url", "s3_endpoint", "s3_bucket", "s3_access_key_id", "s3_secret_access_key", "secret_key"):
        value = getattr(settings, name)
        monkeypatch.setenv(f"RGRID_{name.upper()}", value if isinstance(value, str) else value.get_secret_value())


async def examined(call: Connected, status: int) -> dict[str, tuple[str, str]]:
    """State and finding of each part."""
    done = await call("doctor", "--json")
    assert done.status == status, done
    assert done.json["ok"] == (status == 0)
    return {one["part"]: (one["state"], f"{one['found']}: {one['advice']}") for one in done.json["checks"]}


async def test_it_is_content_with_what_works(deployment: None, call: Connected) -> None:
    with await call.worker():
        found = await examined(call, 0)
    for part in ("python", "settings", "postgresql", "migrations", "s3", "gateway", "key", "nodes"):
        assert found[part][0] == "ok", found
    assert found["nodes"][1] == "1 ready: "


async def test_it_names_what_is_missing_or_refused(
    deployment: None, call: Connected, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = await asyncpg.connect(settings.database_url.get_secret_value())
    await conn.execute("DELETE FROM schema_migrations")
    await conn.close()
    monkeypatch.setenv("RGRID_S3_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("RGRID_API_KEY", "wrong-key")
    found = await examined(call, 1)
    assert found["migrations"] == ("wrong", "the schema is older than this release: run `rgrid migrate`")
    assert found["s3"][0] == "wrong" and "refused" in found["s3"][1]
    assert found["gateway"][0] == "wrong" and "rgrid migrate" in found["gateway"][1]
    assert found["key"][0] == "wrong"
    table = await call("doctor")
    assert table.status == 1 and "run `rgrid migrate`" in table.out and table.err == ""


async def test_a_gateway_without_nodes_is_wrong_and_a_missing_key_is_said(
    deployment: None, call: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await examined(call, 1)
    assert found["nodes"][0] == "wrong" and "rgrid nodes add" in found["nodes"][1]
    monkeypatch.delenv("RGRID_API_KEY")
    found = await examined(call, 0)
    assert found["key"][0] == "skipped"


async def test_servers_that_are_away_are_each_named(
    rgrid: Rgrid, deployment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, scheme in (("RGRID_DATABASE_URL", "postgresql"), ("RGRID_S3_ENDPOINT", "http"), ("RGRID_URL", "http")):
        monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{free_port()}")
    found = await examined(Connected("", rgrid), 1)
    for part in ("postgresql", "s3", "gateway"):
        assert found[part][0] == "wrong" and "does not answer" in found[part][1], found


async def test_wrong_settings_are_named_without_their_values(
    rgrid: Rgrid, deployment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGRID_BOOTSTRAP_KEY", "short-secret")
    done = await asyncio.to_thread(rgrid, "doctor")
    assert done.status == 1
    assert "RGRID_BOOTSTRAP_KEY: needs at least 24" in done.out and "short-secret" not in done.out


def test_before_the_first_start_it_looks_at_the_port(rgrid: Rgrid, tmp_path: Path) -> None:
    arguments = ("doctor", "--data-dir", tmp_path / "none", "--json", "--port")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        checks = {one["part"]: one for one in rgrid(*arguments, port).json["checks"]}
    assert checks["rgrid up"]["state"] == "skipped"
    assert checks["port"]["state"] == "wrong" and "taken by another program" in checks["port"]["found"]
    checks = {one["part"]: one for one in rgrid(*arguments, port).json["checks"]}
    assert checks["port"]["state"] == "ok"
    assert not (tmp_path / "none").exists()


def test_damaged_keys_of_rgrid_up_are_wrong(rgrid: Rgrid, tmp_path: Path) -> None:
    Folder(tmp_path).config.write_text("{")
    done = rgrid("doctor", "--data-dir", tmp_path)
    assert done.status == 1 and "restore it from a backup" in done.out


def test_a_machine_without_docker_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setattr(machine, "SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    found = {one.part: one for one in machine.node_needs(Path("/"))}
    for part in ("docker", "iptables", "mkfs.ext4", "mount"):
        assert found[part].state is State.WRONG and "install it: sudo apt-get install" in found[part].advice
    assert found["loop mounts"].state is State.SKIPPED
    assert found["docker"].at_most_a_warning("only nodes need it").state is State.WARNING


@pytest.mark.parametrize(
    ("free_gib", "state"), [(0.5, State.WRONG), (5, State.WARNING), (50, State.OK)]
)
def test_little_room_is_a_warning_and_none_is_wrong(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, state: State
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free_gib * 1024**3})())
    assert machine.disk_space("disk", Path("/no/such/folder/yet")).state is state


async def test_a_store_that_says_nothing_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        config = S3Config(endpoint, endpoint, "us-east-1", "rgrid", "id", "secret")
        async with asyncio.timeout(10):
            found = [one async for one in servers.object_store(config)]
    assert [(one.part, one.state) for one in found] == [("s3", State.WRONG)]
    assert "it does not answer within 0.2 s" in found[0].found


async def test_a_bucket_of_another_database_is_told(database: str, s3_server: S3Server) -> None:
    config = s3_server.config(bucket="doctors")

    async def found() -> list[tuple[State, str]]:
        return [(one.state, one.found) async for one in servers.bucket_owner(database, config)]

    assert await found() == [], "what does not answer is told by the other checks"
    async with S3Store(config) as store:
        await store.ensure_bucket()
        assert await found() == [(State.OK, "doctors is nobody's yet, the scheduler takes it")]
        await store.put(f"1/uploads/art_{'0' * 32}", b"a", "text/plain")
        assert await found() == [(State.WARNING, "doctors has files of another database")]
    assert [one async for one in servers.bucket_owner("postgresql://localhost:1/x", config)] == []


def test_a_clock_that_is_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    from gateway.cli.doctor.servers import SKEW, _skew

    off = _skew(httpx.Response(200, headers={"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    assert off is not None and off > SKEW
    assert _skew(httpx.Response(200, headers={"Date": "nonsense"})) is None
    assert _skew(httpx.Response(200)) is None
