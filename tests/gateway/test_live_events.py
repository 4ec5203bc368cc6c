"""job.started and job.progress: written when a node takes a job and says how far it is, for those that asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from functions import endpoint_health, endpoints, registry
from functions.egress import EgressPolicy
from functions.endpoints import NewEndpoint
from functions.ids import EndpointId, ProjectId
from functions.manifest import Manifest, parse_manifest
from gateway.services import Services
from scheduler import live_events
from scheduler.attempts import Direct
from scheduler.sending import Sender
from tests.gateway import work
from tests.receivers import raw_server, read_request

URL = "https://example.com/live"
LIVE = ["job.started", "job.progress"]


async def listen(services: Services, events: list[str], functions: tuple[str, ...] | None = None) -> EndpointId:
    project = await work.project(services)
    async with services.pool.acquire() as conn, conn.transaction():
        new = NewEndpoint(URL, tuple(events), functions, "", None, b"sealed", enabled=True)
        return (await endpoints.add(conn, project, new)).id


async def told(services: Services, job: str) -> list[tuple[str, dict[str, Any]]]:
    """Events before the job's end, in their order, with what they tell."""
    async with services.pool.acquire() as conn:
        rows = await conn.fetch(
            "SELECT type, payload FROM deliveries WHERE job_id = $1 AND payload IS NOT NULL ORDER BY id",
            work.uuid_of(job),
        )
    return [(row["type"], json.loads(row["payload"])) for row in rows]


@asynccontextmanager
async def receiver() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that takes every message: its port, and the bodies."""
    bodies: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await read_request(reader))[2])
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async with raw_server(handle) as port:
        yield port, bodies


async def later(services: Services) -> None:
    """Let the pause between two reports of progress pass."""
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE deliveries SET occurred_at = occurred_at - interval '500 ms'")


def one_off() -> Manifest:
    spec = {"job": work.JOB, "callbacks": [{"url": URL, "events": LIVE}]}
    document = {"apiVersion": "rgrid/v1", "kind": "Function", "metadata": {"name": "run"}, "spec": spec}
    return parse_manifest(json.dumps(document).encode(), yaml=False, policy=EgressPolicy())


@pytest.mark.parametrize("who", ["manifest", "header", "project", "one-off"])
async def test_a_start_and_progress_are_told_to_whoever_asked(services: Services, who: str) -> None:
    callbacks = [{"url": URL, "events": LIVE}] if who == "manifest" else []
    version = await work.define(services, callbacks=callbacks)
    if who == "project":
        await listen(services, LIVE, ("echo",))
    how = {"callback_url": URL, "callback_events": tuple(LIVE)} if who == "header" else {}
    if who == "one-off":
        async with services.pool.acquire() as conn, conn.transaction():
            version = await registry.one_off(conn, version.project_id, one_off())
    job = await work.submit(services, version, **how)
    async with work.joined(services) as node:
        lease = await node.claim_one()
        ((kind, data),) = await told(services, job)
        assert (kind, data["id"], data["status"], data["node"]) == ("job.started", job, "running", node.id)
        await node.verdicts(lease, progress=0.25)
        await node.verdicts(lease, progress=0.3)  # too soon after that
        await later(services)
        await node.verdicts(lease, progress=0.3)  # nothing new
        await node.verdicts(lease, progress=0.5)
        await node.finish(lease)
        assert [(kind, data["progress"]) for kind, data in await told(services, job)] == [
            ("job.started", None), ("job.progress", 0.25), ("job.progress", 0.5),
        ]  # fmt: skip


async def test_nobody_is_told_who_did_not_ask_or_is_disabled(services: Services) -> None:
    version = await work.define(services, callbacks=[{"url": URL, "events": ["job.succeeded"]}])
    await listen(services, ["job.succeeded", "batch.completed"])
    await listen(services, LIVE, ("other",))
    disabled = await listen(services, LIVE)
    async with services.pool.acquire() as conn:
        await endpoint_health.disable(conn, ProjectId(version.project_id), disabled, "by hand")
    job = await work.submit(services, version)
    async with work.joined(services) as node:
        lease = await node.claim_one()
        await node.verdicts(lease, progress=0.5)
        assert await told(services, job) == []


async def test_a_job_starts_once_however_often_it_is_leased(services: Services) -> None:
    version = await work.define(services, callbacks=[{"url": URL, "events": LIVE}])
    job = await work.submit(services, version)
    async with work.joined(services) as node:
        await work.expire(services, await node.claim_one())
        assert (await node.claim_one())["attempt"] == 2
    assert [kind for kind, _ in await told(services, job)] == ["job.started"]


async def test_events_that_cannot_be_written_keep_no_job_from_its_node(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await work.define(services, callbacks=[{"url": URL, "events": LIVE}])
    await work.submit(services, version)

    async def broken(*_: object, **__: object) -> bool:
        raise asyncpg.DataError("no")

    monkeypatch.setattr(live_events, "_tell", broken)
    async with work.joined(services) as node:
        lease = await node.claim_one()
        assert await node.verdicts(lease, progress=0.5) == ["keep"]


@pytest.mark.parametrize("asked", [None, ["job.succeeded"]])
async def test_without_anybody_who_asks_a_job_costs_no_statement_more(
    services: Services, asked: list[str] | None
) -> None:
    """Of a claim, a heartbeat and an end: the same statements as ever, however many other endpoints there are."""
    callbacks = [] if asked is None else [{"url": URL, "events": asked}]
    version = await work.define(services, callbacks=callbacks)
    if asked is not None:
        await listen(services, asked)
    await work.submit(services, version)
    seen: set[str] = set()
    async with work.joined(services) as node:
        async with services.hot_pool.acquire() as one:
            one.add_query_logger(lambda query: seen.add(query.query.strip().splitlines()[0]))
        lease = await node.claim_one()
        await node.verdicts(lease, progress=0.5)
        await node.finish(lease)
    assert {"-- claim_jobs", "-- heartbeat", "-- held_leases", "-- finish_jobs"} <= seen
    assert not {"-- listeners", "-- asked_of_jobs", "-- add_deliveries"} & seen


async def test_what_is_sent_says_how_it_was_then(services: Services) -> None:
    async with receiver() as (port, bodies):
        version = await work.define(services)
        how = {"callback_url": f"http://127.0.0.1:{port}/", "callback_events": ("job.started", "job.succeeded")}
        await work.submit(services, version, **how)
        async with work.joined(services) as node:
            await node.finish(await node.claim_one())
        carrier = Direct(EgressPolicy(allow=("127.0.0.0/8",)))
        sender = Sender(services.pool, carrier, services.sealer, services.links)
        await sender.deliver_once()
        await sender.idle()
    told = {message["type"]: message["data"]["status"] for message in map(json.loads, bodies)}
    assert told == {"job.started": "running", "job.succeeded": "succeeded"}
