from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from functions.ids import AccountId, ProjectId
from nodes.policy.decision import Buy
from nodes.policy.expected import Expected
from nodes.policy.round import decide
from nodes.policy.state import Caps, FleetState, Phase, Rules
from tests.nodes.policy.making import GIB, NOW, node, offer, queued, running, state

CAPS = Caps(nodes=100)
CX23, CX33, CX43 = offer(), offer("cx33", 4, "0.0144"), offer("cx43", 8, "0.0264")
CPX22 = offer("cpx22", 2, "0.0320")


def bought(seen: FleetState, caps: Caps = CAPS, rules: Rules = Rules()) -> list[str]:  # noqa: B008
    return [buy.offer.type for buy in decide(seen, caps, NOW, rules).buy]


def test_a_job_without_a_slot_buys_a_node_for_its_account_and_project() -> None:
    [buy] = decide(state(queue=(queued(),)), CAPS, NOW).buy
    assert buy == Buy(CX23, AccountId(1), ProjectId(1), "queue")


def test_free_slots_and_nodes_under_way_are_capacity() -> None:
    jobs = (queued(2),)
    assert bought(state(node(busy=0), queue=jobs)) == []
    for phase in (Phase.PLANNED, Phase.CREATING, Phase.BOOTING):
        assert bought(state(node(phase=phase, left=3590), queue=jobs)) == []
    for useless in ({"phase": Phase.DRAINING}, {"phase": Phase.DELETING}, {"closed": True}, {"account": AccountId(2)}):
        assert bought(state(node(busy=0, **useless), queue=jobs)) == ["cx23"]


def test_thrift_trusts_to_slots_that_free_themselves_within_a_boot() -> None:
    soon = Expected(p50=60.0, p80=61.0)
    ending = tuple(node(n, running=(running(59, expected=soon), running(59, expected=soon))) for n in (1, 2))
    # Four are expected to, at least three of them with a probability of two thirds.
    assert bought(state(*ending, queue=(queued(3),))) == []
    assert bought(state(*ending, queue=(queued(4),))) == ["cx23"]
    assert bought(state(*ending, queue=(queued(1),)), rules=Rules(thrift=0.0)) == ["cx23"]


def test_a_job_whose_trust_was_in_vain_for_a_boot_gets_one_node() -> None:
    soon = Expected(p50=60.0, p80=61.0)
    ending = tuple(node(n, running=(running(59, expected=soon), running(59, expected=soon))) for n in (1, 2))
    assert bought(state(*ending, queue=(queued(3, waited=59),))) == []
    assert bought(state(*ending, queue=(queued(3, waited=61),))) == ["cx23"]
    coming = node(3, left=3590, phase=Phase.BOOTING)
    assert bought(state(*ending, coming, queue=(queued(3, waited=61),))) == []


def test_paid_jobs_whose_deadline_is_near_trust_to_nothing() -> None:
    soon = Expected(p50=60.0, p80=61.0)
    ending = tuple(node(n, running=(running(59, expected=soon), running(59, expected=soon))) for n in (1, 2))
    assert bought(state(*ending, queue=(queued(paid=True, deadline=NOW + 63),))) == ["cx23"]


def test_a_type_has_no_more_slots_than_its_nodes_turned_out_to_have() -> None:
    small = node(1, offer=offer(slots=1))
    assert bought(state(small, queue=(queued(slots=2),))) == []
    assert bought(state(small, queue=(queued(slots=2),), offers=(CX23, CX33))) == ["cx33"]
    assert bought(state(node(1, busy=1, offer=offer(slots=1)), queue=(queued(2),))) == ["cx23", "cx23"]
    odd, whole = node(1, busy=1, offer=offer(slots=1)), node(2, busy=2)
    assert bought(state(odd, whole, queue=(queued(slots=2),))) == ["cx23"], "one odd machine is not all of its type"
    # What is bought is the type as it is sold: this one may have them.
    assert [buy.offer for buy in decide(state(small, queue=(queued(2),)), CAPS, NOW).buy] == [CX23]


def test_a_larger_type_is_bought_only_for_jobs_that_fill_it() -> None:
    offers = (CX23, CX33, CX43, CPX22)
    assert bought(state(queue=(queued(1),), offers=offers)) == ["cx23"]
    assert bought(state(queue=(queued(2),), offers=offers)) == ["cx23"]
    assert bought(state(queue=(queued(4),), offers=offers)) == ["cx33"]
    assert bought(state(queue=(queued(8),), offers=offers)) == ["cx43"]
    assert bought(state(queue=(queued(9),), offers=offers)) == ["cx43", "cx23"]


def test_jobs_of_two_projects_of_an_account_share_the_node_that_is_bought() -> None:
    assert bought(state(queue=(queued(1, project=1), queued(1, project=2)))) == ["cx23"]
    assert bought(state(queue=(queued(1), queued(1, slots=2)))) == ["cx23", "cx23"]


