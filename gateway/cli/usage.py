"""``rgrid usage``: what the project used and what it cost, and its budget."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import Json, ListsByDefault, connected
from gateway.cli.output import fields, note, out_json, size, span, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

usage = typer.Typer(help="Show what was used and what it cost, and set a budget.", cls=ListsByDefault)


def register(app: typer.Typer) -> None:
    app.add_typer(usage, name="usage", rich_help_panel="Operate")


@usage.command("list")
@connected
def list_usage(
    api: Api,
    first: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="The first day (UTC). Default: the month's first."),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], help="The last day (UTC), included. Default: today."),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="A row for each function, day or project.")] = "function",
    as_json: Json = False,
) -> None:
    """Show jobs, time, files and cost of some days, by function, day or project."""
    if by not in ("function", "day", "project"):
        raise typer.BadParameter("is function, day or project", param_hint="--by")
    asked = {"group_by": by, "from": _text(first), "to": _text(last)}
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


@usage.command()
@connected
def budget(
    api: Api,
    monthly: Annotated[
        str | None, typer.Argument(metavar="[EUR]", help="The new budget of a month, or `none`. Unless given: show it.")
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


def _text(day: datetime | None) -> str | None:
    return None if day is None else day.date().isoformat()


def _row(name: str, one: dict[str, Any]) -> tuple[object, ...]:
    took = span(timedelta(seconds=one["slot_seconds"]))
    return name, one["jobs"], took, size(one["bytes"]), one["cost"]["amount"], one["idle"]["amount"]
