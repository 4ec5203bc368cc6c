"""Which nodes make room for another account, where the fleet is as large as it may be.

A busy node is kept hour after hour. Where nodes serve one account each, accounts whose work never ends would so hold
all that a limit allows, and the others have none for days.
"""

from __future__ import annotations

from functions.ids import AccountId, NodeId
from nodes.policy.buying import is_poor
from nodes.policy.dispatch import could_serve, is_forced
from nodes.policy.market import in_stock, ladder
from nodes.policy.purse import FLEET_LIMITS, Purse
from nodes.policy.state import COMING, FleetState, Node, Phase, Queued, Rules


def yielding(state: FleetState, purse: Purse, now: float, rules: Rules) -> frozenset[NodeId]:
    """One node for each account that has none for its jobs, and gets none for want of room: of those that have most of
    them, and have used most. A node that yields takes no new jobs towards the end of its hour, and goes when it is idle
    then.

    ``purse`` as it is before anything is bought or renewed.
    """
    waiting = {job.account for job in state.queue if _is_kept_out(state, job, purse, now, rules)}
    going = (Phase.DRAINING, Phase.DELETING)
    leaving = sum(
        node.rented and (node.phase in going or (node.phase is Phase.READY and not node.running))
        for node in state.nodes
    )  # fmt: skip
    of: dict[AccountId, list[Node]] = {}
    for node in state.nodes:
        if node.rented and node.phase is Phase.READY and node.running and node.account is not None:
            of.setdefault(node.account, []).append(node)
    chosen: set[NodeId] = set()
    for _ in range(len(waiting) - leaving):
        if not of:
            break
        account = max(of, key=lambda each: (len(of[each]), state.used.get(each, 0.0), each))
        # One that has begun to run empty goes on with that.
        first = min(of[account], key=lambda node: (not node.closed, node.paid_left(now), node.id))
        chosen.add(first.id)
        of[account].remove(first)
        if not of[account]:
            del of[account]
    return frozenset(chosen)


def _is_kept_out(state: FleetState, job: Queued, purse: Purse, now: float, rules: Rules) -> bool:
    if not rules.exclusive or now < state.frozen_until or not is_forced(job, now, rules.boot_s, rules):
        return False
    if is_poor(state, job) or _has_node(state, job.account, job):
        return False
    offers = [each for each in ladder(state.offers, job, job.count) if in_stock(each, now)]
    return bool(offers) and all(purse.refusal(each, job.project) in FLEET_LIMITS for each in offers)


def _has_node(state: FleetState, account: AccountId, job: Queued) -> bool:
    mine = (node for node in state.nodes if node.account in (None, account))
    return any((node.phase in COMING or node.phase is Phase.READY) and could_serve(node, job) for node in mine)
