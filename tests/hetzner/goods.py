"""What the emulated cloud sells: types, prices, locations, images, and which of them are in stock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

EU = ("fsn1", "nbg1", "hel1")
LOCATIONS = {
    "fsn1": (1, "Falkenstein DC Park 1", "DE", "Falkenstein", 50.47612, 12.370071, "eu-central"),
    "nbg1": (2, "Nuremberg DC Park 1", "DE", "Nuremberg", 49.452102, 11.076665, "eu-central"),
    "hel1": (3, "Helsinki DC Park 1", "FI", "Helsinki", 60.169855, 24.938379, "eu-central"),
    "ash": (4, "Ashburn, VA", "US", "Ashburn, VA", 39.045821, -77.487073, "us-east"),
    "hil": (5, "Hillsboro, OR", "US", "Hillsboro, OR", 45.54222, -122.951924, "us-west"),
    "sin": (6, "Singapore", "SG", "Singapore", 1.283333, 103.833333, "ap-southeast"),
}
"""Name to id, description, country, city, latitude, longitude, network zone."""


@dataclass
class Price:
    hourly: Decimal
    monthly: Decimal


IPV4 = Price(Decimal("0.0008"), Decimal("0.50"))


@dataclass
class Stock:
    shown: bool = True
    """What the list of types says."""
    left: int | None = None
    """How many can really be had; None: any number."""


@dataclass
class Sale:
    """A type at a location."""

    price: Price
    stock: Stock = field(default_factory=Stock)
    recommended: bool = True
    announced: datetime | None = None
    unavailable_after: datetime | None = None


@dataclass
class Kind:
    """A server type."""

    id: int
    name: str
    cores: int
    memory_gb: int
    disk_gb: int
    architecture: str = "x86"
    cpu: str = "shared"
    category: str = "cost_optimized"
    sales: dict[str, Sale] = field(default_factory=dict)


@dataclass
class Image:
    id: int
    name: str | None
    type: str = "system"
    architecture: str = "x86"
    flavor: str = "ubuntu"
    version: str | None = "24.04"
    deprecated: datetime | None = None
    deleted: datetime | None = None
    created: datetime = datetime(2024, 4, 25, 13, 21, tzinfo=UTC)
    labels: dict[str, str] = field(default_factory=dict)


_TYPES = (
    # id, name, cores, GB, disk, month, hour
    (114, "cx23", 2, 4, 40, "5.49", "0.0088"),
    (115, "cx33", 4, 8, 80, "8.49", "0.0136"),
    (116, "cx43", 8, 16, 160, "15.99", "0.0256"),
    (117, "cx53", 16, 32, 320, "29.49", "0.0473"),
    (45, "cax11", 2, 4, 40, "5.99", "0.0096"),
    (93, "cax21", 4, 8, 80, "10.49", "0.0168"),
    (108, "cpx12", 1, 2, 40, "11.49", "0.0184"),
    (109, "cpx22", 2, 4, 80, "19.49", "0.0312"),
    (110, "cpx32", 4, 8, 160, "35.49", "0.0569"),
    (111, "cpx42", 8, 16, 320, "69.49", "0.1114"),
    (113, "cpx62", 16, 32, 640, "129.99", "0.2083"),
    (96, "ccx13", 2, 8, 80, "42.99", "0.0689"),
)


def kinds() -> dict[str, Kind]:
    """The types of June 2026, all in stock all over the EU; CX22 is not sold any more."""
    return {
        name: Kind(
            number,
            name,
            cores,
            memory,
            disk,
            architecture="arm" if name.startswith("cax") else "x86",
            cpu="dedicated" if name.startswith("ccx") else "shared",
            category="regular_purpose" if name.startswith("cp") else "cost_optimized",
            sales={place: Sale(Price(Decimal(hour), Decimal(month))) for place in EU},
        )
        for number, name, cores, memory, disk, month, hour in _TYPES
    }


def images() -> list[Image]:
    """Those of interest here. The app image has one name for both architectures."""
    return [
        Image(161547269, "ubuntu-24.04"),
        Image(161547270, "ubuntu-24.04", architecture="arm"),
        Image(310557660, "debian-13", flavor="debian", version="13"),
        Image(40093247, "docker-ce", type="app"),
        Image(105888141, "docker-ce", type="app", architecture="arm"),
        Image(15512617, "ubuntu-20.04", version="20.04", deprecated=datetime(2026, 11, 1, tzinfo=UTC)),
    ]
