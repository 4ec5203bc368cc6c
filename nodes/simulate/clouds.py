"""A cloud to simulate: what it sells, how long its servers boot, and what goes wrong how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from nodes.offers import Offer

GIB = 1024**3
IPV4 = Decimal("0.0008")
PRICES = {
    "cx23": (2, 4, Decimal("0.0088")),
    "cx33": (4, 8, Decimal("0.0136")),
    "cx43": (8, 16, Decimal("0.0256")),
    "cx53": (16, 32, Decimal("0.0473")),
    "cpx22": (2, 4, Decimal("0.0312")),
    "cpx32": (4, 8, Decimal("0.0569")),
    "cpx42": (8, 16, Decimal("0.1114")),
    "ccx13": (2, 8, Decimal("0.0689")),
}
"""vCPUs, GiB and EUR an hour without IPv4: the EU price list of 15 June 2026."""


def offer(type: str, location: str = "fsn1", hourly: Decimal | None = None) -> Offer:
    """A type of the price list; ``hourly``, IPv4 included, instead of the list's price."""
    slots, memory, price = PRICES[type]
    hourly = price + IPV4 if hourly is None else hourly
    return Offer(type, location, slots, memory * GIB, hourly, hourly * 624, ipv4_hourly=IPV4, ipv4_monthly=IPV4 * 624)


@dataclass(frozen=True, slots=True)
class Cloud:
    """Spans are seconds, chances are of each call or node."""

    offers: tuple[Offer, ...]
    boot_s: float = 60.0
    boot_deviation: float = 0.0
    slow_boots: float = 0.0
    slow_boot_s: tuple[float, float] = (120.0, 300.0)
    failed_boots: float = 0.0
    refused: float = 0.0
    """Calls that fail with 5xx and leave no server."""
    unanswered: float = 0.0
    """Purchases without an answer of which the server exists: found by name at the next listing."""
    stocked: float = 1.0
    """The part of the time that a type at a location can be bought; it changes every ``stock_s`` on average."""
    stock_s: float = 4 * 3600.0
    delete_s: tuple[float, float] = (5.0, 5.0)
    locked_deletes: float = 0.0
    """Deletions that are refused at first (423) and done a minute later."""
    lost_an_hour: float = 0.0
    """Chance for a ready node to be gone within an hour, with its jobs."""
    pull_s: float = 0.0
    """Pulling an image, once for each kind of job and node."""
    dearer: tuple[float, Decimal] | None = None
    """From when on what is bought costs how many times as much."""
    outages: tuple[tuple[float, float], ...] = ()
    """Spans (from, until) in which the control plane is down: nodes finish what they run."""


def even(offers: Sequence[Offer]) -> Cloud:
    """Every boot takes a minute, and nothing goes wrong."""
    return Cloud(tuple(offers))


def rough(offers: Sequence[Offer]) -> Cloud:
    """About what reports say of bad days: slow and failing boots, types out of stock, errors, now and then a lost node,
    a quarter of an hour without control plane."""
    return Cloud(
        tuple(offers),
        boot_s=50.0,
        boot_deviation=10.0,
        slow_boots=0.12,
        failed_boots=0.03,
        refused=0.02,
        unanswered=0.01,
        stocked=0.8,
        delete_s=(2.0, 15.0),
        locked_deletes=0.05,
        lost_an_hour=0.002,
        pull_s=8.0,
        outages=((30 * 3600.0, 30 * 3600.0 + 900),),
    )


CLOUDS = {"even": even, "rough": rough}
