"""202s a second of one gateway process, beside a plain Starlette application with one INSERT.

On one durable PostgreSQL; each 202 comes after the commit, on both sides. RGrid's invoke looks up the key, checks the
params against the function's schema, keeps an idempotency key and puts the job into the queue.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx

from tests.bench.load import Answered, Load
from tests.bench.rounds import ROUNDS, Measured
from tests.e2e.instance import KEY, Instance, eventually
from tests.postgres import Postgres, free_port
from tests.s3 import S3Server

SECONDS = 4.0
BODY = json.dumps({"text": "x" * 270})
FUNCTION = {
    "apiVersion": "rgrid/v1",
    "kind": "Function",
    "metadata": {"name": "noop"},
    "spec": {
        "params": {
            "type": "object",
            "required": ["text"],
            "properties": {
                "text": {"type": "string", "maxLength": 1000},
                "width": {"type": "integer", "default": 320, "minimum": 16, "maximum": 4096},
            },
        },
        "job": {"image": "noop:1", "command": ["/bin/true", "{{ params.text }}"]},
    },
}


async def measure(folder: Path, postgres: Postgres, s3: S3Server) -> list[Measured]:
    """Requests a second and the p99 of their latency, with 16 and with 64 connections."""
    await postgres.execute("CREATE DATABASE bench_ingress")
    await postgres.execute("CREATE DATABASE bench_plain")
    instance = Instance(folder, postgres, s3, postgres.url("bench_ingress"))
    instance.add_process("gateway", instance.server_env())
    plain_port = free_port()
    try:
        await instance.ready()
        await instance.apply(FUNCTION)
        with plain_app(postgres.url("bench_plain"), plain_port, folder / "plain.log"):
            await eventually(lambda: listens(plain_port))
            return [each for connections in (16, 64) for each in await _rounds(instance, plain_port, connections)]
    finally:
        await instance.close()


async def _rounds(instance: Instance, plain_port: int, connections: int) -> list[Measured]:
    rate = Measured(f"202s with {connections} connections, one process", "requests/s")
    p99 = Measured(f"p99 of the same, {connections} connections", "ms")
    parties = {
        "plain Starlette + INSERT": ("/runs", plain_port, {"Authorization": "Bearer plain-key"}, None),
        "RGrid's invoke": (
            "/v1/functions/noop/invoke", instance.port, {"Authorization": f"Bearer {KEY}"}, "Idempotency-Key",
        ),
    }  # fmt: skip
    for number in range(ROUNDS + 1):
        answers = {}
        for name, (path, port, headers, key_header) in parties.items():
            # The first round warms both up and is not counted.
            seconds = SECONDS if number else 1.0
            answers[name] = await run_load(Load(port, path, headers, BODY, connections, seconds, key_header))
            assert answers[name].refused == 0, f"{name} refused {answers[name].refused} requests"
        if number:
            rate.rounds.append({name: answer.accepted_per_s for name, answer in answers.items()})
            p99.rounds.append({name: answer.p99_ms for name, answer in answers.items()})
    return [rate, p99]


async def run_load(load: Load) -> Answered:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load", json.dumps(asdict(load)), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return Answered(**json.loads(output))


@contextmanager
def plain_app(database_url: str, port: int, log: Path) -> Iterator[None]:
    env = {**os.environ, "DATABASE_URL": database_url, "PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.plain_app"], env=env, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


async def listens(port: int) -> bool:
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{port}/")
    except httpx.TransportError:
        return False
    return True
