"""Callbacks sent for real, to servers that answer in every way that servers do."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from svix.webhooks import Webhook

from functions import artifacts, ids, signing_keys
from functions.db import Connection, Pool
from functions.egress import EgressPolicy
from functions.egress.exchange import DEADLINE_S
from functions.ids import JobId, ProjectId
from scheduler import breaker, delivery_log, finishing, redelivering, sending, turns
from scheduler.attempts import Direct
from scheduler.breaker import AT_ONCE, LONGEST_REST_S, TRUST
from scheduler.delivery_log import Delivery
from scheduler.finishing import Report
from scheduler.round_records import Records, Tally, read_tallies
from scheduler.sending import Sender
from tests.receivers import raw_server, read_request, says
from tests.scheduler.factories import (
    FILE,
    LOOPBACK,
    SEALER,
    SEALING_KEY,
    SECRET,
    World,
    claim_one,
    make_job,
    make_world,
)
from tests.scheduler.links import NoLinks

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Receiver:
    """Takes callbacks and answers each with the next of ``answers``, the last one for ever."""

    answers: list[bytes] = field(default_factory=lambda: [OK])
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await read_request(reader))
        self.arrived.set()
        writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        await writer.drain()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?x=1"


@asynccontextmanager
async def receiving(*answers: bytes) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(answers) or [OK])
    async with raw_server(receiver.handle) as receiver.port:
        yield receiver


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def sender(pool: Pool, *, policy: EgressPolicy = LOOPBACK, deadline_s: float = DEADLINE_S, **more: Any) -> Sender:
    return Sender(pool, Direct(policy, deadline_s), SEALER, NoLinks(), **more)


async def deliver(sender: Sender) -> None:
    await sender.deliver_once()
    await sender.idle()


async def finished(conn: Connection, world: World) -> JobId:
    """A job that has succeeded with one file, and what there is to tell of it."""
    job = await make_job(conn, world.version, params={"a": 1})
    claimed = await claim_one(conn, world.node, world.account)
    (file,) = await artifacts.reserve(conn, world.project, job, 1, [FILE])
    report = Report(claimed.token, "succeeded", 0, result='{"n": 1}', artifacts=(file.id,))
    async with conn.transaction():
        await finishing.finish(conn, world.node, job, report)
    return job


async def told(pool: Pool, url: str) -> World:
    world = await make_world(pool, callbacks=[{"url": url}])
    async with pool.acquire() as conn:
        await finished(conn, world)
    return world


async def shown(world: World) -> Delivery:
    async with world.pool.acquire() as conn:
        (only,) = await delivery_log.list_deliveries(conn, world.project, limit=2)
        return only


async def send_again(world: World) -> None:
    """Let the pause before the next attempt pass."""
    async with world.pool.acquire() as conn:
        await conn.execute("UPDATE deliveries SET due_at = now() WHERE state = 'pending'")


async def add_many(conn: Connection, project: ProjectId, job: JobId, urls: Sequence[str]) -> None:
    await conn.executemany(
        "INSERT INTO deliveries (id, project_id, job_id, type, url, endpoint) VALUES ($1, $2, $3, $4, $5, $6)",
        [
            (ids.new_uuid7(), project, job, f"job.{number}", url, url.split("/hook")[0])
            for number, url in enumerate(urls)
        ],
    )


async def test_a_callback_is_signed_carries_the_job_and_keeps_its_id(pool: Pool) -> None:
    async with receiving(answer(500), OK) as receiver:
        world = await told(pool, receiver.url)
        postman = sender(pool)
        await deliver(postman)
        await send_again(world)
        await deliver(postman)
    (line, headers, body), (_, later, _) = receiver.requests
    assert line == "POST /hook?x=1 HTTP/1.1"
    assert headers["content-type"] == "application/json"
    Webhook(SECRET).verify(body, headers)
    message = json.loads(body)
    assert message["type"] == "job.succeeded"
    assert (message["data"]["status"], message["data"]["params"], message["data"]["result"]) == (
        "succeeded", {"a": 1}, {"n": 1},
    )  # fmt: skip
    assert message["data"]["outputs"][0]["url"].startswith("https://store.example/")
    delivery = await shown(world)
    assert headers["webhook-id"] == later["webhook-id"] == ids.encode(ids.MESSAGE, delivery.id)
    assert (delivery.state, [each.status for each in delivery.attempts]) == ("delivered", [500, 200])
    first, second = delivery.attempts
    assert (first.address, first.error, first.response) == ("127.0.0.1", "it answered 500", "")
    assert (second.error, second.response) == (None, "ok")
    assert first.at <= second.at


@pytest.mark.parametrize(
    ("response", "state", "error"),
    [
        (answer(204), "delivered", None),
        (answer(404, body=b"no"), "pending", "it answered 404"),
        (answer(503), "pending", "it answered 503"),
        (answer(410), "exhausted", "it answered 410: it wants no more"),
        (b"", "pending", "no proper HTTP answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "pending", "no proper HTTP answer"),
    ],
)
async def test_each_answer_leads_where_it_should(pool: Pool, response: bytes, state: str, error: str | None) -> None:
    async with receiving(response) as receiver:
        world = await told(pool, receiver.url)
        await deliver(sender(pool))
    delivery = await shown(world)
    assert delivery.state == state
    (attempt,) = delivery.attempts
    assert (attempt.error or "").startswith(error or "") and (attempt.error is None) == (error is None)


async def test_a_redirect_is_a_failure_and_is_not_followed(pool: Pool) -> None:
    async with receiving() as target, receiving(answer(307, f"Location: {target.url}")) as receiver:
        world = await told(pool, receiver.url)
        await deliver(sender(pool))
    delivery = await shown(world)
    assert (delivery.state, delivery.attempts[0].status, target.requests) == ("pending", 307, [])
    assert delivery.attempts[0].error == "it answered 307, and redirects are not followed"


async def test_a_receiver_may_ask_for_patience(pool: Pool) -> None:
    async with receiving(answer(503, "Retry-After: 7")) as receiver:
        world = await told(pool, receiver.url)
        await deliver(sender(pool))
        async with pool.acquire() as conn:
            wait = await conn.fetchval("SELECT extract(epoch FROM due_at - now())::float8 FROM deliveries")
    assert 6 < wait <= 7
    assert (await shown(world)).next_at is not None


async def test_who_says_nothing_fails_at_the_deadline(pool: Pool) -> None:
    async with raw_server(says(then_wait=True)) as port:
        world = await told(pool, f"http://127.0.0.1:{port}/")
        await deliver(sender(pool, deadline_s=0.2))
    (attempt,) = (await shown(world)).attempts
    assert (attempt.status, attempt.address) == (None, "127.0.0.1")
    assert attempt.error == "no whole answer within 0.2 s"
    assert attempt.duration_ms >= 200


async def test_of_a_long_answer_the_beginning_is_kept_and_what_text_cannot_hold_is_replaced(pool: Pool) -> None:
    body = b"a\0\xff" + b"x" * 200_000
    async with receiving(answer(200, body=body)) as receiver:
        world = await told(pool, receiver.url)
        await deliver(sender(pool))
    delivery = await shown(world)
    assert delivery.state == "delivered"
    assert delivery.attempts[0].response == "a��" + "x" * 4093


async def test_a_private_address_is_refused_unless_an_operator_allows_it(pool: Pool) -> None:
    async with receiving() as receiver:
        world = await told(pool, receiver.url)
        await deliver(sender(pool, policy=EgressPolicy()))
        assert receiver.requests == []
    delivery = await shown(world)
    (attempt,) = delivery.attempts
    assert (delivery.state, attempt.status, attempt.address) == ("pending", None, None)
    assert attempt.error == "the address is not a public one"


async def test_a_sender_killed_between_sending_and_recording_sends_it_again_with_the_same_id(
    pool: Pool, database: str
) -> None:
    hanging = Receiver([b""])

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hanging.requests.append(await read_request(reader))
        hanging.arrived.set()
        if len(hanging.requests) == 1:
            await asyncio.Event().wait()
        writer.write(OK)

    async with raw_server(handle) as hanging.port:
        world = await told(pool, hanging.url)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.scheduler.killed_sender", database, SEALING_KEY
        )
        async with asyncio.timeout(30):
            await hanging.arrived.wait()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        before = await shown(world)
        assert (before.state, before.attempts) == ("pending", ())
        postman = sender(pool)
        await deliver(postman)
        assert len(hanging.requests) == 1, "its lease is still running"
        await send_again(world)
        await deliver(postman)
    first, second = [headers["webhook-id"] for _, headers, _ in hanging.requests]
    assert first == second
    after = await shown(world)
    assert (after.state, len(after.attempts)) == ("delivered", 1)


async def test_what_was_claimed_too_long_ago_is_left_to_come_back(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as receiver:
        world = await told(pool, receiver.url)
        with monkeypatch.context() as patch:
            patch.setattr(sending, "BEGIN_S", -1.0)
            await deliver(sender(pool))
        delivery = await shown(world)
        assert (delivery.state, len(delivery.attempts), len(receiver.requests)) == ("pending", 0, 0)
        async with pool.acquire() as conn:
            await conn.execute("UPDATE deliveries SET due_at = now()")
        await deliver(sender(pool))
        assert (await shown(world)).state == "delivered"


async def test_what_takes_too_long_to_prepare_is_not_begun(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    signers = signing_keys.signers

    async def late(*args: Any) -> Any:
        await asyncio.sleep(0.3)
        return await signers(*args)

    monkeypatch.setattr(sending, "BEGIN_S", 0.25)
    monkeypatch.setattr(signing_keys, "signers", late)
    async with receiving() as receiver:
        world = await told(pool, receiver.url)
        await deliver(sender(pool))
        assert ((await shown(world)).state, len(receiver.requests)) == ("pending", 0)


async def test_a_sender_that_is_closed_cuts_what_hangs_and_the_delivery_stays(pool: Pool) -> None:
    async with raw_server(says(then_wait=True)) as port:
        world = await told(pool, f"http://127.0.0.1:{port}/")
        postman = sender(pool)
        await postman.deliver_once()
        await postman.close(grace_s=0.05)
        await postman.idle()
    delivery = await shown(world)
    assert (delivery.state, delivery.attempts) == ("pending", ())


async def test_one_endpoint_gets_a_few_at_a_time(pool: Pool) -> None:
    at_once, most = 0, 0
    full, release = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most
        await read_request(reader)
        at_once += 1
        most = max(most, at_once)
        if at_once == AT_ONCE:
            full.set()
        await release.wait()
        at_once -= 1
        writer.write(OK)

    async with raw_server(handle) as port:
        world = await make_world(pool)
        async with pool.acquire() as conn:
            job = await finished(conn, world)
            await add_many(conn, world.project, job, [f"http://127.0.0.1:{port}/hook"] * 30)
        changed = asyncio.Event()
        postman = sender(pool, changed=changed.set)
        await postman.deliver_once()
        assert not await postman.deliver_once(), "there is nothing to look for before one of them ends"
        async with asyncio.timeout(10):
            await full.wait()
        release.set()
        while await _pending(pool):
            await changed.wait()
            changed.clear()
            await postman.deliver_once()
        await postman.idle()
    assert most == AT_ONCE


async def _pending(pool: Pool) -> int:
    async with pool.acquire() as conn:
        return int(await conn.fetchval("SELECT count(*) FROM deliveries WHERE state = 'pending'"))


async def test_ten_thousand_deliveries_to_a_dead_endpoint_do_not_hold_up_the_others(pool: Pool) -> None:
    """Counted, not timed: the others are sent in the first look, the dead one costs a handful of attempts."""
    now = [0.0]
    async with AsyncExitStack() as stack:
        well = [await stack.enter_async_context(receiving()) for _ in range(5)]
        world = await make_world(pool)
        async with pool.acquire() as conn:
            job = await finished(conn, world)
            # Nobody listens on port 1; "http://127.0.0.1:1" sorts before the others.
            await add_many(conn, world.project, job, ["http://127.0.0.1:1/hook"] * 10_000)
            await add_many(conn, world.project, job, [each.url for each in well])
        postman = sender(pool, clock=lambda: now[0])
        await deliver(postman)
        assert [len(each.requests) for each in well] == [1] * 5
        attempts = [await _attempts(pool)]
        for _ in range(3):
            await deliver(postman)
            attempts.append(await _attempts(pool))
        assert attempts == [AT_ONCE + 5] + [2 * AT_ONCE + 5] * 3, "it is dead by now"
        for step in range(1, 4):
            now[0] += LONGEST_REST_S + 1
            await deliver(postman)
            await deliver(postman)
            assert await _attempts(pool) == 2 * AT_ONCE + 5 + step, "one at a time shows whether it is back"


async def test_hundreds_of_dead_endpoints_of_one_project_do_not_hold_up_another(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: what is new is sent in the next look, and looking ends."""
    monkeypatch.setattr(sending, "WALK", 20)
    now = [0.0]
    async with receiving() as receiver:
        greedy, modest = await make_world(pool), await make_world(pool)
        async with pool.acquire() as conn:
            job = await finished(conn, greedy)
            await add_many(conn, greedy.project, job, [f"http://127.2.0.{n}:1/hook" for n in range(1, 201)])
        postman = sender(pool, clock=lambda: now[0])
        rounds = 0
        while await _attempts(pool) < 200:
            rounds += 1
            now[0] += turns.EVERY_S
            looks = 1
            while await postman.deliver_once():
                looks += 1
                assert looks < 30, "it looks for ever"
            await postman.idle()
        # Sixteen while it is not known to be dead, eight for each round after that.
        assert 10 < rounds < 40
        async with pool.acquire() as conn:
            job = await finished(conn, modest)
            await add_many(conn, modest.project, job, [receiver.url])
        assert not await postman.deliver_once(), "the next round begins in a second"
        await postman.idle()
        assert len(receiver.requests) == 1
        # What is tried again waits for the round, unless a message of its endpoint has just ended.
        await deliver(postman)
        async with pool.acquire() as conn:
            job = await finished(conn, modest)
            await add_many(conn, modest.project, job, [receiver.url])
            await conn.execute("UPDATE deliveries SET tries = 1 WHERE state = 'pending'")
        await deliver(postman)
        assert len(receiver.requests) == 1
        now[0] += turns.EVERY_S
        while await postman.deliver_once():
            pass
        await postman.idle()
        assert len(receiver.requests) == 2


