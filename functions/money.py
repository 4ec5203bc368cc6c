"""Amounts as answers show them."""

from __future__ import annotations

from decimal import Decimal

CURRENCY = "EUR"


def euros(amount: Decimal) -> str:
    """All of its digits, and at least six after the point: amounts that are shown add up."""
    whole, _, part = f"{amount.normalize():f}".partition(".")
    return f"{whole}.{part:0<6}"
