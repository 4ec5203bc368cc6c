"""What a cloud does wrong, and what the autoscaler makes of it: each failure once, from the purchase to the bill.

The provider's own tests say what it makes of each answer; here it is what becomes of jobs, servers and money. At the end
of each test receipts, ledger and bill are held against each other, and at each purchase the caps: see ``watch``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from functions import ids
from nodes.hetzner.provider import HetznerProvider
from nodes.policy.state import Caps
from nodes.provider import NODE_LABEL, OWNER_LABEL, Order, Server
from nodes.rented import State
from tests.hetzner import goods, rules
from tests.hetzner.rules import CREATE, DELETE, LIST, Answer, Call, Drop, Effect, Fate, Omit, Slow, Stale, later_page
from tests.nodes.fleets import A_MINUTE, AN_HOUR, OWNER, Clouded, fall_silent, order, problem, waiting, wish_of

# Stock, prices, and what is sold.


def stock(clouded: Clouded, left: int | None, types: tuple[str, ...] | None = None) -> None:
    for type in types or clouded.wish.types:
        for location in clouded.wish.locations:
            clouded.cloud.cloud.stock(type, location, shown=True, left=left)


async def test_while_nothing_is_in_stock_jobs_say_so_and_get_a_node_when_there_is(clouded: Clouded) -> None:
    """The list says that there is some all the time."""
    stock(clouded, 0)
    clouded.cloud.cloud.at(clouded.cloud.now + AN_HOUR, lambda: stock(clouded, None, ("cx33",)))
    (job,) = await clouded.submit()
    await clouded.pass_time(59 * A_MINUTE, step=A_MINUTE)
    reason = (await waiting(clouded, job))["wait_reason"]
    assert reason.startswith("capacity cx23@")
    assert clouded.paid == (0, 0)
    # Each offer is tried after 1, 2, 4, 8 and then 15 minutes.
    assert len(clouded.cloud.made("POST", "/servers")) <= 9 * 7
    await clouded.pass_time(17 * A_MINUTE, step=A_MINUTE)
    assert [(row.state, row.offer.type) for row in await clouded.live()] == [(State.READY, "cx33")]


async def test_a_type_that_becomes_too_dear_is_not_bought_and_what_there_is_keeps_its_price(clouded: Clouded) -> None:
    clouded.wish = replace(clouded.wish, types=("cx23",))
    clouded.autoscaler = clouded.new_autoscaler()
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    for location in clouded.wish.locations:
        clouded.cloud.cloud.reprice("cx23", location, "0.0500", "30.00")
    await clouded.pass_time(15 * A_MINUTE, step=A_MINUTE)
    *_, job = await clouded.submit(3)
    await clouded.pass_time(AN_HOUR, step=2 * A_MINUTE)
    await clouded.work()
    await clouded.round()
    assert clouded.paid == (1, 2)
    assert (await waiting(clouded, job))["wait_reason"] == "capacity"
    assert "can be bought" in ((await problem(clouded)) or "")


@pytest.mark.parametrize("how", ["ended", "removed"])
async def test_a_type_that_is_not_sold_any_more_is_followed_by_the_next_at_once(clouded: Clouded, how: str) -> None:
    await clouded.round()
    cloud = clouded.cloud.cloud
    gone = {
        "ended": lambda: cloud.end_sale("cx23", cloud.now, cloud.now),
        "removed": lambda: cloud.kinds.pop("cx23"),
    }
    cloud.at(clouded.cloud.now + A_MINUTE, gone[how])
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.submit()
    await clouded.round()
    assert [row.offer.type for row in await clouded.live()] == ["cx33"]
    await clouded.pass_time(20 * A_MINUTE, step=A_MINUTE)
    asked = [call.body["server_type"] for call in clouded.cloud.made("POST", "/servers")]
    assert asked.count("cx23") <= len(clouded.wish.locations)


@pytest.mark.parametrize("at_start", [True, False])
async def test_an_image_that_is_gone_is_told_and_no_job_is_lost_by_it(clouded: Clouded, at_start: bool) -> None:
    if not at_start:
        await clouded.round()
    clouded.cloud.cloud.images.clear()
    await clouded.submit()
    await clouded.pass_time(3 * A_MINUTE)
    assert "image" in ((await problem(clouded)) or "")
    assert clouded.paid == (0, 0)
    clouded.cloud.cloud.images += goods.images()
    await clouded.pass_time(8 * A_MINUTE)
    assert (await clouded.states())[-1] == "ready"
    assert await problem(clouded) is None


async def test_a_call_that_the_cloud_has_retired_is_told_and_ends_no_node(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    clouded.cloud.inject(Answer(410, "deprecated_api_endpoint", "gone"), **LIST, times=None)
    await clouded.pass_time(10 * A_MINUTE, step=A_MINUTE)
    assert "upgrade" in ((await problem(clouded)) or "")
    assert await clouded.states() == ["ready"]


# Purchases whose outcome is not known.

DONE: list[Effect] = [
    Drop(),
    Answer(500, "server_error", None, commit=True),
    Answer(503, html=True, commit=True),
    Answer(504, "timeout", commit=True),
    Answer(201, "an answer of another shape", commit=True),
]
NOT_DONE: list[Effect] = [
    Drop(commit=False),
    Answer(500, "server_error", None),
    Answer(502, html=True),
    Answer(503, "unavailable"),
    Answer(504, html=True),
    Answer(409, "conflict"),
    Answer(403, "maintenance"),
]


@pytest.mark.parametrize("effect", [*DONE, *NOT_DONE], ids=lambda effect: f"{effect!r:.60}")
async def test_two_purchases_that_fail_and_perhaps_do_not_are_two_servers_in_the_end(
    clouded: Clouded, effect: Effect
) -> None:
    clouded.cloud.inject(effect, times=2, **CREATE)
    await clouded.submit(3)
    await clouded.pass_time(4 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready", "ready"], (2, 2))
    calls = clouded.cloud.made("POST", "/servers")
    assert len({call.name for call in calls}) == 2
    assert len(calls) == (2 if effect in DONE else 4)


async def test_while_purchases_fail_in_the_dark_no_more_are_under_way_than_jobs_need(clouded: Clouded) -> None:
    away = clouded.cloud.inject(Drop(commit=False), times=None, **CREATE)
    await clouded.submit(3)
    await clouded.pass_time(15 * A_MINUTE)
    assert len(await clouded.live()) <= 2
    assert len(clouded.cloud.made("POST", "/servers")) <= 2 * 15
    clouded.cloud.rules.remove(away)
    await clouded.pass_time(4 * A_MINUTE)
    assert sum(row.state is State.READY for row in await clouded.live()) == clouded.paid[0] == 2


@pytest.mark.parametrize("labels", [{}, {OWNER_LABEL: OWNER, NODE_LABEL: "0" * 32}], ids=["a stranger", "our mark"])
async def test_a_name_that_somebody_took_before_is_given_up_and_their_server_left_alone(
    clouded: Clouded, labels: dict[str, str]
) -> None:
    def squat(call: Call, phase: str) -> None:
        clouded.watch(call, phase)
        if (call.method, call.path, phase) == ("POST", "/servers", "before") and not clouded.watch.strangers:
            clouded.watch.strangers.add(clouded.cloud.cloud.foreign(call.name, labels).id)

    clouded.cloud.on_call = squat
    await clouded.submit()
    await clouded.pass_time(5 * A_MINUTE)
    assert sorted(await clouded.states()) == ["failed", "ready"]
    (theirs,) = clouded.watch.strangers
    assert theirs in clouded.cloud.cloud.servers
    assert len({call.name for call in clouded.cloud.made("POST", "/servers")}) == 2
    assert ("name that was another server's" in ((await problem(clouded)) or "")) == bool(labels)


# What was bought does not become a node.


async def test_a_server_whose_creation_fails_is_replaced_before_the_deadline(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(create_error="unknown_error"), **CREATE)
    await clouded.submit()
    await clouded.pass_time(4 * A_MINUTE)
    assert sorted(await clouded.states()) == ["gone", "ready"]
    assert any("create_server failed" in said for said in await clouded.history())


async def test_a_server_that_stays_initializing_is_replaced_after_the_deadline(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(initializing_for=3 * AN_HOUR), **CREATE)
    await clouded.submit()
    await clouded.pass_time(5 * A_MINUTE)
    assert await clouded.states() == ["booting"]
    await clouded.pass_time(4 * A_MINUTE)
    assert (sorted(await clouded.states()), clouded.paid) == (["gone", "ready"], (2, 2))


async def test_a_machine_that_is_slow_or_starts_twice_is_one_node(clouded: Clouded) -> None:
    clouded.cloud.inject(Fate(machine_after=4 * A_MINUTE, machine_twice=True), **CREATE)
    await clouded.submit()
    await clouded.pass_time(5 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready"], (1, 1))


async def test_a_machine_that_was_told_a_wrong_token_is_replaced(clouded: Clouded) -> None:
    def told_wrong(said: str) -> str:
        return json.dumps({**json.loads(said), "token": "x" * 40})

    clouded.cloud.inject(Fate(user_data=told_wrong), **CREATE)
    await clouded.submit()
    await clouded.pass_time(8 * A_MINUTE)
    assert (sorted(await clouded.states()), clouded.paid) == (["gone", "ready"], (2, 2))


@pytest.mark.parametrize("fate", [Fate(vanishes_after=3 * A_MINUTE), Fate(off_after=3 * A_MINUTE)], ids=["gone", "off"])
async def test_a_job_whose_server_goes_by_itself_runs_on_another_and_ends_once(clouded: Clouded, fate: Fate) -> None:
    clouded.cloud.inject(fate, **CREATE)
    (job,) = await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    assert await clouded.work() == [job]
    (row,) = await clouded.live()
    await fall_silent(clouded, row.id)
    await clouded.pass_time(3 * A_MINUTE)
    assert await clouded.reap() == 1
    await clouded.pass_time(3 * A_MINUTE)
    assert await clouded.work() == [job]
    await clouded.finish()
    async with clouded.pool.acquire() as conn:
        assert await conn.fetch("SELECT status, attempt FROM outcomes") == [("succeeded", 2)]
    assert (await clouded.states())[0] in ("lost", "gone")
    assert clouded.paid == (2, 2)


# Deletions.


async def test_a_deleted_server_that_stays_in_the_list_counts_against_the_cap_and_costs_nothing_more(
    clouded: Clouded,
) -> None:
    clouded.wish = wish_of(nodes=1)
    clouded.autoscaler = clouded.new_autoscaler()
    clouded.cloud.inject(Fate(lingers_for=AN_HOUR), **CREATE)
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    await clouded.finish()
    await clouded.pass_time(58 * A_MINUTE, step=A_MINUTE)
    (job,) = await clouded.submit()
    await clouded.pass_time(30 * A_MINUTE, step=A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["deleting"], (1, 1))
    assert (await waiting(clouded, job))["wait_reason"] == "node limit"
    await clouded.pass_time(35 * A_MINUTE, step=A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["gone", "ready"], (2, 2))


async def test_a_server_that_cannot_be_deleted_for_long_is_told_of_and_paid_for_until_it_is_gone(
    clouded: Clouded,
) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    await clouded.finish()
    broken = clouded.cloud.inject(Answer(503, "unavailable"), times=None, **DELETE)
    await clouded.pass_time(57 * A_MINUTE, step=A_MINUTE)
    assert (await clouded.states(), await problem(clouded)) == (["deleting"], None)
    await clouded.pass_time(15 * A_MINUTE, step=A_MINUTE)
    assert "could not be deleted" in ((await problem(clouded)) or "")
    clouded.cloud.rules.remove(broken)
    await clouded.pass_time(3 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["gone"], (1, 2))
    assert await problem(clouded) is None


# Rates, limits, and the token.


async def test_with_no_calls_left_purchases_wait_until_the_cloud_takes_them(clouded: Clouded) -> None:
    clouded.cloud.bucket(clouded.cloud.token).level = 0
    clouded.cloud.bucket(clouded.cloud.token).at = clouded.cloud.now
    await clouded.submit()
    await clouded.pass_time(6 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready"], (1, 1))
    assert sum(call.status == 429 for call in clouded.cloud.calls) <= 3


async def test_a_limit_of_addresses_stops_purchases_like_one_of_servers(clouded: Clouded) -> None:
    clouded.cloud.cloud.address_cap = 1
    *_, job = await clouded.submit(3)
    await clouded.pass_time(5 * A_MINUTE, step=A_MINUTE)
    assert len(clouded.existing) == 1
    assert "addresses" in ((await problem(clouded)) or "")
    await clouded.work()
    await clouded.round()
    assert (await waiting(clouded, job))["wait_reason"] == "account limit"
    assert len(clouded.cloud.made("POST", "/servers")) == 2


async def test_a_revoked_token_is_told_and_nodes_work_on_until_there_is_a_new_one(clouded: Clouded) -> None:
    await clouded.submit(2)
    await clouded.pass_time(2 * A_MINUTE)
    await clouded.work()
    token = clouded.cloud.tokens[clouded.cloud.token]
    token.revoked = True
    (job,) = await clouded.submit()
    await clouded.pass_time(20 * A_MINUTE, step=A_MINUTE)
    assert "does not know the token" in ((await problem(clouded)) or "")
    assert (await waiting(clouded, job))["wait_reason"] is not None
    assert "ready" in await clouded.states()
    token.revoked = False
    await clouded.finish()
    assert await clouded.work() == [job]
    await clouded.submit(2)
    await clouded.pass_time(10 * A_MINUTE)
    assert await problem(clouded) is None
    assert (await clouded.states()).count("ready") == clouded.paid[0] == 2


# Lists that lie.


async def test_a_list_without_its_second_page_makes_nobody_lost(clouded: Clouded) -> None:
    """A node that is silent, so that nothing but the list's completeness speaks for it."""
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (row,) = await clouded.live()
    strangers = {order(clouded, f"other-{index}", ids.new_uuid7().hex) for index in range(55)}
    clouded.watch.strangers |= strangers
    cut = clouded.cloud.inject(Answer(502, html=True), **LIST, where=later_page, times=None)
    for _ in range(6):
        await fall_silent(clouded, row.id, for_s=90)
        await clouded.pass_time(A_MINUTE, step=A_MINUTE)
    assert (await clouded.states(), cut.met > 4) == (["ready"], True)
    clouded.cloud.rules.remove(cut)
    clouded.cloud.inject(Omit(lambda server: server["id"] not in strangers), **LIST, times=None)
    for _ in range(3):
        await fall_silent(clouded, row.id, for_s=90)
        await clouded.pass_time(A_MINUTE, step=A_MINUTE)
    assert (await clouded.states())[0] == "lost"
    clouded.cloud.rules.clear()
    await clouded.pass_time(6 * A_MINUTE, step=A_MINUTE)
    assert (await clouded.states())[0] == "gone", "found again, and deleted"


