"""Slots kept free over the end of an hour for jobs still to come: they make waits shorter, and save no money."""

from __future__ import annotations

import math
from collections.abc import Sequence

from functions.ids import NodeId, ProjectId
from nodes.policy.buying import Shortage
from nodes.policy.expected import UNKNOWN
from nodes.policy.state import COMING, FleetState, Node, Phase, Queued, Rules


def arrival_rate(count: int, window_s: float, since_last_s: float) -> float:
    """Jobs' slots that come per second: ``count`` in the last ``window_s``, but none is expected sooner than the last
    one is ago, so that a load that has stopped is forgotten at once."""
    return min(count / window_s, 1 / max(since_last_s, 1.0))


def plan_spares(state: FleetState, now: float, rules: Rules) -> tuple[frozenset[NodeId], list[Shortage]]:
    """The idle nodes that go on over the end of their hours, and the warm spares that are missing."""
    kept: set[NodeId] = set()
    lacking: list[Shortage] = []
    for account, arrivals in sorted(state.arrivals.items()):
        nodes = [node for node in state.nodes if node.account in (None, account) and not node.closed]
        spare = spare_slots(nodes, arrivals, now, rules)
        wanted = max(spare, int(_lingers(nodes, arrivals, now, rules)))
        if not wanted:
            continue
        queued = sum(job.count * job.slots for job in state.queue if job.account == account and not job.paid)
        free = sum(node.free for node in nodes if node.phase in COMING or node.phase is Phase.READY) - queued
        for node in _idle_at_the_end(nodes, now, rules):
            if free - node.offer.slots < wanted:
                kept.add(node.id)
            else:
                free -= node.offer.slots
        if free < spare:
            job = Queued(account, ProjectId(0), 1, 0, spare - max(free, 0), now, UNKNOWN)
            lacking.append(Shortage(account if rules.exclusive else None, job, job.count, payer=None, reason="spare"))
    return frozenset(kept), lacking


def spare_slots(nodes: Sequence[Node], arrivals: float, now: float, rules: Rules) -> int:
    """How many slots should be free, coming nodes included, so that jobs that come within a boot find one; what is
    expected to free itself meanwhile needs no spare."""
    if not rules.spares or arrivals <= 0:
        return 0
    wanted = _poisson_quantile(1 - rules.spare_risk, arrivals * rules.boot_s)
    return max(0, math.ceil(wanted - _frees(nodes, rules.boot_s, now)))


def _lingers(nodes: Sequence[Node], arrivals: float, now: float, rules: Rules) -> bool:
    """Whether the next job will come soon, and probably find no slot that freed itself by then, or a boot later."""
    if arrivals * rules.linger < 1:
        return False
    return rules.thrift * _frees(nodes, 1 / arrivals + rules.boot_s, now) < 1


def _frees(nodes: Sequence[Node], span: float, now: float) -> float:
    return sum(
        job.slots * job.expected.ends_within(span, now - job.started_at)
        for node in nodes
        if node.phase is Phase.READY
        for job in node.running
    )


def _idle_at_the_end(nodes: Sequence[Node], now: float, rules: Rules) -> list[Node]:
    idle = [node for node in nodes if node.rented and node.phase is Phase.READY and not node.running]
    return sorted(
        (node for node in idle if node.paid_left(now) <= rules.margin), key=lambda node: (node.paid_left(now), node.id)
    )


def _poisson_quantile(quantile: float, mean: float) -> int:
    """The least n such that at most n come with probability ``quantile``."""
    if mean > 500:  # the terms below underflow; a normal is as good there
        return math.ceil(mean + 2.33 * math.sqrt(mean))
    n, term = 0, math.exp(-mean)
    total = term
    while total < quantile:
        n += 1
        term *= mean / n
        total += term
    return n
