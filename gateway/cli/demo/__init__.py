"""`rgrid demo`: an instance of its own, two real ffmpeg jobs on a real clip, their callbacks, and the picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import Json
from gateway.cli.output import out_json


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Start")(demo)


def demo(
    video: Annotated[
        Path | None,
        typer.Option(
            "--video", metavar="PATH", help="A clip of your own.", exists=True, dir_okay=False, readable=True
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where files and state go.", file_okay=False)
    ] = Path("demo-output"),
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Run two real ffmpeg functions on an instance of their own; show progress, callbacks and files."""
    from gateway.cli.demo.show import Show
    from gateway.cli.demo.story import tell

    done = tell(Show(quiet=as_json), video, output, keep=keep)
    if as_json:
        out_json({"jobs": [asdict(job) for job in done]})
