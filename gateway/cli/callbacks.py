"""``rgrid callbacks``: what a receiver of callbacks needs to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.options import Json, connected
from gateway.cli.output import out, out_json

if TYPE_CHECKING:
    from gateway.cli.client import Api

callbacks = typer.Typer(help="The project's callbacks.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(callbacks, name="callbacks", rich_help_panel="Jobs")


@callbacks.callback()
def group() -> None:
    """The project's callbacks."""


@callbacks.command()
@connected
def secret(api: Api, as_json: Json = False) -> None:
    """Print the key that callbacks are signed with (Standard Webhooks)."""
    found = api.get("/v1/callbacks/secret")
    if as_json:
        out_json(found)
    else:
        out(found["secret"])
