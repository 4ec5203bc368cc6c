"""A whole RGrid in real processes: PostgreSQL, S3, gateway, scheduler and nodes, each to be stopped, killed or paused.

Each is started as ``rgrid up`` starts it: ``python -P -m gateway.cli.running``, its settings in the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet

from nodes.registry import mint_join_token
from tests.postgres import Postgres, free_port
from tests.s3 import S3Server

KEY = "bootstrap-key-for-tests-only"
START_S = 30
STOP_S = 25
TERMINAL = frozenset({"succeeded", "failed", "timed_out", "cancelled", "expired"})
Json = dict[str, Any]


async def eventually(check: Callable[[], Awaitable[Any]], within_s: float = 20, every_s: float = 0.05) -> Any:
    """The first true answer of ``check``."""
    deadline = time.monotonic() + within_s
    while not (answer := await check()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(every_s)
    return answer


@dataclass
class Process:
    """One of our processes. Its log is appended to, so that it holds all of its lives."""

    name: str
    env: Mapping[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None

    @property
    def _kind(self) -> str:
        return self.name.split("-")[0]

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def start(self) -> None:
        # setpriv: nothing outlives a test run that is killed.
        command = ["setpriv", "--pdeathsig", "KILL", "--"]
        command += [sys.executable, "-P", "-m", "gateway.cli.running", self._kind]
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                command, env=dict(self.env), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> float:
        """SIGTERM; seconds that the end took. Fails if it does not come, or not in order."""
        began_s = time.monotonic()
        self.signal(signal.SIGTERM)
        status = self.wait()
        assert status == 0, f"{self.name} ended with status {status}: {self.tail()}"
        return time.monotonic() - began_s

    def wait(self) -> int:
        assert self.running is not None
        status = self.running.wait(STOP_S)
        self.running = None
        return status

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


@dataclass
class Instance:
    """Use ``running_instance``. ``kill`` and ``start`` take the names postgres, s3, gateway, scheduler and node."""

    folder: Path
    postgres: Postgres
    s3: S3Server
    database_url: str
    settings: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    secret_key: str = field(default_factory=lambda: Fernet.generate_key().decode())
    _client: httpx.AsyncClient | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> httpx.AsyncClient:
        """An admin of project default."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
            )
        return self._client

    # Processes

    async def start_all(self, *, slots: int) -> None:
        self.add_process("gateway", self.server_env())
        await self.ready()
        # Only now, since the gateway brings the schema up to date.
        self.add_process("scheduler", self.server_env())
        await self.add_node("node", slots=slots)

    def add_process(self, name: str, env: Mapping[str, str]) -> Process:
        process = self.processes[name] = Process(name, env, self.folder / f"{name}.log")
        process.start()
        return process

    async def add_node(self, name: str, *, slots: int) -> Process:
        """A node that has joined; it begins with ``node`` and may have a suffix (``node-2``)."""
        conn = await asyncpg.connect(self.database_url)
        try:
            minted = await mint_join_token(
                conn, name=name, provider="local", slots=slots, account_id=None, ttl=timedelta(minutes=10)
            )
        finally:
            await conn.close()
        env = clean_env() | {
            "RGRID_GATEWAY_URL": self.url,
            "RGRID_NODE_DIR": str(self.folder / name),
            "RGRID_NODE_NAME": name,
            "RGRID_SLOTS": str(slots),
            "RGRID_DRAIN_S": self.settings.get("RGRID_DRAIN_S", "0"),
            "RGRID_JOIN_TOKEN": minted.token,
            "RGRID_INPUT_ALLOW": "127.0.0.1/32",
            "RGRID_JOB_ALLOW": f"{docker_bridge()}/32",
        }
        process = self.add_process(name, env)
        await self.node_state(name, "ready")
        return process

    async def ready(self) -> None:
        async def answers() -> bool:
            gateway = self.processes["gateway"].running
            assert gateway is None or gateway.poll() is None, f"the gateway ended: {self.processes['gateway'].tail()}"
            try:
                return (await self.api.get("/readyz", timeout=5)).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers, START_S)

    async def node(self, name: str) -> Json | None:
        answer = await self.api.get("/v1/nodes")
        assert answer.status_code == 200, answer.text
        return next((node for node in answer.json()["data"] if node["name"] == name), None)

    async def node_state(self, name: str, state: str, within_s: float = START_S) -> Json:
        async def reached() -> Json | None:
            running = self.processes[name].running
            assert running is None or running.poll() is None, f"{name} ended: {self.processes[name].tail()}"
            node = await self.node(name)
            return node if node is not None and node["state"] == state else None

        found: Json = await eventually(reached, within_s)
        return found

    def kill(self, name: str) -> None:
        """kill -9."""
        if name == "postgres":
            self.postgres.kill()
        elif name == "s3":
            self.s3.stop(signal.SIGKILL)
        else:
            self.processes[name].kill()

    def start(self, name: str) -> None:
        """Start again what was killed or stopped."""
        if name == "postgres":
            self._start_postgres()
        elif name == "s3":
            self.s3.start()
        else:
            self.processes[name].start()

    def _start_postgres(self) -> None:
        # The backends of a killed server see the death of their parent and go. A new one refuses to start while they
        # hold the shared memory, which outlives all else that can be seen of them.
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                self.postgres.start()
            except subprocess.CalledProcessError:
                assert time.monotonic() < deadline, (self.postgres.folder / "log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return

    def server_env(self) -> dict[str, str]:
        store = self.s3.config()
        return clean_env() | {
            "RGRID_DATABASE_URL": self.database_url,
            "RGRID_S3_ENDPOINT": store.endpoint,
            "RGRID_S3_BUCKET": f"b-{self.port}",
            "RGRID_S3_ACCESS_KEY_ID": store.access_key_id,
            "RGRID_S3_SECRET_ACCESS_KEY": store.secret_access_key,
            "RGRID_SECRET_KEY": self.secret_key,
            "RGRID_BOOTSTRAP_KEY": KEY,
            "RGRID_PORT": str(self.port),
            "RGRID_MIGRATE_AT_START": "1",
            "RGRID_CALLBACK_ALLOW": "127.0.0.1/32",
            "RGRID_MAX_SLOTS": "64",
            **self.settings,
        }

    async def close(self) -> None:
        """End everything; containers and mounts of nodes that were killed go, too."""
        if self._client is not None:
            await self._client.aclose()
        for name in sorted(self.processes, key=lambda name: not name.startswith("node")):
            process = self.processes[name]
            if process.running is not None and process.running.poll() is None:
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGTERM)
                try:
                    process.wait()
                except subprocess.TimeoutExpired:
                    process.kill()
        remove_leftovers(self.folder)

    # Users

    async def apply(self, manifest: Json) -> Json:
        answer = await self.api.put(f"/v1/functions/{manifest['metadata']['name']}", json=manifest)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def invoke(self, name: str, params: Json | None = None, **headers: str) -> Json:
        """Header names with ``_`` for ``-``."""
        given = {header.replace("_", "-"): value for header, value in headers.items()}
        answer = await self.api.post(f"/v1/functions/{name}/invoke", json=params or {}, headers=given)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def job(self, job_id: str) -> Json:
        answer = await self.api.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def finished(self, job_id: str, within_s: float = 60) -> Json:
        """The job once it has an outcome. Asks again while the gateway or its database is away."""
        deadline = time.monotonic() + within_s
        job: Json = {}
        while time.monotonic() < deadline:
            try:
                answer = await self.api.get(f"/v1/jobs/{job_id}", params={"wait": "10"})
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code == 503:
                await asyncio.sleep(0.1)
                continue
            assert answer.status_code == 200, answer.text
            job = answer.json()
            if job["status"] in TERMINAL:
                return job
        raise AssertionError(f"{job_id} has no outcome after {within_s} s: {job}")

    async def reaches(self, job_id: str, event: str, within_s: float = 30) -> Json:
        """The job's first event of this type, once it is there."""
        events: list[Json] = []

        async def reached() -> Json | None:
            events[:] = await self.events(job_id)
            return next((found for found in events if found["type"] == event), None)

        try:
            found: Json = await eventually(reached, within_s)
        except AssertionError:
            raise AssertionError(f"{job_id} has no {event} after {within_s} s: {events}") from None
        return found

    async def events(self, job_id: str) -> list[Json]:
        answer = await self.api.get(f"/v1/jobs/{job_id}/events")
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]  # type: ignore[no-any-return]


