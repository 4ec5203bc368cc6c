"""What may still be spent in a round: the caps and budgets, and what the round itself has taken from them so far."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from functions.ids import ProjectId
from nodes.offers import Offer
from nodes.policy.state import Caps, FleetState

Shares = tuple[tuple[ProjectId, Decimal], ...]
"""Who is charged how much."""
CEILING = "price ceiling"
FLEET_LIMITS = ("node limit", "hourly limit", "account limit")
"""What others' nodes take room in."""


class Purse:
    """Hours are paid for before they begin: a purchase takes a whole one, and so does each hour after it."""

    def __init__(self, state: FleetState, caps: Caps) -> None:
        rented = [node for node in state.nodes if node.rented]
        learned = state.server_limit is not None and state.server_limit < caps.nodes
        self._nodes_limit = FLEET_LIMITS[2] if learned else FLEET_LIMITS[0]
        self._nodes = caps.nodes if state.server_limit is None else min(caps.nodes, state.server_limit)
        self._nodes -= len(rented) + state.unknown
        # What fails at once and is bought again is paid for each time.
        used = sum((node.offer.hourly for node in rented), state.sunk)
        self._hourly = None if caps.hourly is None else caps.hourly - used
        self._ceiling = caps.ceiling
        self._month = state.month_left
        self._budgets = dict(state.budgets)

    def refusal(self, offer: Offer, payer: ProjectId | None) -> str | None:
        """Why a node of ``offer`` may not be bought; None if it may."""
        if self._ceiling is not None and offer.per_slot > self._ceiling:
            return CEILING
        if self._nodes < 1:
            return self._nodes_limit
        if self._hourly is not None and offer.hourly > self._hourly:
            return FLEET_LIMITS[1]
        return None if self.affords([] if payer is None else [(payer, offer.hourly)], offer.hourly) else "budget"

    def buy(self, offer: Offer, payer: ProjectId | None) -> None:
        """Take the first hour of a node that ``refusal`` had nothing against."""
        self._nodes -= 1
        if self._hourly is not None:
            self._hourly -= offer.hourly
        self.take([] if payer is None else [(payer, offer.hourly)], offer.hourly)

    def affords(self, shares: Iterable[tuple[ProjectId, Decimal]], amount: Decimal) -> bool:
        """Whether the month and everybody's budget have room for an hour of ``amount``."""
        if self._month is not None and amount > self._month:
            return False
        return all(project not in self._budgets or share <= self._budgets[project] for project, share in shares)

    def take(self, shares: Iterable[tuple[ProjectId, Decimal]], amount: Decimal) -> None:
        if self._month is not None:
            self._month -= amount
        for project, share in shares:
            if project in self._budgets:
                self._budgets[project] -= share
