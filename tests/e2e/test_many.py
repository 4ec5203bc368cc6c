"""500 jobs from 8 clients at once, half of them failing in every way: each ends once, and as it should."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.instance import TERMINAL, Instance, Json
from tests.e2e.manifests import SPARSE, shell
from tests.e2e.receiver import Receiver
from tests.e2e.test_errors import MISSING_IMAGE, OUTPUT
from tests.nodes.agent.waiting import until

pytestmark = pytest.mark.docker

JOBS, CLIENTS = 500, 8
WITHIN_S = 240


@dataclass(frozen=True)
class Kind:
    """One way to end. ``code`` None: without an error."""

    function: str
    params: Json
    status: str
    code: str | None
    headers: dict[str, str] = field(default_factory=dict)


@pytest.fixture
async def kinds(instance: Instance, busybox: str, receiver: Receiver) -> list[Kind]:
    """Functions of every kind, applied. The second half fails; kinds that need no container are cheap here."""
    fetching = shell("m-fetches", busybox, job={"files": {"inputs": [{"path": "/in/x", "url": "{{ params.url }}"}]}})
    fetching["spec"]["params"]["properties"]["url"] = {"type": "string"}
    retrying = {"attempts": 2, "on": ["error"], "backoff": {"initial": "1s", "factor": 1, "max": "1s"}}
    for manifest in (
        shell("m-sh", busybox),
        shell("m-output", busybox, outputs=[OUTPUT]),
        shell("m-sparse", busybox, outputs=[{"path": "/out/*.bin", "name": "all"}]),
        shell("m-times-out", busybox, job={"timeout": "1s", "grace": "0s"}),
        shell("m-unpulled", MISSING_IMAGE),
        shell("m-retries", busybox, retry=retrying),
        fetching,
    ):
        await instance.apply(manifest)
    receiver.files["there"] = b"input"
    link = "ln -s /etc/passwd /out/result.bin"
    return [
        Kind("m-sh", {"script": "true"}, "succeeded", None),
        Kind("m-output", {"script": "echo done > /out/result.bin"}, "succeeded", None),
        Kind("m-fetches", {"script": "cat /in/x", "url": receiver.file_url("there")}, "succeeded", None),
        Kind("m-retries", {"script": '[ "$RGRID_ATTEMPT" = 2 ]'}, "succeeded", None),
        Kind("m-sh", {"script": "exit 9"}, "failed", "exit_nonzero"),
        Kind("m-sh", {"script": "exec tail /dev/zero"}, "failed", "oom_killed"),
        Kind("m-times-out", {"script": "exec sleep 30"}, "timed_out", "timeout"),
        Kind("m-unpulled", {"script": "true"}, "failed", "image_pull_failed"),
        Kind("m-fetches", {"script": "true", "url": receiver.file_url("gone")}, "failed", "input_unavailable"),
        Kind("m-output", {"script": "true"}, "failed", "output_missing"),
        Kind("m-output", {"script": link}, "failed", "output_rejected"),
        Kind("m-sparse", {"script": SPARSE}, "failed", "output_too_large"),
        Kind("m-sh", {"script": "true"}, "cancelled", None, {"RGrid-Delay": "1h"}),
    ]


def kind_of(kinds: list[Kind], number: int) -> Kind:
    """Every other job succeeds; the rest go through the ways to fail in turn."""
    good = [kind for kind in kinds if kind.status == "succeeded"]
    bad = [kind for kind in kinds if kind.status != "succeeded"]
    half = number // 2
    if number % 2:
        return bad[half % len(bad)]
    # Most of the good ones are plain: a retried one costs two containers.
    return good[0] if half % 10 >= len(good) else good[half % 10]


async def test_500_jobs_of_8_clients_each_end_once_with_the_right_code(
    instance: Instance, receiver: Receiver, kinds: list[Kind]
) -> None:
    expected: dict[str, Kind] = {}

    async def client(own: int) -> None:
        for number in range(own, JOBS, CLIENTS):
            kind = kind_of(kinds, number)
            answer = await instance.api.post(
                f"/v1/functions/{kind.function}/invoke",
                json=kind.params,
                headers={"X-Callback-Url": receiver.callback_url, **kind.headers},
            )
            assert answer.status_code == 202, answer.text
            job = answer.json()["id"]
            assert job not in expected
            expected[job] = kind
            if kind.status == "cancelled":
                await instance.api.post(f"/v1/jobs/{job}/cancel")

    async with asyncio.TaskGroup() as group:
        for own in range(CLIENTS):
            group.create_task(client(own))
    assert len(expected) == JOBS

    ended = await all_ended(instance, set(expected))
    wrong = {
        job: (ended[job]["status"], ended[job]["error"], kind)
        for job, kind in expected.items()
        if (ended[job]["status"], (ended[job]["error"] or {}).get("code")) != (kind.status, kind.code)
    }
    assert wrong == {}
    assert Counter(kind.status == "succeeded" for kind in expected.values()) == {True: JOBS // 2, False: JOBS // 2}

    # An outcome never changes, and each was told once under one id.
    await until(lambda: len(receiver.ledger()) == JOBS, within_s=60)
    for job, told in receiver.ledger().items():
        status = ended[job]["status"]
        assert list(told.values()) == [{f"job.{status} {status}"}]


async def all_ended(instance: Instance, wanted: set[str]) -> dict[str, Json]:
    """Those jobs by id, once every one has an outcome."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        listed = {job["id"]: job for job in await every_job(instance) if job["id"] in wanted}
        if len(listed) == len(wanted) and all(job["status"] in TERMINAL for job in listed.values()):
            return listed
        left = Counter(job["status"] for job in listed.values())
        assert time.monotonic() < deadline, f"not done after {WITHIN_S} s: {left}"
        await asyncio.sleep(1)


async def every_job(instance: Instance) -> list[Json]:
    found: list[Json] = []
    query: dict[str, Any] = {"limit": 100}
    while True:
        page = (await instance.api.get("/v1/jobs", params=query)).json()
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]
