"""What the cloud sells now: its types, prices and stock as offers, read anew every few minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import hcloud
from hcloud.server_types import BoundServerType

from nodes.hetzner.breaker import StockBreaker
from nodes.hetzner.calls import Calls
from nodes.hetzner.reading import moment_of
from nodes.offers import Catalogue, Offer
from nodes.provider import ProviderError, Refused, Unreachable

GIB = 1024**3
GB = 10**9
PAGE = 50
CURRENCY = "EUR"
DEAREST = Decimal(1_000_000)


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
        """What was read serves for ``fresh``; while the cloud does not answer for ``usable``. It is asked again after
        ``retry``, and until then what it failed with stands."""
        self._calls = calls
        self._breaker = breaker
        self._fresh = fresh
        self._usable = usable
        self._retry = retry
        self._read: Catalogue | None = None
        self._again_at: datetime | None = None
        self._failure: ProviderError | None = None

    async def catalogue(self) -> Catalogue:
        """The offers, those that are sold out or behind an open breaker marked so."""
        now = self._calls.now()
        # A moment further ahead than any can be is of a clock that has turned out to be wrong.
        if self._again_at is None or not now < self._again_at <= now + self._fresh:
            await self._refresh(now)
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        assert self._read is not None
        return replace(self._read, offers=tuple(self._as_of(offer, now) for offer in self._read.offers))

    def expire(self) -> None:
        """It was found to be wrong: read it anew next time."""
        self._again_at = None

    async def _refresh(self, now: datetime) -> None:
        self._failure = None
        try:
            offers = await self._offers()
        except ProviderError as error:
            self._again_at = self._calls.now() + self._retry
            if isinstance(error, Refused) or self._read is None or abs(now - self._read.read_at) > self._usable:
                self._failure = error
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
    return _prices(price for prices in lists for price in prices)


def _prices(of: Iterable[Mapping[str, Any]]) -> Prices:
    """Without those that are none: with less than nothing, or more than anything costs, nothing could be reckoned."""
    found: dict[str, tuple[Decimal, Decimal]] = {}
    for price in of:
        try:
            name = str(price["location"])
            both = Decimal(price["price_hourly"]["net"]), Decimal(price["price_monthly"]["net"])
        except (KeyError, TypeError, ValueError, ArithmeticError):
            continue
        if all(each.is_finite() and 0 <= each <= DEAREST for each in both):
            found[name] = both[0].normalize(), both[1].normalize()
    return found


def _offers_of(kind: BoundServerType, addresses: Prices) -> list[Offer]:
    """One for each location where it and an address have a price."""
    prices = _prices(kind.prices or ())
    offers = []
    for place in kind.locations or ():
        name = place.location.name
        if name is None or name not in prices or name not in addresses:
            continue
        (hourly, monthly), (ipv4_hourly, ipv4_monthly) = prices[name], addresses[name]
        if not hourly or not monthly:
            continue  # no cap would be one for what is said to cost nothing
        ends = place.deprecation.unavailable_after if place.deprecation else None
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
                gone_after=None if ends is None else moment_of(ends),
                architecture=str(kind.architecture),
                disk=int((kind.disk or 0) * GB),
                ipv4_hourly=ipv4_hourly,
                ipv4_monthly=ipv4_monthly,
            )
        )
    return [offer for offer in offers if offer.slots > 0]
