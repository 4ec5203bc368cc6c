"""The cloud's side of a simulation: stock, prices, the rate limit and the luck of each call, drawn from one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from nodes.offers import Offer
from nodes.provider import LIST_EVERY
from nodes.simulate.clouds import Cloud

TRIED_AGAIN_S = 120.0
"""How long a type is left alone at a location after it was found out of stock."""
LIST_S = LIST_EVERY.total_seconds()
"""So often a call lists servers while there are any, however many: see ``LIST_EVERY``."""
BUCKET, REFILL = 3600.0, 1.0
"""The rate limit: so many calls at once, and so many a second."""


class Shop:
    def __init__(self, cloud: Cloud, seed: int) -> None:
        self._cloud = cloud
        self._chance = random.Random(f"cloud {seed}")  # noqa: S311
        self._offers = {offer.key: offer for offer in cloud.offers}
        self._sold_out: set[tuple[str, str]] = set()
        self._tokens, self._tokens_at = BUCKET, 0.0
        self.calls = 0

    def offers(self) -> tuple[Offer, ...]:
        return tuple(self._offers.values())

    def call(self, now: float) -> bool:
        """Take a call from the rate limit's bucket; False if it is empty."""
        self._tokens = min(BUCKET, self._tokens + (now - self._tokens_at) * (REFILL - 1 / LIST_S))
        self._tokens_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self.calls += 1
        return True

    def sells(self, offer: Offer, now: float) -> bool:
        """Whether a purchase succeeds. One that is out of stock is not tried again for a while."""
        if offer.key in self._sold_out:
            again = datetime.fromtimestamp(now + TRIED_AGAIN_S, UTC)
            self._offers[offer.key] = replace(self._offers[offer.key], available=False, again_at=again)
            return False
        self._offers[offer.key] = replace(self._offers[offer.key], available=True, again_at=None)
        return self._chance.random() >= self._cloud.refused

    def boot_s(self) -> float | None:
        """How long a new server takes until its agent has joined; None: for ever."""
        cloud, luck = self._cloud, self._chance.random()
        boot = max(20.0, self._chance.gauss(cloud.boot_s, cloud.boot_deviation))
        if luck < cloud.failed_boots:
            return None
        if luck < cloud.failed_boots + cloud.slow_boots:
            boot = self._chance.uniform(*cloud.slow_boot_s)
        return boot + (LIST_S if self._chance.random() < cloud.unanswered else 0.0)

    def delete_s(self) -> float:
        locked = self._chance.random() < self._cloud.locked_deletes
        return self._chance.uniform(*self._cloud.delete_s) + (60.0 if locked else 0.0)

    def lives_s(self) -> float:
        """How long a ready node lives until it is lost by itself."""
        chance = self._cloud.lost_an_hour
        return self._chance.expovariate(-math.log1p(-chance) / 3600) if chance else math.inf

    def changes(self, until: float) -> Iterator[tuple[float, tuple[str, str]]]:
        """When types run out of stock or come back: times and ``Offer.key``, for ``turn``."""
        if self._cloud.stocked >= 1:
            return
        for key in self._offers:
            at, stocked = 0.0, True
            while True:
                part = self._cloud.stocked if stocked else 1 - self._cloud.stocked
                at += self._chance.expovariate(1 / (2 * self._cloud.stock_s * part))
                if at >= until:
                    break
                stocked = not stocked
                yield at, key

    def turn(self, key: tuple[str, str]) -> None:
        """A type runs out of stock or comes back; the catalogue's flag says the latter only."""
        if key in self._sold_out:
            self._sold_out.remove(key)
            self._offers[key] = replace(self._offers[key], available=True, again_at=None)
        else:
            self._sold_out.add(key)

    def raise_prices(self) -> None:
        assert self._cloud.dearer is not None
        factor = self._cloud.dearer[1]
        for key, offer in self._offers.items():
            self._offers[key] = replace(
                offer,
                hourly=offer.hourly * factor,
                monthly=offer.monthly * factor,
                ipv4_hourly=offer.ipv4_hourly * factor,
                ipv4_monthly=offer.ipv4_monthly * factor,
            )
