"""Which type of server to buy for so many slots, and what is tried when that one is out of stock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from nodes.offers import Offer
from nodes.policy.state import COMING, FleetState, Node, Queued


def as_found(offers: Sequence[Offer], nodes: Sequence[Node]) -> tuple[Offer, ...]:
    """The offers with no more slots than nodes of their types turned out to have, all of them: else jobs would have one
    after the other bought that is too small for them."""
    slots: dict[str, int] = {}
    for node in nodes:
        if node.rented and node.phase not in COMING:
            slots[node.offer.type] = max(node.offer.slots, slots.get(node.offer.type, 0))
    return tuple(
        replace(offer, slots=slots[offer.type]) if 0 < slots.get(offer.type, 0) < offer.slots else offer
        for offer in offers
    )


def fitting(offers: Sequence[Offer], job: Queued) -> list[Offer]:
    """The offers that can hold the job at all, in the given order."""
    return [offer for offer in offers if offer.slots >= job.slots and offer.memory >= job.memory]


def in_stock(offer: Offer, now: float) -> bool:
    """Whether a purchase may be tried: it is in the shop, and its last failure is long enough ago."""
    if offer.gone_after is not None and offer.gone_after.timestamp() <= now:
        return False
    return offer.available or (offer.again_at is not None and offer.again_at.timestamp() <= now)


def ladder(offers: Sequence[Offer], job: Queued, count: int) -> list[Offer]:
    """The offers for ``count`` jobs, best first: by the price of the slots that they will fill.

    A large node is cheaper for each slot, but only if its slots are used: for one job the price of the whole node
    counts. Equal prices keep the wish's order.
    """
    return sorted(fitting(offers, job), key=lambda offer: _price_of_used(offer, job, count))


def boot_s(state: FleetState, offer: Offer, default: float) -> float:
    return state.boot_s.get(offer.key, default)


def least_boot_s(state: FleetState, default: float) -> float:
    """The soonest that a node which is bought now may be expected: jobs wait no longer for other slots."""
    return min((boot_s(state, offer, default) for offer in state.offers), default=default)


def _price_of_used(offer: Offer, job: Queued, count: int) -> Decimal:
    return offer.hourly / min(offer.slots // job.slots, count)
