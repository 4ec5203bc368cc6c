"""``rgrid callbacks``: who is told of the project's events; for its keys see ``callback_keys.py``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import callback_keys, completion
from gateway.cli.failures import Failed
from gateway.cli.options import Json, ListsByDefault, connected, moment, plain_id, plain_id_or_none, plain_ids
from gateway.cli.output import age, fields, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

callbacks = typer.Typer(help="List, add, change, test and remove callbacks; their keys.", cls=ListsByDefault)

TEST_S = 20.0
"""An exchange takes 15 s at most."""

Id = Annotated[str, typer.Argument(metavar="ID", help="The callback's id.", callback=plain_id)]
Events = Annotated[
    list[str] | None, typer.Option("--event", "-e", metavar="EVENT", help="Tell it of this event. May be repeated.")
]
Functions = Annotated[
    list[str] | None,
    typer.Option(
        "--function", "-f", metavar="NAME", help="Of this function only. May be repeated.", callback=plain_ids,
        autocompletion=completion.functions,
    ),
]  # fmt: skip
Description = Annotated[str | None, typer.Option("--description", metavar="TEXT", help="What it is for.")]



def register(app: typer.Typer) -> None:
    for command in callback_keys.COMMANDS:
        callbacks.command()(command)
    app.add_typer(callbacks, name="callbacks", rich_help_panel="Jobs")


@callbacks.command("list")
@connected
def list_callbacks(
    api: Api,
    *,
    function: Annotated[
        str | None,
        typer.Option(
            "--function", "-f", help="Of this function's manifest, or asking for it.", callback=plain_id_or_none,
            autocompletion=completion.functions,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List callbacks, those of manifests as well, the newest first."""
    found = api.pages("/v1/callbacks", {"function": function}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("ID", "OF", "STATE", "EVENTS", "URL"),
        ((one["id"], _of(one), _state(one), ", ".join(one["events"]), one["url"]) for one in found["data"]),
        empty="no callbacks yet: name one in a manifest, or add one with 'rgrid callbacks add URL'",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@callbacks.command()
@connected
def add(
    api: Api,
    address: Annotated[str, typer.Argument(metavar="URL", help="Where messages are sent.")],
    *,
    event: Events = None,
    function: Functions = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret",
            metavar="NAME",
            help="A project secret that signs; two while one is replaced. Default: a new key.",
        ),
    ] = None,
    description: Description = None,
    as_json: Json = False,
) -> None:
    """Tell an address of the project's events: outcomes of jobs, unless --event says otherwise."""
    asked = {"url": address, "events": event, "functions": function, "secret": secret, "description": description}
    made = api.post("/v1/callbacks", {name: value for name, value in asked.items() if value})
    if as_json:
        out_json(made)
        return
    if made["signing_secret"] is not None:
        note("its receiver verifies messages with this key:")
    out(f"{made['id']}  {made['signing_secret'] or ', '.join(made['secret'])}")


@callbacks.command()
@connected
def show(api: Api, callback_id: Id, as_json: Json = False) -> None:
    """Show a callback."""
    found = api.get(f"/v1/callbacks/{callback_id}")
    if as_json:
        out_json(found)
        return
    fields(
        [
            ("callback", found["id"]),
            ("url", found["url"]),
            ("description", found["description"]),
            ("of", _of(found)),
            ("events", ", ".join(found["events"])),
            ("signed by", ", ".join(found["secret"]) if found["secret"] else f"the {found['signed_by']}'s own key"),
            ("earlier key", found["rotating_until"] and f"signs along until {found['rotating_until']}"),
            ("state", _state(found)),
            ("disabled", found["disabled_at"] and f"{age(found['disabled_at'])}: {found['disabled_reason']}"),
            ("failing", found["failing_since"] and f"since {found['failing_since']}"),
            ("created", age(found["created_at"])),
        ]
    )


