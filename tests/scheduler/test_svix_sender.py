"""Messages handed to a Svix server, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from svix.exceptions import HttpError

from functions import endpoint_health, endpoints, ids, signing_keys
from functions.db import Connection, Pool
from functions.endpoint_health import EndpointState
from functions.grammar import CALLBACK_DISABLED, PROJECT_EVENTS
from functions.ids import EndpointId, ProjectId
from gateway.scheduling import carrier_of
from gateway.settings import Settings
from scheduler import deliveries, redelivering
from scheduler.attempts import Direct
from scheduler.callbacks import Endpoint
from scheduler.sending import Sender
from scheduler.svix_sender import DISABLED_THERE, SvixCarrier, svix_client
from tests.scheduler.factories import LOOPBACK, SEALER, SEALING_KEY, World
from tests.scheduler.links import NoLinks
from tests.scheduler.test_disabling import add_endpoint, log_of, pass_time, row_of, world_with
from tests.scheduler.test_sending import deliver, finished, receiving, told
from tests.svix_server import TOKEN, SvixServer, svix_server

URL = "https://hooks.example/x"


@pytest.fixture
async def svix() -> AsyncIterator[SvixServer]:
    async with svix_server() as server:
        yield server
        for each in OPEN:
            await each.close()
        OPEN.clear()


OPEN: list[SvixCarrier] = []


def through(pool: Pool, svix: SvixServer, token: str = TOKEN) -> Sender:
    carrier = SvixCarrier(svix_client(svix.url, token), Direct(LOOPBACK), pool)
    OPEN.append(carrier)
    return Sender(pool, carrier, SEALER, NoLinks())


def carrier(sender: Sender) -> SvixCarrier:
    assert isinstance(sender.carrier, SvixCarrier)
    return sender.carrier


async def secret_of(world: World, endpoint: EndpointId) -> str:
    async with world.pool.acquire() as conn:
        return await signing_keys.endpoint_secret(conn, SEALER, world.project, endpoint)


async def test_a_message_goes_to_its_endpoint_only_which_svix_signs_for_with_the_same_secret(
    pool: Pool, svix: SvixServer
) -> None:
    world, endpoint = await world_with(pool, URL)
    async with pool.acquire() as conn:
        other = await add_endpoint(conn, world.project, "https://other.example/")
        await finished(conn, world)
    sender = through(pool, svix)
    await deliver(sender)
    application, uid = f"rgrid-{world.project}", ids.encode(ids.CALLBACK, endpoint)
    assert set(svix.applications) == {application}
    assert {*PROJECT_EVENTS, "callback.test"} == set(svix.types)
    assert set(svix.endpoints) == {(application, uid), (application, ids.encode(ids.CALLBACK, other))}
    assert svix.endpoints[application, uid]["secret"] == await secret_of(world, endpoint)
    log = await log_of(world)
    expected = {(each.url, ids.encode(ids.MESSAGE, each.id)) for each in log}
    assert {(url, message["eventId"]) for url, message in svix.sent} == expected
    assert len(svix.sent) == 3
    assert {each.state for each in log} == {"delivered"}
    (attempt,) = log[0].attempts
    assert (attempt.status, attempt.error) == (202, None)
    assert (attempt.response or "").startswith("Svix has taken it as msg_of_svix_")
    message = svix.sent[0][1]
    assert (message["eventType"], message["payload"]["type"]) == ("job.succeeded", "job.succeeded")
    assert message["payload"]["data"]["status"] == "succeeded"
    # What it was told once it is not told again.
    before = len(svix.calls)
    async with pool.acquire() as conn:
        await finished(conn, world)
    await deliver(sender)
    assert {call.rsplit("/", 1)[-1] for call in svix.calls[before:]} == {"msg"}


async def test_a_message_whose_hand_over_was_not_written_down_is_not_sent_twice(pool: Pool, svix: SvixServer) -> None:
    world, _ = await world_with(pool, URL)
    svix.lose_answers = True
    await deliver(through(pool, svix))
    assert (await log_of(world))[0].state == "pending"
    await pass_time(world)
    svix.lose_answers = False
    await deliver(through(pool, svix))
    assert len(svix.messages) == len(svix.sent) == 1
    (delivery,) = await log_of(world)
    assert (delivery.state, delivery.attempts[-1].response) == ("delivered", "Svix has it already")


async def test_what_is_asked_for_again_is_sent_again_by_svix(pool: Pool, svix: SvixServer) -> None:
    world, _ = await world_with(pool, URL)
    sender = through(pool, svix)
    await deliver(sender)
    (delivery,) = await log_of(world)
    async with pool.acquire() as conn:
        await redelivering.redeliver(conn, world.project, delivery.id)
    await deliver(sender)
    assert len(svix.messages) == 1 and len(svix.sent) == 2
    (delivery,) = await log_of(world)
    assert (delivery.state, delivery.attempts[-1].response) == ("delivered", "Svix sends it again")


@pytest.mark.parametrize(
    ("broken", "token", "error"),
    [
        (500, TOKEN, "Svix answered 500: it is broken"),
        (410, TOKEN, "Svix answered 410: it is broken"),
        (None, "wrong", "Svix answered 401: it is authentication_failed"),
    ],
)
async def test_trouble_with_svix_is_tried_again_and_is_not_the_endpoints(
    pool: Pool, svix: SvixServer, broken: int | None, token: str, error: str
) -> None:
    world, endpoint = await world_with(pool, URL)
    svix.broken = broken
    await deliver(through(pool, svix, token))
    (delivery,) = await log_of(world)
    assert (delivery.state, delivery.attempts[0].status, delivery.attempts[0].error) == ("pending", None, error)
    row = await row_of(world, endpoint)
    assert (row.failing_since, row.disabled_at) == (None, None)
    svix.broken = None
    await pass_time(world)
    await deliver(through(pool, svix))
    assert (await log_of(world))[0].state == "delivered"


async def test_a_server_that_is_not_there_is_trouble_of_the_same_kind(pool: Pool, svix: SvixServer) -> None:
    world, _ = await world_with(pool, URL)
    svix.url = "http://127.0.0.1:1"
    await deliver(through(pool, svix))
    (delivery,) = await log_of(world)
    assert (delivery.state, delivery.attempts[0].error) == ("pending", "Svix cannot be reached: ConnectError")


async def test_a_new_address_and_a_new_secret_reach_svix_with_the_old_one_for_a_day(
    pool: Pool, svix: SvixServer
) -> None:
    world, endpoint = await world_with(pool, URL)
    await deliver(through(pool, svix))
    before = await secret_of(world, endpoint)
    for overlap, previous in ((timedelta(hours=1), 1), (timedelta(0), 0)):
        async with pool.acquire() as conn, conn.transaction():
            await endpoints.change(conn, world.project, endpoint, {"url": f"{URL}/{previous}"})
            await signing_keys.rotate_endpoint(conn, SEALER, world.project, endpoint, overlap)
            await finished(conn, world)
        # Another scheduler, which has told Svix nothing yet.
        await deliver(through(pool, svix))
        known = svix.endpoints[f"rgrid-{world.project}", ids.encode(ids.CALLBACK, endpoint)]
        assert (known["url"], known["secret"]) == (f"{URL}/{previous}", await secret_of(world, endpoint))
        assert known["secret"] != before
        assert len(known["previous"]) == previous
        assert svix.sent[-1][0] == f"{URL}/{previous}"


async def test_a_secret_that_svix_cannot_sign_with_is_said_so(pool: Pool, svix: SvixServer) -> None:
    world, endpoint = await world_with(pool, URL)
    async with pool.acquire() as conn:
        short = SEALER.seal(b"whsec_" + b"YWJj")
        await conn.execute("UPDATE callback_endpoints SET signing_key = $2 WHERE id = $1", endpoint, short)
    await deliver(through(pool, svix))
    (delivery,) = await log_of(world)
    assert delivery.state == "pending"
    assert (delivery.attempts[0].error or "").startswith("Svix answered 422: ")


async def test_an_address_of_a_single_job_is_sent_to_as_ever(pool: Pool, svix: SvixServer) -> None:
    async with receiving() as receiver:
        world, _ = await world_with(pool, URL, jobs=0)
        async with pool.acquire() as conn:
            told_of = [Endpoint(receiver.url, receiver.url.split("/hook")[0])]
            job = await finished(conn, world)
            await deliveries.add(conn, world.project, job, "job.failed", told_of)
        await deliver(through(pool, svix))
    assert len(receiver.requests) == 1
    assert {each.state for each in await log_of(world)} == {"delivered"}
    assert [url for url, _ in svix.sent] == [URL]


async def test_svix_follows_what_is_deleted_disabled_enabled_and_moved(pool: Pool, svix: SvixServer) -> None:
    world, endpoint = await world_with(pool, URL)
    async with pool.acquire() as conn:
        gone = await add_endpoint(conn, world.project, "https://other.example/")
        await finished(conn, world)
    sender = through(pool, svix)
    await deliver(sender)
    svix.applications["somebody-elses"] = {**svix.applications[f"rgrid-{world.project}"], "uid": "somebody-elses"}
    svix.endpoints["somebody-elses", "cb_1"] = {**next(iter(svix.endpoints.values())), "uid": "cb_1"}
    key = (f"rgrid-{world.project}", ids.encode(ids.CALLBACK, endpoint))
    async with pool.acquire() as conn:
        await endpoints.delete(conn, world.project, gone)
        await endpoint_health.disable(conn, world.project, endpoint, "by hand")
        await endpoints.change(conn, world.project, endpoint, {"url": f"{URL}/moved"})
    await carrier(sender).sync_once()
    assert set(svix.endpoints) == {key, ("somebody-elses", "cb_1")}
    assert (svix.endpoints[key]["disabled"], svix.endpoints[key]["url"]) == (True, f"{URL}/moved")
    async with pool.acquire() as conn:
        await endpoint_health.enable(conn, world.project, endpoint)
        await conn.execute("UPDATE callback_endpoints SET updated_at = now() + '1 minute'")
    await carrier(sender).sync_once()
    assert svix.endpoints[key]["disabled"] is False
    before = len(svix.calls)
    await carrier(sender).sync_once()
    assert not any(call.startswith(("PATCH", "DELETE")) for call in svix.calls[before:]), "nothing has changed"


async def test_an_endpoint_that_comes_or_is_enabled_while_svix_is_asked_for_all_is_neither_deleted_nor_disabled_there(
    pool: Pool, svix: SvixServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, endpoint = await world_with(pool, URL)
    sender = through(pool, svix)
    await deliver(sender)
    async with pool.acquire() as conn:
        await endpoint_health.disable(conn, world.project, endpoint, "by hand")
    read_all = endpoint_health.states

    async def late(conn: Connection, project: ProjectId) -> list[EndpointState]:
        before = await read_all(conn, project)
        await endpoint_health.enable(conn, project, endpoint)
        await add_endpoint(conn, project, f"{URL}/new")
        await finished(conn, world)
        await deliver(sender)
        return before

    monkeypatch.setattr(endpoint_health, "states", late)
    await carrier(sender).sync_once()
    assert {each["url"]: each["disabled"] for each in svix.endpoints.values()} == {URL: False, f"{URL}/new": False}


async def test_an_endpoint_that_svix_does_not_let_change_keeps_no_other_from_following(
    pool: Pool, svix: SvixServer
) -> None:
    world, stubborn = await world_with(pool, URL)
    async with pool.acquire() as conn:
        others = [await add_endpoint(conn, world.project, f"https://{n}.example/") for n in range(2)]
        await finished(conn, world)
    sender = through(pool, svix)
    await deliver(sender)
    svix.stubborn.add(ids.encode(ids.CALLBACK, stubborn))
    async with pool.acquire() as conn:
        for each in (stubborn, *others):
            await endpoint_health.disable(conn, world.project, each, "by hand")
    await carrier(sender).sync_once()
    disabled = {uid: each["disabled"] for (_, uid), each in svix.endpoints.items()}
    assert disabled == {ids.encode(ids.CALLBACK, each): each != stubborn for each in (stubborn, *others)}
    svix.broken = 503
    with pytest.raises(HttpError):
        await carrier(sender).sync_once()


async def test_an_endpoint_that_is_enabled_again_is_so_at_svix_before_the_next_message(
    pool: Pool, svix: SvixServer
) -> None:
    world, endpoint = await world_with(pool, URL)
    sender, fresh = through(pool, svix), through(pool, svix)
    await deliver(sender)
    async with pool.acquire() as conn:
        await endpoint_health.disable(conn, world.project, endpoint, "by hand")
    await carrier(sender).sync_once()
    async with pool.acquire() as conn:
        await endpoint_health.enable(conn, world.project, endpoint)
        await conn.execute("UPDATE callback_endpoints SET updated_at = now() + interval '1 minute'")
        await finished(conn, world)
    await deliver(sender)
    assert [url for url, _ in svix.sent] == [URL] * 2
    # One that Svix has disabled since stays so until it is known here, whoever hands over the next message.
    key = (f"rgrid-{world.project}", ids.encode(ids.CALLBACK, endpoint))
    later = (svix.now + timedelta(hours=1)).isoformat()
    svix.endpoints[key].update(disabled=True, updatedAt=later)
    async with pool.acquire() as conn:
        await finished(conn, world)
    await deliver(fresh)
    assert svix.endpoints[key]["disabled"] is True


async def test_an_endpoint_that_svix_has_disabled_is_disabled_here_with_notice(pool: Pool, svix: SvixServer) -> None:
    world, endpoint = await world_with(pool, URL)
    async with pool.acquire() as conn:
        await add_endpoint(conn, world.project, "https://ops.example/", events=(CALLBACK_DISABLED,))
    sender = through(pool, svix)
    await deliver(sender)
    key = (f"rgrid-{world.project}", ids.encode(ids.CALLBACK, endpoint))
    svix.endpoints[key].update(disabled=True, updatedAt=svix.touched()["updatedAt"])
    await carrier(sender).sync_once()
    assert (await row_of(world, endpoint)).disabled_reason == DISABLED_THERE
    await deliver(sender)
    url, notice = svix.sent[-1]
    assert (url, notice["eventType"]) == ("https://ops.example/", CALLBACK_DISABLED)
    assert notice["payload"]["data"]["reason"] == DISABLED_THERE


def settings(**more: str) -> Settings:
    return Settings.model_validate(
        {"database_url": "postgresql://x", "s3_endpoint": "http://127.0.0.1:1", "s3_access_key_id": "x",
         "s3_secret_access_key": "x", "secret_key": SEALING_KEY, **more}
    )  # fmt: skip


async def test_settings_say_who_sends_and_what_that_needs(pool: Pool, svix: SvixServer) -> None:
    async with carrier_of(settings(), pool) as (chosen, rounds):
        assert isinstance(chosen, Direct) and rounds == []
    for missing in ({"svix_url": svix.url}, {"svix_token": TOKEN}, {"svix_url": "svix:8071", "svix_token": TOKEN}):
        with pytest.raises(ValueError):
            settings(callback_sender="svix", **missing)
    world = await told(pool, URL)
    through_svix = settings(callback_sender="svix", svix_url=svix.url + "/", svix_token=TOKEN)
    async with carrier_of(through_svix, pool) as (chosen, rounds):
        assert isinstance(chosen, SvixCarrier) and [each.interval_s for each in rounds] == [60]
        await deliver(Sender(pool, chosen, SEALER, NoLinks()))
    assert [url for url, _ in svix.sent] == [URL]
    assert svix.sent[0][1]["payload"]["data"]["function"] == "fn"
    assert (await log_of(world))[0].state == "delivered"
