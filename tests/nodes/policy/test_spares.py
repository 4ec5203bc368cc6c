from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from functions.ids import AccountId, ProjectId
from nodes.policy.decision import Decision
from nodes.policy.round import decide
from nodes.policy.spare_hours import ALWAYS, NEVER, parse
from nodes.policy.state import HOUR, Caps, Node, Rules
from tests.nodes.policy.making import NOW, node, offer, queued, state

SPARES = Rules(spares=ALWAYS)
ONE, TWO = AccountId(1), AccountId(2)
OFTEN = {ONE: 0.01}
"""So many jobs that two slots must be free."""


def decided(*nodes: Node, rules: Rules = SPARES, caps: Caps = Caps(100), **more: object) -> Decision:  # noqa: B008
    return decide(state(*nodes, **({"arrivals": OFTEN} | more)), caps, NOW, rules)  # type: ignore[arg-type]


def reasons(decision: Decision) -> list[tuple[str, AccountId | None]]:
    return [(buy.reason, buy.account) for buy in decision.buy]


def test_spares_are_bought_and_kept_in_their_hours_alone() -> None:
    # NOW is Monday, 12 January 1970, 13:46 UTC.
    idle = node(left=100)
    for hours, wanted in (("mon 13:00-14:00", True), ("mon 14:00-15:00", False), ("tue 13:00-14:00", False)):
        rules = Rules(spares=parse(hours))
        assert reasons(decided(rules=rules)) == [("spare", ONE)] * wanted
        assert [drop.node for drop in decided(idle, rules=rules).drop] == [idle.id] * (not wanted)
    assert decided(rules=Rules(spares=parse("mon 14:00-15:00"))).again_at == NOW + 800


def test_there_are_as_many_spares_as_jobs_come_in_a_boot_that_was_measured() -> None:
    slow, fast, other = offer(), offer("cpx22"), ("cx33", "fsn1")
    for boots, count in (
        ({}, 1), ({slow.key: 300.0}, 1), ({slow.key: 300.0, fast.key: 200.0}, 2), ({other: 200.0}, 1)
    ):  # fmt: skip
        assert len(decided(offers=(slow, fast), boot_s=boots).buy) == count, boots


def test_a_spare_is_at_nobodys_expense() -> None:
    idle = node(left=100)
    kept = decided(idle, budgets={ProjectId(1): Decimal(0)})
    [renewal] = kept.renew
    assert (renewal.node, renewal.until, renewal.shares) == (idle.id, NOW + 100 + HOUR, ())
    assert [buy.payer for buy in decided().buy] == [None]


def test_a_spare_whose_next_hour_is_reserved_stays_without_another_reservation() -> None:
    reserved = node(left=100, reserved_until=NOW + 100 + HOUR)
    assert (decided(reserved).drop, decided(reserved).renew) == ((), ())
    # What was reserved for it does not bind it once it is not wanted any more.
    assert [drop.node for drop in decided(reserved, rules=Rules()).drop] == [reserved.id]


def test_a_node_that_is_to_be_retired_is_replaced_and_not_kept() -> None:
    old = node(left=100, hours=23)
    assert [drop.node for drop in decided(old).drop] == [old.id]


def test_slots_that_the_queues_node_has_left_are_spare() -> None:
    assert reasons(decided(queue=(queued(1),), arrivals={ONE: 0.001})) == [("queue", ONE)]
    assert reasons(decided(queue=(queued(2),), arrivals={ONE: 0.001})) == [("queue", ONE), ("spare", ONE)]


def test_spares_keep_within_the_limits_of_the_fleet() -> None:
    more = {ONE: 0.05}  # two nodes
    assert len(decided(arrivals=more).buy) == 2
    assert len(decided(arrivals=more, caps=Caps(1)).buy) == 1
    assert len(decided(arrivals=more, server_limit=1).buy) == 1
    assert len(decided(arrivals=more, caps=Caps(100, hourly=Decimal("0.0100"))).buy) == 1
    assert len(decided(arrivals=more, month_left=Decimal("0.0100")).buy) == 1
    assert decided(arrivals=more, frozen_until=NOW + 1).buy == ()
    idle = node(left=100)
    assert [drop.node for drop in decided(idle, month_left=Decimal("0.0095")).drop] == [idle.id]


def test_what_waits_has_its_nodes_before_any_spare() -> None:
    other = queued(3, account=2, project=2)
    # The other account has used more of late, so that in its turn it would come second.
    more = {"queue": (other,), "used": {TWO: 1000.0}}
    assert reasons(decided(**more, caps=Caps(2))) == [("queue", TWO), ("queue", TWO)]
    assert reasons(decided(**more, caps=Caps(100, hourly=Decimal("0.0200")))) == [("queue", TWO), ("queue", TWO)]
    assert reasons(decided(**more, month_left=Decimal("0.0200"))) == [("queue", TWO), ("queue", TWO)]
    # One round buys two nodes at first: the spare comes with the next.
    assert reasons(decided(**more)) == [("queue", TWO), ("queue", TWO)]


def test_no_spare_goes_on_or_is_bought_while_a_limit_keeps_a_job_from_its_node() -> None:
    idle, other = node(1, left=100), queued(account=2, project=2)
    assert decided(idle, queue=(other,), caps=Caps(2)).drop == ()
    for caps, left in (
        (Caps(1), None), (Caps(100, hourly=Decimal("0.0100")), None), (Caps(100), Decimal("0.0090"))
    ):  # fmt: skip
        seen = decided(idle, queue=(other,), caps=caps, month_left=left)
        assert [drop.node for drop in seen.drop] == [idle.id]
        assert (seen.renew, seen.buy) == ((), ())
    # A smaller spare would fit under the limit, and the larger job would wait on for it.
    large = offer("cx33", 4, "0.0144")
    needs = queued(account=2, project=2, slots=4)
    offers = (offer(), large)
    assert decided(queue=(needs,), offers=offers, caps=Caps(100, hourly=Decimal("0.0120"))).buy == ()


def test_the_month_pays_for_what_waits_before_it_keeps_a_spare() -> None:
    seen = decided(node(1, left=100), queue=(queued(account=2, project=2),), month_left=Decimal("0.0100"))
    assert (reasons(seen), seen.renew, len(seen.drop)) == ([("queue", TWO)], (), 1)


def test_a_project_without_money_keeps_no_spare_from_others() -> None:
    poor = queued(account=2, project=2)
    seen = decided(node(1, left=100), queue=(poor,), budgets={ProjectId(2): Decimal(0)})
    assert (len(seen.renew), seen.drop) == (1, ())
    assert reasons(decided(queue=(poor,), budgets={ProjectId(2): Decimal(0)})) == [("spare", ONE)]


def test_no_spares_are_wanted_unless_somebody_says_so() -> None:
    assert Rules() == replace(SPARES, spares=NEVER)
    assert decided(rules=Rules()).buy == ()
