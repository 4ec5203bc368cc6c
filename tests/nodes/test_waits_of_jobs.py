"""What a job says of its wait for a rented node: while it waits, and once it has run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from functions import ids
from functions.artifacts import Artifact
from functions.db import Connection
from functions.ids import JobId
from scheduler.views import job_object, read_jobs
from tests.nodes.fleets import Clouded, waiting
from tests.nodes.renting import rent
from tests.scheduler.factories import claim, make_job, make_node, make_project, make_version

SECOND = timedelta(seconds=1)


class NoLinks:
    def presigned(self, artifact: Artifact) -> Any:
        raise AssertionError("no outputs here")

    def stable(self, artifact: Artifact) -> str:
        raise AssertionError("no outputs here")


async def test_the_round_that_buys_says_which_node_the_job_waits_for(clouded: Clouded) -> None:
    small, others = (await clouded.submit())[0], await clouded.submit(3)
    await clouded.round()
    bought = {f"booting {ids.encode(ids.NODE, row.id)}" for row in await clouded.live()}
    for job in (small, *others):
        shown = await waiting(clouded, job)
        assert shown["wait_reason"] in bought and shown["node_eta"] is not None


async def shown(conn: Connection, project: Any, job: JobId) -> dict[str, Any]:
    (record,) = await read_jobs(conn, project, [job])
    return job_object(record, NoLinks())


@pytest.mark.parametrize(
    ("queued_s", "planned_s", "ready_s", "boot_ms"),
    [
        (60, 50, 10, 40_000),  # bought for it
        (30, 50, 10, 20_000),  # bought for another, and it came while that booted
        (60, 600, 300, 0),  # it was there, and busy
        (5, 50, 10, 0),
    ],
)
async def test_a_job_shows_how_much_of_its_wait_its_node_booted(
    conn: Connection, queued_s: float, planned_s: float, ready_s: float, boot_ms: int
) -> None:
    project, account = await make_project(conn)
    version = await make_version(conn, project)
    node, _ = await rent(conn, account)
    # The cloud's clock is five minutes ahead of ours.
    await conn.execute("UPDATE fleet SET ahead = '5 minutes'")
    await conn.execute(
        "UPDATE servers SET planned_at = now() + interval '5 minutes' - $1::interval,"
        " ready_at = now() + interval '5 minutes' - $2::interval", planned_s * SECOND, ready_s * SECOND,
    )  # fmt: skip
    job = await make_job(conn, version)
    await conn.execute("UPDATE ready_jobs SET queued_at = now() - $1::interval", queued_s * SECOND)
    assert (await shown(conn, project, job))["boot_ms"] == 0
    await claim(conn, node, account)
    found = await shown(conn, project, job)
    assert (found["boot_ms"], found["queue_ms"]) == (boot_ms, queued_s * 1000)


async def test_a_node_of_ones_own_boots_for_nobody(conn: Connection) -> None:
    project, account = await make_project(conn)
    job = await make_job(conn, await make_version(conn, project))
    await conn.execute("UPDATE ready_jobs SET queued_at = now() - interval '1 minute'")
    await claim(conn, await make_node(conn), account)
    found = await shown(conn, project, job)
    assert (found["boot_ms"], found["queue_ms"]) == (0, 60_000)
