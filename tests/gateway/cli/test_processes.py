"""RGrid's processes one by one: what they say without their settings, and that they serve with them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet

from gateway.services import Services
from gateway.settings import Settings
from tests.gateway.cli.conftest import Rgrid
from tests.postgres import Postgres, free_port

MAIN = "from gateway.cli.main import main; main()"


def environment(settings: Settings) -> dict[str, str]:
    """What ``settings`` could have been read from."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RGRID_")}
    for name in ("database_url", "s3_endpoint", "s3_bucket", "s3_access_key_id", "s3_secret_access_key", "secret_key"):
        value = getattr(settings, name)
        env[f"RGRID_{name.upper()}"] = value if isinstance(value, str) else value.get_secret_value()
    return env


@pytest.mark.parametrize("process", ["gateway", "scheduler"])
def test_a_server_names_each_setting_that_is_missing(home: Path, process: str) -> None:
    done = subprocess.run([sys.executable, "-c", MAIN, process], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert "RGRID_DATABASE_URL is missing" in lines and "RGRID_SECRET_KEY is missing" in lines
    assert all(line.startswith("RGRID_") for line in lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, ["RGRID_PROVIDER=hetzner needs RGRID_HCLOUD_TOKEN", "RGRID_PROVIDER=hetzner needs RGRID_PUBLIC_URL"]),
        # As in a template that fills in what is not there.
        (
            {"RGRID_HCLOUD_TOKEN": "", "RGRID_PUBLIC_URL": "https://rgrid.example.com"},
            ["RGRID_PROVIDER=hetzner needs RGRID_HCLOUD_TOKEN"],
        ),
        # A file with Windows' line ends: clients' errors would quote it.
        (
            {"RGRID_HCLOUD_TOKEN": "hush-hush\r", "RGRID_PUBLIC_URL": "rgrid.example.com", "RGRID_HCLOUD_ENDPOINT": "x"},
            [
                "RGRID_PUBLIC_URL: must begin with https:// or http://",
                "RGRID_HCLOUD_TOKEN: has a space, a line break or another character that no token has",
                "RGRID_HCLOUD_ENDPOINT: must begin with https:// or http://",
            ],
        ),
    ],
)
async def test_a_scheduler_that_is_to_buy_servers_names_what_it_lacks(
    home: Path, settings: Settings, given: dict[str, str], said: list[str]
) -> None:
    env = environment(settings) | {"RGRID_PROVIDER": "hetzner", **given}
    command = [sys.executable, "-c", MAIN, "scheduler"]
    done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", said)


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        ((), {}, "RGRID_GATEWAY_URL is not set: give the gateway's URL"),
        (("--gateway", "ftp://host"), {}, "RGRID_GATEWAY_URL must be an http:// or https:// URL"),
        ((), {"RGRID_GATEWAY_URL": "http://host", "RGRID_SLOTS": "many"}, "RGRID_SLOTS must be a number"),
        (("--gateway", "http://host", "--slots", "2"), {"RGRID_DRAIN_S": "-1"}, "RGRID_DRAIN_S must be between"),
    ],
)
def test_a_node_names_its_wrong_setting(
    rgrid: Rgrid, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = rgrid("node", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(said) and done.err.count("\n") == 1


async def test_migrate_brings_a_database_up_to_date_once(
    home: Path, postgres: Postgres, settings: Settings
) -> None:
    await postgres.execute("CREATE DATABASE test_migrate")
    env = {**os.environ, "RGRID_DATABASE_URL": postgres.url("test_migrate")}
    command = [sys.executable, "-c", MAIN, "migrate"]
    first = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert first.stdout.splitlines()[0] == "applied first" and first.stderr == ""
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert again.stdout == "the schema is up to date\n"
    await postgres.execute("DROP DATABASE test_migrate")


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("", 2, "RGRID_DATABASE_URL is missing"),
        ("nonsense", 1, "PostgreSQL does not answer: "),
        ("postgresql://127.0.0.1:1/rgrid", 1, "PostgreSQL does not answer: "),
        ("postgresql://nobody@127.0.0.1:99999/rgrid", 1, "PostgreSQL does not answer: "),
    ],
)
def test_migrate_says_in_one_line_what_is_wrong(home: Path, url: str, status: int, said: str) -> None:
    env = {**os.environ, "RGRID_DATABASE_URL": url}
    done = subprocess.run([sys.executable, "-c", MAIN, "migrate"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


async def test_reseal_says_how_much_it_sealed_and_what_no_key_opens(services: Services, rgrid: Rgrid) -> None:
    old, new = services.settings.secret_key.get_secret_value(), Fernet.generate_key().decode()
    url = services.settings.database_url.get_secret_value()
    call = [sys.executable, "-c", MAIN, "secrets", "reseal"]

    def reseal(**env: str) -> tuple[int, str, str]:
        done = subprocess.run(call, env={**os.environ, **env}, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert reseal()[2].startswith("RGRID_DATABASE_URL is missing")
    assert reseal(RGRID_DATABASE_URL=url)[::2] == (2, "RGRID_SECRET_KEY is missing: this runs with the settings of the "
                                                      "gateway\n")  # fmt: skip
    status, said, wrong = reseal(RGRID_DATABASE_URL=url, RGRID_SECRET_KEY=new)
    assert (status, said.count("0 "), wrong.startswith("no key opens callback secret of project 1")) == (1, 2, True)
    both = {"RGRID_DATABASE_URL": url, "RGRID_SECRET_KEY": f"{new},{old}"}
    assert reseal(**both) == (0, "sealed with the first key now: 0 secret(s), 1 callback secret(s)\n", "")
    assert reseal(**both) == (0, "sealed with the first key now: 0 secret(s), 0 callback secret(s)\n", "")


async def test_gateway_and_scheduler_serve_until_they_are_told_to_stop(settings: Settings) -> None:
    env = environment(settings) | {"RGRID_PORT": str(free_port())}
    running = [
        subprocess.Popen([sys.executable, "-c", MAIN, name], env=env, stderr=subprocess.PIPE, text=True)
        for name in ("gateway", "scheduler")
    ]
    try:
        deadline = time.monotonic() + 30
        while not _ready(env["RGRID_PORT"]):
            assert time.monotonic() < deadline and running[0].poll() is None
            time.sleep(0.05)
        assert running[1].stderr is not None
        assert "scheduler started" in running[1].stderr.readline()  # from there on it ends in order
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=20)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said


def _ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
