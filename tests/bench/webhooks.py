"""202s a second of one gateway process for signed webhooks, beside invoke.

Both keep what the client calls its request: GitHub's delivery id and an Idempotency-Key. The webhook verifies a signature
instead of a key, and keeps a receipt.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from functions.verifying import Event, Options, sign
from tests.bench.ingress import BODY, FUNCTION, SECONDS, run_load
from tests.bench.load import Load
from tests.bench.rounds import ROUNDS, Measured
from tests.e2e.instance import KEY, Instance
from tests.postgres import Postgres
from tests.s3 import S3Server

SECRET = "It's a Secret to Everybody"
HOOK = {"name": "github", "verify": "github", "secret": "HOOK"}


async def measure(folder: Path, postgres: Postgres, s3: S3Server) -> list[Measured]:
    """Requests a second and the p99 of their latency, with 16 and with 64 connections."""
    await postgres.execute("CREATE DATABASE bench_webhooks")
    instance = Instance(folder, postgres, s3, postgres.url("bench_webhooks"))
    # The usual rate of a webhook is far below what is measured here.
    instance.add_process("gateway", instance.server_env() | {"RGRID_WEBHOOK_RATE": "1000000"})
    try:
        await instance.ready()
        async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as client:
            url = f"http://127.0.0.1:{instance.port}/v1/secrets"
            (await client.post(url, json={"name": "HOOK", "value": SECRET})).raise_for_status()
        spec = {**FUNCTION["spec"], "triggers": {"webhooks": [HOOK]}}  # type: ignore[dict-item]
        await instance.apply({**FUNCTION, "spec": spec})
        return [each for connections in (16, 64) for each in await _rounds(instance, connections)]
    finally:
        await instance.close()


async def _rounds(instance: Instance, connections: int) -> list[Measured]:
    rate = Measured(f"202s with {connections} connections, one process", "requests/s")
    p99 = Measured(f"p99 of the same, {connections} connections", "ms")
    signed = sign("github", Event("", 0, BODY.encode(), ""), SECRET.encode(), Options())
    del signed["x-github-delivery"]
    parties = {
        "RGrid's invoke": ("/v1/functions/noop/invoke", {"Authorization": f"Bearer {KEY}"}, "Idempotency-Key"),
        "RGrid's webhook": ("/hooks/default/noop/github", signed, "X-GitHub-Delivery"),
    }
    for number in range(ROUNDS + 1):
        answers = {}
        for name, (path, headers, key_header) in parties.items():
            # The first round warms both up and is not counted.
            seconds = SECONDS if number else 1.0
            load = Load(instance.port, path, headers, BODY, connections, seconds, key_header)
            answers[name] = await run_load(load)
            assert answers[name].refused == 0, f"{name} refused {answers[name].refused} requests"
        if number:
            rate.rounds.append({name: answer.accepted_per_s for name, answer in answers.items()})
            p99.rounds.append({name: answer.p99_ms for name, answer in answers.items()})
    return [rate, p99]
