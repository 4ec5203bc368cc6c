"""Which type of server to buy for so many slots, and what is tried when that one is out of stock."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from nodes.offers import Offer
from nodes.policy.state import FleetState, Queued


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


def _price_of_used(offer: Offer, job: Queued, count: int) -> Decimal:
    return offer.hourly / min(offer.slots // job.slots, count)
