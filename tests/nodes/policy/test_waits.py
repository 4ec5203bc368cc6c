from __future__ import annotations

from datetime import UTC, datetime

from functions import ids
from functions.ids import AccountId
from nodes.policy.decision import Buy, Wait
from nodes.policy.round import decide
from nodes.policy.state import HOUR, Caps, FleetState, Phase, Rules
from nodes.policy.waits import waits
from tests.nodes.policy.making import NOW, node, offer, queued, state


def wait(seen: FleetState, caps: Caps = Caps(nodes=10)) -> Wait:  # noqa: B008
    [found] = decide(seen, caps, NOW).waits
    return found


def test_a_job_waits_for_the_node_that_boots_for_it() -> None:
    coming = node(left=HOUR - 20, phase=Phase.BOOTING)
    found = wait(state(coming, queue=(queued(),)))
    assert (found.reason, found.node, found.eta) == (f"booting {ids.encode(ids.NODE, coming.id)}", coming.id, NOW + 40)


def test_a_job_waits_for_the_node_that_is_bought_for_it_in_this_very_round() -> None:
    small, large = queued(), queued(slots=2)
    decision = decide(state(queue=(small, large)), Caps(nodes=10), NOW)
    assert len(decision.buy) >= 1
    assert {(each.reason, each.eta) for each in decision.waits} == {("booting", NOW + 60)}
    assert all(each.purchase is not None and decision.buy[each.purchase].account == 1 for each in decision.waits)
    stranger = [Buy(offer(), AccountId(2), None, "queue")]
    assert waits(state(queue=(small,)), stranger, {}, NOW, Rules())[0].reason == "capacity"


def test_a_job_waits_for_stock_and_says_what_is_tried_next() -> None:
    again = datetime.fromtimestamp(NOW + 120, UTC)
    other = offer("cpx22", 2, "0.0320")
    short = state(queue=(queued(),), offers=(offer(available=False, again_at=again), other))
    [found] = waits(short, (), {}, NOW, Rules())
    assert (found.reason, found.next_offer, found.eta) == ("capacity cx23@fsn1", other, NOW + 120)


def test_a_job_waits_for_a_cap_a_limit_a_slot_or_paid_minutes() -> None:
    jobs = (queued(),)
    assert wait(state(node(busy=2), queue=jobs), Caps(nodes=1)).reason == "node limit"
    assert wait(state(node(busy=2), queue=jobs, server_limit=1)).reason == "account limit"
    frozen = wait(state(queue=jobs, frozen_until=NOW + 600, server_limit=1))
    assert (frozen.reason, frozen.eta) == ("account limit", NOW + 600)
    assert wait(state(node(busy=2), queue=jobs, frozen_until=NOW + 600, server_limit=1)).eta == NOW + 120
    assert wait(state(queue=jobs, frozen_until=NOW + 9)).reason == "refused by the cloud"
    assert wait(state(queue=(queued(paid=True, deadline=NOW + 999),))).reason == "paid minutes"
    slot = wait(state(*(node(n, busy=2) for n in range(1, 9)), queue=jobs))
    assert (slot.reason, slot.eta) == ("capacity", NOW + 120)
    assert wait(state(queue=jobs, offers=())).reason == "capacity"
