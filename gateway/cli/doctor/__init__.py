"""``rgrid doctor``: looks at each part that RGrid needs and says what is wrong and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import config
from gateway.cli.options import Json, Key, Project, Url, general
from gateway.cli.output import out_json, table
from gateway.cli.processes import DATA_DIR

if TYPE_CHECKING:
    from gateway.cli.doctor.findings import Finding


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Start")(doctor)


def doctor(
    ctx: typer.Context,
    *,
    data_dir: Annotated[
        Path, typer.Option(envvar="RGRID_DATA_DIR", help="That of `rgrid up`, when there are no RGRID_* settings.")
    ] = Path(DATA_DIR),
    port: Annotated[
        int, typer.Option(envvar="RGRID_PORT", min=1, max=65535, help="The port that `rgrid up` would take.")
    ] = 8080,
    url: Url = None,
    key: Key = None,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Check every part and say what to do about what is wrong. Exit 1 when something is.

    With RGRID_DATABASE_URL set it looks at the parts that the RGRID_* settings name, else at those of `rgrid up`.
    """
    from gateway.cli.doctor.examination import examine

    flags = config.Flags(url, key, project).over(general(ctx))
    found = examine(os.environ, flags, data_dir, port)
    if as_json:
        out_json({"ok": _fine(found), "checks": [one.as_json() for one in found]})
    else:
        table(("PART", "", "FOUND", "WHAT TO DO"), ((one.part, one.state, one.found, one.advice) for one in found))
    if not _fine(found):
        raise typer.Exit(1)


def _fine(found: Sequence[Finding]) -> bool:
    return not any(one.state == "wrong" for one in found)