@pytest.mark.parametrize(("times", "bought"), [(1, 1), (3, 2)])
async def test_stale_lists_that_lack_a_new_server_cost_no_more_than_that_server(
    clouded: Clouded, times: int, bought: int
) -> None:
    await clouded.round()
    clouded.cloud.inject(Fate(machine_after=2 * A_MINUTE), **CREATE)
    await clouded.submit()
    await clouded.round()
    clouded.cloud.inject(Stale(), times=times, **LIST)
    await clouded.pass_time(6 * A_MINUTE)
    assert [row.state for row in await clouded.live()] == [State.READY]
    assert clouded.paid == (bought, bought)
    assert len(clouded.existing) == 1


# Clocks.


@pytest.mark.parametrize("apart", [-3 * AN_HOUR, -6 * A_MINUTE, 6 * A_MINUTE, 3 * AN_HOUR])
async def test_where_clocks_differ_no_server_is_bought_in_vain_and_hours_are_the_clouds(
    clouded: Clouded, apart: timedelta
) -> None:
    """By the database's clock a server that boots would be older than any that ever joined, or not be made yet."""
    clouded.cloud.clock.date_shift = clouded.cloud.clock.created_shift = apart
    clouded.cloud.inject(Fate(machine_after=2 * A_MINUTE), **CREATE)
    (job,) = await clouded.submit()
    await clouded.pass_time(5 * A_MINUTE)
    assert "the database's" in ((await problem(clouded)) or "")
    assert (await waiting(clouded, job))["wait_reason"] == "capacity"
    await clouded.pass_time(9 * A_MINUTE)
    (row,) = await clouded.live()
    assert (row.state, clouded.paid) == (State.READY, (1, 1))
    await clouded.work()
    await clouded.finish()
    left = row.hours_from + AN_HOUR - clouded.provider.now()
    await clouded.pass_time(left - 4 * A_MINUTE, step=A_MINUTE)
    assert await clouded.states() == ["ready"]
    await clouded.pass_time(4 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["gone"], (1, 1))


