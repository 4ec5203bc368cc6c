from __future__ import annotations

from decimal import Decimal

import pytest

from functions.ids import AccountId
from nodes.policy.decision import Decision
from nodes.policy.round import decide
from nodes.policy.state import Caps, Node, Phase, Rules
from tests.nodes.policy.making import NOW, node, offer, queued, state

OTHER = AccountId(2)
LIMITS = [Caps(nodes=2), Caps(nodes=9, hourly=Decimal("0.0200"))]


def decided(*nodes: Node, caps: Caps = LIMITS[0], rules: Rules = Rules(), kept_out: int = 1) -> Decision:  # noqa: B008
    jobs = [queued(account=1, project=1), *(queued(account=2 + each, project=2 + each) for each in range(kept_out))]
    return decide(state(*nodes, queue=tuple(jobs)), caps, NOW, rules)


@pytest.mark.parametrize("caps", LIMITS)
def test_where_a_limit_leaves_an_account_without_a_node_one_of_anothers_runs_empty(caps: Caps) -> None:
    first, second = node(1, left=800, busy=2), node(2, left=700, busy=2)
    assert decided(first, second, caps=caps).closed == {second.id}
    assert decided(first, second, caps=caps, kept_out=0).closed == frozenset()
    assert decided(first, second, caps=Caps(nodes=3)).closed == frozenset()


def test_what_runs_empty_goes_on_with_that_over_the_end_of_its_hour_and_before_another_begins() -> None:
    begun, other = node(1, left=3500, busy=1, closed=True), node(2, left=700, busy=2)
    assert decided(begun, other).closed == {begun.id}
    assert decided(node(1, left=3500, busy=1), node(2, left=2000, busy=2)).closed == frozenset()


def test_an_account_that_has_a_node_or_will_have_the_room_of_one_that_goes_makes_none_run_empty() -> None:
    busy = node(1, left=700, busy=2)
    assert decided(busy, node(2, left=800, busy=2, account=OTHER)).closed == frozenset()
    assert decided(busy, node(2, left=800, phase=Phase.DELETING)).closed == frozenset()
    assert decided(busy, node(2, left=800)).closed == frozenset()
    assert decided(busy, node(2, left=800, busy=2), rules=Rules(exclusive=False)).closed == frozenset()


def test_of_several_accounts_those_with_most_nodes_yield() -> None:
    many = [node(each, left=700 + each, busy=2) for each in range(3)]
    one = node(9, left=600, busy=2, account=AccountId(99))
    assert len(decided(*many, one, caps=Caps(nodes=4), kept_out=2).closed & {each.id for each in many}) == 2
    assert decided(*many, one, caps=Caps(nodes=4), kept_out=9).closed == {one.id, *(each.id for each in many)}


def test_an_account_makes_room_for_a_job_of_its_own_that_is_too_large_for_its_nodes() -> None:
    small = node(left=700, busy=2)
    wanted = queued(slots=4, account=1, project=1)
    larger = offer("cx33", slots=4, hourly="0.0144")
    found = decide(state(small, queue=(wanted,), offers=(offer(), larger)), Caps(nodes=1), NOW)
    assert found.closed == {small.id}
