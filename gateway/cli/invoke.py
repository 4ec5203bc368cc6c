"""``rgrid invoke``: one job of a function, waited for and followed if asked to."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import Data, FunctionName, Json, MaxCost, Pairs, connected, duration, header
from gateway.cli.output import note, out, out_json
from gateway.cli.show import show_job, why

if TYPE_CHECKING:
    from gateway.cli.client import Api


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Run")(invoke)


@connected
def invoke(
    api: Api,
    *,
    name: FunctionName,
    pairs: Pairs = None,
    data: Data = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file", metavar="NAME=PATH", help="Upload a file; the param becomes its artifact:… May be repeated."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end; exit 1 if it is no success.")
    ] = False,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait, and show the job's log on stderr meanwhile.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Wait, then download the outputs to this folder."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With -o: overwrite files that are there already.")
    ] = False,
    timeout: Annotated[
        timedelta | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            parser=duration,
            help="Wait no longer than this; the job goes on.",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            callback=header,
            help="The same key and params again: the same job.",
        ),
    ] = None,
    callback_url: Annotated[
        str | None,
        typer.Option("--callback-url", metavar="URL", callback=header, help="Where to send the outcome."),
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option("--delay", metavar="DURATION", callback=header, help="Start no sooner than this."),
    ] = None,
    cancel_after: Annotated[
        str | None,
        typer.Option(
            "--cancel-after", metavar="DURATION", callback=header, help="Cancel it then, waiting or running."
        ),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(
            "--priority", metavar="DURATION", callback=header, help="As if it had been queued so much earlier."
        ),
    ] = None,
    lane: Annotated[
        str | None,
        typer.Option("--lane", metavar="LANE", callback=header, help="standard or paid, instead of the manifest's."),
    ] = None,
    max_cost: MaxCost = None,
    version: Annotated[
        int | None,
        typer.Option("--version", min=1, max=2**31 - 1, help="An earlier version of the function."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a function: prints the job's id, or with --wait, --follow or -o its outcome."""
    from gateway.cli.params import read_params

    given_params = read_params(pairs or (), data, files or ())
    waits = wait or following or directory is not None
    if timeout is not None and not waits:
        raise typer.BadParameter("only with --wait, --follow or -o", param_hint="--timeout")
    headers = {
        # Ours if the user has none, so that asking again after a lost answer never makes a second job.
        "Idempotency-Key": idempotency_key or uuid4().hex,
        "X-Callback-Url": callback_url,
        "RGrid-Delay": delay,
        "Cancel-After": cancel_after,
        "RGrid-Priority": priority,
        "RGrid-Lane": lane,
        "RGrid-Max-Cost": max_cost,
        "RGrid-Version": None if version is None else str(version),
    }
    given = {header: value for header, value in headers.items() if value is not None}
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    params = given_params.with_files(lambda path: _uploaded(api, path))
    job = api.post(f"/v1/functions/{name}/invoke", params, headers=given, repeatable=True)
    if not waits:
        started(job, as_json)
        return
    show_ended(api, ended(api, job, following, deadline), directory, force=force, as_json=as_json)


def show_ended(api: Api, job: dict[str, Any], directory: Path | None, *, force: bool, as_json: bool) -> None:
    """Print the finished job and save its files; raises ``Failed`` if it is no success."""
    if as_json:
        out_json(job)
    else:
        show_job(job)
    if job["status"] != "succeeded":
        raise Failed(why(job))
    if directory is not None:
        from gateway.cli.downloads import Existing, save_outputs

        existing = Existing.OVERWRITE if force else Existing.KEEP
        for saved in save_outputs(api, job, directory, existing):
            (note if as_json else out)(f"saved {saved.path}")


def _uploaded(api: Api, path: Path) -> str:
    from gateway.cli.uploads import upload

    return upload(api, path).uri


def started(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out_json(job)
        return
    out(job["id"])
    if sys.stdout.isatty():
        note(f"{job['status']}: follow it with 'rgrid logs -f {job['id']}'")


def ended(api: Api, job: dict[str, Any], following: bool, deadline: float | None) -> dict[str, Any]:
    """The finished job. However the waiting ends, the job itself goes on, and the user is told its id."""
    from gateway.cli.waiting import TERMINAL, follow, wait_watched

    if job["status"] in TERMINAL:
        return job
    job_id = job["id"]
    ways = f"'rgrid logs -f {job_id}' follows it, 'rgrid cancel {job_id}' stops it"
    try:
        return (follow if following else wait_watched)(api, job_id, deadline=deadline)
    except TimeoutError:
        raise Failed(f"{job_id} has not ended in time and goes on: {ways}") from None
    except KeyboardInterrupt:
        note(f"{job_id} goes on: {ways}")
        raise typer.Exit(130) from None
    except Failed as failed:
        raise Failed(f"{failed} ({job_id} goes on: {ways})") from None
