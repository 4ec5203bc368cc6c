"""What the cloud sells now: its types, prices and stock as offers, read anew every few minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import hcloud
from hcloud.server_types import BoundServerType

from nodes.hetzner.breaker import StockBreaker
from nodes.hetzner.calls import Calls
from nodes.offers import Catalogue, Offer
from nodes.provider import ProviderError, Refused, Unreachable

GIB = 1024**3
GB = 10**9
PAGE = 50
CURRENCY = "EUR"


class Shop:
    def __init__(
        self,
        calls: Calls,
        breaker: StockBreaker,
        *,
        fresh: timedelta = timedelta(minutes=10),
        usable: timedelta = timedelta(hours=2),
        retry: timedelta = timedelta(minutes=1),
    ) -> None:
        """What was read serves for ``fresh``; while the cloud does not answer for ``usable``, asked every ``retry``."""
        self._calls = calls
        self._breaker = breaker
        self._fresh = fresh
        self._usable = usable
        self._retry = retry
        self._read: Catalogue | None = None
        self._again_at: datetime | None = None

    async def catalogue(self) -> Catalogue:
        """The offers, those that are sold out or behind an open breaker marked so."""
        now = self._calls.now()
        if self._read is None or self._again_at is None or now >= self._again_at:
            await self._refresh(now)
        assert self._read is not None
        return replace(self._read, offers=tuple(self._as_of(offer, now) for offer in self._read.offers))

    def expire(self) -> None:
        """It was found to be wrong: read it anew next time."""
        self._again_at = None

    async def _refresh(self, now: datetime) -> None:
        try:
            offers = await self._offers()
        except Refused:
            raise
        except ProviderError:
            if self._read is None or now - self._read.read_at > self._usable:
                raise
            self._again_at = now + self._retry
            return
        self._read = Catalogue(offers, self._calls.now())
        self._again_at = self._read.read_at + self._fresh

    def _as_of(self, offer: Offer, now: datetime) -> Offer:
        again_at = self._breaker.again_at(offer.key, now)
        return replace(offer, available=offer.available and offer.sold(now) and again_at is None, again_at=again_at)

    async def _offers(self) -> tuple[Offer, ...]:
        found: list[BoundServerType] = []
        page: int | None = 1
        while page is not None:
            answer = await self._calls(_page_of_types(page))
            found += answer.server_types
            pages = answer.meta.pagination
            page = pages.next_page if pages is not None else None
        pricing = (await self._calls(lambda client: client.request("GET", "/pricing")))["pricing"]
        try:
            if pricing["currency"] != CURRENCY:
                raise Refused(f"the cloud's prices are in {pricing['currency']}, and caps and receipts in {CURRENCY}")
            addresses = _address_prices(pricing)
            return tuple(offer for each in found for offer in _offers_of(each, addresses))
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise Unreachable(f"the cloud's price list was not understood: {type(error).__name__}") from None


def _page_of_types(page: int) -> Callable[[hcloud.Client], Any]:
    return lambda client: client.server_types.get_list(page=page, per_page=PAGE)


Prices = Mapping[str, tuple[Decimal, Decimal]]
"""Location to the price of an hour and of a month, net."""


def _address_prices(pricing: Mapping[str, Any]) -> Prices:
    lists = [each["prices"] for each in pricing["primary_ips"] if each["type"] == "ipv4"]
    return {price["location"]: _net(price) for prices in lists for price in prices}


def _net(price: Mapping[str, Any]) -> tuple[Decimal, Decimal]:
    return Decimal(price["price_hourly"]["net"]).normalize(), Decimal(price["price_monthly"]["net"]).normalize()


def _offers_of(kind: BoundServerType, addresses: Prices) -> list[Offer]:
    """One for each location where it and an address have a price."""
    prices = {price["location"]: _net(price) for price in kind.prices or ()}
    offers = []
    for place in kind.locations or ():
        name = place.location.name
        if name is None or name not in prices or name not in addresses:
            continue
        (hourly, monthly), (ipv4_hourly, ipv4_monthly) = prices[name], addresses[name]
        if not all(price.is_finite() and price >= 0 for price in (hourly, monthly, ipv4_hourly, ipv4_monthly)):
            continue  # no price at all: nothing could be reckoned with it
        offers.append(
            Offer(
                type=str(kind.name),
                location=name,
                slots=int(kind.cores or 0),
                memory=int((kind.memory or 0) * GIB),
                hourly=hourly + ipv4_hourly,
                monthly=monthly + ipv4_monthly,
                available=bool(place.available),
                recommended=bool(place.recommended),
                gone_after=place.deprecation.unavailable_after if place.deprecation else None,
                architecture=str(kind.architecture),
                disk=int((kind.disk or 0) * GB),
                ipv4_hourly=ipv4_hourly,
                ipv4_monthly=ipv4_monthly,
            )
        )
    return [offer for offer in offers if offer.slots > 0]