async def _attempts(pool: Pool) -> int:
    async with pool.acquire() as conn:
        return int(await conn.fetchval("SELECT count(*) FROM delivery_attempts"))


async def test_an_endpoint_that_comes_back_gets_its_backlog(pool: Pool) -> None:
    now = [0.0]
    async with receiving(b"") as receiver:
        world = await make_world(pool)
        async with pool.acquire() as conn:
            job = await finished(conn, world)
            await add_many(conn, world.project, job, [receiver.url] * 20)
        postman = sender(pool, clock=lambda: now[0])
        for _ in range(4):
            await deliver(postman)
        failed = len(receiver.requests)
        assert TRUST <= failed < TRUST + AT_ONCE
        now[0] += LONGEST_REST_S + 1
        receiver.answers[:] = [OK]
        for _ in range(10):
            await deliver(postman)
        assert len(receiver.requests) == 20


@asynccontextmanager
async def nine_behind(pool: Pool) -> AsyncIterator[list[Receiver]]:
    """Receivers of one project, with forty messages each that are due."""
    async with AsyncExitStack() as stack:
        all_of_them = [await stack.enter_async_context(receiving()) for _ in range(9)]
        world = await make_world(pool)
        async with pool.acquire() as conn:
            job = await finished(conn, world)
            for each in all_of_them:
                await add_many(conn, world.project, JobId(ids.new_uuid7()), [each.url] * 40)
            await conn.execute("UPDATE deliveries SET job_id = $1, type = id::text", job)
        yield all_of_them


