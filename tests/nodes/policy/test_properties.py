"""What holds for every state there can be."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from functions.ids import AccountId, NodeId, ProjectId
from nodes.policy.decision import Decision
from nodes.policy.expected import Expected
from nodes.policy.round import decide
from nodes.policy.spare_hours import ALWAYS, NEVER
from nodes.policy.state import HOUR, Caps, FleetState, Node, Phase, Queued, Rules, Running
from tests.nodes.policy.making import NOW, node, offer, queued, running, state

OFFERS = (offer(), offer("cx33", 4, "0.0144"), offer("cpx22", 2, "0.0320", available=False))
small = st.integers(1, 3)
money = st.decimals(0, Decimal("0.2"), places=4)
durations = st.builds(Expected, p50=st.floats(1, 5000), p80=st.floats(1, 20_000))


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Node, ...]:
    found = []
    for number in range(draw(st.integers(0, 8))):
        phase, bought = draw(st.sampled_from(Phase)), draw(st.sampled_from(OFFERS))
        jobs: tuple[Running, ...] = ()
        if phase in (Phase.READY, Phase.DRAINING):
            ages = draw(st.lists(st.floats(0, 9000), max_size=bought.slots))
            jobs = tuple(Running(ProjectId(draw(small)), 1, NOW - age, draw(durations)) for age in ages)
        created = NOW - draw(st.floats(0, 100_000))
        left = HOUR - (NOW - created) % HOUR
        found.append(
            Node(
                NodeId(UUID(int=number + 1)), bought, phase, draw(st.sampled_from([None, *map(AccountId, (1, 2))])),
                draw(st.sampled_from([None, ProjectId(1)])), created, NOW + left + draw(st.sampled_from([0, -HOUR, HOUR])), jobs,
                rented=draw(st.booleans()), closed=draw(st.booleans()),
            )
        )  # fmt: skip
    return tuple(found)


groups = st.builds(
    Queued, account=st.sampled_from([AccountId(1), AccountId(2)]), project=small.map(ProjectId), slots=small,
    memory=st.sampled_from([0, 2**31, 2**33]), count=st.integers(1, 40), oldest=st.floats(NOW - 900, NOW), expected=durations,
    paid=st.booleans(), deadline=st.sampled_from([None, NOW + 10, NOW + 9000]),
)  # fmt: skip
states = st.builds(
    FleetState, nodes=fleets(), queue=st.lists(groups, max_size=5).map(tuple), offers=st.just(OFFERS),
    frozen_until=st.sampled_from([0.0, 0.0, NOW + 5]), server_limit=st.sampled_from([None, 3]),
    budgets=st.dictionaries(small.map(ProjectId), money), month_left=st.none() | money,
    arrivals=st.dictionaries(st.just(AccountId(1)), st.floats(0, 1)),
)  # fmt: skip
limits = st.builds(
    Caps, nodes=st.integers(1, 12), hourly=st.none() | money, ceiling=st.sampled_from([None, Decimal("0.004")])
)
rules = st.builds(
    Rules, exclusive=st.booleans(), thrift=st.floats(0, 1), spares=st.sampled_from([NEVER, ALWAYS]),
    patience=st.floats(0, 20),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(states, limits, rules)
def test_caps_and_budgets_are_never_exceeded(seen: FleetState, caps: Caps, how: Rules) -> None:
    found = decide(seen, caps, NOW, how)
    rented = [each for each in seen.nodes if each.rented]
    prices = sum((buy.offer.hourly for buy in found.buy), Decimal(0))
    if found.buy:
        assert len(rented) + len(found.buy) <= min(caps.nodes, seen.server_limit or caps.nodes)
        assert caps.hourly is None or sum((each.offer.hourly for each in rented), Decimal(0)) + prices <= caps.hourly
        assert all(caps.ceiling is None or buy.offer.per_slot <= caps.ceiling for buy in found.buy)
        assert all(buy.offer.available for buy in found.buy)
        assert seen.frozen_until <= NOW
        assert len(found.buy) <= max(2, len(rented) / 2 + 1)
    spent: Counter[ProjectId] = Counter()
    for buy in found.buy:
        if buy.payer is not None:
            spent[buy.payer] += buy.offer.hourly  # type: ignore[assignment]
    by_id = {each.id: each for each in seen.nodes}
    renewed = Decimal(0)
    for renewal in found.renew:
        renewed += by_id[renewal.node].offer.hourly
        assert not renewal.shares or sum(share for _, share in renewal.shares) == by_id[renewal.node].offer.hourly
        for project, share in renewal.shares:
            spent[project] += share  # type: ignore[assignment]
    assert all(spent[project] <= budget for project, budget in seen.budgets.items())
    assert seen.month_left is None or prices + renewed <= seen.month_left


@settings(max_examples=60, deadline=None)
@given(states, limits, rules)
def test_no_busy_node_and_no_idle_one_with_paid_time_is_dropped(seen: FleetState, caps: Caps, how: Rules) -> None:
    by_id = {each.id: each for each in seen.nodes}
    for drop in decide(seen, caps, NOW, how).drop:
        dropped = by_id[drop.node]
        assert dropped.rented
        assert not dropped.running
        assert drop.failed == (dropped.phase not in (Phase.READY, Phase.DRAINING))
        if dropped.phase is Phase.READY:
            assert dropped.paid_left(NOW) <= how.margin


@settings(max_examples=60, deadline=None)
@given(states, limits, rules)
def test_an_idle_node_goes_into_no_other_hour_but_as_a_spare_that_was_asked_for(
    seen: FleetState, caps: Caps, how: Rules
) -> None:
    found = decide(seen, caps, NOW, replace(how, spares=NEVER))
    dropped, renewed = {drop.node for drop in found.drop}, {renewal.node for renewal in found.renew}
    for each in seen.nodes:
        if each.rented and each.phase is Phase.READY and not each.running:
            left = each.paid_left(NOW)
            assert how.delete_s < left or each.id not in dropped
            if how.delete_s < left <= how.margin:
                assert each.id in dropped
                assert each.id not in renewed


@settings(max_examples=60, deadline=None)
@given(states, limits, rules)
def test_what_waits_and_what_is_busy_get_the_same_with_spares_as_without(
    seen: FleetState, caps: Caps, how: Rules
) -> None:
    bare = decide(seen, caps, NOW, replace(how, spares=NEVER))
    found = decide(seen, caps, NOW, replace(how, spares=ALWAYS))
    count = len(bare.buy)
    assert found.buy[:count] == bare.buy
    assert found.renew[: len(bare.renew)] == bare.renew
    assert found.closed == bare.closed
    assert all(buy.reason == "spare" and buy.payer is None for buy in found.buy[count:])
    assert set(found.drop) <= set(bare.drop)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 40), durations, st.floats(0, 1), st.floats(0, 600))
def test_trust_ends_the_more_is_bought_the_less_there_is_of_it(
    busy: int, count: int, expected: Expected, thrift: float, waited: float
) -> None:
    full = tuple(node(n, running=(running(30, expected=expected),) * 2) for n in range(1, busy + 1))
    seen = state(*full, queue=(queued(count, waited=waited),))

    def slots(how: Rules) -> int:
        return sum(buy.offer.slots for buy in decide(seen, Caps(nodes=10_000), NOW, how).buy)

    allowed = 2 * max(2, (busy + 1) // 2)
    assert slots(Rules(thrift=0.0)) >= min(count, allowed)
    assert slots(Rules(thrift=0.0)) >= slots(Rules(thrift=thrift)) >= slots(Rules(thrift=1.0))
    if waited > Rules().patience * Rules().boot_s:
        assert slots(Rules(thrift=1.0)) > 0


@settings(max_examples=60, deadline=None)
@given(states, limits, rules)
def test_a_node_that_goes_on_has_its_next_hour_reserved_or_takes_no_new_jobs(
    seen: FleetState, caps: Caps, how: Rules
) -> None:
    found = decide(seen, caps, NOW, how)
    reserved = {renewal.node: renewal.until for renewal in found.renew}
    for each in seen.nodes:
        if each.rented and each.running and each.phase is Phase.READY and each.paid_left(NOW) <= how.margin:
            until = reserved.get(each.id, each.reserved_until)
            assert each.id in found.closed or until >= NOW + each.paid_left(NOW) + HOUR - 1


@settings(max_examples=60, deadline=None)
@given(states, limits, rules, st.randoms(use_true_random=False))
def test_the_same_state_decides_the_same_in_whatever_order_it_is_read(
    seen: FleetState, caps: Caps, how: Rules, chance
) -> None:  # type: ignore[no-untyped-def]
    def essence(found: Decision) -> object:
        return (
            set(found.drop),
            set(found.renew),
            found.closed,
            found.again_at,
            Counter(buy.account for buy in found.buy),
        )

    assert decide(seen, caps, NOW, how) == decide(seen, caps, NOW, how)
    nodes = list(seen.nodes)
    chance.shuffle(nodes)
    assert essence(decide(replace(seen, nodes=tuple(nodes)), caps, NOW, how)) == essence(decide(seen, caps, NOW, how))


def test_a_round_over_a_thousand_nodes_takes_less_than_100_ms() -> None:
    fleet = tuple(
        node(n, left=3.5 * n, running=(running(n), running(2 * n)) if n % 3 else (), account=AccountId(n % 20))
        for n in range(1, 1001)
    )
    jobs = tuple(queued(30, account=account, project=account) for account in range(20))
    seen, took = state(*fleet, queue=jobs), []
    for _ in range(3):
        began = time.perf_counter()
        decide(seen, Caps(nodes=2000), NOW)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1
