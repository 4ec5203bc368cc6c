"""GET /v1/jobs/{id}/logs: text and events, of logs that grow while somebody reads."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from functions import ids
from gateway import log_stream
from gateway.auth import add_key
from gateway.cli.sse import Event, parse
from gateway.services import Services
from scheduler import cancelling, logs, queue
from scheduler.wakeups import Topic
from tests.gateway import work
from tests.gateway.conftest import BOOTSTRAP_KEY, Listening, client_of, listening
from tests.gateway.work import Node, joined, soon, uuid_of

EVENTS = {"Accept": "text/event-stream"}
RETRIED = {"retry": {"attempts": 3, "backoff": {"initial": "0s"}}}


@pytest.fixture
async def node(services: Services) -> AsyncIterator[Node]:
    async with joined(services) as opened:
        yield opened


@pytest.fixture
async def server(services: Services) -> AsyncIterator[Listening]:
    async with listening(services) as opened:
        yield opened


@dataclass
class Writer:
    """A job's attempt, and what its container writes."""

    node: Node
    lease: dict[str, Any]
    position: int = 0

    async def write(self, data: bytes) -> None:
        answer = await self.node.log(self.lease, self.position, data)
        assert answer.status_code == 200, answer.text
        self.position = answer.json()["next_position"]


async def begin(services: Services, node: Node, *chunks: bytes, **spec: Any) -> tuple[str, Writer]:
    """A running job that has written that much."""
    job = await work.submit(services, await work.define(services, **spec))
    writer = Writer(node, await node.claim_one())
    assert writer.lease["job_id"] == job
    for chunk in chunks:
        await writer.write(chunk)
    return job, writer


async def again(services: Services, node: Node) -> Writer:
    """The next attempt of the job whose last one has just failed."""
    async with services.pool.acquire() as conn:
        assert await queue.promote(conn, limit=1) == 1
    return Writer(node, await node.claim_one())


