"""/v1/usage and /v1/budget: what the project used, what it cost, and what it may cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions.errors import FieldError, Invalid
from functions.money import CURRENCY, euros
from gateway.api.models import View
from gateway.api.models.usage import BudgetView, UsageView
from gateway.routes import Route, Scope, caller, read_body, read_query, services
from nodes import budgets, usage
from nodes.budgets import Budget
from nodes.usage import By, Used

LONGEST = timedelta(days=400)
MONTHLY = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _day(value: str) -> date:
    try:
        if DAY.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise ValueError("is no day: one is written like 2026-11-25")


Day = Annotated[date, BeforeValidator(_day)]


class UsageQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    first: Day | None = Field(None, alias="from", description="The first day (UTC). Default: the month's first.")
    last: Day | None = Field(None, alias="to", description="The last day (UTC), included. Default: today.")
    group_by: By = Field(By.FUNCTION, description="One row for each of these.")


def _monthly(text: str) -> str:
    if not MONTHLY.fullmatch(text) or not Decimal(text):
        raise ValueError("takes EUR like 25 or 12.50: more than 0, at most 9 digits before the point and 6 after it")
    return text


class BudgetRequest(View):
    monthly: Annotated[str, AfterValidator(_monthly)] = Field(
        description="EUR (net) of a calendar month, more than 0: like `25` or `12.50`."
    )


async def show_usage(request: Request) -> Response:
    """GET /v1/usage: jobs, the time that they filled slots, the size of their files, and what it cost, by function, day
    or project, the dearest (or the latest) first."""
    query, who = read_query(request, UsageQuery), caller(request)
    today = datetime.now(UTC).date()
    last = query.last or max(today, query.first or today)
    first = query.first or last.replace(day=1)
    if not timedelta() <= last - first <= LONGEST:
        fault = FieldError("/query/to", f"from `from` on, and no more than {LONGEST.days} days after it")
        raise Invalid("these are no days to add up", errors=[fault])
    async with services(request).pool.acquire() as conn:
        rows = await usage.used(conn, who.project_id, first, last, by=query.group_by)
        budget = await budgets.get(conn, who.project_id, datetime.now(UTC))
    return JSONResponse(
        {
            "project": who.project,
            "from": first.isoformat(),
            "to": last.isoformat(),
            "group_by": query.group_by,
            "data": [{"group": _group(row, query.group_by, who.project), **_sums([row])} for row in rows],
            "total": _sums(rows),
            "reserved": _amount(budget.reserved),
            "budget": None if budget.monthly is None else _budget_view(who.project, budget),
            "next_cursor": None,
        }
    )


async def show_budget(request: Request) -> Response:
    """GET /v1/budget: what the project may cost in a month, and what is left of it."""
    who = caller(request)
    async with services(request).pool.acquire() as conn:
        budget = await budgets.get(conn, who.project_id, datetime.now(UTC))
    return JSONResponse(_budget_view(who.project, budget))


async def set_budget(request: Request) -> Response:
    """PUT /v1/budget: no node is bought for the project that this does not pay for, and once it is used up its invokes
    answer 402. What runs then goes on."""
    body, who, opened = await read_body(request, BudgetRequest), caller(request), services(request)
    monthly = Decimal(body.monthly)
    async with opened.pool.acquire() as conn:
        await budgets.put(conn, who.project_id, monthly)
        budget = await budgets.get(conn, who.project_id, datetime.now(UTC))
    opened.budgets.forget()
    return JSONResponse(_budget_view(who.project, budget))


async def remove_budget(request: Request) -> Response:
    """DELETE /v1/budget: the project may cost what the instance may. 204, also if there was none."""
    who, opened = caller(request), services(request)
    async with opened.pool.acquire() as conn:
        await budgets.remove(conn, who.project_id)
    opened.budgets.forget()
    return Response(status_code=204)


def _group(row: Used, by: By, project: str) -> str | None:
    if by is By.PROJECT:
        return project
    return row.function if by is By.FUNCTION else str(row.day)


def _sums(rows: Sequence[Used]) -> dict[str, Any]:
    return {
        "jobs": sum(row.jobs for row in rows),
        "slot_seconds": sum(row.slot_ms for row in rows) / 1000,
        "bytes": sum(row.bytes for row in rows),
        "cost": _amount(sum((row.cost for row in rows), Decimal(0))),
        "idle": _amount(sum((row.idle for row in rows), Decimal(0))),
    }


def _amount(amount: Decimal) -> dict[str, str]:
    return {"currency": CURRENCY, "amount": euros(amount)}


def _budget_view(project: str, budget: Budget) -> dict[str, Any]:
    return {
        "project": project,
        "currency": CURRENCY,
        "monthly": None if budget.monthly is None else euros(budget.monthly),
        "spent": euros(budget.spent),
        "reserved": euros(budget.reserved),
        "left": None if budget.left is None else euros(budget.left),
        "used_percent": budget.used_percent,
        "warning": budget.is_low,
    }


ROUTES = (
    Route("GET", "/v1/usage", show_usage, "What was used, and what it cost", Scope.READ,
          query=UsageQuery, answers={200: UsageView}, tag="usage"),
    Route("GET", "/v1/budget", show_budget, "What the project may cost in a month", Scope.READ,
          answers={200: BudgetView}, tag="usage"),
    Route("PUT", "/v1/budget", set_budget, "Limit what the project may cost in a month", Scope.ADMIN,
          body=BudgetRequest, answers={200: BudgetView}, tag="usage"),
    Route("DELETE", "/v1/budget", remove_budget, "Take the project's limit away", Scope.ADMIN,
          answers={204: None}, tag="usage"),
)  # fmt: skip
