"""``rgrid usage``: what the project used and what it cost, and its budget."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import Json, ListsByDefault, connected
from gateway.cli.output import fields, note, out_json, size, span, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

usage = typer.Typer(help="Show what was used and what it cost, and set a budget.", cls=ListsByDefault)


def register(app: typer.Typer) -> None:
    app.add_typer(usage, name="usage", rich_help_panel="Operate")


def _day(value: str) -> date:
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise typer.BadParameter(f"{value!r} is no day: write one like 2026-11-25")


def _budget(value: str | None) -> str | None:
    if value is not None and value != "none" and not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", value):
        raise typer.BadParameter(f"{value!r} is no budget: write EUR like 25 or 12.50, or none")
    return value


@usage.command("list")
@connected
def list_usage(
    api: Api,
    first: Annotated[
        date | None,
        typer.Option("--from", metavar="DAY", parser=_day, help="The first day (UTC). Default: the month's first."),
    ] = None,
    last: Annotated[
        date | None,
        typer.Option("--to", metavar="DAY", parser=_day, help="The last day (UTC), included. Default: today."),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="A row for each function, day or project.")] = "function",
    as_json: Json = False,
) -> None:
    """Show jobs, time, files and cost of some days, by function, day or project."""
    if by not in ("function", "day", "project"):
        raise typer.BadParameter("is function, day or project", param_hint="--by")
    asked = {"group_by": by, "from": first and first.isoformat(), "to": last and last.isoformat()}
    found = api.get("/v1/usage", asked)
    if as_json:
        out_json(found)
        return
    rows = [_row(one["group"] or "(none)", one) for one in found["data"]]
    if len(rows) > 1:
        rows.append(_row("total", found["total"]))
    table((by.upper(), "JOBS", "SLOT TIME", "FILES", "EUR", "OF IT IDLE"), rows, empty="nothing was used in these days")
    if float(found["reserved"]["amount"]):
        note(f"{found['reserved']['amount']} EUR are reserved for hours of nodes that are not settled yet")
    _warn(found.get("budget"))


@usage.command()
@connected
def budget(
    api: Api,
    monthly: Annotated[
        str | None,
        typer.Argument(
            metavar="[EUR]", callback=_budget, help="The new budget of a month, or `none`. Unless given: show it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or set what the project may cost in a month."""
    if monthly == "none":
        api.delete("/v1/budget")
    elif monthly is not None:
        api.put("/v1/budget", json.dumps({"monthly": monthly}).encode(), "application/json")
    found = api.get("/v1/budget")
    if as_json:
        out_json(found)
        return
    fields(
        [
            ("project", found["project"]),
            ("EUR per month", found["monthly"] or "no limit"),
            ("spent", found["spent"]),
            ("reserved", found["reserved"]),
            ("left", found["left"]),
        ]
    )
    _warn(found)


def _warn(budget: dict[str, Any] | None) -> None:
    if budget and budget.get("warning"):
        note(f"{budget['used_percent']}% of the month's budget of {budget['monthly']} EUR are used or reserved")


def _row(name: str, one: dict[str, Any]) -> tuple[object, ...]:
    took = span(timedelta(seconds=one["slot_seconds"]))
    return name, one["jobs"], took, size(one["bytes"]), one["cost"]["amount"], one["idle"]["amount"]
