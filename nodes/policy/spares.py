"""Slots kept free over the end of an hour for jobs still to come: they make waits shorter, and save no money."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from functions.ids import NodeId, ProjectId
from nodes.policy.buying import Shortage, buy, is_poor
from nodes.policy.decision import Buy, Renewal
from nodes.policy.expected import UNKNOWN
from nodes.policy.keeping import is_old
from nodes.policy.market import least_boot_s
from nodes.policy.poisson import quantile
from nodes.policy.purse import CEILING, Purse
from nodes.policy.state import COMING, HOUR, FleetState, Node, Phase, Queued, Rules


@dataclass(frozen=True, slots=True)
class Spares:
    """``kept`` are the idle nodes that go on over the end of their hours; ``renew`` those of them whose next hour has
    to be reserved still. ``buy`` is what is missing beside them."""

    kept: frozenset[NodeId] = frozenset()
    renew: tuple[Renewal, ...] = ()
    buy: tuple[Buy, ...] = ()


def plan_spares(
    state: FleetState, purse: Purse, now: float, rules: Rules, *, bought: Sequence[Buy], refused: Mapping[Queued, str]
) -> Spares:
    """After the queue has got its nodes, ``bought``, and from what it left in ``purse``. Nobody's budget is charged:
    no project asked for spares.

    While a limit of the whole fleet keeps a job from getting a node (``refused``), there are none: they would stand in
    its way for another hour.
    """
    if not rules.spares.hold(now) or any(_all_share(state, job, limit) for job, limit in refused.items()):
        return Spares()
    kept: set[NodeId] = set()
    renew: list[Renewal] = []
    lacking: list[Shortage] = []
    boot = least_boot_s(state, rules.boot_s)
    for account, arrivals in sorted(state.arrivals.items(), key=lambda each: (state.used.get(each[0], 0.0), each[0])):
        nodes = [node for node in state.nodes if node.account in (None, account) and not node.closed]
        spare = spare_slots(nodes, arrivals, boot, now, rules)
        if not spare:
            continue
        queued = sum(job.count * job.slots for job in state.queue if job.account == account and not job.paid)
        free = sum(node.free for node in nodes if node.phase in COMING or node.phase is Phase.READY) - queued
        free += sum(each.offer.slots for each in bought if each.account in (None, account))
        for node in _idle_at_the_end(nodes, now, rules):
            until = now + node.paid_left(now) + HOUR
            is_paid = node.reserved_until >= until - 1
            if free - node.offer.slots < spare and (is_paid or purse.affords((), node.offer.hourly)):
                if node.id not in kept and not is_paid:
                    purse.take((), node.offer.hourly)
                    renew.append(Renewal(node.id, until, ()))
                kept.add(node.id)
            else:
                free -= node.offer.slots
        if free < spare:
            job = Queued(account, ProjectId(0), 1, 0, spare - max(free, 0), now, UNKNOWN)
            lacking.append(Shortage(account if rules.exclusive else None, job, job.count, payer=None, reason="spare"))
    more, _ = buy(state, lacking, purse, now, already=len(bought))
    return Spares(frozenset(kept), tuple(renew), more)


def spare_slots(nodes: Sequence[Node], arrivals: float, boot: float, now: float, rules: Rules) -> int:
    """How many slots should be free, coming nodes included, so that jobs that come within a boot find one; what is
    expected to free itself meanwhile needs no spare."""
    if arrivals <= 0:
        return 0
    wanted = quantile(1 - rules.spare_risk, arrivals * boot)
    return max(0, math.ceil(wanted - _frees(nodes, boot, now)))


def _all_share(state: FleetState, job: Queued, limit: str) -> bool:
    """Whether it is a limit that a spare would take from: not the budget of the job's own project, nor a price."""
    return limit != CEILING and not is_poor(state, job)


def _frees(nodes: Sequence[Node], span: float, now: float) -> float:
    return sum(
        job.slots * job.expected.ends_within(span, now - job.started_at)
        for node in nodes
        if node.phase is Phase.READY
        for job in node.running
    )


def _idle_at_the_end(nodes: Sequence[Node], now: float, rules: Rules) -> list[Node]:
    """One that is to be retired is no spare."""
    idle = [node for node in nodes if node.rented and node.phase is Phase.READY and not node.running]
    ending = [
        node for node in idle if (left := node.paid_left(now)) <= rules.margin and not is_old(node, now + left, rules)
    ]
    return sorted(ending, key=lambda node: (node.paid_left(now), node.id))
