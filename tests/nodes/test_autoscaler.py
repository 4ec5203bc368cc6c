"""The autoscaler over a real database and the emulated cloud: what it buys, keeps, drops, and what it makes of faults."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from functions import ids
from functions.db import Connection
from functions.ids import NodeId, ProjectId
from nodes import servers
from nodes.ledger import Ledger
from nodes.outlook import Left
from nodes.policy.state import Caps, Rules
from nodes.rented import State
from tests.hetzner.rules import CREATE, DELETE, LIST, Answer, Drop, Fate, Omit
from tests.nodes.fleets import A_MINUTE, AN_HOUR, OWNER, Clouded, fall_silent, order, problem, waiting, wish_of
from tests.scheduler.factories import claim


async def test_a_job_gets_a_node_that_is_kept_to_the_end_of_its_hour_and_no_further(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.round()
    assert await clouded.states() == ["booting"]
    await clouded.pass_time(A_MINUTE)
    assert await clouded.states() == ["ready"]
    assert await clouded.work()
    await clouded.pass_time(5 * A_MINUTE, step=A_MINUTE)
    await clouded.finish()
    await clouded.pass_time(50 * A_MINUTE, step=10 * A_MINUTE)
    assert await clouded.states() == ["ready"]
    await clouded.pass_time(4 * A_MINUTE)
    assert await clouded.states() == ["gone"]
    assert clouded.existing == []
    assert clouded.paid == (1, 1)


async def test_a_node_that_is_busy_at_the_end_of_its_hour_gets_another_one_that_is_reserved_before(
    clouded: Clouded,
) -> None:
    books = Recorded()
    clouded.autoscaler = clouded.new_autoscaler(books=books)
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    await clouded.pass_time(57 * A_MINUTE, step=A_MINUTE)
    (row,) = await clouded.live()
    assert row.state is State.READY
    assert row.reserved_until == row.hours_from + 2 * AN_HOUR
    project = clouded.world.project
    assert books.shares == [((project, Decimal("0.0096")),)] * 2
    assert books.until[1] == row.reserved_until


async def test_what_no_budget_pays_for_is_not_bought(clouded: Clouded) -> None:
    (job,) = await clouded.submit()
    books = Recorded(Left({clouded.world.project: Decimal("0.009")}))
    clouded.autoscaler = clouded.new_autoscaler(books=books)
    await clouded.round()
    assert (await clouded.states(), books.shares) == ([], [])
    assert (await waiting(clouded, job))["wait_reason"] == "budget"


async def test_a_type_that_is_sold_out_is_followed_by_the_next_in_the_same_round(clouded: Clouded) -> None:
    for location in clouded.wish.locations:
        clouded.cloud.cloud.stock("cx23", location, shown=True, left=0)
    await clouded.submit()
    await clouded.round()
    (row,) = await clouded.live()
    assert row.offer.type == "cx33"
    assert (await clouded.states()).count("failed") == 3


async def test_a_job_says_what_it_waits_for_and_until_when(clouded: Clouded) -> None:
    (job,) = await clouded.submit()
    for _ in range(2):
        await clouded.round()
    (row,) = await clouded.live()
    shown = await waiting(clouded, job)
    assert shown["wait_reason"] == f"booting {ids.encode(ids.NODE, row.id)}"
    assert timedelta() < shown["node_eta"] - shown["queued_at"] < 2 * A_MINUTE


async def test_above_the_price_ceiling_nothing_is_bought(clouded: Clouded) -> None:
    clouded.wish = replace(wish_of(types=("cpx22",)), ceiling=Decimal("0.01"))
    clouded.autoscaler = clouded.new_autoscaler()
    (job,) = await clouded.submit()
    await clouded.round()
    assert (await clouded.states(), (await waiting(clouded, job))["wait_reason"]) == ([], "capacity")
    assert "can be bought" in ((await problem(clouded)) or "")


async def test_a_purchase_whose_answer_is_lost_is_found_in_the_next_list(clouded: Clouded) -> None:
    clouded.cloud.inject(Drop(), **CREATE)
    await clouded.submit()
    await clouded.round()
    assert await clouded.states() == ["creating"]
    await clouded.pass_time(2 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready"], (1, 1))
    assert len(clouded.cloud.made("POST", "/servers")) == 1


async def test_one_that_never_happened_is_made_again_under_its_name(clouded: Clouded) -> None:
    clouded.cloud.inject(Drop(commit=False), **CREATE)
    await clouded.submit()
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready"], (1, 1))
    assert len({call.name for call in clouded.cloud.made("POST", "/servers")}) == 1


async def test_a_purchase_that_comes_too_soon_for_the_cloud_is_made_later(clouded: Clouded) -> None:
    clouded.cloud.inject(Answer(429, "rate_limit_exceeded"), **CREATE)
    await clouded.submit()
    await clouded.round()
    assert await clouded.states() == ["planned"]
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready"], (1, 1))


async def test_a_node_serves_one_account_unless_the_operator_says_all(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.round()
    (row,) = await clouded.live()
    assert (row.account, row.payer) == (clouded.world.account, clouded.world.project)
    clouded.wish = wish_of(rules=Rules(exclusive=False))
    clouded.autoscaler = clouded.new_autoscaler()
    await clouded.submit(4)
    await clouded.round()
    *_, row = await clouded.live()
    assert row.account is None
    labels = [server.labels["rgrid-pool"] for server in clouded.cloud.cloud.servers.values()]
    assert labels[:2] == [str(clouded.world.account), "shared"]


async def test_the_accounts_limit_is_learned_and_stops_purchases_for_a_while(clouded: Clouded) -> None:
    clouded.cloud.cloud.server_cap = 1
    jobs = await clouded.submit(3)
    await clouded.round()
    await clouded.pass_time(5 * A_MINUTE, step=A_MINUTE)
    assert len(clouded.cloud.made("POST", "/servers")) == 2
    assert "limit" in ((await problem(clouded)) or "")
    await clouded.work()
    await clouded.round()
    assert (await waiting(clouded, jobs[2]))["wait_reason"] == "account limit"
    clouded.cloud.cloud.server_cap = 5
    await clouded.pass_time(AN_HOUR, step=10 * A_MINUTE)
    assert len(clouded.existing) == 2
    assert await problem(clouded) is None


async def test_an_hour_that_is_paid_for_counts_against_the_hourly_limit_to_its_end(clouded: Clouded) -> None:
    clouded.wish = wish_of(caps=Caps(5, hourly=Decimal("0.0200")))
    clouded.autoscaler = clouded.new_autoscaler()
    clouded.cloud.inject(Fate(machine_never=True), times=None, **CREATE)
    (job,) = await clouded.submit()
    await clouded.pass_time(55 * A_MINUTE)
    assert clouded.paid == (2, 2)
    assert (await waiting(clouded, job))["wait_reason"] == "hourly limit"
    await clouded.pass_time(20 * A_MINUTE)
    assert clouded.paid[0] > 2


async def test_a_server_that_does_not_start_is_replaced_before_the_deadline(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(start_error="action_failed"), **CREATE)
    await clouded.submit()
    await clouded.pass_time(4 * A_MINUTE)
    assert sorted(await clouded.states()) == ["gone", "ready"]
    assert any("start_server failed" in said for said in await clouded.history())


async def test_a_server_that_goes_by_itself_is_lost_after_two_lists(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(vanishes_after=3 * A_MINUTE), **CREATE)
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    (row,) = await clouded.live()
    await fall_silent(clouded, row.id)
    await clouded.pass_time(2 * A_MINUTE)
    assert await clouded.states() == ["lost"]


async def test_a_list_that_lacks_a_server_changes_nothing_nor_do_many_while_its_node_speaks(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (row,) = await clouded.live()
    clouded.cloud.inject(Omit(where=lambda server: True), times=4, **LIST)
    await clouded.pass_time(A_MINUTE)
    assert await clouded.states() == ["ready"]
    clouded.cloud.rules.clear()
    await clouded.pass_time(A_MINUTE)
    await fall_silent(clouded, row.id)
    clouded.cloud.inject(Omit(where=lambda server: True), **LIST)
    await clouded.pass_time(A_MINUTE)
    assert (await clouded.states())[0] == "ready"


async def test_a_server_without_a_row_is_deleted_and_a_strangers_is_not(clouded: Clouded) -> None:
    await clouded.round()
    ours, other = ids.new_uuid7().hex, ids.new_uuid7().hex
    order(clouded, f"rgrid-{OWNER}-{ours}", ours)
    clouded.watch.strangers.add(order(clouded, f"rgrid-{OWNER}-{other}", other, owner="somebody"))
    await clouded.pass_time(5 * A_MINUTE)
    assert clouded.existing == [f"rgrid-{OWNER}-{other}"]
    assert await clouded.states() == ["gone"]


async def test_a_server_that_was_renamed_is_the_same_as_before(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    (server,) = clouded.cloud.cloud.servers.values()
    server.name = "mine"
    await clouded.pass_time(4 * A_MINUTE)
    assert (clouded.existing, await clouded.states()) == (["mine"], ["ready"])


async def test_a_server_with_our_label_and_the_name_of_another_is_left_to_the_operator(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (row,), (server,) = await clouded.live(), clouded.cloud.cloud.servers.values()
    server.name = "mine"
    clouded.watch.strangers.add(order(clouded, row.name, ids.new_uuid7().hex))
    await clouded.pass_time(4 * A_MINUTE)
    assert await clouded.states() == ["ready"]
    assert row.name in ((await problem(clouded)) or "")


async def test_many_servers_without_rows_are_left_to_the_operator(clouded: Clouded) -> None:
    await clouded.round()
    nodes = [ids.new_uuid7().hex for _ in range(3)]
    clouded.watch.strangers |= {order(clouded, f"rgrid-{OWNER}-{node}", node) for node in nodes}
    await clouded.pass_time(5 * A_MINUTE)
    assert len(clouded.existing) == 3
    assert "RGRID_DELETE_UNKNOWN" in ((await problem(clouded)) or "")
    clouded.watch.strangers.clear()
    clouded.wish = replace(clouded.wish, delete_unknown=True)
    clouded.autoscaler = clouded.new_autoscaler()
    await clouded.pass_time(2 * A_MINUTE)
    assert clouded.existing == []


async def test_a_server_whose_row_had_ended_is_deleted(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (row,) = await clouded.live()
    async with clouded.pool.acquire() as conn:
        await servers.end(conn, row.id, State.LOST, at=clouded.cloud.now)
        await conn.execute("DELETE FROM ready_jobs")
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states(), clouded.existing) == (["gone"], [])


async def test_a_deletion_that_is_refused_for_now_is_tried_until_the_server_is_gone(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    clouded.cloud.inject(Answer(423, "locked"), times=3, **DELETE)
    (row,) = await clouded.live()
    async with clouded.pool.acquire() as conn:
        await conn.execute("DELETE FROM ready_jobs")
        await servers.delete(conn, row.id, reason="a test wants it", now=clouded.cloud.now)
    await clouded.round()
    assert await clouded.states() == ["deleting"]
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states(), clouded.existing) == (["gone"], [])


async def test_with_a_token_that_may_only_read_nothing_is_bought_and_the_operator_is_told(clouded: Clouded) -> None:
    clouded.cloud.tokens[clouded.cloud.token].readonly = True
    await clouded.submit()
    await clouded.round()
    assert "Read & Write" in ((await problem(clouded)) or "")
    assert await clouded.states() == []


async def test_a_node_that_an_operator_drained_is_deleted_when_it_has_left(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    (row,) = await clouded.live()
    async with clouded.pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET state = 'draining' WHERE id = $1", row.id)
    await clouded.round()
    assert await clouded.states() == ["draining"]
    await clouded.finish()
    await clouded.pass_time(2 * A_MINUTE)
    assert await clouded.states() == ["gone"]


async def test_a_node_that_fell_silent_is_deleted_but_not_all_of_them_at_once(clouded: Clouded) -> None:
    await clouded.submit(3)
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    first, second = await clouded.live()
    clouded.autoscaler = clouded.new_autoscaler()
    clouded.autoscaler._sight._lease_s = 0  # the database was in sight all the time
    await fall_silent(clouded, first.id, second.id)
    await clouded.round()
    assert await clouded.states() == ["ready", "ready"]
    async with clouded.pool.acquire() as conn:
        await conn.execute("UPDATE nodes SET last_seen_at = now() WHERE id = $1", second.id)
    await clouded.round()
    assert (await clouded.states())[0] == "deleting"


async def test_what_all_nodes_are_silent_about_for_a_moment_is_no_reason_to_buy_others(clouded: Clouded) -> None:
    await clouded.submit(3)
    await clouded.pass_time(2 * A_MINUTE)
    first, second = await clouded.live()
    clouded.autoscaler = clouded.new_autoscaler()
    clouded.autoscaler._hearing._lease_s = 0  # the database was in sight all the time
    await fall_silent(clouded, first.id, second.id, for_s=90)
    await clouded.round()
    assert len(await clouded.states()) == 2
    await fall_silent(clouded, second.id, for_s=0)
    clouded.autoscaler._hearing._lease_s = 3600  # it came back just now
    await clouded.round()
    assert len(await clouded.states()) == 2
    clouded.autoscaler._hearing._lease_s = 0
    await clouded.round()
    assert len(await clouded.states()) == 3


async def test_between_a_claim_and_the_drop_of_an_idle_node_one_comes_first(clouded: Clouded) -> None:
    await clouded.submit(2)
    await clouded.pass_time(2 * A_MINUTE)
    (row,) = await clouded.live()
    async with clouded.pool.acquire() as a, clouded.pool.acquire() as b:
        async with a.transaction():
            assert await claim(a, row.id, clouded.world.account)
            dropping = asyncio.ensure_future(servers.drop_idle(b, row.id, reason="idle", now=clouded.cloud.now))
            await blocked(clouded)
        assert await dropping is False
        await clouded.finish()
        async with a.transaction():
            assert await servers.drop_idle(a, row.id, reason="idle", now=clouded.cloud.now)
            claiming = asyncio.ensure_future(claim(b, row.id, clouded.world.account))
            await blocked(clouded)
        assert await claiming == []


async def test_the_cloud_is_called_no_more_than_thrice_for_a_node_and_240_times_an_hour(clouded: Clouded) -> None:
    await clouded.submit(7)
    await clouded.pass_time(2 * A_MINUTE, step=timedelta(seconds=10))
    await clouded.work()
    await clouded.finish()
    await clouded.pass_time(18 * A_MINUTE, step=timedelta(seconds=10))
    lives, _ = clouded.paid
    at_start = 7  # token, image, firewall and key
    assert lives >= 2
    assert len(clouded.cloud.calls) - at_start <= 3 * lives + 240 / 3


async def test_purchases_that_came_to_nothing_are_forgotten_after_a_day(clouded: Clouded) -> None:
    for location in clouded.wish.locations:
        clouded.cloud.cloud.stock("cx23", location, shown=True, left=0)
    await clouded.submit()
    await clouded.round()
    async with clouded.pool.acquire() as conn:
        assert await servers.forget_failed(conn, limit=10) == 0
        await conn.execute("UPDATE servers SET ended_at = now() - interval '2 days' WHERE state = 'failed'")
        assert await servers.forget_failed(conn, limit=10) == 3
        assert await conn.fetchval("SELECT count(DISTINCT node_id) FROM node_events") == 1
    assert await clouded.states() == ["booting"]


async def test_while_the_cloud_is_away_nodes_stay_and_afterwards_all_goes_on(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    away = clouded.cloud.inject(Drop(commit=False), times=None)
    await clouded.submit(3)
    await clouded.pass_time(AN_HOUR, step=2 * A_MINUTE)
    assert (await clouded.states())[0] == "ready"
    assert len(clouded.existing) == 1
    clouded.cloud.rules.remove(away)
    await clouded.finish()
    await clouded.pass_time(4 * A_MINUTE)
    assert len(await clouded.work()) == 3
    await clouded.finish()
    await clouded.pass_time(2 * AN_HOUR, step=A_MINUTE)
    assert clouded.existing == []
    names = [call.name for call in clouded.cloud.made("POST", "/servers") if call.committed]
    assert len(names) == len(set(names))


class Recorded(Ledger):
    """Books that say what they were told."""

    def __init__(self, left: Left | None = None) -> None:
        super().__init__()
        self._left = left
        self.shares: list[Sequence[tuple[ProjectId, Decimal]]] = []
        self.until: list[datetime] = []

    async def left(self, conn: Connection, now: datetime) -> Left:
        really = await super().left(conn, now)
        return really if self._left is None else self._left

    async def reserved(
        self, conn: Connection, node: NodeId, *, until: datetime, shares: Any, price: Decimal
    ) -> None:
        assert sum(share for _, share in shares) == price
        assert conn.is_in_transaction()
        self.shares.append(shares)
        self.until.append(until)
        await super().reserved(conn, node, until=until, shares=shares, price=price)


async def blocked(clouded: Clouded) -> None:
    """Wait until somebody waits for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while not await clouded.pool.fetchval(waits):
            await asyncio.sleep(0.005)
