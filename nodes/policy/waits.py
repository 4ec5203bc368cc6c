"""Why jobs wait, and until when, in the words that a job shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from functions import ids
from nodes.offers import Offer
from nodes.policy.decision import Buy, Wait
from nodes.policy.dispatch import could_serve, is_forced
from nodes.policy.market import boot_s, fitting, in_stock, ladder
from nodes.policy.state import COMING, FleetState, Node, Phase, Queued, Rules


def waits(
    state: FleetState, bought: Sequence[Buy], refused: Mapping[Queued, str], now: float, rules: Rules
) -> tuple[Wait, ...]:
    """One for each group of the queue. ``refused`` has those that a cap kept from getting a node of those ``bought``,
    and which."""
    return tuple(_wait(state, job, bought, refused.get(job), now=now, rules=rules) for job in state.queue)


def _wait(
    state: FleetState, job: Queued, bought: Sequence[Buy], refused: str | None, *, now: float, rules: Rules
) -> Wait:
    wait = Wait(job.account, job.project, job.slots, job.paid, "capacity")
    if not is_forced(job, now, rules.boot_s, rules):
        return replace(wait, reason="paid minutes", eta=job.deadline)
    mine = [node for node in state.nodes if node.account in (None, job.account) and could_serve(node, job)]
    coming = sorted(
        (node.created_at + boot_s(state, node.offer, rules.boot_s), node.id) for node in mine if node.phase in COMING
    )
    if coming:
        eta, node = coming[0]
        return replace(wait, reason=f"booting {ids.encode(ids.NODE, node)}", node=node, eta=max(eta, now))
    if now < state.frozen_until:
        # Without a limit learned it is the token that may not buy.
        reason = "account limit" if state.server_limit is not None else "refused by the cloud"
        free_at = _free_at(mine, now, rules)
        return replace(wait, reason=reason, eta=min(state.frozen_until, free_at or state.frozen_until))
    if refused is not None:
        return replace(wait, reason=refused)
    for place, buy in enumerate(bought):
        if buy.account in (None, job.account) and fitting((buy.offer,), job):
            eta = now + boot_s(state, buy.offer, rules.boot_s)
            return replace(wait, reason="booting", purchase=place, eta=eta)
    return _for_stock(wait, ladder(state.offers, job, job.count), now) or replace(wait, eta=_free_at(mine, now, rules))


def _for_stock(wait: Wait, offers: Sequence[Offer], now: float) -> Wait | None:
    """None if the best offer can be had, so that it is not stock that the jobs wait for."""
    if not offers or in_stock(offers[0], now):
        return None
    first, *others = offers
    again = None if first.again_at is None else first.again_at.timestamp()
    following = next((offer for offer in others if in_stock(offer, now)), None)
    return replace(wait, reason=f"capacity {first.type}@{first.location}", next_offer=following, eta=again)


def _free_at(nodes: Sequence[Node], now: float, rules: Rules) -> float | None:
    """When the first running job should have ended, by its class's median."""
    ends = [
        max(job.started_at + job.expected.p50, now + rules.round_s)
        for node in nodes
        if node.phase is Phase.READY
        for job in node.running
    ]
    return min(ends, default=None)
