"""One round of the policy: from what is to what is to be done, without a clock, a database or chance.

The autoscaler and the simulator call this very function. Its idea: begin an hour only when the demand exceeds what is
paid for, use each to its end, and go on only with what is busy then. That is what the cheapest cover of a demand known
from its end does, so that what is lost against it is boots, jobs that straddle an hour's end, and half-full nodes.
"""

from __future__ import annotations

from dataclasses import replace

from nodes.policy.buying import buy, shortages
from nodes.policy.decision import Decision
from nodes.policy.dispatch import forced_at
from nodes.policy.keeping import keep
from nodes.policy.market import as_found
from nodes.policy.purse import Purse
from nodes.policy.spares import plan_spares
from nodes.policy.state import Caps, FleetState, Rules
from nodes.policy.waits import waits
from nodes.policy.yielding import yielding

DEFAULT = Rules()


def decide(state: FleetState, caps: Caps, now: float, rules: Rules = DEFAULT) -> Decision:
    """What to buy, renew and drop now.

    The caller stores a decision before it acts on it, and shows what is under way in the next round's state: then a
    round may come at any time. The same state decides the same.
    """
    sold = {offer.key: offer for offer in state.offers}
    state = replace(state, offers=as_found(state.offers, state.nodes))
    purse = Purse(state, caps)
    # Renewals come first: what runs has been promised its node, and a short budget buys nothing new.
    kept = keep(state, purse, now, rules, yields=yielding(state, purse, now, rules))
    bought, refused = buy(state, shortages(state, now, rules), purse, now)
    spares = plan_spares(state, purse, now, rules, bought=bought, refused=refused)
    bought += spares.buy
    forced = [forced_at(job, rules.boot_s, rules) for job in state.queue if job.paid]
    return Decision(
        buy=tuple(replace(each, offer=sold[each.offer.key]) for each in bought),
        renew=kept.renew + spares.renew,
        drop=tuple(each for each in kept.drop if each.node not in spares.kept),
        closed=kept.closed,
        waits=waits(state, bought, refused, now, rules),
        again_at=min([kept.again_at, rules.spares.next_after(now), *(at for at in forced if at > now)]),
    )
