"""Orders that tests give."""

from __future__ import annotations

from nodes.offers import Offer
from nodes.provider import NODE_LABEL, OWNER_LABEL, Order, Provider

OWNER = "5f0c3c1e-owner"
IMAGE = "docker-ce"
X86 = frozenset({"x86"})


async def offer_of(provider: Provider, type: str = "cx23", location: str = "fsn1") -> Offer:
    found = (await provider.catalogue()).find(type, location)
    assert found is not None
    return found


async def order_of(
    provider: Provider, name: str = "rgrid-a-1", *, type: str = "cx23", location: str = "fsn1", user_data: str = "#!x"
) -> Order:
    labels = {OWNER_LABEL: OWNER, NODE_LABEL: name.removeprefix("rgrid-")}
    return Order(name, await offer_of(provider, type, location), IMAGE, user_data, labels)