async def test_every_endpoint_gets_its_turn_when_there_is_room_for_few(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "IN_ALL", 3)
    monkeypatch.setattr(sending, "WALK", 4)
    async with nine_behind(pool) as all_of_them:
        now = [0.0]
        postman = sender(pool, clock=lambda: now[0])
        for _ in range(15):
            now[0] += turns.EVERY_S
            await deliver(postman)
        assert all(each.requests for each in all_of_them)


@pytest.mark.parametrize(("walk", "long"), [(100, 64), (4, 64), (4, 3)])
async def test_every_endpoint_gets_its_turn_when_others_of_its_project_are_always_behind(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, walk: int, long: int
) -> None:
    monkeypatch.setattr(breaker, "PER_PROJECT", 3)
    monkeypatch.setattr(sending, "WALK", walk)
    monkeypatch.setattr(sending, "LONG", long)
    monkeypatch.setattr(sending, "SHORT", long // 2)
    async with nine_behind(pool) as all_of_them:
        now = [0.0]
        postman = sender(pool, clock=lambda: now[0])
        for _ in range(14):
            now[0] += turns.EVERY_S
            while await postman.deliver_once():
                await postman.idle()
            await postman.idle()
        sent = [len(each.requests) for each in all_of_them]
        assert min(sent) > 0 and max(sent) <= 6 * min(sent), sent


@pytest.mark.parametrize("greedy", [1, 3])
async def test_projects_whose_receivers_hang_leave_room_for_the_others(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, greedy: int
) -> None:
    monkeypatch.setattr(sending, "IN_ALL", 24)
    monkeypatch.setattr(breaker, "PER_PROJECT", 8)
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(raw_server(says(then_wait=True))) for _ in range(5)]
        receiver = await stack.enter_async_context(receiving())
        worlds, modest = [await make_world(pool) for _ in range(greedy)], await make_world(pool)
        async with pool.acquire() as conn:
            for world in worlds:
                job = await finished(conn, world)
                for port in slow:
                    urls = [f"http://127.0.0.1:{port}/hook"] * 4
                    await add_many(conn, world.project, JobId(ids.new_uuid7()), urls)
                await conn.execute(
                    "UPDATE deliveries SET job_id = $1, type = id::text WHERE project_id = $2", job, world.project
                )
        postman = sender(pool)
        for _ in range(3):
            await postman.deliver_once()
        async with pool.acquire() as conn:
            await add_many(conn, modest.project, await finished(conn, modest), [receiver.url])
        await postman.deliver_once()
        async with asyncio.timeout(10):
            await receiver.arrived.wait()
        await postman.close(grace_s=0)


