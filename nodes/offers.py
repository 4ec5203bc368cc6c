"""What a cloud sells: a type of server at a location, its price, and what a life of it costs.

Values that the policy, the providers, the ledger and the simulator share. Money is EUR net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

HOUR = timedelta(hours=1)
NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True)
class Offer:
    """A type at a location, as a purchase now would pay for it."""

    type: str
    location: str
    slots: int
    """Its vCPUs."""
    memory: int
    """Bytes."""
    hourly: Decimal
    """Server and IPv4 address, of each hour begun."""
    monthly: Decimal
    """Server and IPv4 address: what they never cost more than in a calendar month."""
    available: bool = True
    """It is in stock, and the last purchase of it did not fail for want of it."""
    recommended: bool = True
    gone_after: datetime | None = None
    """When it will not be (was not) sold any more; None when no end was announced."""
    again_at: datetime | None = None
    """When a purchase may be tried again after one failed for want of stock; None when none did lately."""
    architecture: str = "x86"
    disk: int = 0
    """Bytes."""
    ipv4_hourly: Decimal = NOTHING
    """The part of ``hourly`` that is the address, which is a line of its own on the bill."""
    ipv4_monthly: Decimal = NOTHING

    @property
    def key(self) -> tuple[str, str]:
        return self.type, self.location

    @property
    def per_slot(self) -> Decimal:
        """What a slot costs an hour."""
        return self.hourly / self.slots

    def sold(self, now: datetime) -> bool:
        """Whether it is in the shop at all; it may be out of stock all the same."""
        return self.gone_after is None or now < self.gone_after


@dataclass(frozen=True, slots=True)
class Catalogue:
    offers: tuple[Offer, ...]
    read_at: datetime
    """By the cloud's own clock."""

    def find(self, type: str, location: str) -> Offer | None:
        return next((offer for offer in self.offers if offer.key == (type, location)), None)


def hours_begun(lived: timedelta) -> int:
    """The hours that a bill has for a server of this age: one from the first moment on."""
    return max(1, -(-lived // HOUR))


def cost(offer: Offer, hours: int) -> Decimal:
    """What ``hours`` of one calendar month cost; server and address have a monthly limit each."""
    server = min(hours * (offer.hourly - offer.ipv4_hourly), offer.monthly - offer.ipv4_monthly)
    return server + min(hours * offer.ipv4_hourly, offer.ipv4_monthly)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What may be bought, best first, and why the rest of the wish may not."""

    offers: tuple[Offer, ...]
    skipped: Mapping[str, str]
    """Type to a plain sentence, for those types of the wish that no offer is left of."""


def wanted(
    catalogue: Catalogue, types: Sequence[str], *, ceiling: Decimal, locations: Sequence[str] = (), now: datetime
) -> Wanted:
    """The offers of a wish: by its order of types, then by price, then by the order of ``locations`` (none: all).

    ``ceiling`` is the most that a slot may cost an hour. What is out of stock stays in, as it may come back.
    """
    found: list[Offer] = []
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(types):
        offers = [each for each in catalogue.offers if each.type == name]
        sold = [each for each in offers if each.sold(now)]
        near = [each for each in sold if not locations or each.location in locations]
        fit = [each for each in near if each.per_slot <= ceiling]
        if fit:
            found += sorted(fit, key=lambda each: (each.hourly, _place(each.location, locations), each.location))
        elif not offers:
            skipped[name] = f"the cloud does not sell {name} (any more)"
        elif not sold:
            skipped[name] = f"the cloud does not sell {name} any more"
        elif not near:
            skipped[name] = f"{name} is not sold at {', '.join(locations)}"
        else:
            cheapest = min(each.per_slot for each in near)
            skipped[name] = f"{name} costs {cheapest:.4f} EUR per slot and hour, more than the ceiling of {ceiling}"
    return Wanted(tuple(found), skipped)


def _place(location: str, locations: Sequence[str]) -> int:
    return locations.index(location) if location in locations else len(locations)