def test_accounts_share_a_node_only_where_tenancy_is_shared() -> None:
    jobs = (queued(1, account=1), queued(1, account=2, project=2))
    assert bought(state(queue=jobs)) == ["cx23", "cx23"]
    [buy] = decide(state(queue=jobs), CAPS, NOW, Rules(exclusive=False)).buy
    assert buy.account is None


def test_what_is_out_of_stock_or_too_small_falls_through_to_the_next() -> None:
    now = datetime.fromtimestamp(NOW, UTC)
    later, earlier = datetime.fromtimestamp(NOW + 60, UTC), datetime.fromtimestamp(NOW - 1, UTC)
    out = offer(available=False, again_at=later)
    assert bought(state(queue=(queued(),), offers=(out, CPX22))) == ["cpx22"]
    assert bought(state(queue=(queued(),), offers=(offer(available=False, again_at=earlier), CPX22))) == ["cx23"]
    assert bought(state(queue=(queued(),), offers=(offer(gone_after=now), CPX22))) == ["cpx22"]
    assert bought(state(queue=(queued(slots=3),), offers=(CX23, CX33))) == ["cx33"]
    assert bought(state(queue=(queued(memory=6 * GIB),), offers=(CX23, CX33))) == ["cx33"]
    assert bought(state(queue=(queued(slots=9),), offers=(CX23, CX33))) == []


def test_a_round_buys_half_the_fleet_again_at_most() -> None:
    assert len(bought(state(queue=(queued(1_000_000),)), Caps(nodes=10_000))) == 2
    fleet = tuple(node(n, busy=2) for n in range(1, 11))
    assert len(bought(state(*fleet, queue=(queued(100),)))) == 5


def test_caps_and_what_the_cloud_was_found_to_allow_stop_purchases() -> None:
    fleet, jobs = (node(1, busy=2), node(2, busy=2)), (queued(8),)
    assert len(bought(state(*fleet, queue=jobs), Caps(nodes=3))) == 1
    assert bought(state(*fleet, queue=jobs), Caps(nodes=2)) == []
    assert len(bought(state(*fleet, queue=jobs), Caps(nodes=9, hourly=Decimal("0.0290")))) == 1
    assert bought(state(*fleet, queue=jobs, sunk=Decimal("0.0003")), Caps(nodes=9, hourly=Decimal("0.0290"))) == []
    assert bought(state(*fleet, queue=jobs), Caps(nodes=9, ceiling=Decimal("0.0047"))) == []
    assert bought(state(*fleet, queue=jobs, server_limit=2)) == []
    assert bought(state(*fleet, queue=jobs, frozen_until=NOW + 1)) == []
    assert len(bought(state(*fleet, queue=jobs, month_left=Decimal("0.0100")))) == 1


def test_a_project_without_budget_for_a_whole_hour_buys_nothing_while_others_do() -> None:
    jobs = (queued(4, project=1), queued(4, project=2, account=2))
    seen = state(queue=jobs, budgets={ProjectId(1): Decimal("0.0095")})
    decision = decide(seen, CAPS, NOW)
    assert {buy.payer for buy in decision.buy} == {ProjectId(2)}
    assert [wait.reason for wait in decision.waits] == ["budget", "booting"]


def test_a_project_without_budget_neither_keeps_others_of_its_account_from_a_node_nor_makes_them_buy_more() -> None:
    poor = {ProjectId(1): Decimal("0.0095")}
    first = state(queue=(queued(1, project=1, waited=5), queued(1, project=2)), budgets=poor)
    assert [buy.payer for buy in decide(first, CAPS, NOW).buy] == [ProjectId(2)]
    backlog = (queued(100, project=1, waited=500), queued(1, project=2))
    assert decide(state(node(phase=Phase.BOOTING, left=3590), queue=backlog, budgets=poor), CAPS, NOW).buy == ()


def test_a_job_does_not_count_on_a_node_that_is_too_dear() -> None:
    jobs = (queued(1, slots=3, waited=5), queued(1))
    seen = state(queue=jobs, offers=(CX23, CX33))
    decision = decide(seen, Caps(nodes=9, hourly=Decimal("0.0100")), NOW)
    assert [buy.offer for buy in decision.buy] == [CX23]
    assert decision.waits[0].reason == "hourly limit"


def test_of_two_accounts_the_one_that_used_less_is_served_first() -> None:
    jobs = (queued(4, account=1), queued(4, account=2, project=2))
    [buy] = decide(state(queue=jobs, used={AccountId(1): 500.0, AccountId(2): 10.0}), Caps(nodes=1), NOW).buy
    assert buy.account == AccountId(2)


def test_paid_jobs_buy_nothing_until_their_deadline_comes_near() -> None:
    assert bought(state(queue=(queued(paid=True),))) == []
    assert bought(state(queue=(queued(paid=True, deadline=NOW + 600),))) == []
    assert bought(state(queue=(queued(paid=True, deadline=NOW + 63),))) == ["cx23"]
