"""``rgrid deliveries``: what became of callbacks, and sending one again."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import completion
from gateway.cli.options import Json, ListsByDefault, connected, plain_id
from gateway.cli.output import age, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

deliveries = typer.Typer(help="List deliveries of callbacks, and send them again.", cls=ListsByDefault)


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
    state: Annotated[State | None, typer.Option("--state", help="In this state only.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List deliveries, the newest first. With --json, each with all of its attempts."""
    found = api.pages("/v1/deliveries", {"job": job, "state": state and state.value}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "JOB", "EVENT", "STATE", "TRIES", "LAST ANSWER", "URL"),
        (
            (one["id"], one["job"], one["type"], one["state"], len(one["attempts"]), _last(one), one["url"])
            for one in found["data"]
        ),
        empty="no such deliveries",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@deliveries.command()
@connected
def redeliver(
    api: Api,
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.", callback=plain_id)],
    as_json: Json = False,
) -> None:
    """Send a callback once more, with the same id."""
    answer = api.post(f"/v1/deliveries/{delivery_id}/redeliver")
    if as_json:
        out_json(answer)
    else:
        out(f"{answer['id']}  {answer['state']}")


def _last(delivery: dict[str, Any]) -> str:
    """What came of the last attempt, in a few words."""
    attempts = delivery["attempts"]
    if not attempts:
        return ""
    last = attempts[-1]
    return f"{last['status'] or last['error']}, {age(last['at'])}"