async def test_one_projects_trouble_does_not_stop_anothers_callbacks(pool: Pool) -> None:
    async with receiving() as receiver:
        broken, well = await told(pool, receiver.url), await told(pool, receiver.url)
        async with pool.acquire() as conn:
            await conn.execute("UPDATE projects SET callback_secret = 'x' WHERE id = $1", broken.project)
        await deliver(sender(pool))
        assert len(receiver.requests) == 1
        assert (await shown(well)).state == "delivered"
        assert (await shown(broken)).state == "pending"


async def test_a_message_that_breaks_the_sender_is_an_attempt_as_well_and_comes_to_an_end(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await told(pool, "http://127.0.0.1:1/hook")
    postman = sender(pool)

    async def breaks(*_: Any) -> Any:
        raise KeyError("nobody foresaw it")

    monkeypatch.setattr(Direct, "carry", breaks)
    await deliver(postman)
    delivery = await shown(world)
    assert (delivery.state, len(delivery.attempts)) == ("pending", 1)
    assert delivery.attempts[0].error == "it could not be sent: an error of RGrid's"
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT tries FROM deliveries") == 1


async def test_a_job_that_is_not_kept_any_more_has_nothing_to_tell(pool: Pool) -> None:
    async with receiving() as receiver:
        world = await told(pool, receiver.url)
        async with pool.acquire() as conn:
            await conn.execute("DELETE FROM jobs")
        await deliver(sender(pool))
        assert receiver.requests == []
    delivery = await shown(world)
    assert (delivery.state, delivery.attempts[0].error) == ("exhausted", "the job is not kept any more")


async def test_what_is_asked_for_again_is_sent_again_with_its_id(pool: Pool) -> None:
    async with receiving() as receiver:
        world = await told(pool, receiver.url)
        postman = sender(pool)
        await deliver(postman)
        delivery = await shown(world)
        async with pool.acquire() as conn:
            await redelivering.redeliver(conn, world.project, delivery.id)
        await deliver(postman)
        assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
        assert [each.attempt for each in (await shown(world)).attempts] == [1, 2]


async def test_what_becomes_of_attempts_is_counted(pool: Pool) -> None:
    records = Records()
    async with receiving(answer(500), OK, answer(410)) as receiver:
        world = await told(pool, receiver.url)
        postman = sender(pool, records=records)
        await deliver(postman)
        await send_again(world)
        await deliver(postman)
        await told(pool, receiver.url)
        await deliver(postman)
    await records.tell_once(pool)
    async with pool.acquire() as conn:
        tallies = await read_tallies(conn)
    assert {name: times for name, times in tallies.items() if times} == {
        Tally.DELIVERIES_FAILED: 1, Tally.DELIVERIES_TAKEN: 1, Tally.DELIVERIES_EXHAUSTED: 1,
    }  # fmt: skip
