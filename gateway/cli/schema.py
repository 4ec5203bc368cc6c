"""``rgrid schema``: the manifest's grammar for editors."""

from __future__ import annotations

import typer

from gateway.cli.output import out_json


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(schema)


def schema() -> None:
    """Print the JSON Schema of function.yaml for your editor.

    The same is at /schemas/function.json of every gateway. A manifest whose first line is
    '# yaml-language-server: $schema=PATH-OR-URL' is checked while it is written.
    """
    from functions.manifest_schema import manifest_schema

    out_json(manifest_schema())
