from __future__ import annotations

from decimal import Decimal

import pytest

from functions.ids import AccountId, ProjectId
from nodes.policy.decision import Decision, Drop
from nodes.policy.round import decide
from nodes.policy.state import HOUR, Caps, Node, Phase, Rules
from tests.nodes.policy.making import NOW, node, queued, running, state

CAPS = Caps(nodes=100)


def decided(*nodes: Node, rules: Rules = Rules(), **more: object) -> Decision:  # noqa: B008
    return decide(state(*nodes, **more), CAPS, NOW, rules)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [3600.0, 1800.0, 121.0])
def test_an_idle_node_is_kept_while_it_has_paid_time_left(left: float) -> None:
    assert decided(node(left=left)).drop == ()


def test_an_idle_node_is_dropped_in_the_last_minutes_of_its_hour() -> None:
    idle = node(left=120)
    assert decided(idle).drop == (Drop(idle.id, "idle at the end of its hour"),)


def test_an_idle_node_is_kept_when_its_deletion_might_fall_into_the_next_hour() -> None:
    assert decided(node(left=15)).drop == ()


def test_a_busy_node_goes_on_and_its_next_hour_is_reserved_before_it_begins() -> None:
    busy = node(left=100, busy=1)
    [renewal] = decided(busy).renew
    assert renewal.until == NOW + 100 + HOUR
    assert renewal.shares == ((ProjectId(1), Decimal("0.0096")),)
    assert decided(node(left=100, busy=1, reserved_until=renewal.until)).renew == ()
    assert decided(node(left=200, busy=1)).renew == ()


def test_a_renewal_is_paid_by_those_whose_jobs_keep_the_node() -> None:
    jobs = (running(project=1), running(project=2), running(project=3))
    [renewal] = decided(node(left=100, running=jobs)).renew
    assert sum(share for _, share in renewal.shares) == Decimal("0.0096")
    assert [project for project, _ in renewal.shares] == [1, 2, 3]


def test_a_node_whose_next_hour_nobody_can_pay_takes_no_new_jobs_towards_its_end() -> None:
    budgets = {ProjectId(1): Decimal("0.0090")}
    assert decided(node(left=1000, busy=1), budgets=budgets).closed == frozenset()
    ending = node(left=800, busy=1)
    assert decided(ending, budgets=budgets).closed == {ending.id}
    last = decided(node(left=100, busy=1), budgets=budgets)
    assert (last.closed, last.renew, last.drop) == ({ending.id}, (), ())


def test_a_node_that_rolled_over_without_a_reservation_gets_one_as_soon_as_there_is_money() -> None:
    over = node(left=3500, busy=1, hours=1, reserved_until=NOW - 100)
    assert decided(over, budgets={ProjectId(1): Decimal(0)}).closed == {over.id}
    [renewal] = decided(over).renew
    assert renewal.until == NOW + 3500


def test_renewals_go_before_purchases_when_a_budget_is_short() -> None:
    seen = decided(node(left=100, busy=2), queue=(queued(),), budgets={ProjectId(1): Decimal("0.0100")})
    assert (len(seen.renew), len(seen.buy)) == (1, 0)


def test_a_node_that_never_is_idle_is_retired_at_the_end_of_an_hour() -> None:
    old = node(left=800, busy=1, hours=23)
    assert decided(old).closed == {old.id}
    assert decided(node(left=1000, busy=1, hours=23)).closed == frozenset()


def test_a_node_that_does_not_join_in_time_is_given_up() -> None:
    late = node(left=HOUR - 361, phase=Phase.BOOTING)
    assert decided(late).drop == (Drop(late.id, "not ready 361 s after its purchase", failed=True),)
    assert decided(node(left=HOUR - 359, phase=Phase.BOOTING)).drop == ()
    assert decided(late, boot_s={("cx23", "fsn1"): 150.0}).drop == ()


def test_a_drained_node_goes_as_soon_as_it_is_empty() -> None:
    assert decided(node(left=3000, phase=Phase.DRAINING, busy=1)).drop == ()
    assert [drop.reason for drop in decided(node(left=3000, phase=Phase.DRAINING)).drop] == ["drained"]


def test_a_local_node_is_never_dropped() -> None:
    seen = decided(node(left=60, rented=False, account=None))
    assert (seen.drop, seen.renew, seen.closed) == ((), (), frozenset())


def test_an_idle_node_goes_with_its_hour_however_soon_the_next_job_is_expected() -> None:
    idle = node(left=100)
    assert [drop.node for drop in decided(idle, arrivals={AccountId(1): 1 / 60}).drop] == [idle.id]


def test_a_round_says_when_to_look_again() -> None:
    assert decided(node(left=1800)).again_at == NOW + 900
    assert decided(node(left=700)).again_at == NOW + 580
    assert decided(node(left=HOUR - 10, phase=Phase.BOOTING)).again_at == NOW + 350
