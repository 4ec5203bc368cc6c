"""Nodes that fall silent, come back too late, or leave: who may report, and how soon the job runs elsewhere."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests.chaos.conftest import HEARTBEAT_S, LEASE_S
from tests.e2e.instance import Instance, containers_below, eventually, instance_folder, running_instance
from tests.e2e.manifests import shell
from tests.postgres import Postgres
from tests.s3 import S3Server

pytestmark = [pytest.mark.docker, pytest.mark.chaos]

OUTPUT = {"path": "/out/done", "name": "done", "required": True}
LONG = os.environ.get("RGRID_CHAOS_LONG") == "1"


@pytest.fixture(scope="module")
async def pair(request: pytest.FixtureRequest, postgres: Postgres, s3_server: S3Server) -> AsyncIterator[Instance]:
    """Room for nodes that a test adds and loses: the first one has a single slot."""
    settings = {} if LONG else {"RGRID_LEASE_S": str(LEASE_S), "RGRID_HEARTBEAT_S": str(HEARTBEAT_S)}
    with instance_folder(request, "leases") as folder:
        async with running_instance(folder, postgres, s3_server, slots=1, settings=settings) as running:
            yield running


@pytest.fixture
async def doomed(pair: Instance, busybox: str, request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str]]:
    """(name of a node that runs a job, the job); no other node is there yet to take it."""
    await pair.apply(shell("watched", busybox, outputs=[OUTPUT]))
    name = f"node-{len(pair.processes)}"
    if pair.processes["node"].running is not None:
        pair.processes["node"].stop()
    await pair.add_node(name, slots=1)
    # That it has started is told with the next heartbeat: it must still run then.
    script = f'[ "$RGRID_ATTEMPT" = 2 ] || sleep {12 if LONG else 2}; echo "attempt $RGRID_ATTEMPT" > /out/done'
    job = await pair.invoke("watched", {"script": script})
    await pair.reaches(job["id"], "started")
    yield name, job["id"]
    process = pair.processes[name]
    if process.running is not None:
        process.signal(signal.SIGCONT)
        process.stop()


async def second_attempt(pair: Instance, job: str, since: float, event: str) -> float:
    """Seconds from ``since`` (wall clock) until the job was ready again. Lets another node finish it."""
    pair.start("node")
    ended = await pair.finished(job, 60)
    assert (ended["status"], ended["attempt"]) == ("succeeded", 2)
    lost = await pair.reaches(job, event)
    async with httpx.AsyncClient(trust_env=False) as browser:
        assert (await browser.get(ended["outputs"][0]["url"])).text == "attempt 2\n"
    return datetime.fromisoformat(lost["at"]).timestamp() - since


async def test_a_job_is_ready_again_soon_after_its_node_was_killed(pair: Instance, doomed: tuple[str, str]) -> None:
    name, job = doomed
    killed_s = time.time()
    pair.kill(name)
    took_s = await second_attempt(pair, job, killed_s, "node_lost")
    print(f"ready again {took_s:.1f} s after its node was killed")
    assert took_s <= (30 if LONG else LEASE_S + 3)


async def test_a_job_is_ready_again_at_once_when_its_node_leaves_in_order(
    pair: Instance, doomed: tuple[str, str]
) -> None:
    name, job = doomed
    asked_s = time.time()
    pair.processes[name].stop()
    took_s = await second_attempt(pair, job, asked_s, "node_drained")
    print(f"ready again {took_s:.1f} s after its node was asked to leave")
    assert took_s <= 2


async def test_a_node_that_was_paused_past_its_lease_is_refused_and_stops_its_container(
    pair: Instance, doomed: tuple[str, str]
) -> None:
    name, job = doomed
    process = pair.processes[name]
    token = held_token(pair.folder / name)
    credential = (pair.folder / name / "credential").read_text()
    process.signal(signal.SIGSTOP)
    await second_attempt(pair, job, time.time(), "node_lost")
    before = await pair.job(job)

    late = {"token": token, "status": "failed", "exit_code": 1}
    late["error"] = {"code": "exit_nonzero", "message": "too late"}
    async with httpx.AsyncClient(
        base_url=pair.url, headers={"Authorization": f"Bearer {credential}"}, trust_env=False
    ) as node:
        answer = await node.post(f"/node/v1/jobs/{job}/finish", json=late)
        upload = await node.post(f"/node/v1/jobs/{job}/outputs", json={"token": token, "files": []})
    assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
    assert (upload.status_code, upload.json()["code"]) == (409, "lease_lost")

    process.signal(signal.SIGCONT)

    async def gave_up() -> bool:
        return "lease is lost" in process.tail(200) and containers_below(pair.folder / name) == []

    await eventually(gave_up, 15)
    after = await pair.job(job)
    assert {**after, "outputs": None} == {**before, "outputs": None}
    assert [output["artifact"] for output in after["outputs"]] == [output["artifact"] for output in before["outputs"]]


async def test_a_job_that_lost_too_many_nodes_fails_with_node_lost(pair: Instance, doomed: tuple[str, str]) -> None:
    name, job = doomed
    scheduler = pair.processes["scheduler"]
    scheduler.stop()
    pair.add_process("scheduler", {**scheduler.env, "RGRID_MAX_LOSSES": "0"})
    try:
        pair.kill(name)
        ended = await pair.finished(job, 60)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "node_lost")
    finally:
        pair.processes["scheduler"].stop()
        pair.add_process("scheduler", scheduler.env)


def held_token(node_folder: Path) -> str:
    """The token of the one lease that the node notes in its folder."""
    [record] = (node_folder / "leases").glob("*.json")
    return str(json.loads(record.read_text())["lease"]["token"])
