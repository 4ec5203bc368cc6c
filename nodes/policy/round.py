"""One round of the policy: from what is to what is to be done, without a clock, a database or chance.

The autoscaler and the simulator call this very function. Its idea: begin an hour only when the demand exceeds what is
paid for, use each to its end, and go on only with what is busy then. That is what the cheapest cover of a demand known
from its end does, so that what is lost against it is boots, jobs that straddle an hour's end, and half-full nodes.
"""

from __future__ import annotations

from nodes.policy.buying import buy, shortages
from nodes.policy.decision import Decision
from nodes.policy.dispatch import forced_at
from nodes.policy.keeping import keep
from nodes.policy.purse import Purse
from nodes.policy.spares import plan_spares
from nodes.policy.state import Caps, FleetState, Rules
from nodes.policy.waits import waits

DEFAULT = Rules()


def decide(state: FleetState, caps: Caps, now: float, rules: Rules = DEFAULT) -> Decision:
    """What to buy, renew and drop now.

    The caller stores a decision before it acts on it, and shows what is under way in the next round's state: then a
    round may come at any time. The same state decides the same.
    """
    purse = Purse(state, caps)
    spares, lacking = plan_spares(state, now, rules)
    # Renewals come first: what runs has been promised its node, and a short budget buys nothing new.
    kept = keep(state, spares, purse, now, rules)
    bought, refused = buy(state, [*shortages(state, now, rules), *lacking], purse, now)
    forced = [forced_at(job, rules.boot_s, rules) for job in state.queue if job.paid]
    return Decision(
        buy=bought,
        renew=kept.renew,
        drop=kept.drop,
        closed=kept.closed,
        waits=waits(state, refused, now, rules),
        again_at=min([kept.again_at, *(at for at in forced if at > now)]),
    )
