"""Leases and folders for tests of containers, and one call that runs a job's container from end to end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from nodes.agent.containers import Engine, Exited, Folders
from nodes.protocol import Image, JobLease, Resources

MIB = 1024 * 1024


def lease(
    command: list[str] | None = None,
    *,
    cpu: float = 1,
    memory: int = 64 * MIB,
    disk: int = 32 * MIB,
    **fields: Any,
) -> JobLease:
    values: dict[str, Any] = {
        "job_id": f"job_{uuid4().hex}",
        "token": uuid4().hex,
        "attempt": 1,
        "slots": 1,
        "function": "probe",
        "version": 3,
        "image": Image(reference="unused"),
        "command": command,
        "resources": Resources(cpu=cpu, memory_bytes=memory, disk_bytes=disk),
        "params": "{}",
        "timeout_s": 30,
        "grace_s": 1,
        "user": 65532,
    }
    return JobLease(**(values | fields))


def shell(script: str, **fields: Any) -> JobLease:
    return lease(["/bin/sh", "-c", script], **fields)


@dataclass(frozen=True)
class PlainFolders:
    """/in and /out as plain directories, for tests that are not about what limits them."""

    in_dir: Path
    out_dir: Path

    @classmethod
    def below(cls, path: Path) -> PlainFolders:
        made = cls(path / "in", path / "out")
        made.in_dir.mkdir(parents=True)
        made.out_dir.mkdir()
        made.out_dir.chmod(0o777)
        return made


@dataclass
class Ran:
    exited: Exited
    output: str
    inspected: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> int:
        return self.exited.code


async def run(engine: Engine, image_id: str, job: JobLease, folders: Folders, within_s: float = 60) -> Ran:
    """As an attempt does it; leaves nothing behind."""
    async with asyncio.timeout(within_s):
        container = await engine.create(job, image_id, folders)
        try:
            source = await engine.attach(container)
            reading = asyncio.create_task(_read(source))
            await engine.start(container)
            exited = await engine.wait(container)
            return Ran(exited, (await reading).decode(errors="replace"))
        finally:
            await engine.remove(container)


async def _read(source: Any) -> bytes:
    return b"".join([chunk async for chunk in source])
