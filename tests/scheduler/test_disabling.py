"""What endpoints that fail, or want no more, are sent, and who hears of it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions import endpoint_health, endpoints, ids, signing, signing_keys
from functions.db import Connection, Pool
from functions.endpoints import EndpointRow, NewEndpoint
from functions.grammar import CALLBACK_DISABLED, PROGRESS, STARTED
from functions.ids import EndpointId, ProjectId
from scheduler import deliveries, delivery_log, disabling, redelivering
from scheduler.callbacks import Endpoint
from scheduler.deliveries import TEST, Claimed, Exchanged
from scheduler.delivery_log import Delivery
from scheduler.new_deliveries import DISABLED
from tests.receivers import raw_server, read_request
from tests.scheduler.factories import SEALER, World, make_job, make_world
from tests.scheduler.test_sending import OK, answer, deliver, finished, receiving, sender

FIVE_DAYS = disabling.LONGEST_FAILING


async def add_endpoint(conn: Connection, project: ProjectId, url: str, **more: Any) -> EndpointId:
    given = {
        "url": url, "events": ("job.succeeded",), "functions": None, "description": "", "secrets": None,
        "signing_key": SEALER.seal(signing.new_secret().encode()), "enabled": True,
    }  # fmt: skip
    return (await endpoints.add(conn, project, NewEndpoint(**(given | more)))).id


async def world_with(pool: Pool, url: str, *, jobs: int = 1, **more: Any) -> tuple[World, EndpointId]:
    """A project with an endpoint, and jobs that have told it of their end."""
    world = await make_world(pool)
    async with pool.acquire() as conn:
        endpoint = await add_endpoint(conn, world.project, url, **more)
        for _ in range(jobs):
            await finished(conn, world)
    return world, endpoint


async def row_of(world: World, endpoint: EndpointId) -> EndpointRow:
    async with world.pool.acquire() as conn:
        return await endpoints.read(conn, world.project, endpoint)


async def log_of(world: World) -> list[Delivery]:
    """The oldest first."""
    async with world.pool.acquire() as conn:
        return (await delivery_log.list_deliveries(conn, world.project, limit=100))[::-1]


async def pass_time(world: World, failing_for: timedelta | None = None) -> None:
    """Let the pause before the next attempts pass, and what fails fail for so long."""
    async with world.pool.acquire() as conn:
        await conn.execute("UPDATE deliveries SET due_at = now() WHERE state = 'pending'")
        if failing_for is not None:
            await conn.execute(
                "UPDATE callback_endpoints SET failing_since = now() - $1::interval WHERE failing_since IS NOT NULL",
                failing_for,
            )


async def pass_silence(conn: Connection, silent: timedelta) -> None:
    await conn.execute(
        "UPDATE callback_endpoints SET failing_since = failing_since - $1::interval, failed_at = failed_at - $1::interval",
        silent,
    )


async def test_410_disables_the_endpoint_ends_what_waits_and_tells_the_others(pool: Pool) -> None:
    async with receiving(answer(410)) as gone, receiving() as well:
        world, endpoint = await world_with(pool, gone.url, jobs=6)
        async with pool.acquire() as conn:
            other = await add_endpoint(conn, world.project, well.url, events=(CALLBACK_DISABLED,))
            deaf = await add_endpoint(conn, world.project, well.url + "2", events=("job.failed",))
            apart = await add_endpoint(conn, world.project, well.url + "3", events=(CALLBACK_DISABLED,), functions=("x",))
        postman = sender(pool)
        for _ in range(3):
            await deliver(postman)
        assert len(gone.requests) <= 4, "those that were under way when the first answer came, and no more"
        row = await row_of(world, endpoint)
        assert (row.disabled_at is not None, row.disabled_reason) == (True, disabling.WANTS_NO_MORE)
        log = await log_of(world)
        outcomes = [each for each in log if each.endpoint_id == endpoint]
        assert [each.state for each in outcomes] == ["exhausted"] * 6
        assert sum(len(each.attempts) for each in outcomes) == len(gone.requests), "each attempt is in the log"
        assert {each.ended_reason for each in outcomes if not each.attempts} == {DISABLED}

        (notice,) = [json.loads(body) for _, _, body in well.requests]
        assert notice["type"] == CALLBACK_DISABLED
        callback = ids.encode(ids.CALLBACK, endpoint)
        assert (notice["data"]["callback"], notice["data"]["url"]) == (callback, gone.url)
        assert (notice["data"]["reason"], notice["data"]["function"]) == (disabling.WANTS_NO_MORE, None)
        assert {each.endpoint_id for each in log} == {endpoint, other}, f"not {deaf} and {apart}"

        # What comes while it is disabled is written down, and sent once somebody asks for it.
        async with pool.acquire() as conn:
            await finished(conn, world)
            await endpoint_health.enable(conn, world.project, endpoint)
            gone.answers[:] = [OK]
            since = log[0].occurred_at
            assert await redelivering.recover(conn, world.project, endpoint, since, None, limit=100) == 7
        for _ in range(2):
            await deliver(postman)
        assert {each.state for each in await log_of(world)} == {"delivered"}


async def test_the_notice_of_a_manifests_callback_names_its_function(pool: Pool) -> None:
    async with receiving(answer(410)) as gone, receiving() as well:
        world = await make_world(pool, callbacks=[{"url": gone.url}])
        async with pool.acquire() as conn:
            await add_endpoint(conn, world.project, well.url, events=(CALLBACK_DISABLED,), functions=("fn",))
            await finished(conn, world)
        postman = sender(pool)
        for _ in range(2):
            await deliver(postman)
    ((_, _, body),) = well.requests
    assert json.loads(body)["data"]["function"] == "fn"


async def test_410_to_an_address_that_one_job_has_ends_that_jobs_events_and_no_others(pool: Pool) -> None:
    async with receiving(answer(410), OK) as receiver:
        world = await make_world(pool)
        async with pool.acquire() as conn:
            one, two = await make_job(conn, world.version), await make_job(conn, world.version)
            told = [Endpoint(receiver.url, receiver.url.split("/hook")[0])]
            await deliveries.add(conn, world.project, one, STARTED, told)
        postman = sender(pool)
        await deliver(postman)
        async with pool.acquire() as conn:
            await deliveries.add(conn, world.project, one, "job.failed", told)
            await deliveries.add(conn, world.project, two, "job.failed", told)
        await deliver(postman)
    assert len(receiver.requests) == 2
    found = {(each.job_id, each.type): (each.state, each.ended_reason) for each in await log_of(world)}
    assert found == {
        (one, STARTED): ("exhausted", None),
        (one, "job.failed"): ("exhausted", deliveries.GONE),
        (two, "job.failed"): ("delivered", None),
    }


async def test_410_ends_what_waits_of_the_job_already(pool: Pool) -> None:
    async with receiving(answer(410)) as receiver:
        world = await make_world(pool)
        async with pool.acquire() as conn:
            job = await make_job(conn, world.version)
            told = [Endpoint(receiver.url, receiver.url.split("/hook")[0])]
            for kind in (STARTED, "job.failed"):
                await deliveries.add(conn, world.project, job, kind, told)
            await conn.execute("UPDATE deliveries SET due_at = now() + '1 hour' WHERE type = 'job.failed'")
        await deliver(sender(pool))
    assert [(each.state, each.ended_reason) for each in await log_of(world)] == [
        ("exhausted", None), ("exhausted", deliveries.GONE),
    ]  # fmt: skip


async def test_five_days_of_nothing_but_failures_disable_with_notice_and_the_schedule_is_kept_until_then(
    pool: Pool,
) -> None:
    async with receiving(answer(500)) as receiver, receiving() as well:
        world, endpoint = await world_with(pool, receiver.url)
        async with pool.acquire() as conn:
            await add_endpoint(conn, world.project, well.url, events=(CALLBACK_DISABLED,))
        postman = sender(pool)
        waits = []
        for _ in range(10):
            await deliver(postman)
            async with pool.acquire() as conn:
                waits.append(
                    await conn.fetchval("SELECT extract(epoch FROM due_at - now())::float8 FROM deliveries")
                )
            await pass_time(world)
        for wait, step in zip(waits, (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400), strict=False):
            assert 0.8 * step - 1 < wait < 1.2 * step
        (first,) = await log_of(world)
        assert (first.state, len(first.attempts)) == ("exhausted", 10)
        row = await row_of(world, endpoint)
        assert row.failing_since is not None and row.disabled_at is None

        async with pool.acquire() as conn:
            for _ in range(2):
                await finished(conn, world)
        await pass_time(world, FIVE_DAYS - timedelta(minutes=1))
        await deliver(postman)
        assert (await row_of(world, endpoint)).disabled_at is None
        await pass_time(world, FIVE_DAYS)
        for _ in range(2):
            await deliver(postman)
    row = await row_of(world, endpoint)
    assert (row.disabled_at is not None, row.disabled_reason) == (True, disabling.FAILS)
    ((_, _, body),) = well.requests
    assert json.loads(body)["data"]["reason"] == disabling.FAILS
    assert {each.state for each in await log_of(world) if each.endpoint_id == endpoint} == {"exhausted"}


async def test_one_message_that_is_taken_begins_the_five_days_anew(pool: Pool) -> None:
    async with receiving(answer(500), OK, answer(500)) as receiver:
        world, endpoint = await world_with(pool, receiver.url)
        postman = sender(pool)
        await deliver(postman)
        assert (await row_of(world, endpoint)).failing_since is not None
        await pass_time(world, FIVE_DAYS - timedelta(hours=2))
        await deliver(postman)
        assert (await row_of(world, endpoint)).failing_since is None
        async with pool.acquire() as conn:
            await finished(conn, world)
        await deliver(postman)
        row = await row_of(world, endpoint)
        assert row.failing_since is not None and row.disabled_at is None


async def test_two_failures_with_weeks_of_silence_between_them_are_no_five_days_of_failures(pool: Pool) -> None:
    refuses = answer(400, "webhook-delivery: abort-message")
    async with receiving(refuses, answer(503), answer(503)) as receiver:
        world, endpoint = await world_with(pool, receiver.url)
        postman = sender(pool)
        await deliver(postman)
        async with pool.acquire() as conn:
            await pass_silence(conn, timedelta(days=20))
            await finished(conn, world)
        for _ in range(2):
            await deliver(postman)
            row = await row_of(world, endpoint)
            assert row.failing_since is not None and row.disabled_at is None
            assert datetime.now(UTC) - row.failing_since < timedelta(hours=1)
            await pass_time(world)
        # From then on they count: it is tried again and again, and takes nothing.
        await pass_time(world, FIVE_DAYS)
        await deliver(postman)
        assert (await row_of(world, endpoint)).disabled_reason == disabling.FAILS


async def test_days_of_silence_are_not_counted_when_it_fails_for_some_hours_after_them(pool: Pool) -> None:
    refuses = answer(400, "webhook-delivery: abort-message")
    async with receiving(refuses, answer(503), answer(503)) as receiver:
        world, endpoint = await world_with(pool, receiver.url)
        postman = sender(pool)
        await deliver(postman)
        for silent in (timedelta(days=4), timedelta(hours=25)):
            async with pool.acquire() as conn:
                await pass_silence(conn, silent)
                await finished(conn, world)
            await deliver(postman)
    row = await row_of(world, endpoint)
    assert row.failing_since is not None and row.disabled_at is None


@pytest.mark.parametrize("kind", [PROGRESS, TEST])
async def test_what_passes_says_nothing_of_an_endpoint_when_it_fails(pool: Pool, kind: str) -> None:
    async with receiving(answer(500)) as receiver:
        world, endpoint = await world_with(pool, receiver.url, jobs=0)
        async with pool.acquire() as conn:
            told = [Endpoint(receiver.url, receiver.url.split("/hook")[0], endpoint)]
            await deliveries.add(conn, world.project, endpoint, kind, told, payload={"a": 1})
        await deliver(sender(pool))
    assert len(receiver.requests) == 1
    assert (await row_of(world, endpoint)).failing_since is None


async def test_410_of_an_address_that_was_replaced_meanwhile_disables_nothing(pool: Pool) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        await release.wait()
        writer.write(answer(410))

    async with raw_server(handle) as port:
        world, endpoint = await world_with(pool, f"http://127.0.0.1:{port}/")
        postman = sender(pool)
        await postman.deliver_once()
        await arrived.wait()
        async with pool.acquire() as conn:
            await endpoints.change(conn, world.project, endpoint, {"url": "https://example.com/"})
        release.set()
        await postman.idle()
    row = await row_of(world, endpoint)
    assert (row.disabled_at, row.failing_since) == (None, None)


@pytest.mark.parametrize(("header", "state"), [("abort-message", "exhausted"), ("Abort-Message", "exhausted"), ("x", "pending")])
async def test_a_receiver_may_refuse_one_message_for_good(pool: Pool, header: str, state: str) -> None:
    async with receiving(answer(400, f"Webhook-Delivery: {header}")) as receiver:
        world, endpoint = await world_with(pool, receiver.url)
        await deliver(sender(pool))
    (delivery,) = await log_of(world)
    assert delivery.state == state
    error = "it answered 400, and does not want this message again" if state == "exhausted" else "it answered 400"
    assert delivery.attempts[0].error == error
    assert (await row_of(world, endpoint)).disabled_at is None


async def test_a_secret_that_is_rotated_between_attempts_signs_the_next_one_with_both(pool: Pool) -> None:
    async with receiving(answer(500), OK) as receiver:
        world, endpoint = await world_with(pool, receiver.url)
        postman = sender(pool)
        async with pool.acquire() as conn:
            before = await signing_keys.endpoint_secret(conn, SEALER, world.project, endpoint)
            await deliver(postman)
            after = await signing_keys.rotate_endpoint(conn, SEALER, world.project, endpoint, timedelta(hours=1))
            await pass_time(world)
            await deliver(postman)
    (_, first, first_body), (_, second, second_body) = receiver.requests
    assert first["webhook-id"] == second["webhook-id"]
    assert signing.verify(first, first_body, [before], now=None) == "v1"
    with pytest.raises(signing.SignatureInvalid):
        signing.verify(first, first_body, [after.secret], now=None)
    for secret in (before, after.secret):
        assert signing.verify(second, second_body, [secret], now=None) == "v1"


async def test_an_endpoint_that_is_deleted_between_attempts_is_sent_nothing_more(pool: Pool) -> None:
    async with receiving(answer(500)) as receiver:
        world, endpoint = await world_with(pool, receiver.url)
        postman = sender(pool)
        await deliver(postman)
        async with pool.acquire() as conn:
            await endpoints.delete(conn, world.project, endpoint)
        await pass_time(world)
        await deliver(postman)
    assert len(receiver.requests) == 1
    (delivery,) = await log_of(world)
    assert (delivery.state, delivery.ended_reason) == ("exhausted", deliveries.DELETED)


async def test_two_answers_of_410_at_once_tell_it_once_and_lock_each_other_out_never(pool: Pool) -> None:
    both = asyncio.Barrier(4)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await both.wait()
        writer.write(answer(410))

    async with raw_server(handle) as port, receiving() as well:
        world, _ = await world_with(pool, f"http://127.0.0.1:{port}/", jobs=4)
        async with pool.acquire() as conn:
            await add_endpoint(conn, world.project, well.url, events=(CALLBACK_DISABLED,))
        postman = sender(pool)
        for _ in range(2):
            await deliver(postman)
    assert len(well.requests) == 1
    assert sorted(len(each.attempts) for each in await log_of(world)) == [1] * 5


async def test_two_answers_of_410_to_events_of_one_job_do_not_wait_for_each_other(pool: Pool) -> None:
    world = await make_world(pool)
    async with pool.acquire() as conn:
        job = await make_job(conn, world.version)
        told = [Endpoint("http://127.0.0.1:1/hook", "http://127.0.0.1:1")]
        for kind in (STARTED, "job.failed"):
            await deliveries.add(conn, world.project, job, kind, told)
        wanted = [(world.project, told[0].key, 2)]
        one, two = await deliveries.claim(conn, wanted, lease=timedelta(seconds=30))
    no_more = Exchanged(1, status=410)

    async def end(conn: Connection, claimed: Claimed) -> None:
        async with conn.transaction():
            assert await disabling.note(conn, claimed, no_more)
            await deliveries.record(conn, claimed, no_more, "exhausted", timedelta(0))
            await disabling.end_others(conn, claimed)

    async with pool.acquire() as conn, pool.acquire() as beside, pool.acquire() as watching:
        async with conn.transaction():
            assert await disabling.note(conn, one, no_more)
            await deliveries.record(conn, one, no_more, "exhausted", timedelta(0))
            ending = asyncio.create_task(end(beside, two))
            while not await watching.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            await disabling.end_others(conn, one)
        await ending
    assert [(each.state, len(each.attempts)) for each in await log_of(world)] == [("exhausted", 1)] * 2
