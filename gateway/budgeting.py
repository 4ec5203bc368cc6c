"""Keeps jobs of projects out whose budget is used up: for each invoke, without asking the database each time."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from functions.db import Pool
from functions.errors import BudgetExceeded
from functions.ids import ProjectId
from nodes import budgets

FOR_S = 2.0
"""A budget that is used up, or raised, is noticed after this, plus one statement."""


class Budgets:
    def __init__(self, pool: Pool, for_s: float = FOR_S) -> None:
        self._pool = pool
        self._for_s = for_s
        self._until_s = 0.0
        self._exhausted: frozenset[ProjectId] = frozenset()

    def forget(self) -> None:
        """A budget was changed here."""
        self._until_s = 0.0

    async def require(self, project: ProjectId) -> None:
        """Raises ``BudgetExceeded`` if the project cannot pay for an hour of a node any more."""
        if time.monotonic() >= self._until_s:
            self._until_s = time.monotonic() + self._for_s  # before: others need not ask for the same meanwhile
            async with self._pool.acquire() as conn:
                self._exhausted = await budgets.exhausted(conn, datetime.now(UTC))
        if project in self._exhausted:
            raise BudgetExceeded("the project's budget of this month is used up: raise it, or wait for the next month")
