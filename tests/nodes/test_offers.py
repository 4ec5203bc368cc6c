from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from nodes.offers import Catalogue, Offer, cost, hours_begun, wanted

NOW = datetime(2026, 11, 25, 8, tzinfo=UTC)
GIB = 1024**3


def offer(type: str, location: str = "fsn1", *, slots: int = 2, hourly: str = "0.0096", **more: object) -> Offer:
    made = Offer(type, location, slots, 4 * GIB, Decimal(hourly), Decimal("5.99"))
    return replace(made, ipv4_hourly=Decimal("0.0008"), ipv4_monthly=Decimal("0.50"), **more)  # type: ignore[arg-type]


CATALOGUE = Catalogue(
    (
        offer("cx23", "hel1"),
        offer("cx23", "fsn1"),
        offer("cx23", "nbg1", hourly="0.0099"),
        offer("cx33", slots=4, hourly="0.0144", available=False),
        offer("cpx22", hourly="0.0320"),
        offer("cx22", gone_after=NOW - timedelta(days=300)),
    ),
    NOW,
)


@pytest.mark.parametrize(
    "lived, hours",
    [(timedelta(), 1), (timedelta(minutes=59), 1), (timedelta(hours=1), 1), (timedelta(hours=1, seconds=1), 2)],
)
def test_every_hour_begun_counts(lived: timedelta, hours: int) -> None:
    assert hours_begun(lived) == hours


@pytest.mark.parametrize("hours, euros", [(1, "0.0096"), (10, "0.0960"), (623, "5.9808"), (625, "5.99"), (744, "5.99")])
def test_server_and_address_cost_no_more_than_their_month_each(hours: int, euros: str) -> None:
    assert cost(offer("cx23"), hours) == Decimal(euros)


def test_a_wish_goes_by_its_types_then_prices_then_places() -> None:
    found = wanted(
        CATALOGUE,
        ["cx22", "cx33", "cx23", "cx23"],
        ceiling=Decimal("0.01"),
        locations=("nbg1", "fsn1", "hel1"),
        now=NOW,
    )
    assert [each.key for each in found.offers] == [
        ("cx33", "fsn1"),
        ("cx23", "fsn1"),
        ("cx23", "hel1"),
        ("cx23", "nbg1"),
    ]
    assert found.skipped == {"cx22": "the cloud does not sell cx22 any more"}


def test_what_is_too_dear_elsewhere_or_unknown_is_skipped_with_a_reason() -> None:
    found = wanted(CATALOGUE, ["cpx22", "cx33", "cx99"], ceiling=Decimal("0.01"), locations=("hel1",), now=NOW)
    assert found.offers == ()
    assert found.skipped["cx33"] == "cx33 is not sold at hel1"
    assert found.skipped["cx99"] == "the cloud does not sell cx99 (any more)"
    dear = wanted(CATALOGUE, ["cpx22"], ceiling=Decimal("0.01"), now=NOW).skipped["cpx22"]
    assert dear == "cpx22 costs 0.0160 EUR per slot and hour, more than the ceiling of 0.01"