@asynccontextmanager
async def running_instance(
    folder: Path, postgres: Postgres, s3: S3Server, *, slots: int, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Instance]:
    """``folder`` is where logs and the nodes' files go. PostgreSQL and S3 are running, and stay so."""
    database = f"e_{folder.name.replace('-', '_').lower()}"
    await postgres.execute(f"CREATE DATABASE {database}")
    instance = Instance(folder, postgres, s3, postgres.url(database), settings or {})
    try:
        await instance.start_all(slots=slots)
        yield instance
    finally:
        await instance.close()
        await postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")


@contextmanager
def instance_folder(request: pytest.FixtureRequest, name: str) -> Iterator[Path]:
    """A folder that goes at the end, unless a test failed meanwhile: then its logs stay."""
    folder = Path(tempfile.mkdtemp(prefix=f"rgrid-{name}-"))
    failed_before = request.session.testsfailed
    try:
        yield folder
    finally:
        if request.session.testsfailed == failed_before:
            shutil.rmtree(folder)
        else:
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)


def remove_leftovers(folder: Path) -> None:
    """What a node that was killed could not remove: its containers and the mounts below ``folder``."""
    for container in containers_below(folder):
        subprocess.run(["docker", "rm", "-f", "-v", container], capture_output=True, check=False)
    for mount in mounts_below(folder):
        subprocess.run(["umount", "-l", mount], check=True)


def mounts_below(folder: Path) -> list[str]:
    """Mount points below ``folder``, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def containers_below(folder: Path) -> list[str]:
    """Ids of containers, running or not, with a bind mount from below ``folder``."""
    if shutil.which("docker") is None:
        return []
    listed = subprocess.run(["docker", "ps", "-aq"], capture_output=True, text=True, check=True).stdout.split()
    if not listed:
        return []
    # A container that goes meanwhile is missing in the answer, which is what is wanted.
    shown = subprocess.run(["docker", "inspect", *listed], capture_output=True, text=True, check=False)
    return [
        found["Id"]
        for found in json.loads(shown.stdout or "[]")
        if any(mount.get("Source", "").startswith(f"{folder}/") for mount in found["Mounts"])
    ]


@cache
def docker_bridge() -> str:
    """This machine's address for containers."""
    shown = subprocess.run(["ip", "-4", "-o", "addr", "show", "docker0"], check=True, capture_output=True, text=True)
    return shown.stdout.split(" inet ")[1].split("/")[0]


def clean_env() -> dict[str, str]:
    """The environment without any setting of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RGRID_")} | {
        "PYTHONDONTWRITEBYTECODE": "1"
    }

