"""Which nodes to keep for another hour, which to drop at the end of this one, and who pays for those kept."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from functions.ids import NodeId, ProjectId
from nodes.policy.decision import Drop, Renewal
from nodes.policy.market import boot_s
from nodes.policy.purse import Purse, Shares
from nodes.policy.state import COMING, HOUR, FleetState, Node, Phase, Rules

LAST_QUARTER = 900.0
"""Before its hour's end a node that is not to get another one takes no new jobs, so that it is idle by then."""
_MICRO = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Kept:
    drop: tuple[Drop, ...]
    renew: tuple[Renewal, ...]
    closed: frozenset[NodeId]
    again_at: float


@dataclass(frozen=True, slots=True)
class Close:
    """Take no new jobs for now."""

    node: NodeId


def keep(
    state: FleetState, purse: Purse, now: float, rules: Rules, *, yields: frozenset[NodeId] = frozenset()
) -> Kept:
    """An idle node is kept while it has paid time left, and dropped in the last minutes of that; a busy one goes on
    for another hour, which is reserved before it begins, but runs empty if it ``yields``. Nodes that do not join in
    time are given up.
    """
    verdicts: list[Drop | Renewal | Close] = []
    times: list[float] = []
    # Those whose hours end first are first to get what a budget still has.
    for node in sorted(state.nodes, key=lambda node: (node.paid_left(now), node.id)):
        if not node.rented or node.phase is Phase.DELETING:
            continue
        if node.phase in COMING:
            deadline = node.created_at + max(rules.boot_deadline, 3 * boot_s(state, node.offer, rules.boot_s))
            times.append(deadline)
            verdict: Drop | Renewal | Close | None = _late(node, deadline, now)
        elif node.phase is Phase.DRAINING:
            verdict = None if node.running else Drop(node.id, "drained")
        else:
            ends = now + node.paid_left(now)
            times += (ends - LAST_QUARTER, ends - rules.margin, ends)
            verdict = _ready(node, purse, now, rules)
        if verdict is not None:
            verdicts.append(verdict)
    closed = {each.node for each in verdicts if isinstance(each, Close)}
    closed |= {
        node.id for node in state.nodes
        if node.id in yields and (node.closed or node.paid_left(now) <= LAST_QUARTER)
    }  # fmt: skip
    return Kept(
        drop=tuple(each for each in verdicts if isinstance(each, Drop)),
        renew=tuple(each for each in verdicts if isinstance(each, Renewal)),
        closed=frozenset(closed),
        again_at=min((at for at in times if at > now), default=float("inf")),
    )


def _late(node: Node, deadline: float, now: float) -> Drop | None:
    if now < deadline:
        return None
    return Drop(node.id, f"not ready {now - node.created_at:.0f} s after its purchase", failed=True)


def _ready(node: Node, purse: Purse, now: float, rules: Rules) -> Drop | Renewal | Close | None:
    left = node.paid_left(now)
    ends, last = now + left, left <= rules.margin
    if left > LAST_QUARTER and node.reserved_until >= ends - 1:
        return None
    if last and not node.running:
        # So late that the deletion may fall into the next hour: that will have to be paid for, so it is used.
        return Drop(node.id, "idle at the end of its hour") if left > rules.delete_s else None
    shares, price = _shares(node), node.offer.hourly
    affordable = purse.affords(shares, price)
    until = ends + HOUR if last else ends
    if node.reserved_until < until - 1:
        if not affordable:
            return Close(node.id)
        purse.take(shares, price)
        return Renewal(node.id, until, shares)
    if left <= LAST_QUARTER and (is_old(node, ends, rules) or not (last or affordable)):
        return Close(node.id)
    return None


def is_old(node: Node, ends: float, rules: Rules) -> bool:
    """Whether it is to be retired with the hour that ends at ``ends``."""
    return ends - node.created_at >= rules.lifetime


def _shares(node: Node) -> Shares:
    """Who pays for a node's next hour: those whose jobs keep it, by their slots; of an idle one, for whom it was
    bought. The shares add up to the price, whatever it divides by.
    """
    price = node.offer.hourly
    if not node.running:
        return () if node.payer is None else ((node.payer, price),)
    slots: dict[ProjectId, int] = {}
    for job in node.running:
        slots[job.project] = slots.get(job.project, 0) + job.slots
    total = sum(slots.values())
    shares = [(project, (price * part / total).quantize(_MICRO)) for project, part in sorted(slots.items())]
    first = price - sum(share for _, share in shares[1:])
    return ((shares[0][0], first), *shares[1:])
