"""``rgrid deliveries``: what became of callbacks, attempt by attempt, and sending one again."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import completion
from gateway.cli.options import Json, ListsByDefault, connected, moment, plain_id
from gateway.cli.output import age, fields, log_text, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

deliveries = typer.Typer(help="List deliveries of callbacks, and send them again.", cls=ListsByDefault)


Id = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.", callback=plain_id)]


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    EXHAUSTED = "exhausted"


def register(app: typer.Typer) -> None:
    app.add_typer(deliveries, name="deliveries", rich_help_panel="Jobs")


@deliveries.command("list")
@connected
def list_deliveries(
    api: Api,
    *,
    job: Annotated[
        str | None,
        typer.Option("--job", metavar="ID", help="Of this job only.", autocompletion=completion.jobs),
    ] = None,
    batch: Annotated[str | None, typer.Option("--batch", metavar="ID", help="Of this batch's end only.")] = None,
    callback: Annotated[str | None, typer.Option("--callback", metavar="ID", help="To this callback only.")] = None,
    event: Annotated[str | None, typer.Option("--event", "-e", help="Of this event only.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="In this state only.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Of events since this time: 2026-01-31, or 2h.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="And before this time.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List deliveries, the newest first. With --json, each with all of its attempts."""
    filters = {
        "job": job, "batch": batch, "callback": callback, "type": event, "state": state and state.value,
        "since": moment(since), "until": moment(until),
    }  # fmt: skip
    found = api.pages("/v1/deliveries", filters, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "OF", "EVENT", "STATE", "TRIES", "LAST ANSWER", "URL"),
        (
            (one["id"], _of(one), one["type"], one["state"], len(one["attempts"]), _last(one), one["url"])
            for one in found["data"]
        ),
        empty="no such deliveries",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@deliveries.command()
@connected
def show(api: Api, delivery_id: Id, as_json: Json = False) -> None:
    """Show a delivery with each attempt: the address that was connected to, its answer, and how long that took."""
    found = api.get(f"/v1/deliveries/{delivery_id}")
    if as_json:
        out_json(found)
        return
    fields(
        [
            ("delivery", found["id"]),
            ("event", found["type"]),
            ("of", _of(found)),
            ("callback", found["callback"]),
            ("url", found["url"]),
            ("state", found["state"]),
            ("reason", found["reason"]),
            ("created", age(found["created_at"])),
            ("next attempt", found["next_at"]),
        ]
    )
    for one in found["attempts"]:
        answer = one["status"] or one["error"]
        out(f"\nattempt {one['attempt']}  {one['at']}  {one['address'] or '-'}  {answer}  {one['duration_ms']} ms")
        for line in (one["response"] or "").splitlines():
            out(f"  {log_text(line, sys.stdout)}")


@deliveries.command()
@connected
def redeliver(api: Api, delivery_id: Id, as_json: Json = False) -> None:
    """Send a callback once more, with the same id."""
    answer = api.post(f"/v1/deliveries/{delivery_id}/redeliver")
    if as_json:
        out_json(answer)
    else:
        out(f"{answer['id']}  {answer['state']}")


def _of(delivery: dict[str, Any]) -> str:
    """Whose event it is."""
    return str(delivery["job"] or delivery["batch"] or delivery["schedule"] or "")


def _last(delivery: dict[str, Any]) -> str:
    """What came of the last attempt, in a few words."""
    attempts = delivery["attempts"]
    if not attempts:
        return str(delivery["reason"] or "")
    last = attempts[-1]
    return f"{last['status'] or last['error']}, {age(last['at'])}"
