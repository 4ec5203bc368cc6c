"""A flood of one project delays another by what is in service, not by its backlog."""

from __future__ import annotations

from datetime import timedelta

from functions.db import Pool
from scheduler import claiming, head_starts, queue
from scheduler.claiming import VirtualClocks
from tests.scheduler.factories import LEASE, make_node, make_project, make_version, new_job


async def test_a_newcomer_is_served_by_the_next_claim_however_long_the_others_queue(pool: Pool) -> None:
    async with pool.acquire() as conn:
        flooder, account = await make_project(conn)
        theirs = await make_version(conn, flooder)
        await queue.enqueue(conn, [new_job(theirs) for _ in range(5000)])
        node, clocks = await make_node(conn, slots=2), VirtualClocks(0)

        async def serve() -> list[int]:
            claimed = await claiming.claim(conn, clocks, node, pools=[account], free_slots=2, node_slots=2, lease=LEASE)
            return [each.project_id for each in claimed]

        for _ in range(100):
            assert await serve() == [flooder] * 2
        newcomer, _ = await make_project(conn, pool=account)
        await queue.enqueue(conn, [new_job(await make_version(conn, newcomer)) for _ in range(50)])
        assert newcomer in await serve()
        turns = [project for _ in range(20) for project in await serve()]
        assert turns.count(newcomer) == 20, "from then on they take turns"


async def test_at_most_one_job_of_each_other_project_goes_before_a_newcomers_first(pool: Pool) -> None:
    async with pool.acquire() as conn:
        first, account = await make_project(conn)
        others = [first, *[(await make_project(conn, pool=account))[0] for _ in range(4)]]
        node, clocks = await make_node(conn, slots=1), VirtualClocks(0)
        for turn, project in enumerate(others):
            version = await make_version(conn, project)
            await queue.enqueue(conn, [new_job(version) for _ in range(400 * (turn + 1))])

        async def serve() -> int:
            (claimed,) = await claiming.claim(
                conn, clocks, node, pools=[account], free_slots=1, node_slots=1, lease=LEASE
            )
            return claimed.project_id

        for _ in range(33):
            await serve()
        newcomer, _ = await make_project(conn, pool=account)
        await queue.enqueue(conn, [new_job(await make_version(conn, newcomer))])
        before: list[int] = []
        while (served := await serve()) != newcomer:
            before.append(served)
        assert len(before) == len(set(before)), "no project twice"


async def test_a_head_start_overtakes_only_what_its_project_queued_since(pool: Pool) -> None:
    async with pool.acquire() as conn:
        project, account = await make_project(conn)
        other, _ = await make_project(conn, pool=account)
        ours, theirs = await make_version(conn, project), await make_version(conn, other)
        node, clocks = await make_node(conn, slots=1), VirtualClocks(0)
        await queue.enqueue(conn, [new_job(theirs) for _ in range(20)])
        early = [new_job(ours) for _ in range(10)]
        await queue.enqueue(conn, early)
        await head_starts.mark(conn)
        await conn.execute("UPDATE flow_marks SET at = at - interval '1 minute'")
        late = [new_job(ours) for _ in range(10)]
        await queue.enqueue(conn, late)
        ahead, far_ahead, behind = (
            new_job(ours, head_start=timedelta(seconds=30)),
            new_job(ours, head_start=timedelta(hours=1)),
            new_job(ours, head_start=timedelta(0)),
        )
        for job in (ahead, far_ahead, behind):
            await queue.enqueue(conn, [job])
        served = []
        for _ in range(43):
            (claimed,) = await claiming.claim(
                conn, clocks, node, pools=[account], free_slots=1, node_slots=1, lease=LEASE
            )
            served.append(claimed.job_id)
        in_order = [job for job in served if job in {each.id for each in (*early, *late, ahead, far_ahead, behind)}]
        assert in_order.index(far_ahead.id) <= 1
        assert 10 <= in_order.index(ahead.id) <= 12
        assert in_order[-1] == behind.id
        await head_starts.mark(conn)
        assert await conn.fetchval("SELECT count(*) FROM flow_marks") <= 2, "what is served needs no mark"


async def test_who_comes_back_after_a_pause_has_no_credit_from_it(pool: Pool) -> None:
    async with pool.acquire() as conn:
        busy, account = await make_project(conn)
        idle, _ = await make_project(conn, pool=account)
        ours, theirs = await make_version(conn, busy), await make_version(conn, idle)
        node, clocks = await make_node(conn, slots=1), VirtualClocks(0)

        async def serve() -> int:
            (claimed,) = await claiming.claim(
                conn, clocks, node, pools=[account], free_slots=1, node_slots=1, lease=LEASE
            )
            return claimed.project_id

        await queue.enqueue(conn, [new_job(ours) for _ in range(60)])
        for _ in range(30):
            await serve()
        await queue.enqueue(conn, [new_job(theirs) for _ in range(30)])
        assert [await serve() for _ in range(20)].count(idle) in (9, 10, 11)
