"""What the operator wants of the fleet, and allows."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from nodes.policy.state import Caps, Rules


@dataclass(frozen=True, slots=True)
class Wish:
    """``provider`` is what nodes are said to come from."""

    owner: str
    provider: str
    types: tuple[str, ...]
    locations: tuple[str, ...]
    image: str
    ceiling: Decimal
    caps: Caps
    rules: Rules
    slot_memory: int
    delete_unknown: bool = False