@callbacks.command()
@connected
def update(
    api: Api,
    callback_id: Id,
    *,
    address: Annotated[str | None, typer.Option("--to", metavar="URL", help="Its new address.")] = None,
    event: Events = None,
    function: Functions = None,
    every_function: Annotated[bool, typer.Option("--every-function", help="Of all that the project runs.")] = False,
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A project secret that signs; two while one is replaced."),
    ] = None,
    description: Description = None,
    as_json: Json = False,
) -> None:
    """Change a callback. What has not reached it goes to its new address."""
    if function and every_function:
        raise typer.BadParameter("either --function or --every-function")
    asked = {
        "url": address,
        "events": event or None,
        "functions": function or None,
        "secret": secret or None,
        "description": description,
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if every_function:
        changes["functions"] = None
    if not changes:
        raise typer.BadParameter("say what is to change")
    _changed(api.patch(f"/v1/callbacks/{callback_id}", changes), as_json)


@callbacks.command()
@connected
def enable(api: Api, callback_id: Id, as_json: Json = False) -> None:
    """Send a callback what comes from now on; 'recover' sends what it missed."""
    _changed(api.patch(f"/v1/callbacks/{callback_id}", {"enabled": True}), as_json)


@callbacks.command()
@connected
def disable(api: Api, callback_id: Id, as_json: Json = False) -> None:
    """Send a callback nothing more, until it is enabled."""
    _changed(api.patch(f"/v1/callbacks/{callback_id}", {"enabled": False}), as_json)


def _changed(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out_json(found)
    else:
        out(f"{found['id']}  {_state(found)}")


@callbacks.command()
@connected
def rm(api: Api, callback_id: Id, as_json: Json = False) -> None:
    """Remove a callback. One of a manifest is taken out there."""
    api.delete(f"/v1/callbacks/{callback_id}")
    if not as_json:  # the API's answer has no body
        out(f"{callback_id} removed")


@callbacks.command()
@connected
def test(
    api: Api,
    callback_id: Id,
    wait: Annotated[bool, typer.Option(help="Wait for what comes of it.")] = True,
    as_json: Json = False,
) -> None:
    """Send a callback a test message, once; exit 1 if it does not take it."""
    delivery = api.post(f"/v1/callbacks/{callback_id}/test")["delivery"]
    found = api.get(f"/v1/deliveries/{delivery}")
    until_s = time.monotonic() + TEST_S
    while wait and found["state"] == "pending" and time.monotonic() < until_s:
        time.sleep(0.2)
        found = api.get(f"/v1/deliveries/{delivery}")
    if as_json:
        out_json(found)
    elif found["state"] == "delivered":
        last = found["attempts"][-1]
        out(f"{delivery}  delivered: {last['status']} after {last['duration_ms']} ms")
    elif not wait:
        out(f"{delivery}  {found['state']}")
    if wait and found["state"] != "delivered":
        raise Failed(f"{delivery} was not delivered: {_why_not(found)}")


def _why_not(delivery: dict[str, Any]) -> str:
    if delivery["attempts"]:
        return str(delivery["attempts"][-1]["error"])
    return str(delivery["reason"] or "no scheduler has sent it yet")


@callbacks.command()
@connected
def recover(
    api: Api,
    callback_id: Id,
    *,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Of events since this time: 2026-01-31, or 2h.")
    ],
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="And before this time.")] = None,
    as_json: Json = False,
) -> None:
    """Send a callback again what was given up."""
    body = {"since": moment(since), "until": moment(until)}
    answer = api.post(f"/v1/callbacks/{callback_id}/recover", body, repeatable=True)
    if as_json:
        out_json(answer)
        return
    out(f"{answer['recovered']} message(s) are sent again")
    if answer["more"]:
        note("there are more: run it once more")


def _of(callback: dict[str, Any]) -> str:
    if callback["function"] is not None:
        return str(callback["function"])
    return "everything" if callback["functions"] is None else ", ".join(callback["functions"])


def _state(callback: dict[str, Any]) -> str:
    if not callback["enabled"]:
        return "disabled"
    return "enabled" if callback["failing_since"] is None else "failing"
