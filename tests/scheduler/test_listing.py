"""Lists of jobs: what each filter costs, and what it passes over. tests/gateway/test_jobs.py has what it finds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from functions.db import Pool
from functions.ids import ProjectId
from scheduler import listing
from scheduler.listing import Filters, list_jobs
from tests.scheduler.factories import make_job, make_node, make_project, make_version
from tests.scheduler.test_plans import FILL, MANY, Planned, job

AT = "'{last}', '{first}', 21, NULL, NULL, NULL"
LISTS = {
    "of_project": (listing.LIST_OF_PROJECT, "{project}, " + AT),
    "of_function": (listing.LIST_OF_FUNCTION, "{project}, " + AT + ", ARRAY['{function}']::uuid[], NULL"),
    "of_function_succeeded": (
        listing.LIST_OF_FUNCTION, "{project}, " + AT + ", ARRAY['{function}']::uuid[], 'succeeded'"
    ),
    "finished": (listing.LIST_FINISHED, "{project}, " + AT + ", NULL, 'failed'"),
    "finished_of_function": (listing.LIST_FINISHED, "{project}, " + AT + ", ARRAY['{function}']::uuid[], 'failed'"),
    "queued": (listing.LIST_QUEUED, "{project}, " + AT + ", NULL"),
    "scheduled": (listing.LIST_SCHEDULED, "{project}, " + AT + ", NULL"),
}  # fmt: skip


@pytest.fixture
async def full(pool: Pool) -> AsyncIterator[Planned]:
    """Statements that were planned on empty tables, which have filled and were analysed since."""
    async with pool.acquire() as conn:
        planned = Planned(conn)
        project, account = await make_project(conn)
        version = await make_version(conn, project)
        planned.values = {
            "project": str(project), "pool": str(account), "function": str(version.function_id),
            "version": str(version.id), "node": str(await make_node(conn)), "many": str(MANY),
            "first": str(listing.FIRST), "last": str(listing.LAST), "ready": job(17),
        }  # fmt: skip
        await conn.execute("SET plan_cache_mode = force_generic_plan")
        for name, (statement, arguments) in LISTS.items():
            await planned.prepare(name, statement, arguments)
        async with conn.transaction():
            await conn.execute(FILL.format(**planned.values))
        await conn.execute("ANALYZE")
        yield planned


async def test_a_page_costs_the_same_however_many_jobs_there_are(full: Planned) -> None:
    for name, (_, arguments) in LISTS.items():
        blocks, nodes = await full.run(name, arguments)
        assert blocks <= 250, f"{name} touched {blocks} blocks"
        assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], name


async def test_a_filter_that_fits_almost_nothing_looks_on_in_the_next_page(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK", 10)
    monkeypatch.setattr(listing, "LOOK_S", -1.0)
    async with pool.acquire() as conn:
        project, _ = await make_project(conn)
        version = await make_version(conn, project)
        wanted = await make_job(conn, version, trigger={"kind": "webhook"})
        for _ in range(24):
            await make_job(conn, version)
        found, pages, before = [], 0, None
        while True:
            page = await list_jobs(conn, project, Filters(trigger="webhook"), limit=5, before=before)
            found += page.jobs
            pages += 1
            if (before := page.position) is None:
                break
    assert (found, pages) == ([wanted], 3)


async def test_times_select_by_when_the_row_was_written_not_by_the_clock_that_made_the_id(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project, _ = await make_project(conn)
        version = await make_version(conn, project)
        job = await make_job(conn, version)
        # A gateway whose clock was half a minute behind had made this id.
        now = datetime.now(UTC)
        written = now + timedelta(seconds=30)
        await conn.execute("UPDATE jobs SET created_at = $1", written)
        for filters, fits in (
            (Filters(since=now + timedelta(seconds=20)), True),
            (Filters(since=now + timedelta(seconds=40)), False),
            (Filters(until=now + timedelta(seconds=20)), False),
            (Filters(until=now + timedelta(seconds=40)), True),
            (Filters(since=written, until=written), False),
            (Filters(since=written), True),
        ):
            page = await list_jobs(conn, project, filters, limit=5)
            assert (page.jobs == [job]) is fits, filters


async def test_another_projects_jobs_are_in_no_list(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project, _ = await make_project(conn)
        version = await make_version(conn, project)
        await make_job(conn, version)
        await make_job(conn, version, delay=timedelta(hours=1))
        other, _ = await make_project(conn)
        for status in (None, "queued", "scheduled", "running", "succeeded", "cancelled"):
            for function in (None, "fn"):
                filters = Filters(status=status, function=function)
                assert (await list_jobs(conn, ProjectId(other), filters, limit=5)).jobs == []
