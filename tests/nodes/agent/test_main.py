"""The agent as a process: how it starts, joins, is told to stop, is killed, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import docker
import pytest

from nodes.agent import heartbeat as heartbeat_module
from nodes.agent import main as main_module
from nodes.agent import workspace as workspace_module
from nodes.agent.config import AgentConfig
from nodes.agent.identity import NodeFolder
from nodes.agent.logs import GAP
from nodes.agent.main import run
from nodes.protocol import Output
from tests.images.build import busybox
from tests.nodes.agent.gateway import Job, TestGateway
from tests.nodes.agent.node import clear, container_of, mounts_below
from tests.nodes.agent.waiting import until

pytestmark = pytest.mark.docker

TOKEN = "join-" + "t" * 32
FOREVER = "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done"
UNTIL_TOLD = "echo begun; until [ -e /out/go ]; do sleep 0.05; done; echo told; echo done > /out/x"


@pytest.fixture(autouse=True)
def prepared(gateway: TestGateway, tmp_path: Path) -> Iterator[None]:
    gateway.lease_s = 15.0
    gateway.join_tokens[TOKEN] = None
    yield
    clear(gateway, tmp_path)


def shell(gateway: TestGateway, script: str, **fields: object) -> Job:
    return gateway.add(busybox(), "/bin/sh", "-c", script, **fields)  # type: ignore[arg-type]


def settings(gateway: TestGateway, folder: Path, **fields: object) -> AgentConfig:
    values = {"gateway_url": gateway.url, "node_dir": folder, "slots": 2, "join_token": TOKEN, "name": "n1"}
    return AgentConfig(**values | fields)  # type: ignore[arg-type]


class InProcess:
    """``stop`` does what a signal does."""

    def __init__(self, config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def signals(stop: Callable[[], object]) -> Iterator[None]:
            self.stop = stop
            yield

        monkeypatch.setattr(main_module, "_signals", signals)
        self.task = asyncio.create_task(run(config))

    async def status(self, within_s: float = 20) -> int:
        async with asyncio.timeout(within_s):
            return await self.task


async def one_line(
    gateway: TestGateway, folder: Path, capsys: pytest.CaptureFixture[str], **fields: object
) -> str:
    """What an agent says that cannot work."""
    async with asyncio.timeout(20):
        assert await run(settings(gateway, folder, **fields)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


async def test_a_node_joins_once_and_is_known_after_that(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in (TOKEN, None):
        agent = InProcess(settings(gateway, tmp_path, join_token=token), monkeypatch)
        job = shell(gateway, "true")
        await until(lambda job=job: job.state == "succeeded")  # type: ignore[misc]
        agent.stop()
        assert await agent.status() == 0
    (join,) = gateway.joins
    assert (join.slots, join.facts["name"], gateway.left) == (2, "n1", 0)
    assert {"docker", "runc", "kernel", "cgroup", "memory_bytes", "warnings"} <= set(join.facts)


async def test_a_node_that_leaves_for_good_forgets_who_it_was(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = InProcess(settings(gateway, tmp_path, leave_on_exit=True), monkeypatch)
    await until(lambda: gateway.polling)
    agent.stop()
    assert await agent.status() == 0
    assert gateway.left == 1
    assert not (tmp_path / "credential").exists()


async def test_a_second_signal_hands_back_at_once(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = InProcess(settings(gateway, tmp_path, drain_s=3600), monkeypatch)
    job = shell(gateway, FOREVER)
    await until(lambda: b"begun" in job.log)
    agent.stop()
    await until(lambda: not gateway.polling)
    assert job.state == "leased"
    agent.stop()
    assert await agent.status(10) == 0
    assert (job.state, job.released) == ("queued", 1)


async def test_a_signal_before_the_gateway_answers_ends_the_wait(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def refuse(path: str) -> None:
        loop.call_soon_threadsafe(asked.set)
        raise RuntimeError("no answer")

    gateway.before = refuse  # type: ignore[assignment]
    agent = InProcess(settings(gateway, tmp_path), monkeypatch)
    await asked.wait()
    agent.stop()
    assert await agent.status(5) == 0


async def test_a_node_that_was_struck_off_joins_again_with_a_token(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "IDLE_S", 0.1)
    agent = InProcess(settings(gateway, tmp_path), monkeypatch)
    await until(lambda: gateway.polling)
    gateway.credentials.clear()
    gateway.join_tokens[TOKEN] = None
    await until(lambda: len(gateway.joins) == 2)
    job = shell(gateway, "true")
    await until(lambda: job.state == "succeeded")
    agent.stop()
    assert await agent.status() == 0
    first, second = gateway.joins
    assert first.credential_sha256 != second.credential_sha256


async def test_a_node_that_was_struck_off_says_so_without_one(
    gateway: TestGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent = InProcess(settings(gateway, tmp_path), monkeypatch)
    await until(lambda: gateway.polling)
    agent.stop()
    await agent.status()
    gateway.credentials.clear()
    assert "RGRID_JOIN_TOKEN" in await one_line(gateway, tmp_path, capsys, join_token=None)


async def test_a_folder_that_belongs_to_no_node_needs_a_token(
    gateway: TestGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "RGRID_JOIN_TOKEN" in await one_line(gateway, tmp_path, capsys, join_token=None)


async def test_a_token_that_is_not_taken_is_said_in_one_line(
    gateway: TestGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = await one_line(gateway, tmp_path, capsys, join_token="x" * 32)
    assert "did not let this node join: join_token_invalid" in line


async def test_a_gateway_that_is_not_there_is_said_in_one_line(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main_module, "JOIN_S", 0.3)
    line = await one_line(gateway, tmp_path, capsys, gateway_url="http://127.0.0.1:1")
    assert "http://127.0.0.1:1 does not answer" in line


async def test_two_agents_with_one_folder_are_told_apart(
    gateway: TestGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = NodeFolder(tmp_path)
    assert "another agent" in await one_line(gateway, tmp_path, capsys)
    taken.close()


async def test_what_a_machine_lacks_is_said_in_one_line(
    gateway: TestGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert "cannot be used" in await one_line(gateway, tmp_path / "file", capsys)
    folder = tmp_path / "node"
    assert "Docker" in await one_line(gateway, folder, capsys, docker_host="unix:///nowhere.sock")
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 1000)
        assert "root" in await one_line(gateway, folder, capsys)
    with monkeypatch.context() as patched:
        patched.setattr(main_module, "mkfs", lambda: None)
        assert "e2fsprogs" in await one_line(gateway, folder, capsys)
    with monkeypatch.context() as patched:
        patched.setattr(workspace_module, "mount_image", _refuse)
        assert "Operation not permitted" in await one_line(gateway, folder, capsys)
    with monkeypatch.context() as patched:
        patched.setattr(main_module, "below_floors", lambda facts: ["Docker is too old", "swap is on"])
        line = await one_line(gateway, folder, capsys, enforce_floors=True)
        assert "Docker is too old; swap is on" in line
    assert gateway.joins == []


def _refuse(*args: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@asynccontextmanager
async def process(gateway: TestGateway, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environ = {
        "PATH": os.environ["PATH"],
        "RGRID_GATEWAY_URL": gateway.url,
        "RGRID_JOIN_TOKEN": TOKEN,
        "RGRID_NODE_DIR": str(folder),
        "RGRID_SLOTS": "2",
        "RGRID_DRAIN_S": "0",
    }
    with (folder / "log").open("ab") as log:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli.running", "node", env=environ, stdout=log, stderr=log
        )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.terminate()
        async with asyncio.timeout(20):
            assert await started.wait() in (0, -signal.SIGKILL), (folder / "log").read_text()


async def killed(agent: asyncio.subprocess.Process) -> None:
    agent.kill()
    await agent.wait()


def tell(folder: Path, job: Job) -> None:
    (folder / "work" / f"{job.lease.job_id}.{job.attempt}" / "job" / "out" / "go").touch()


async def test_an_agent_that_was_killed_goes_on_with_its_running_jobs(gateway: TestGateway, tmp_path: Path) -> None:
    job = shell(gateway, UNTIL_TOLD, outputs=[Output(path="/out/x", name="x", required=True)])
    async with process(gateway, tmp_path) as first:
        await until(lambda: b"begun" in job.log)
        container = container_of(job)
        await killed(first)
    async with process(gateway, tmp_path):
        await until(lambda: GAP in job.log)
        assert container_of(job) == container
        tell(tmp_path, job)
        await until(lambda: job.report is not None)
    assert job.report is not None
    assert (job.state, job.attempt, job.released) == ("succeeded", 1, 0)
    assert gateway.store[job.report.artifacts[0]] == b"done\n"
    assert job.log == b"begun\n" + GAP + b"told\n"
    assert (container_of(job), mounts_below(tmp_path), list((tmp_path / "work").iterdir())) == (None, [], [])


async def test_a_job_that_ended_without_its_agent_is_reported_by_the_next(gateway: TestGateway, tmp_path: Path) -> None:
    job = shell(gateway, UNTIL_TOLD, outputs=[Output(path="/out/x", name="x", required=True)])
    async with process(gateway, tmp_path) as first:
        await until(lambda: b"begun" in job.log)
        await killed(first)
    tell(tmp_path, job)
    client = docker.from_env()
    await asyncio.to_thread(client.api.wait, container_of(job))
    client.close()
    async with process(gateway, tmp_path):
        await until(lambda: job.report is not None)
    assert job.report is not None
    assert (job.state, job.attempt) == ("succeeded", 1)
    assert gateway.store[job.report.artifacts[0]] == b"done\n"


async def test_an_agent_that_was_killed_goes_on_masking_secrets(gateway: TestGateway, tmp_path: Path) -> None:
    job = shell(gateway, "while :; do echo $TOKEN; sleep 0.1; done", secrets={"TOKEN": "hunter22-token"})
    async with process(gateway, tmp_path) as first:
        await until(lambda: b"***" in job.log)
        await killed(first)
    async with process(gateway, tmp_path):
        await until(lambda: b"***" in job.log.partition(GAP)[2], 20)
        job.cancel = True
        await until(lambda: job.report is not None)
    assert b"hunter22" not in job.log


async def test_what_a_killed_agent_lost_meanwhile_is_stopped_and_cleared(gateway: TestGateway, tmp_path: Path) -> None:
    lost, unknown = shell(gateway, FOREVER), shell(gateway, FOREVER)
    async with process(gateway, tmp_path) as first:
        await until(lambda: b"begun" in lost.log and b"begun" in unknown.log)
        await killed(first)
    gateway.draining = True
    lost.enter("cancelled")
    unknown.enter("cancelled")
    (tmp_path / "leases" / f"{unknown.lease.job_id}.1.json").unlink()
    async with process(gateway, tmp_path) as second:
        async with asyncio.timeout(20):
            assert await second.wait() == 0
    assert (container_of(lost), container_of(unknown), mounts_below(tmp_path)) == (None, None, [])
    assert list((tmp_path / "work").iterdir()) == list((tmp_path / "leases").iterdir()) == []


async def test_sigterm_hands_back_what_runs_and_leaves_nothing(gateway: TestGateway, tmp_path: Path) -> None:
    job = shell(gateway, FOREVER)
    async with process(gateway, tmp_path) as agent:
        await until(lambda: b"begun" in job.log)
        gateway.draining = True
        agent.terminate()
        async with asyncio.timeout(10):
            assert await agent.wait() == 0
    assert (job.state, job.released) == ("queued", 1)
    assert (container_of(job), mounts_below(tmp_path), list((tmp_path / "work").iterdir())) == (None, [], [])
