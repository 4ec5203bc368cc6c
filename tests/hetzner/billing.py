"""The cloud's own bill: what the tests hold our ledger against. Shares no code with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from tests.hetzner.goods import Price


@dataclass
class Line:
    """One server or one address, from its creation to its end; the price of an hour is that of the hour's beginning."""

    kind: str
    resource: int
    name: str
    since: datetime
    prices: list[tuple[datetime, Price]]
    server: int | None
    """Whose it is; None for an address that belongs to nobody."""
    until: datetime | None = None

    def price_at(self, at: datetime) -> Price:
        return [price for since, price in self.prices if since <= at][-1]

    def hours(self, now: datetime) -> int:
        """Begun hours; the first begins with the creation."""
        lived = (self.until or now) - self.since
        full = lived // timedelta(hours=1)
        return max(1, full + (lived > full * timedelta(hours=1)))

    def paid_until(self, now: datetime) -> datetime:
        """The end of the last hour that has begun; it is paid for also if the thing is gone before."""
        return self.since + timedelta(hours=self.hours(now))

    def cost(self, now: datetime) -> Decimal:
        """By calendar month, in which it never costs more than the monthly price."""
        months: dict[tuple[int, int], tuple[Decimal, Decimal]] = {}
        for hour in range(self.hours(now)):
            at = self.since + timedelta(hours=hour)
            price = self.price_at(at)
            total, _ = months.get((at.year, at.month), (Decimal(0), Decimal(0)))
            months[at.year, at.month] = total + price.hourly, price.monthly
        return sum((min(total, limit) for total, limit in months.values()), Decimal(0))


@dataclass
class Bill:
    lines: list[Line] = field(default_factory=list)

    def open(
        self, kind: str, resource: int, name: str, at: datetime, price: Price, *, server: int | None = None
    ) -> None:
        self.lines.append(Line(kind, resource, name, at, [(at, price)], resource if kind == "server" else server))

    def close(self, kind: str, resource: int, at: datetime) -> None:
        for line in self.lines:
            if (line.kind, line.resource) == (kind, resource) and line.until is None:
                line.until = at

    def reprice(self, kind: str, resource: int, at: datetime, price: Price) -> None:
        for line in self.lines:
            if (line.kind, line.resource) == (kind, resource) and line.until is None:
                line.prices.append((at, price))

    def total(self, now: datetime) -> Decimal:
        return sum((line.cost(now) for line in self.lines), Decimal(0))

    def hours(self, now: datetime) -> int:
        """Server hours."""
        return sum(line.hours(now) for line in self.lines if line.kind == "server")
