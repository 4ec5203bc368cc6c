"""Which node a job goes to: one that it makes no hour dearer of, if there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nodes.policy.state import Node, Phase, Queued, Rules

LIKELY = 0.2
"""A job that ends in its node's paid time in four of five cases is taken to fit in there."""
KEPT_FREE = 0.1
"""The part of the slots, at least one, that paid jobs leave to others: one that found none would buy a node."""


def best_node(nodes: Iterable[Node], job: Queued, now: float, rules: Rules) -> Node | None:
    """Of ``nodes``, all that there are, the one that the first of ``job`` should start on now; None if it should wait.

    Among the nodes that it probably keeps over no hour's end: the fullest, so that others run empty, then that with
    most paid time left. Where there is none, the one that it is least likely to keep alone. A paid job takes only
    paid time that is probably enough for it, near its end first, until its deadline comes near.
    """
    serving = [node for node in nodes if serves(node, job)]
    risks = [(_risk(node, job, now, rules), node) for node in serving if node.free >= job.slots]
    fitting = [node for risk, node in risks if risk <= LIKELY]
    if not is_forced(job, now, rules.boot_s, rules):
        left = sum(node.free for node in serving) - job.slots
        if left < _kept_free(serving):
            return None
        return min(fitting, key=lambda node: (node.paid_left(now), node.free, node.id), default=None)
    if fitting:
        return min(fitting, key=lambda node: (node.free, -node.paid_left(now), node.id))
    _, best = min(
        risks, key=lambda each: (each[0], each[1].free, -each[1].paid_left(now), each[1].id), default=(0, None)
    )
    return best


def serves(node: Node, job: Queued) -> bool:
    """Whether the node takes such jobs now, if it has room."""
    return (
        node.phase is Phase.READY
        and not node.closed
        and (node.account is None or node.account == job.account)
        and could_serve(node, job)
    )


def could_serve(node: Node, job: Queued) -> bool:
    """Whether the node is large enough."""
    return node.offer.slots >= job.slots and node.offer.memory >= job.memory


def is_forced(job: Queued, now: float, boot_s: float, rules: Rules) -> bool:
    """Whether a job counts like any other by now: all do but paid ones that may still wait for paid time."""
    return not job.paid or now >= forced_at(job, boot_s, rules)


def forced_at(job: Queued, boot_s: float, rules: Rules) -> float:
    """When a paid job has to have a node bought for it, if there is no room then."""
    return math.inf if job.deadline is None else job.deadline - boot_s - 2 * rules.round_s


def _risk(node: Node, job: Queued, now: float, rules: Rules) -> float:
    """The probability that the job alone keeps the node over the end of its hour: none if others do anyway."""
    left = node.paid_left(now) - rules.delete_s
    risk = job.expected.outlasts(left)
    for other in node.running:
        risk *= other.expected.ends_within(left, now - other.started_at)
    return risk


def _kept_free(serving: list[Node]) -> int:
    return max(1, round(KEPT_FREE * sum(node.offer.slots for node in serving)))
