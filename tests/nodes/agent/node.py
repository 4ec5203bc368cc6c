"""A node for tests: the agent's own parts in this process, on the machine's Docker, under the test gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx

from functions.egress import EgressPolicy
from nodes.agent.attempt import Tools
from nodes.agent.containers import Engine
from nodes.agent.gateway_client import CredentialRevoked, GatewayClient
from nodes.agent.holds import Holds
from nodes.agent.sandbox import JOB_LABEL
from nodes.agent.state import Records
from nodes.agent.worker import Worker
from nodes.agent.workspace import remove_leftovers
from tests.nodes.agent.gateway import Job, TestGateway


@dataclass
class Node:
    worker: Worker
    engine: Engine
    records: Records
    work: Path
    task: asyncio.Task[None]

    def residue(self) -> list[str]:
        """What a node that holds nothing must not have."""
        return mounts_below(self.work) + [each.name for each in self.work.iterdir()]

    async def drained(self, within_s: float = 20) -> None:
        self.worker.drain()
        async with asyncio.timeout(within_s):
            await self.task


@asynccontextmanager
async def node(
    gateway: TestGateway,
    folder: Path,
    *,
    slots: int = 2,
    drain_s: float = 20,
    leave_on_exit: bool = False,
    allow: tuple[str, ...] = ("127.0.0.1",),
    images_bytes: int | None = None,
) -> AsyncIterator[Node]:
    """Running, and drained at the end unless the test has ended it."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    engine = await Engine.open(f"test-{folder.name}", images_bytes=images_bytes)
    client, records = GatewayClient(gateway.url, gateway.credential()), Records(folder / "leases")
    try:
        async with httpx.AsyncClient(trust_env=False) as storage:
            tools = Tools(engine, client, Holds(), records, work, EgressPolicy(allow=allow), storage)
            worker = Worker(
                tools,
                slots=slots,
                heartbeat_s=gateway.heartbeat_s,
                lease_s=gateway.lease_s,
                drain_s=drain_s,
                leave_on_exit=leave_on_exit,
            )
            made = Node(worker, engine, records, work, asyncio.create_task(worker.run()))
            yield made
            worker.hurry()
            with suppress(CredentialRevoked):
                async with asyncio.timeout(20):
                    await made.task
            assert made.residue() == []
            assert await engine.find() == []
            assert records.load() == []
    finally:
        # After a failed test as well: a mount that stays breaks whoever tidies up the folder.
        for found in await engine.find():
            await engine.remove(found.container_id)
        remove_leftovers(work, [])
        await client.aclose()
        await engine.aclose()


def mounts_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {folder}/" in line]


def container_of(job: Job) -> str | None:
    """The id of the job's container; None if it has none. Another process may be its agent."""
    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": f"{JOB_LABEL}={job.lease.job_id}"})
        return str(found[0]["Id"]) if found else None
    finally:
        client.close()


def clear(gateway: TestGateway, folder: Path) -> None:
    """Take away what an agent that was killed left, after a test that may have failed."""
    client = docker.from_env()
    try:
        for job in gateway.jobs.values():
            for each in client.containers.list(all=True, filters={"label": f"{JOB_LABEL}={job.lease.job_id}"}):
                each.remove(force=True)
    finally:
        client.close()
    if (folder / "work").is_dir():
        remove_leftovers(folder / "work", [])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
