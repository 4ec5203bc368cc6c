"""A flood of one project delays another by what is in service, not by its backlog."""

from __future__ import annotations

from functions.db import Pool
from scheduler import queue
from scheduler.queue import VirtualClocks
from tests.scheduler.factories import LEASE, make_node, make_project, make_version, new_job


async def test_a_newcomer_is_served_by_the_next_claim_however_long_the_others_queue(pool: Pool) -> None:
    async with pool.acquire() as conn:
        flooder, account = await make_project(conn)
        theirs = await make_version(conn, flooder)
        await queue.enqueue(conn, [new_job(theirs) for _ in range(5000)])
        node, clocks = await make_node(conn, slots=2), VirtualClocks(0)

        async def serve() -> list[int]:
            claimed = await queue.claim(conn, clocks, node, pools=[account], free_slots=2, node_slots=2, lease=LEASE)
            return [each.project_id for each in claimed]

        for _ in range(100):
            assert await serve() == [flooder] * 2
        newcomer, _ = await make_project(conn, pool=account)
        await queue.enqueue(conn, [new_job(await make_version(conn, newcomer)) for _ in range(50)])
        assert newcomer in await serve()
        turns = [project for _ in range(20) for project in await serve()]
        assert turns.count(newcomer) == 20, "from then on they take turns"


async def test_who_comes_back_after_a_pause_has_no_credit_from_it(pool: Pool) -> None:
    async with pool.acquire() as conn:
        busy, account = await make_project(conn)
        idle, _ = await make_project(conn, pool=account)
        ours, theirs = await make_version(conn, busy), await make_version(conn, idle)
        node, clocks = await make_node(conn, slots=1), VirtualClocks(0)

        async def serve() -> int:
            (claimed,) = await queue.claim(
                conn, clocks, node, pools=[account], free_slots=1, node_slots=1, lease=LEASE
            )
            return claimed.project_id

        await queue.enqueue(conn, [new_job(ours) for _ in range(60)])
        for _ in range(30):
            await serve()
        await queue.enqueue(conn, [new_job(theirs) for _ in range(30)])
        assert [await serve() for _ in range(20)].count(idle) in (9, 10, 11)
