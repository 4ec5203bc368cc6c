from __future__ import annotations

from functions.ids import AccountId
from nodes.policy.dispatch import best_node
from nodes.policy.expected import Expected
from nodes.policy.state import Node, Phase, Queued, Rules
from tests.nodes.policy.making import GIB, NOW, node, offer, queued, running

RULES = Rules()
LONG = Expected(p50=5400.0, p80=7200.0)


def best(job: Queued, *nodes: Node) -> int | None:
    found = best_node(nodes, job, NOW, RULES)
    return None if found is None else found.id.int


def test_a_job_goes_to_the_fullest_node_whose_paid_time_it_fits_into() -> None:
    assert best(queued(), node(1, left=3000), node(2, left=2000, busy=1), node(3, left=200, busy=1)) == 2


def test_of_equally_full_nodes_that_with_most_paid_time_left_is_taken() -> None:
    assert best(queued(), node(1, left=1500, busy=1), node(2, left=2500, busy=1)) == 2


def test_where_it_fits_nowhere_a_job_joins_one_that_keeps_its_node_anyway() -> None:
    long = running(60, expected=LONG)
    assert best(queued(expected=LONG), node(1, left=3000), node(2, left=600, running=(long,))) == 2


def test_a_job_waits_only_where_there_is_no_room() -> None:
    assert best(queued(), node(1, left=60)) == 1
    assert best(queued(), node(1, busy=2)) is None
    assert best(queued(slots=2), node(1, busy=1)) is None


def test_a_job_goes_to_no_node_that_is_not_for_it() -> None:
    for unfit in ({"account": AccountId(2)}, {"phase": Phase.BOOTING}, {"phase": Phase.DRAINING}, {"closed": True}):
        assert best(queued(), node(1, **unfit)) is None
    assert best(queued(memory=8 * GIB), node(1)) is None
    assert best(queued(memory=8 * GIB), node(1, offer=offer("cx33", 4))) == 1
    assert best(queued(), node(1, account=None, rented=False)) == 1


def test_a_paid_job_takes_paid_time_only_that_is_enough_for_it() -> None:
    assert best(queued(paid=True), node(1, left=200)) is None
    assert best(queued(paid=True), node(1, left=2000), node(2, left=1000)) == 2
    assert best(queued(paid=True, deadline=NOW + 30), node(1, left=200)) == 1


def test_paid_jobs_leave_room_for_others_that_would_buy_a_node() -> None:
    assert best(queued(paid=True), node(1, busy=1)) is None
    assert best(queued(paid=True), node(1, busy=1), node(2, left=900)) == 2
