"""``rgrid download``: a job's outputs on this disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.failures import Failed
from gateway.cli.options import JobId, Json, connected
from gateway.cli.output import note, out, out_json
from gateway.cli.show import why

if TYPE_CHECKING:
    from gateway.cli.client import Api


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Jobs")(download)


@connected
def download(
    api: Api,
    job_id: JobId,
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the files go.")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there already.")] = False,
    as_json: Json = False,
) -> None:
    """Download a job's outputs; prints where they are. Files that are there already are not fetched again."""
    from gateway.cli.downloads import Existing, save_outputs
    from gateway.cli.waiting import TERMINAL

    job = api.get(f"/v1/jobs/{job_id}")
    if job["status"] not in TERMINAL:
        raise Failed(
            f"{job_id} is {job['status']}: it has outputs once it succeeded ('rgrid logs -f {job_id}' waits)"
        )
    if job["status"] != "succeeded":
        raise Failed(f"{why(job)}: it has no outputs")
    if not job["outputs"]:
        note(f"{job_id} made no files")
    saved = []
    for file in save_outputs(api, job, directory, Existing.OVERWRITE if force else Existing.KEEP):
        saved.append({"name": file.name, "path": str(file.path), "size": file.size, "sha256": file.sha256})
        if not as_json:
            out(str(file.path))
    if as_json:
        out_json({"data": saved})