# Faults of our own.


async def test_a_call_that_breaks_the_program_breaks_nothing_but_itself(
    clouded: Clouded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_once(name: str) -> None:
        really: Callable[..., Any] = getattr(HetznerProvider, name)
        broke = False

        async def perhaps(self: HetznerProvider, about: Order | int) -> Server | None:
            nonlocal broke
            if not broke:
                broke = True
                raise RuntimeError("a bug")
            found: Server | None = await really(self, about)
            return found

        monkeypatch.setattr(HetznerProvider, name, perhaps)

    breaks_once("create")
    breaks_once("delete")
    await clouded.submit(3)
    await clouded.round()
    assert len(clouded.existing) == 1
    await clouded.pass_time(4 * A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready", "ready"], (2, 2))
    await clouded.work()
    await clouded.finish()
    await clouded.pass_time(70 * A_MINUTE, step=A_MINUTE)
    assert (clouded.existing, clouded.paid) == ([], (2, 2))


# What only the operator can do something about.


async def test_an_address_that_belongs_to_no_server_is_told_once_a_day(clouded: Clouded) -> None:
    lone = clouded.cloud.cloud.lone_address("forgotten")
    await clouded.round()
    await clouded.pass_time(2 * AN_HOUR, step=AN_HOUR)
    assert f"forgotten ({lone.ip})" in ((await problem(clouded)) or "")
    del clouded.cloud.cloud.addresses[lone.id]
    await clouded.pass_time(25 * AN_HOUR, step=AN_HOUR)
    assert await problem(clouded) is None


async def test_a_blocked_address_is_told_while_it_is_blocked(clouded: Clouded) -> None:
    await clouded.submit()
    await clouded.pass_time(2 * A_MINUTE)
    (server,) = clouded.cloud.cloud.servers.values()
    assert server.ipv4 is not None
    server.ipv4.blocked = True
    await clouded.pass_time(A_MINUTE)
    assert f"blocked the address of {server.name}" in ((await problem(clouded)) or "")
    server.ipv4.blocked = False
    await clouded.pass_time(A_MINUTE)
    assert await problem(clouded) is None


async def test_a_slow_cloud_is_waited_for(clouded: Clouded) -> None:
    clouded.cloud.inject(Slow(0.1), times=None)
    await clouded.submit()
    await clouded.pass_time(A_MINUTE)
    assert (await clouded.states(), clouded.paid) == (["ready"], (1, 1))


# All of it at once.

STORM: list[tuple[dict[str, str], list[Effect]]] = [
    (CREATE, [
        Drop(), Drop(commit=False), Answer(500, "server_error", None, commit=True), Answer(503, html=True, commit=True),
        Answer(504, "timeout"), Answer(409, "conflict"), Answer(412, "resource_unavailable"),
        Answer(429, "rate_limit_exceeded"), Fate(create_error="unknown_error"), Fate(start_error="action_failed"),
        Fate(machine_never=True), Fate(initializing_for=AN_HOUR), Fate(vanishes_after=5 * A_MINUTE),
        Fate(off_after=6 * A_MINUTE), Fate(locked_deletes=2), Fate(lingers_for=10 * A_MINUTE),
        Fate(machine_after=3 * A_MINUTE, machine_twice=True),
    ]),
    (DELETE, [Answer(423, "locked"), Drop(), Drop(commit=False), Answer(503, "unavailable", commit=True)]),
    (LIST, [Drop(commit=False), Answer(503, html=True), Omit(lambda server: server["id"] % 2 == 0, counted=True)]),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_storm_of_faults_every_job_ends_once_every_server_is_known_and_all_go_in_the_end(
    clouded: Clouded, seed: int
) -> None:
    clouded.wish = wish_of(nodes=3, caps=Caps(3, hourly=Decimal("0.20")))
    clouded.autoscaler = clouded.new_autoscaler()
    await clouded.round()
    clouded.cloud.rules = rules.Rules(seed)
    storm = [
        clouded.cloud.inject(effect, times=None, chance=0.1, **calls) for calls, effects in STORM for effect in effects
    ]
    jobs = await clouded.submit(8)
    for minute in range(30):
        await clouded.pass_time(A_MINUTE, step=A_MINUTE / 2)
        await clouded.work()
        if minute % 10 == 9:
            await clouded.finish()
        assert {*clouded.existing} <= {row.name for row in await clouded.live()}, await clouded.history()
    for rule in storm:
        clouded.cloud.rules.remove(rule)
    assert sum(rule.met for rule in storm) >= 15
    since = clouded.cloud.now
    while await clouded.pool.fetchval("SELECT count(*) FROM outcomes WHERE status = 'succeeded'") < len(jobs):
        await clouded.reap()
        await clouded.pass_time(A_MINUTE, step=A_MINUTE)
        await clouded.work()
        await clouded.finish()
        assert clouded.cloud.now - since < 90 * A_MINUTE, await clouded.history()
    await clouded.pass_time(75 * A_MINUTE, step=1.5 * A_MINUTE)
    assert (clouded.existing, await clouded.live()) == ([], []), await clouded.history()
