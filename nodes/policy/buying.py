"""Which nodes to buy: for the jobs that no slot is expected for in the time that a new node needs to boot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from functions.ids import AccountId, ProjectId
from nodes.offers import Offer
from nodes.policy.decision import Buy
from nodes.policy.dispatch import could_serve, is_forced
from nodes.policy.market import fitting, in_stock, ladder, least_boot_s
from nodes.policy.poisson import quantile
from nodes.policy.purse import Purse
from nodes.policy.state import COMING, FleetState, Node, Phase, Queued, Rules


@dataclass(frozen=True, slots=True)
class Shortage:
    """``count`` jobs like ``job`` for which there is no room, and will be none in time. ``account`` is whom a node for
    them will serve, ``payer`` whose budget it is charged to."""

    account: AccountId | None
    job: Queued
    count: int
    payer: ProjectId | None
    reason: str = "queue"


def buy(
    state: FleetState, lacking: Sequence[Shortage], purse: Purse, now: float, *, already: int = 0
) -> tuple[tuple[Buy, ...], dict[Queued, str]]:
    """The purchases of this round, and the jobs that a cap keeps from having one, with its name.

    At most half the fleet is bought again (at least two, ``already`` among them), so that one odd moment buys no
    hundred. Accounts take turns, the one that used least first; what one cannot have, by budget or stock, another
    still gets.
    """
    refused: dict[Queued, str] = {}
    if now < state.frozen_until:
        return (), refused
    fleet = sum(node.rented for node in state.nodes)
    allowed = max(2, math.ceil(fleet / 2)) - already
    by_account: dict[AccountId | None, list[Shortage]] = {}
    for shortage in sorted(lacking, key=lambda each: state.used.get(each.job.account, 0.0)):
        if not shortage.count:
            continue
        # Else others would count on what a node that is not bought has left for them.
        offers = [each for each in ladder(state.offers, shortage.job, shortage.count) if in_stock(each, now)]
        if offers and all(purse.refusal(each, shortage.payer) for each in offers):
            refused[shortage.job] = purse.refusal(offers[0], shortage.payer) or ""
            continue
        by_account.setdefault(shortage.account, []).append(shortage)
    accounts = list(by_account)
    lists = [_wanted(state, by_account[account], now, most=allowed) for account in accounts]
    bought: list[Buy] = []
    for turn in zip_longest(*lists):
        for wanted in turn:
            if wanted is None or len(bought) >= allowed:
                continue
            shortage, offers = wanted
            offer = next((each for each in offers if purse.refusal(each, shortage.payer) is None), None)
            if offer is None:
                refused[shortage.job] = purse.refusal(offers[0], shortage.payer) or ""
            else:
                purse.buy(offer, shortage.payer)
                bought.append(Buy(offer, shortage.account, shortage.payer, shortage.reason))
    return tuple(bought), refused


def _wanted(
    state: FleetState, lacking: Sequence[Shortage], now: float, *, most: int
) -> list[tuple[Shortage, list[Offer]]]:
    """One entry for each of the first ``most`` nodes that an account's shortages call for, with the offers to try, best
    first. Slots that the last node for one shortage has left are the next one's."""
    wanted: list[tuple[Shortage, list[Offer]]] = []
    slots_left = sum(shortage.count * shortage.job.slots for shortage in lacking)
    rest = 0
    for shortage in lacking:
        job, count = shortage.job, shortage.count
        while count > 0 and len(wanted) < most:
            if rest < job.slots:
                # As large as all that is lacking asks for: small jobs that come behind fill it.
                offers = ladder(state.offers, job, math.ceil(slots_left / job.slots))
                offers = [each for each in offers if in_stock(each, now)]
                if not offers:
                    break
                wanted.append((shortage, offers))
                rest = offers[0].slots
            taken = min(count, rest // job.slots)
            rest -= taken * job.slots
            slots_left -= taken * job.slots
            count -= taken
    return wanted


def shortages(state: FleetState, now: float, rules: Rules) -> list[Shortage]:
    """What the queue lacks: for each account alone if nodes serve one account, else for all together."""
    groups: dict[AccountId | None, list[Queued]] = {}
    for job in state.queue:
        groups.setdefault(job.account if rules.exclusive else None, []).append(job)
    serving: dict[AccountId | None, list[Node]] = {}
    for node in state.nodes:
        if not node.closed and (node.phase in COMING or node.phase is Phase.READY):
            serving.setdefault(node.account, []).append(node)
    lacking: list[Shortage] = []
    for account, jobs in groups.items():
        nodes = serving.get(account, []) + (serving.get(None, []) if account is not None else [])
        lacking += _lacking(state, nodes, jobs, now, rules, account=account)
    return lacking


def _lacking(
    state: FleetState,
    nodes: list[Node],
    jobs: list[Queued],
    now: float,
    rules: Rules,
    *,
    account: AccountId | None,
) -> list[Shortage]:
    """Free slots count, and all those of nodes that are coming; of those in use, as many as are likely enough to become
    free within a boot (``Rules.thrift``). A job that has waited long, or whose deadline is near, trusts to none of
    those. Large jobs come first, as small ones fit in beside them; but those that no node can be bought for last, or
    others would buy one in each round, only to leave it to these."""
    room = [node.free for node in nodes]
    boot = least_boot_s(state, rules.boot_s)
    frees: dict[tuple[int, int], float] = {}
    trusted = 0
    lacking = []
    for job in sorted(jobs, key=lambda job: (is_poor(state, job), -job.slots, job.oldest, job.project)):
        if not is_forced(job, now, boot, rules):
            continue
        count = job.count
        for at, node in enumerate(nodes):
            if count and room[at] >= job.slots and could_serve(node, job):
                taken = min(count, room[at] // job.slots)
                room[at] -= taken * job.slots
                count -= taken
        if count:
            alike = job.slots, job.memory
            if alike not in frees:
                frees[alike] = _frees(nodes, job, boot, now)
            # The first of a group gets the first room there is.
            is_late = count == job.count and now - job.oldest > rules.patience * boot
            patient = count - 1 if is_late else count
            trust = 0 if job.paid else min(patient, max(0, quantile(rules.thrift, frees[alike]) - trusted))
            trusted += trust
            count -= trust
        if count:
            lacking.append(Shortage(account, job, count, job.project))
    return lacking


def is_poor(state: FleetState, job: Queued) -> bool:
    """Whether its project's budget pays for no node that could run it."""
    budget = state.budgets.get(job.project)
    return budget is not None and all(each.hourly > budget for each in fitting(state.offers, job))


def _frees(nodes: list[Node], job: Queued, span: float, now: float) -> float:
    """How many jobs like ``job`` are expected to find room within ``span`` where one ends that is as large."""
    return sum(
        running.slots // job.slots * running.expected.ends_within(span, now - running.started_at)
        for node in nodes
        if node.phase is Phase.READY and could_serve(node, job)
        for running in node.running
        if running.slots >= job.slots
    )
