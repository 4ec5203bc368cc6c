"""kill -9 of each process while 20 jobs run: nothing is lost, nothing ends twice, every outcome is told."""

from __future__ import annotations

import asyncio

import asyncpg
import httpx
import pytest

from tests.chaos.conftest import SLOTS
from tests.e2e.instance import Instance, Json, containers_below, eventually, mounts_below
from tests.e2e.manifests import shell
from tests.e2e.receiver import Receiver
from tests.nodes.agent.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.chaos]

OUTPUT = {"path": "/out/done", "name": "done", "required": True}
SCRIPT = 'sleep 6; echo "$RGRID_JOB_ID" > /out/done'
DOWN_S = {"gateway": 1.0, "scheduler": 2.0, "node": 1.0, "postgres": 1.0, "s3": 4.0}
"""S3 is away for long enough that jobs end meanwhile and cannot bring their files there."""

UNFINISHED = """
SELECT (SELECT count(*) FROM ready_jobs) + (SELECT count(*) FROM waiting_jobs) + (SELECT count(*) FROM leases)
"""


@pytest.mark.parametrize("victim", DOWN_S)
async def test_kill_9_while_20_jobs_run_leaves_each_with_one_outcome_told_under_one_id(
    fragile: Instance, busybox: str, receiver: Receiver, victim: str
) -> None:
    await fragile.apply(shell("steady", busybox, outputs=[OUTPUT]))
    jobs = [
        (await fragile.invoke("steady", {"script": SCRIPT}, X_Callback_Url=receiver.callback_url))["id"]
        for _ in range(SLOTS)
    ]
    await eventually(lambda: all_running(fragile, jobs))

    fragile.kill(victim)
    await asyncio.sleep(DOWN_S[victim])  # how long it is away, which is the fault
    fragile.start(victim)

    ended = {job: await fragile.finished(job, 90) for job in jobs}
    assert {job["status"] for job in ended.values()} == {"succeeded"}, ended
    async with httpx.AsyncClient(trust_env=False) as browser:
        for job in ended.values():
            [output] = job["outputs"]
            assert (await browser.get(output["url"])).text == f"{job['id']}\n"
    await until(lambda: len(receiver.ledger()) == SLOTS, within_s=60)
    for told in receiver.ledger().values():
        assert list(told.values()) == [{"job.succeeded succeeded"}]
    conn = await asyncpg.connect(fragile.database_url)
    try:
        assert await conn.fetchval(UNFINISHED) == 0
    finally:
        await conn.close()
    await eventually(lambda: nothing_left(fragile), 15)


async def all_running(instance: Instance, jobs: list[str]) -> bool:
    running = (await instance.api.get("/v1/jobs", params={"status": "running", "limit": 100})).json()["data"]
    return {job["id"] for job in running if job["started_at"]} >= set(jobs)


async def nothing_left(instance: Instance) -> bool:
    return containers_below(instance.folder) == [] and mounts_below(instance.folder) == []


async def test_requests_repeated_over_a_killed_gateway_make_one_job_each(fragile: Instance, busybox: str) -> None:
    await fragile.apply(shell("once", busybox))
    answered: dict[str, str] = {}

    async def submit(key: str) -> None:
        headers = {"Idempotency-Key": key, "RGrid-Delay": "1h"}
        while key not in answered:
            try:
                answer = await fragile.api.post("/v1/functions/once/invoke", json={"script": "true"}, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            assert answer.status_code in (202, 503), answer.text
            if answer.status_code == 202:
                answered[key] = answer.json()["id"]

    async def kill_in_the_middle() -> None:
        await until(lambda: len(answered) >= 50)
        fragile.kill("gateway")
        fragile.start("gateway")

    async def client(own: int) -> None:
        for number in range(own, 400, 8):
            await submit(f"key-{number}")

    await asyncio.gather(kill_in_the_middle(), *(client(own) for own in range(8)))
    waiting: list[Json] = []
    query: dict[str, str] = {"function": "once", "limit": "100"}
    while True:
        page = (await fragile.api.get("/v1/jobs", params=query)).json()
        waiting += page["data"]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert {job["id"] for job in waiting} == set(answered.values())
    assert len(waiting) == 400
    assert (await fragile.api.delete("/v1/functions/once")).status_code == 204
