"""An attempt's log: what is taken where, and what a reader gets."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID, uuid4

import pytest

from functions import ids
from functions.db import Connection, Pool
from functions.errors import LeaseLost, NotFound
from functions.ids import JobId, NodeId, ProjectId
from scheduler import logs

NODE = NodeId(uuid4())
TOKEN = uuid4()
PROJECT = ProjectId(7)
CAP = 10 * 2**20


async def leased(conn: Connection, *, attempt: int = 1, token: UUID = TOKEN, node: NodeId = NODE) -> JobId:
    job = JobId(ids.new_uuid7())
    await conn.execute(
        "INSERT INTO jobs (id, project_id, version_id, trigger, params, key_id) VALUES ($1, $2, $1, '{}', '{}', 'k')",
        job,
        PROJECT,
    )
    await conn.execute(
        """INSERT INTO leases (job_id, token, node_id, pool, project_id, lane, cls, attempt, losses, queued_at,
                               expires_at)
        VALUES ($1, $2, $3, 1, $4, 0, 1, $5, 0, now(), now() + interval '1 minute')""",
        job,
        token,
        node,
        PROJECT,
        attempt,
    )
    return job


async def put(conn: Connection, job: JobId, position: int, data: bytes, *, attempt: int = 1, cap: int = CAP) -> int:
    return await logs.append(conn, NODE, job, TOKEN, attempt, position=position, data=data, cap=cap)


async def written(conn: Connection, *chunks: bytes) -> JobId:
    job, position = await leased(conn), 0
    for chunk in chunks:
        position = await put(conn, job, position, chunk)
    return job


async def test_a_chunk_is_taken_only_where_the_log_ends(conn: Connection) -> None:
    job = await leased(conn)
    assert await put(conn, job, 0, b"") == 0
    assert await put(conn, job, 5, b"early") == 0
    assert await put(conn, job, 0, b"one") == 3
    assert await put(conn, job, 0, b"one") == 3
    assert await put(conn, job, 0, b"longer") == 3
    assert await put(conn, job, 2, b"eto") == 3
    assert await put(conn, job, 3, b"two") == 6
    assert await logs.read(conn, job, 1, 0) == b"onetwo"


async def test_only_the_holder_of_this_very_attempt_may_write(conn: Connection) -> None:
    job = await leased(conn, attempt=2)
    for attempt, token, node in ((1, TOKEN, NODE), (3, TOKEN, NODE), (2, uuid4(), NODE), (2, TOKEN, NodeId(uuid4()))):
        for data in (b"x", b""):
            with pytest.raises(LeaseLost):
                await logs.append(conn, node, job, token, attempt, position=0, data=data, cap=CAP)
    assert await put(conn, job, 0, b"x", attempt=2) == 1


async def test_the_same_chunk_sent_by_many_at_once_is_there_once(pool: Pool) -> None:
    async with pool.acquire() as conn:
        job = await leased(conn)

    async def send(position: int, data: bytes) -> int:
        async with pool.acquire() as conn:
            return await put(conn, job, position, data)

    for round_ in range(20):
        assert await asyncio.gather(*(send(round_ * 3, b"abc") for _ in range(5))) == [round_ * 3 + 3] * 5
    async with pool.acquire() as conn:
        assert await logs.read(conn, job, 1, 0) == b"abc" * 20


async def test_chunks_of_any_length_that_come_in_any_order_lie_end_to_end(pool: Pool) -> None:
    whole = random.Random(1).randbytes(4000)
    async with pool.acquire() as conn:
        job = await leased(conn)

    async def ship(seed: int) -> None:
        chance, position = random.Random(seed), 0
        while position < len(whole):
            size = chance.randint(1, 300)
            async with pool.acquire() as conn:
                position = await put(conn, job, position, whole[position : position + size])

    await asyncio.gather(*map(ship, range(6)))
    async with pool.acquire() as conn:
        assert await logs.size(conn, job, 1) == len(whole)
        assert await logs.read(conn, job, 1, 0) == whole


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        ((b"x" * 10,), b"x" * 10),
        ((b"x" * 11,), b"x" * 10 + b"\n[rgrid: log cut at 0 MiB]\n"),
        ((b"x" * 8, b"y\n", b"z"), b"x" * 8 + b"y\n"),
        ((b"x" * 8, b"y\nz"), b"x" * 8 + b"y\n[rgrid: log cut at 0 MiB]\n"),
    ],
)
async def test_a_log_ends_at_the_cap(conn: Connection, chunks: tuple[bytes, ...], kept: bytes) -> None:
    job, position = await leased(conn), 0
    for chunk in chunks:
        position = await put(conn, job, position, chunk, cap=10)
    assert await put(conn, job, position, b"more", cap=10) == position == len(kept)
    assert await logs.read(conn, job, 1, 0) == kept


async def test_reading_from_any_position_gives_what_is_there_from_it_on(conn: Connection) -> None:
    whole = random.Random(2).randbytes(500)
    job = await written(conn, whole[:1], whole[1:100], whole[100:101], whole[101:400], whole[400:])
    for position in range(len(whole) + 2):
        for limit in (1, 99, 1000):
            assert await logs.read(conn, job, 1, position, limit) == whole[position : position + limit]
    assert await logs.read(conn, job, 2, 0) == b""
    assert await logs.read(conn, job, 1, 2**53) == b""


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "\n", "\n\n", "a\r\nb\r\n", "a\rb\rc", "a\r", "é\nü\r\n\n"])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
async def test_the_tail_begins_where_its_lines_begin(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    monkeypatch.setattr(logs, "TAIL_BYTES", block)
    whole = text.encode()
    job = await written(conn, *(whole[i : i + 2] for i in range(0, len(whole), 2)))
    lines = whole.splitlines(keepends=True)
    for wanted in range(len(lines) + 2):
        begin = await logs.tail(conn, job, 1, wanted)
        assert whole[begin:] == b"".join(lines[max(0, len(lines) - wanted) :] if wanted else [])


async def test_a_reader_at_the_end_of_a_long_log_reads_none_of_it(pool: Pool) -> None:
    """Also with the plan that was made while the table was empty."""
    async with pool.acquire() as conn:
        await conn.execute("SET plan_cache_mode = force_generic_plan")
        job = await leased(conn)
        await logs.read(conn, job, 1, 0)
        await conn.execute(
            """INSERT INTO log_chunks (job_id, attempt, position, data)
            SELECT $1, 1, (n - 1) * 1000, decode(repeat('61', 1000), 'hex') FROM generate_series(1, 10000) n""",
            job,
        )
        plan = "\n".join(
            row[0] for row in await conn.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {logs.READ_LOG}", job, 1, 9_999_999, 65536)
        )
        await conn.execute("RESET ALL")
    assert "Seq Scan" not in plan
    read = [int(word.partition("=")[2]) for word in plan.split() if word.startswith("hit=")]
    assert max(read) < 50, plan


async def test_the_state_of_a_log_follows_its_job(conn: Connection) -> None:
    job = await leased(conn, attempt=2)
    assert await logs.state(conn, PROJECT, job) == logs.LogState("running", 2, writing=True, ended=False)
    assert (await logs.state(conn, PROJECT, job, "k")).attempt == 2
    for project, key, which in ((ProjectId(8), None, job), (PROJECT, "other", job), (PROJECT, None, JobId(uuid4()))):
        with pytest.raises(NotFound):
            await logs.state(conn, project, which, key)
    await conn.execute("DELETE FROM leases WHERE job_id = $1", job)
    await conn.execute(
        """INSERT INTO waiting_jobs (job_id, pool, project_id, cls, attempt, losses, stage, due_at)
        VALUES ($1, 1, 7, 1, 2, 0, 'retry', now())""",
        job,
    )
    assert await logs.state(conn, PROJECT, job) == logs.LogState("scheduled", 2, writing=False, ended=False)
    await conn.execute("DELETE FROM waiting_jobs WHERE job_id = $1", job)
    await conn.execute(
        """INSERT INTO outcomes (job_id, project_id, status, attempt, losses) VALUES ($1, 7, 'cancelled', 2, 0)""", job
    )
    assert await logs.state(conn, PROJECT, job) == logs.LogState("cancelled", 2, writing=False, ended=True)
