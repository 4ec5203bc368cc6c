"""``rgrid secrets``: what jobs are given without anybody else seeing it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import Json, ListsByDefault, connected, plain_id
from gateway.cli.output import age, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

secrets = typer.Typer(help="Set, list and remove a project's secrets.", cls=ListsByDefault)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As the job's variable is called.", callback=plain_id)]
LARGEST = 1024 * 1024


def register(app: typer.Typer) -> None:
    app.add_typer(secrets, name="secrets", rich_help_panel="Run")


@secrets.command("set")
@connected
def set_secret(
    api: Api,
    name: Name,
    value: Annotated[
        str | None,
        typer.Option("--value", metavar="TEXT", help="The value; others on this machine may see it there."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set a secret: the value is asked for, or read from standard input up to a line break at its end."""
    answer = api.post("/v1/secrets", {"name": name, "value": _value(name) if value is None else value}, repeatable=True)
    if as_json:
        out_json(answer)
    else:
        out(f"{name} set")


@secrets.command("list")
@connected
def list_secrets(
    api: Api,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List secrets: names, times and the functions that use them. No call shows a value."""
    found = api.pages("/v1/secrets", {}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("NAME", "UPDATED", "USED BY"),
        ((one["name"], age(one["updated_at"]), ", ".join(one["used_by"])) for one in found["data"]),
        empty="no secrets yet: make one with 'rgrid secrets set NAME'",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@secrets.command()
@connected
def rm(api: Api, name: Name, as_json: Json = False) -> None:
    """Remove a secret: jobs that need it fail from now on."""
    api.delete(f"/v1/secrets/{name}")
    if not as_json:  # the API's answer has no body
        out(f"{name} removed")


@secrets.command()
def reseal() -> None:
    """Seal every project's secrets with the first of RGRID_SECRET_KEY, on the control plane. Safe to repeat."""
    from gateway.cli.running import run_reseal

    raise typer.Exit(run_reseal())


def _value(name: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(f"value of {name}", hide_input=True, err=True))
    content = sys.stdin.buffer.read(LARGEST)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Failed("a secret is UTF-8 text: encode other bytes, for instance with base64") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Failed(f"no value for {name}: pipe it in, or use --value")
    return text
