"""Usage and budgets."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from gateway.api.models import View


class Amount(View):
    currency: str
    amount: str


class UsageRow(View):
    """``group`` is the function's name, the day or the project; null: jobs without a function, and hours in which
    nothing ran. ``idle`` is the part of ``cost`` for time of nodes that nothing filled."""

    group: str | None
    jobs: int
    slot_seconds: float
    bytes: int
    cost: Amount
    idle: Amount


class UsageTotal(View):
    jobs: int
    slot_seconds: float
    bytes: int
    cost: Amount
    idle: Amount


class UsageView(View):
    """Days are UTC, both included: of a job that of its end, of cost that on which the node's hour began. ``cost`` is
    of hours that are settled, EUR net; ``reserved`` is set aside for those that are not yet. ``budget`` is that of this
    month, null if there is none."""

    project: str
    first: date = Field(alias="from")
    last: date = Field(alias="to")
    group_by: Literal["function", "day", "project"]
    data: list[UsageRow]
    total: UsageTotal
    reserved: Amount
    budget: BudgetView | None
    next_cursor: None


class BudgetView(View):
    """EUR net of this calendar month (UTC). Without a budget ``monthly``, ``left`` and ``used_percent`` are null;
    ``warning``: 80 of 100 are spent or reserved."""

    project: str
    currency: str
    monthly: str | None
    spent: str
    reserved: str
    left: str | None
    used_percent: int | None
    warning: bool