@dataclass
class Reader:
    """A stream as far as it has come."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False

    @property
    def events(self) -> list[Event]:
        return list(parse([bytes(self.data)]))

    @property
    def lines(self) -> list[str]:
        return [event.data for event in self.events if event.kind == "log"]

    async def until(self, count: int) -> None:
        async def there() -> bool:
            return len(self.lines) >= count

        await soon(there)


@asynccontextmanager
async def reading(
    server: Listening, job: str, query: str = "follow=true", headers: dict[str, str] = EVENTS
) -> AsyncIterator[Reader]:
    """Read a stream in the background, over a real connection, until it ends or the block does."""
    reader = Reader()

    async def read(opened: asyncio.Event) -> None:
        auth = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}
        url = f"http://127.0.0.1:{server.port}/v1/jobs/{job}/logs?{query}"
        async with (
            httpx.AsyncClient(trust_env=False, verify=False, timeout=30) as client,
            client.stream("GET", url, headers=auth | headers) as answer,
        ):
            assert answer.status_code == 200
            opened.set()
            async for chunk in answer.aiter_bytes():
                reader.data += chunk
        reader.ended = True

    opened = asyncio.Event()
    task = asyncio.create_task(read(opened))
    try:
        async with asyncio.timeout(5):
            await opened.wait()
        yield reader
    finally:
        task.cancel()
        await asyncio.wait([task])


async def whole(server: Listening, job: str, query: str = "", headers: dict[str, str] = EVENTS) -> Reader:
    """What a stream is when it has ended by itself."""
    async with reading(server, job, query, headers) as reader:

        async def ended() -> bool:
            return reader.ended

        await soon(ended, 10)
    return reader


# Text


async def test_the_text_of_a_log_is_its_bytes(services: Services, node: Node, api: httpx.AsyncClient) -> None:
    raw = b"one\r\n\xff\xfe\x00 two\rthree"
    job, writer = await begin(services, node, raw[:5], raw[5:])
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "text/*"}, {"Accept": "application/json, text/plain;q=0.1"}):
        answer = await api.get(f"/v1/jobs/{job}/logs", headers=accept)
        assert (answer.status_code, answer.content) == (200, raw)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    await node.finish(writer.lease)
    assert (await api.get(f"/v1/jobs/{job}/logs?follow=true")).content == raw
    head = await api.head(f"/v1/jobs/{job}/logs?follow=true")
    assert (head.status_code, head.content) == (200, b"")


async def test_the_tail_is_the_last_lines(services: Services, node: Node, api: httpx.AsyncClient) -> None:
    job, _ = await begin(services, node, b"1\n2\r\n3\r4\n5")
    tails = [(await api.get(f"/v1/jobs/{job}/logs?tail={lines}")).content for lines in (0, 1, 2, 3, 4, 9)]
    assert tails == [b"", b"5", b"4\n5", b"3\r4\n5", b"2\r\n3\r4\n5", b"1\n2\r\n3\r4\n5"]


async def test_a_job_that_has_not_begun_has_an_empty_log(services: Services, api: httpx.AsyncClient) -> None:
    job = await work.submit(services, await work.define(services))
    assert (await api.get(f"/v1/jobs/{job}/logs")).content == b""
    (event,) = parse([(await api.get(f"/v1/jobs/{job}/logs", headers=EVENTS)).content])
    assert (event.kind, json.loads(event.data)) == ("end", {"status": "queued"})
    assert (await api.get(f"/v1/jobs/{job}/logs?attempt=1")).json()["code"] == "attempt_not_found"


async def test_followed_text_goes_over_the_attempts(services: Services, node: Node, server: Listening) -> None:
    job, first = await begin(services, node, b"first", **RETRIED)
    async with reading(server, job, headers={"Accept": "text/plain"}) as reader:
        await node.finish(first.lease, "failed")
        second = await again(services, node)
        await second.write(b"second\n")
        await node.finish(second.lease)

        async def ended() -> bool:
            return reader.ended

        await soon(ended)
    assert bytes(reader.data) == b"first\n[rgrid: attempt 2]\nsecond\n"


async def test_each_attempt_has_a_log_of_its_own(services: Services, node: Node, api: httpx.AsyncClient) -> None:
    job, first = await begin(services, node, b"first\n", **RETRIED)
    await node.finish(first.lease, "failed")
    assert (await api.get(f"/v1/jobs/{job}/logs")).content == b"first\n"
    second = await again(services, node)
    assert (await api.get(f"/v1/jobs/{job}/logs")).content == b""
    await second.write(b"second\n")
    await node.finish(second.lease)
    path = f"/v1/jobs/{job}/logs"
    found = [(await api.get(path + query)).content for query in ("", "?attempt=1", "?attempt=2", "?attempt=1&follow=1")]
    assert found == [b"second\n", b"first\n", b"second\n", b"first\n"]
    missing = await api.get(path + "?attempt=3&follow=true")
    assert (missing.status_code, missing.json()["code"]) == (404, "attempt_not_found")


# Events


async def test_a_follower_sees_lines_as_they_come_and_the_end(
    services: Services, node: Node, server: Listening
) -> None:
    job = await work.submit(services, await work.define(services))
    async with reading(server, job) as reader:
        writer = Writer(node, await node.claim_one())
        await writer.write(b"one\ntwo")
        await reader.until(1)
        assert reader.lines == ["one"]
        await writer.write(b"\n10%\r")
        await reader.until(3)
        await writer.write(b"\nno line end \xff")
        assert (await node.finish(writer.lease)).status_code == 200

        async def ended() -> bool:
            return reader.ended

        await soon(ended)
    assert reader.lines == ["one", "two", "10%", "no line end \ufffd"]
    assert [event.id for event in reader.events[:-1]] == ["1:4", "1:8", "1:12", "1:26"]
    assert (reader.events[-1].kind, json.loads(reader.events[-1].data)) == ("end", {"status": "succeeded"})


async def test_lines_come_long_before_the_next_poll(services: Services, node: Node, server: Listening) -> None:
    services.settings.poll_s = 60
    job, writer = await begin(services, node)
    async with reading(server, job) as reader:
        for number in range(5):
            await writer.write(b"x\n")
            await reader.until(number + 1)
        await node.finish(writer.lease)

        async def ended() -> bool:
            return reader.ended

        await soon(ended)


async def test_without_follow_the_stream_is_what_is_there(services: Services, node: Node, server: Listening) -> None:
    job, _ = await begin(services, node, b"one\npart")
    reader = await whole(server, job)
    assert reader.lines == ["one", "part"]
    assert json.loads(reader.events[-1].data) == {"status": "running"}
    assert (await whole(server, job, "tail=1")).lines == ["part"]


async def test_a_stream_cut_anywhere_goes_on_where_it_was(services: Services, node: Node, server: Listening) -> None:
    chunks = [b"one\ntwo\r\n\n", b"10%\r20%\r", b"\n\rwide \xe2\x82\xac\n", b"\xff\n", b"last"]
    job, first = await begin(services, node, *chunks, **RETRIED)
    await node.finish(first.lease, "failed")
    second = await again(services, node)
    await second.write(b"of the second\nand ")
    await second.write(b"done")
    await node.finish(second.lease)
    events = (await whole(server, job, headers={**EVENTS, "Last-Event-ID": "1:0"})).events
    *logged, end = events
    assert [event.data for event in logged] == [
        "one", "two", "", "10%", "20%", "wide €", "\ufffd", "last", "of the second", "and done",
    ]  # fmt: skip
    assert end.kind == "end"
    for index, event in enumerate(logged):
        for query in ("follow=true", "follow=true&tail=1", ""):
            rest = await whole(server, job, query, {**EVENTS, "Last-Event-ID": event.id})
            assert [(each.id, each.data) for each in rest.events[:-1]] == [
                (each.id, each.data) for each in logged[index + 1 :]
            ]


async def test_a_follower_that_loses_its_connection_again_and_again_misses_nothing(
    services: Services, node: Node, server: Listening
) -> None:
    job, writer = await begin(services, node)
    found: list[Event] = []

    async def follow() -> None:
        headers = dict(EVENTS)
        while not found or found[-1].kind != "end":
            async with reading(server, job, headers=headers) as reader:

                async def some() -> bool:
                    return bool(reader.events)

                await soon(some)
            found.extend(reader.events)
            if found[-1].id:
                headers["Last-Event-ID"] = found[-1].id

    following = asyncio.create_task(follow())
    for number in range(15):
        await writer.write(b"%d\r" % number if number % 3 else b"%d\r\n" % number)
        await asyncio.sleep(0.01)
    await node.finish(writer.lease)
    async with asyncio.timeout(20):
        await following
    assert [event.data for event in found[:-1]] == [str(number) for number in range(15)]


async def test_two_followers_of_one_log_both_get_all_of_it(services: Services, node: Node, server: Listening) -> None:
    job, writer = await begin(services, node, b"before\n")
    async with reading(server, job) as one, reading(server, job, "follow=true&tail=0") as two:
        for number in range(20):
            await writer.write(b"%d\n" % number)
        await node.finish(writer.lease)

        async def ended() -> bool:
            return one.ended and two.ended

        await soon(ended)
    assert one.lines == ["before", *two.lines]
    assert two.lines == [str(number) for number in range(20)]


async def test_a_silent_stream_is_kept_alive_and_ends_when_the_gateway_stops(
    services: Services, node: Node, server: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_stream, "KEEP_ALIVE_S", 0.2)
    services.settings.poll_s = 0.1
    job, _ = await begin(services, node)
    async with reading(server, job) as reader:

        async def kept() -> bool:
            return reader.data.count(b": ") >= 2

        await soon(kept)
        assert reader.events == []
        services.stopping.set()

        async def ended() -> bool:
            return reader.ended

        await soon(ended, 1)
    assert reader.events == []


async def test_a_follower_of_a_cancelled_job_hears_of_the_end(
    services: Services, node: Node, server: Listening
) -> None:
    job = await work.submit(services, await work.define(services))
    async with reading(server, job) as reader:
        async with services.pool.acquire() as conn, conn.transaction():
            await cancelling.cancel(conn, await work.project(services), [uuid_of(job)])
        services.wakeups.hint(Topic.OUTCOME)

        async def ended() -> bool:
            return reader.ended

        await soon(ended)
    assert json.loads(reader.events[-1].data) == {"status": "cancelled"}


async def test_a_stream_is_cut_short_and_resumable_when_the_database_goes(
    services: Services, node: Node, server: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = await begin(services, node, b"one\n")
    async with reading(server, job) as reader:
        await reader.until(1)

        async def away(*_: object) -> bytes:
            raise ConnectionRefusedError

        monkeypatch.setattr(logs, "read", away)

        async def ended() -> bool:
            return reader.ended

        await soon(ended)
    assert [event.kind for event in reader.events] == ["log"]


@pytest.mark.parametrize("headers", [EVENTS, {"Accept": "text/plain"}])
async def test_ten_mebibytes_of_log_take_little_memory_to_read(
    services: Services, node: Node, server: Listening, headers: dict[str, str]
) -> None:
    job, writer = await begin(services, node)
    line = b"x" * 99 + b"\n"
    async with services.pool.acquire() as conn:
        await conn.execute(
            """INSERT INTO log_chunks (job_id, attempt, position, data)
            SELECT $1, 1, (n - 1) * 262144, $2 FROM generate_series(1, 40) n""",
            uuid_of(job), (line * 2622)[:262144],
        )  # fmt: skip
    await node.finish(writer.lease)
    auth = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}
    received = 0
    tracemalloc.start()
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30) as client,
            client.stream(
                "GET", f"http://127.0.0.1:{server.port}/v1/jobs/{job}/logs", headers=auth | headers
            ) as answer,
        ):
            async for chunk in answer.aiter_raw():
                received += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received >= 40 * 262144
    # The client's side of it is in this, too.
    assert peak < 4 * 2**20, f"{peak / 2**20:.1f} MiB"


# Who may, and what is refused


async def test_a_key_that_may_only_invoke_reads_the_logs_of_its_own_jobs(services: Services, node: Node) -> None:
    project = await work.project(services)
    async with services.pool.acquire() as conn:
        mine = await add_key(conn, project, name="mine", scopes=["invoke:echo"])
        other = await add_key(conn, project, name="other", scopes=["invoke"])
    version = await work.define(services)
    job = await work.submit(services, version, key_id=mine.id)
    for key, status in ((mine.text, 200), (other.text, 404)):
        async with client_of(services, key) as client:
            assert (await client.get(f"/v1/jobs/{job}/logs")).status_code == status


async def test_the_logs_of_another_project_do_not_exist(services: Services, node: Node, api: httpx.AsyncClient) -> None:
    async with services.pool.acquire() as conn:
        theirs = await conn.fetchval(
            """INSERT INTO projects (account_id, slug, callback_secret)
            SELECT account_id, 'theirs', callback_secret FROM projects LIMIT 1 RETURNING id"""
        )
        await conn.execute("INSERT INTO flows (project_id, pool) SELECT $1, pool FROM flows LIMIT 1", theirs)
    job = await work.submit(services, await work.define(services, to=theirs))
    unknown = "job_" + "0" * 32
    for accept in EVENTS, {}:
        answers = [await api.get(f"/v1/jobs/{each}/logs", headers=accept) for each in (job, unknown)]
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "job_not_found")] * 2
        assert answers[0].json()["detail"].replace(job, unknown) == answers[1].json()["detail"]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("follow=perhaps", {}, 422),
        ("follow=true&follow=true", {}, 422),
        ("attempt=0", {}, 422),
        ("attempt=1.0", {}, 422),
        ("attempt=99999999999", {}, 422),
        ("tail=-1", {}, 422),
        ("tail=9999999999", {}, 422),
        ("tail=2147483647", {}, 200),
        ("lines=3", {}, 422),
        ("", {"Accept": "text/xml"}, 406),
        ("", {"Accept": "application/json"}, 406),
        ("", {"Accept": "text/plain;q=0"}, 406),
        ("", {"Accept": ";;q=,,/"}, 406),
        ("", {"Accept": "text/plain;q=nan"}, 406),
        ("", {**EVENTS, "Last-Event-ID": "x"}, 400),
        ("", {**EVENTS, "Last-Event-ID": "0:1"}, 400),
        ("", {**EVENTS, "Last-Event-ID": "1:-1"}, 400),
        ("", {**EVENTS, "Last-Event-ID": "1:" + "9" * 30}, 400),
        ("", {**EVENTS, "Last-Event-ID": "999999999:999999999999999"}, 200),
        ("attempt=2", {**EVENTS, "Last-Event-ID": "1:1"}, 400),
    ],
)
async def test_what_makes_no_sense_is_refused(
    shared_services: Services, shared_api: httpx.AsyncClient, query: str, headers: dict[str, str], status: int
) -> None:
    job = await work.submit(shared_services, await work.define(shared_services))
    answer = await shared_api.get(f"/v1/jobs/{job}/logs?{query}", headers=headers)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, */*;q=0.5", "text/event-stream"),
        ("text/event-stream, */*", "text/event-stream"),
        ("text/plain, text/event-stream", "text/plain"),
        ("text/plain;q=0.5, text/event-stream", "text/event-stream"),
        ("TEXT/Event-Stream ; q=0.9", "text/event-stream"),
        ("text/plain;q=0, */*", "text/event-stream"),
        ("*/*", "text/plain"),
    ],
)
async def test_the_client_says_in_which_form_it_wants_the_log(
    shared_services: Services, shared_api: httpx.AsyncClient, accept: str, form: str
) -> None:
    job = await work.submit(shared_services, await work.define(shared_services))
    answer = await shared_api.get(f"/v1/jobs/{job}/logs", headers={"Accept": accept})
    assert answer.headers["content-type"] == f"{form}; charset=utf-8"


@pytest.mark.parametrize("job", ["x", "job_", "art_" + "0" * 32, "job_" + "0" * 31])
async def test_what_is_no_id_names_no_job(shared_api: httpx.AsyncClient, job: str) -> None:
    answer = await shared_api.get(f"/v1/jobs/{job}/logs")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert ids.decode(ids.JOB, job) is None
