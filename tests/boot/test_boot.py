"""A rented server's whole life: bought for a job, booted by its user data, joined, put to work, deleted with its hour.

Real: gateway, scheduler, PostgreSQL, S3, the cloud's API over HTTP, systemd, cloud-init, Docker, the agent's one file. The
cloud's hour is passed over in one step.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
import yaml
import zstandard

from tests.boot.image import machine_image
from tests.boot.machines import ContainerMachines, container_machines
from tests.e2e.instance import Instance, eventually, instance_folder
from tests.e2e.manifests import shell
from tests.e2e.test_saved_images import uploaded
from tests.hetzner.server import Emulator
from tests.images import build
from tests.postgres import Postgres
from tests.s3 import S3Server

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

ROOT = Path(__file__).parent.parent.parent
BOOT_S = 120
PYTHON = "cp311"
"""Of the machine's Debian."""


@pytest.fixture
def machines() -> Iterator[ContainerMachines]:
    with container_machines(machine_image()) as running:
        yield running


@pytest.fixture
def cloud(machines: ContainerMachines) -> Iterator[Emulator]:
    with Emulator(start=datetime.now(UTC), speed=1, machines=machines, ipv4=machines.ipv4) as running:
        yield running


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file for the machine."""
    folder = tmp_path_factory.mktemp("agent")
    target = f"{PYTHON}-{platform.machine()}"
    subprocess.run([sys.executable, ROOT / "scripts/build_agent.py", "--out", folder, target], check=True)
    return folder


@pytest.fixture
async def instance(
    request: pytest.FixtureRequest, postgres: Postgres, machines: ContainerMachines, cloud: Emulator, agent: Path
) -> AsyncIterator[Instance]:
    database = f"boot_{uuid4().hex}"
    await postgres.execute(f"CREATE DATABASE {database}")
    with instance_folder(request, "boot") as folder:
        s3 = S3Server(folder / "s3", address=machines.gateway)
        s3.start()
        running = Instance(folder, postgres, s3, postgres.url(database))
        running.settings = {
            "RGRID_HOST": "0.0.0.0",
            "RGRID_PUBLIC_URL": f"http://{machines.gateway}:{running.port}",
            "RGRID_AGENT_DIR": str(agent),
            "RGRID_PROVIDER": "hetzner",
            "RGRID_HCLOUD_TOKEN": cloud.token,
            "RGRID_HCLOUD_ENDPOINT": cloud.url,
            "RGRID_NODE_TYPES": "cx23",
            "RGRID_MAX_NODES": "2",
            "RGRID_MAX_SLOTS": "2",
            "RGRID_NODE_JOB_DENY": "203.0.113.0/24",
            # What the distribution has of Docker is older than what a real image has.
            "RGRID_NODE_ENFORCE_FLOORS": "0",
        }
        try:
            running.add_process("gateway", running.server_env())
            await running.ready()
            yield running
        finally:
            await running.close()
            s3.stop()
            shutil.rmtree(s3.folder)
            await postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")


def busybox_archive() -> bytes:
    saved = subprocess.run(["docker", "save", build.busybox()], capture_output=True, check=True).stdout
    return zstandard.compress(saved)


async def test_a_server_boots_works_and_is_deleted_at_the_end_of_its_hour(
    instance: Instance, cloud: Emulator, machines: ContainerMachines
) -> None:
    instance.add_process("scheduler", instance.server_env())
    outputs = [{"path": "/out/hello.txt", "name": "hello", "required": True}]
    image = await uploaded(instance, busybox_archive())
    await instance.apply(shell("hello", image, outputs=outputs))
    asked = time.monotonic()
    job = await instance.invoke("hello", {"script": "echo from the node; echo hello >/out/hello.txt"})

    async def explained() -> str | None:
        reason = (await instance.job(job["id"]))["wait_reason"] or ""
        return reason if reason.startswith("booting node_") else None

    assert await eventually(explained, 30)
    ended = await instance.finished(job["id"], BOOT_S)
    took_s = time.monotonic() - asked
    assert ended["status"] == "succeeded", (ended, [machines.words(name) for name in machines.running.values()])
    assert "from the node" in (await instance.api.get(f"/v1/jobs/{job['id']}/logs")).text
    async with httpx.AsyncClient(trust_env=False) as storage:
        assert (await storage.get(ended["outputs"][0]["url"])).text == "hello\n"
    (machine,) = machines.ever
    (node,) = (await instance.api.get("/v1/nodes")).json()["data"]
    assert (node["id"], node["state"], node["name"]) == (ended["node"], "ready", machine.name)
    on = machine.server_id
    began = machines.monotonic_s(on, "UserspaceTimestampMonotonic")
    joined = machines.monotonic_s(on, "ActiveEnterTimestampMonotonic", "rgrid-node")
    print(f"\n{took_s:.1f} s from the invoke to the outcome: 11 s of it the cloud's, {joined - began:.1f} s from init to joined")

    async def at_its_end() -> str | None:
        status, text = machines.run(on, "cat", "/run/cloud-init/result.json")
        return text if status == 0 else None

    # cloud-init itself has nothing to complain of: it goes on after the node has joined.
    assert json.loads(await eventually(at_its_end, 30))["v1"]["errors"] == []
    settings = _node_env(machine.user_data)
    token = settings["RGRID_JOIN_TOKEN"]
    assert machines.run(on, "systemctl", "is-active", "rgrid-node", "docker") == (0, "active\nactive\n")
    # Nobody asks the metadata service for the token, and no copy of it is left.
    assert machines.run(on, "ip", "-4", "route", "get", "169.254.169.254")[0] != 0
    places = ("/etc", "/opt", "/root", "/run", "/tmp", "/var")
    held = machines.run(on, "grep", "-rlF", "--exclude-dir=docker", "--", token, *places)
    assert held == (1, ""), held
    assert machines.run(on, "cat", "/etc/rgrid/node.env")[1].count("RGRID_JOB_DENY=203.0.113.0/24") == 1
    assert machines.run(on, "docker", "info", "--format", "{{.LoggingDriver}} {{.LiveRestoreEnabled}}")[1] == "json-file false\n"
    rules = machines.run(on, "iptables-save", "-t", "mangle")[1]
    assert "203.0.113.0/24" not in rules  # no job has asked for a network yet
    written = machines.run(on, "cat", "/var/log/kernel-settings")[1]
    assert "sysctl --quiet --load=/etc/sysctl.d/90-rgrid.conf" in written and "swapoff --all" in written

    # A job with a network reaches neither the machine itself nor what the operator denied nor metadata.
    probes = "; ".join(
        f"nc -w 2 {address} {port} </dev/null && echo reached {address}"
        for address, port in ((machine.ipv4, 22), ("169.254.169.254", 80), ("203.0.113.7", 80), (machines.gateway, instance.port))
    )
    await instance.apply(shell("probe", image, job={"network": True}))
    probed = await instance.finished((await instance.invoke("probe", {"script": f"{probes}; true"}))["id"], 60)
    assert probed["status"] == "succeeded", (probed, machines.words(machines.running[on]))
    assert "reached" not in (await instance.api.get(f"/v1/jobs/{probed['id']}/logs")).text
    assert probed["node"] == node["id"]
    assert "203.0.113.0/24" in machines.run(on, "iptables-save", "-t", "mangle")[1]

    # The whole hour is used, and no more of it.
    cloud.clock.created_shift = -timedelta(minutes=45)  # time itself goes by the database's clock, too
    later = await instance.finished((await instance.invoke("hello", {"script": "echo hello >/out/hello.txt"}))["id"], 30)
    assert (later["status"], later["node"]) == ("succeeded", node["id"])
    cloud.clock.created_shift = -timedelta(minutes=57)

    async def gone() -> bool:
        return not machines.running and not cloud.cloud.servers

    await eventually(gone, 90)
    (line,) = [each for each in cloud.cloud.bill.lines if each.kind == "server"]
    assert line.hours(cloud.now) == 1
    assert (await instance.api.get("/v1/nodes")).json()["data"][0]["state"] == "gone"


async def later(instance: Instance, cloud: Emulator, by: timedelta) -> None:
    """Let so much time pass at the cloud. No scheduler would believe that of a clock: one that starts meanwhile goes by how
    far the clocks are apart."""
    instance.processes["scheduler"].stop()
    cloud.advance(by)
    conn = await asyncpg.connect(instance.database_url)
    await conn.execute("UPDATE fleet SET ahead = ahead + $1::interval", by)
    await conn.close()
    instance.start("scheduler")


async def test_what_keeps_a_server_from_becoming_a_node_is_told_to_its_operator(
    instance: Instance, cloud: Emulator, machines: ContainerMachines
) -> None:
    """Here its Docker is too old."""
    instance.add_process("scheduler", instance.server_env() | {"RGRID_NODE_ENFORCE_FLOORS": "1"})
    await instance.apply(shell("hello", await uploaded(instance, busybox_archive())))
    await instance.invoke("hello", {"script": "true"})

    async def told() -> str | None:
        nodes = (await instance.api.get("/v1/nodes")).json()["data"]
        if not nodes:
            return None
        events = (await instance.api.get(f"/v1/nodes/{nodes[0]['id']}/events")).json()["data"]
        return next((each["detail"] for each in events if each["type"] == "boot_trouble"), None)

    detail = await eventually(told, BOOT_S)
    assert re.search(r"this machine is not fit to run jobs: Docker 20\.10\S* is older", detail), detail
    assert _node_env(machines.ever[0].user_data)["RGRID_JOIN_TOKEN"] not in detail


def _node_env(user_data: str) -> dict[str, str]:
    (text,) = (file["content"] for file in yaml.safe_load(user_data)["write_files"] if file["path"].endswith("node.env"))
    return dict(line.split("=", 1) for line in text.splitlines())
