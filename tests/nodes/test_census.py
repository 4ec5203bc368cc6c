"""What the fleet is and costs, in numbers; and what the autoscaler tells of itself."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from functions.db import Connection, Pool
from functions.ids import AccountId
from nodes import budgets, census, fleet, registry
from nodes.servers import State
from tests.nodes.renting import OFFER, rent
from tests.scheduler.factories import LEASE, claim_one, make_job, make_node, make_project, make_version

NODES = Path(fleet.__file__).parent


async def test_nodes_are_counted_by_where_they_come_from_and_silent_ones_apart(conn: Connection) -> None:
    _, account = await make_project(conn)
    for state in ("ready", "ready", "draining"):
        await make_node(conn, state=state)
    silent = [await make_node(conn, state=state) for state in ("ready", "draining")]
    await registry.leave(conn, await make_node(conn))
    await rent(conn, account)
    await conn.execute("UPDATE nodes SET last_seen_at = now() - interval '21 seconds' WHERE id = ANY ($1)", silent)
    found = await census.read(conn, provider="hetzner", lease=LEASE)
    assert {of: number for of, number in found.nodes.items() if number} == {
        ("local", "ready"): 2, ("local", "draining"): 1, ("local", "silent"): 2, ("hetzner", "ready"): 1,
    }  # fmt: skip
    assert found.nodes["hetzner", "silent"] == 0


async def test_a_dead_machine_of_ones_own_that_was_drained_is_silent_no_more(conn: Connection) -> None:
    project, account = await make_project(conn)
    dead, dead_and_ready, well, holding = [await make_node(conn) for _ in range(4)]
    rented, _ = await rent(conn, account)
    await make_job(conn, await make_version(conn, project))
    await claim_one(conn, holding, account)
    for node in (dead, well, holding, rented):
        await registry.drain(conn, AccountId(account), node)
    await conn.execute("UPDATE nodes SET last_seen_at = now() - interval '6 minutes' WHERE id <> $1", well)
    await registry.forget_drained(conn)
    await registry.forget_drained(conn)
    states = {row["id"]: row["state"] for row in await conn.fetch("SELECT id, state FROM nodes")}
    assert states == {
        dead: "gone", dead_and_ready: "ready", well: "draining", holding: "draining", rented: "draining",
    }  # fmt: skip
    assert (await census.read(conn, provider="hetzner", lease=LEASE)).nodes["local", "silent"] == 2


async def test_what_counts_an_hour_is_what_is_there_and_what_is_gone_too_early(conn: Connection) -> None:
    _, account = await make_project(conn)
    await rent(conn, account, cloud_id=1)
    for cloud_id, age in ((2, timedelta(minutes=20)), (3, timedelta(hours=3, minutes=1))):
        node, _ = await rent(conn, account, age=age, cloud_id=cloud_id)
        ended = datetime.now(UTC) - timedelta(minutes=2)
        await conn.execute("UPDATE servers SET state = 'gone', ended_at = $2 WHERE node_id = $1", node, ended)
    found = await census.read(conn, provider="hetzner", lease=LEASE)
    assert found.hourly == 2 * OFFER.hourly, "the third one's hour was over when it went"
    assert found.servers == {state: int(state == State.READY) for state in census.LIVE}


async def test_budgets_are_counted_by_how_far_they_are_used(conn: Connection) -> None:
    today = datetime.now(UTC).date()
    for used in (Decimal("7.99"), Decimal(8), Decimal(10), Decimal(11)):
        project, _ = await make_project(conn)
        await budgets.put(conn, project, Decimal(10))
        await conn.execute(
            "INSERT INTO usage_days (project_id, day, function_id, cost) VALUES ($1, $2, gen_random_uuid(), $3)",
            project, today, used,
        )  # fmt: skip
    found = await census.read(conn, provider="local", lease=LEASE)
    assert (found.over, found.month) == ({80: 3, 100: 2}, Decimal("36.99"))


async def test_a_refusal_counts_until_its_time_is_over(conn: Connection) -> None:
    now, _ = await fleet.clock(conn)
    await fleet.freeze(conn, until=now + timedelta(minutes=1))
    await fleet.limit(conn, 5, until=now + timedelta(minutes=1))
    found = await census.read(conn, provider="hetzner", lease=LEASE)
    assert (found.frozen, found.account_limit) == (True, 5)
    await conn.execute("UPDATE fleet SET ahead = interval '2 minutes'")
    found = await census.read(conn, provider="hetzner", lease=LEASE)
    assert (found.frozen, found.account_limit) == (False, None)


async def test_a_round_says_that_it_was_whole_but_not_every_time(pool: Pool) -> None:
    async def told(alarms: dict[str, str]) -> datetime:
        async with pool.acquire() as conn:
            await fleet.tell(conn, alarms)
            state = await fleet.get(conn)
        assert state.told_at is not None
        assert (state.problem, list(state.alarms)) == (
            next(iter(alarms.values()), None), sorted({about.split()[0] for about in alarms}),
        )  # fmt: skip
        return state.told_at

    first = await told({})
    assert await told({}) == first
    assert (second := await told({"delete a": "x", "buy": "y"})) > first
    assert await told({"delete a": "x", "buy": "y"}) == second
    since = await pool.fetchval("SELECT problem_at FROM fleet")
    await pool.execute("UPDATE fleet SET told_at = told_at - interval '11 seconds', problem_at = '2026-01-01'")
    assert await told({"delete a": "x", "buy": "y"}) > second
    assert since == second
    assert str(await pool.fetchval("SELECT problem_at FROM fleet")).startswith("2026-01-01"), "it is the same one"


def test_the_kinds_of_alarms_are_known() -> None:
    sources = "\n".join(path.read_text() for path in NODES.glob("*.py"))
    assert set(re.findall(r'alarms\.(?:say|keep)\(\s*"(\w+)', sources)) == set(fleet.ALARMS)
