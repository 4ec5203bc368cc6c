"""``rgrid jobs``, ``job``, ``events``, ``cancel`` and ``retry``: what runs, what became of it, and changing that."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import completion
from gateway.cli.failures import Failed, Refused
from gateway.cli.options import JobId, JobIds, Json, connected, moment
from gateway.cli.output import note, out, out_json, table
from gateway.cli.show import COLUMNS, event_rows, row, show_job

if TYPE_CHECKING:
    from gateway.cli.client import Api


class Status(StrEnum):
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def register(app: typer.Typer) -> None:
    for command in (jobs, job, events, cancel, retry):
        app.command(rich_help_panel="Jobs")(command)


@connected
def jobs(
    api: Api,
    *,
    function: Annotated[
        str | None,
        typer.Option(
            "--function", metavar="NAME", help="Of this function only.", autocompletion=completion.functions
        ),
    ] = None,
    status: Annotated[Status | None, typer.Option("--status", help="In this state only.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            callback=moment,
            help="Created at or after: 2h (ago), a date or a time.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", callback=moment, help="Created before: likewise.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    wanted = {"function": function, "status": status and status.value, "since": since, "until": until}
    found = api.pages("/v1/jobs", wanted, limit=limit)
    if as_json:
        out_json(found)
        return
    table(COLUMNS, (row(one) for one in found["data"]), empty="no such jobs")
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@connected
def job(api: Api, job_id: JobId, as_json: Json = False) -> None:
    """Show one job."""
    found = api.get(f"/v1/jobs/{job_id}")
    if as_json:
        out_json(found)
    else:
        show_job(found)


@connected
def events(api: Api, job_id: JobId, as_json: Json = False) -> None:
    """Show what happened to a job, in order."""
    found = api.get(f"/v1/jobs/{job_id}/events")
    if as_json:
        out_json(found)
    else:
        table(("AT", "EVENT", ""), event_rows(found["data"]))


@connected
def cancel(api: Api, job_ids: JobIds, as_json: Json = False) -> None:
    """Cancel jobs: those that wait end at once, those that run are stopped."""

    def said(answer: dict[str, Any]) -> str:
        return f"{answer['id']}  {answer['status']}" + (", stopping" if answer["status"] == "running" else "")

    # Cancelling twice is cancelling once.
    _each(job_ids, lambda job_id: api.post(f"/v1/jobs/{job_id}/cancel", repeatable=True), said, as_json)


@connected
def retry(api: Api, job_ids: JobIds, as_json: Json = False) -> None:
    """Run finished jobs again, as new jobs with the same params: prints the new ids."""
    _each(
        job_ids,
        lambda job_id: api.post(f"/v1/jobs/{job_id}/retry"),
        lambda answer: str(answer["id"]),
        as_json,
    )


def _each(
    job_ids: list[str],
    act: Callable[[str], dict[str, Any]],
    said: Callable[[dict[str, Any]], str],
    as_json: bool,
) -> None:
    """Do it to each job; one that refuses does not stop the others, but the command fails."""
    answers, failures = [], []
    for job_id in dict.fromkeys(job_ids):
        try:
            answer = act(job_id)
        except Refused as refused:
            failures.append(f"{job_id}: {refused}")
            continue
        answers.append(answer)
        if not as_json:
            out(said(answer))
    if as_json:
        out_json({"data": answers})
    for failure in failures[:-1]:
        note(f"error: {failure}")
    if failures:
        raise Failed(failures[-1])
