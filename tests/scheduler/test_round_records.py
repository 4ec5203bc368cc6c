"""What schedulers tell of themselves: added up over all, late by seconds, and never in the way of their work."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest

from functions.db import Pool
from scheduler import round_records
from scheduler.loop import Round, run_rounds
from scheduler.round_records import Records, Tally, read_rounds, read_tallies


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_what_several_schedulers_did_is_added_up(pool: Pool) -> None:
    clocks = [Clock(), Clock()]
    one, other = (Records(clock=clock) for clock in clocks)
    one.ran("reap", interval_s=1, took_s=0.25, failed=False)
    one.ran("reap", interval_s=1, took_s=0.25, failed=True)
    other.ran("reap", interval_s=1, took_s=0.5, failed=False)
    one.count(Tally.LEASES_LOST, 2)
    other.count(Tally.LEASES_LOST)
    clocks[0].now_s += 60
    assert await one.tell_once(pool) is False
    await other.tell_once(pool)
    await one.tell_once(pool)
    async with pool.acquire() as conn:
        (found,) = await read_rounds(conn)
        tallies = await read_tallies(conn)
    assert (found.name, found.runs, found.failures, found.seconds) == ("reap", 3, 1, 1.0)
    assert tallies == dict.fromkeys(Tally, 0) | {Tally.LEASES_LOST: 3}
    assert found.succeeded_at is not None
    assert datetime.now(UTC) - found.succeeded_at < timedelta(seconds=30), "the later one of the two counts"


async def test_the_last_success_is_when_it_was_and_not_when_it_was_told(pool: Pool) -> None:
    clock = Clock()
    records = Records(clock=clock)
    records.ran("reap", interval_s=1, took_s=0, failed=False)
    clock.now_s += 60
    records.ran("reap", interval_s=1, took_s=0, failed=True)
    records.ran("never", interval_s=1, took_s=0, failed=True)
    await records.tell_once(pool)
    async with pool.acquire() as conn:
        never, reap = await read_rounds(conn)
    assert never.succeeded_at is None
    assert reap.succeeded_at is not None
    assert timedelta(seconds=59) < reap.told_at - reap.succeeded_at < timedelta(seconds=61)


async def test_what_could_not_be_told_is_told_the_next_time_and_once(pool: Pool) -> None:
    records = Records()
    records.ran("reap", interval_s=1, took_s=1, failed=False)
    records.count(Tally.CLOUD_CALLS, 5)
    with patch.object(round_records, "ADD_TALLIES", "SELECT 1 / 0, $1::text[], $2::bigint[]"):
        with pytest.raises(Exception, match="division by zero"):
            await records.tell_once(pool)
    records.ran("reap", interval_s=1, took_s=1, failed=False)
    await records.tell_once(pool)
    async with pool.acquire() as conn:
        (found,) = await read_rounds(conn)
        assert (found.runs, found.seconds, (await read_tallies(conn))[Tally.CLOUD_CALLS]) == (2, 2.0, 5)


async def test_a_round_that_no_scheduler_has_any_more_is_forgotten_while_others_tell(pool: Pool) -> None:
    records = Records()
    records.ran("reap", interval_s=1, took_s=0, failed=False)
    async with pool.acquire() as conn:
        await conn.execute(
            "INSERT INTO rounds VALUES ('of old', 1, now(), 1, 0, 0, now() - interval '4 minutes'),"
            " ('of another', 1, now(), 1, 0, 0, now() - interval '2 minutes')"
        )
        assert [each.name for each in await read_rounds(conn)] == ["of another", "of old"]
        await records.tell_once(pool)
        assert [each.name for each in await read_rounds(conn)] == ["of another", "reap"]


async def test_the_loop_records_each_run_of_each_round() -> None:
    records, stopping, failed = Records(), asyncio.Event(), asyncio.Event()
    runs = 0

    async def works() -> bool:
        nonlocal runs
        runs += 1
        if runs == 3:
            await failed.wait()
            stopping.set()
        return True

    async def fails() -> bool:
        failed.set()
        raise ConnectionError

    async with asyncio.timeout(10):
        await run_rounds([Round("works", 5, works), Round("fails", 60, fails)], stopping, records=records)
    done = {name: (each.runs, each.failures, each.interval_s) for name, each in records._rounds.items()}
    assert done == {"works": (3, 0, 5), "fails": (1, 1, 60)}
    assert (records._rounds["works"].succeeded_s is None, records._rounds["fails"].succeeded_s) == (False, None)
