"""Keeps jobs out that would cost too much, for each invoke without asking the database each time: of projects whose
budget is used up, and those that may not cost what they typically do."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal

from functions.db import Pool
from functions.errors import BudgetExceeded
from functions.ids import FunctionId, ProjectId
from functions.money import CURRENCY, euros
from nodes import budgets
from scheduler import quotes

FOR_S = 2.0
"""A budget that is used up, or raised, is noticed after this, plus one statement; and what a function's jobs cost."""
FUNCTIONS = 1000
"""Of so many the cost is kept."""


class Budgets:
    def __init__(self, pool: Pool, for_s: float = FOR_S) -> None:
        self._pool = pool
        self._for_s = for_s
        self._until_s = 0.0
        self._exhausted: frozenset[ProjectId] = frozenset()
        self._typical: dict[FunctionId, tuple[float, Decimal | None]] = {}

    def forget(self) -> None:
        """A budget was changed here."""
        self._until_s = 0.0
        self._typical.clear()

    async def require(self, project: ProjectId) -> None:
        """Raises ``BudgetExceeded`` if the project cannot pay for an hour of a node any more."""
        if time.monotonic() >= self._until_s:
            self._until_s = time.monotonic() + self._for_s  # before: others need not ask for the same meanwhile
            async with self._pool.acquire() as conn:
                self._exhausted = await budgets.exhausted(conn, datetime.now(UTC))
        if project in self._exhausted:
            raise BudgetExceeded("the project's budget of this month is used up: raise it, or wait for the next month")

    async def require_typical(
        self, project: ProjectId, function: FunctionId | None, max_cost: Decimal | None
    ) -> None:
        """Raises ``BudgetExceeded`` for a job that half of the function's last ones would have cost more than."""
        if max_cost is None or function is None:
            return
        typical = await self._typical_cost(project, function)
        if typical is not None and typical > max_cost:
            raise BudgetExceeded(
                f"running a job of this function typically costs {euros(typical)} {CURRENCY}, more than its"
                f" RGrid-Max-Cost of {euros(max_cost)} {CURRENCY}"
            )

    async def _typical_cost(self, project: ProjectId, function: FunctionId) -> Decimal | None:
        """It goes over hundreds of jobs: once in a while for each function, however many are invoked."""
        found = self._typical.get(function)
        if found is not None and time.monotonic() < found[0]:
            return found[1]
        if found is not None:
            self._typical[function] = time.monotonic() + self._for_s, found[1]  # the others go by that meanwhile
        async with self._pool.acquire() as conn:
            typical = await quotes.typical_cost(conn, project, function)
        if len(self._typical) >= FUNCTIONS:
            self._typical.clear()
        self._typical[function] = time.monotonic() + self._for_s, typical
        return typical
