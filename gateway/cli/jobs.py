"""``rgrid jobs``, ``job``, ``events``, ``cancel`` and ``retry``: what runs, what became of it, and changing that."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli import bulk, completion
from gateway.cli.failures import Failed, Refused
from gateway.cli.options import JobId, Json, Yes, connected, moment, plain_id_or_none, plain_ids
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


class Trigger(StrEnum):
    MANUAL = "manual"
    WEBHOOK = "webhook"
    SCHEDULE = "schedule"
    FUNCTION = "function"


OfFunction = Annotated[
    str | None,
    typer.Option("--function", metavar="NAME", help="Of this function only.", autocompletion=completion.functions),
]
OfStatus = Annotated[Status | None, typer.Option("--status", help="In this state only.")]
OfBatch = Annotated[
    str | None, typer.Option("--batch", metavar="ID", help="Of this batch only.", callback=plain_id_or_none)
]
OfTrigger = Annotated[Trigger | None, typer.Option("--trigger", help="Caused so only.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", callback=moment, help="Created at or after: 2h (ago), a date or a time."
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", callback=moment, help="Created before: likewise.")
]
SomeIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ID...]", help="Ids of jobs, or else filters.", callback=plain_ids, autocompletion=completion.jobs
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With filters: only say how many jobs they fit.")]


def register(app: typer.Typer) -> None:
    for command in (jobs, job, events, cancel, retry):
        app.command(rich_help_panel="Jobs")(command)


@connected
def jobs(
    api: Api,
    *,
    function: OfFunction = None,
    status: OfStatus = None,
    batch: OfBatch = None,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    filters = _filters(
        function=function, status=status, batch=batch, trigger=trigger, since=since, until=until
    )
    found = api.pages("/v1/jobs", filters, limit=limit)
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
def cancel(
    api: Api,
    *,
    job_ids: SomeIds = None,
    function: OfFunction = None,
    status: OfStatus = None,
    batch: OfBatch = None,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Cancel jobs: those that wait end at once, those that run are stopped."""

    def said(answer: dict[str, Any]) -> str:
        return f"{answer['id']}  {answer['status']}" + (", stopping" if answer["status"] == "running" else "")

    filters = _filters(
        function=function, status=status, batch=batch, trigger=trigger, since=since, until=until
    )
    if _by_id(job_ids, filters, dry_run):
        # Cancelling twice is cancelling once.
        _each(job_ids or [], lambda job_id: api.post(f"/v1/jobs/{job_id}/cancel", repeatable=True), said, as_json)
        return
    done = bulk.run(api, "cancel", filters, dry_run=dry_run, yes=yes)
    if as_json:
        out_json(done)
    else:
        out(bulk.said(done, "cancelled"))


@connected
def retry(
    api: Api,
    *,
    job_ids: SomeIds = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", metavar="NAME=VALUE", help="Another value of a param; null takes it away. May be repeated."
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            "--version", metavar="N|current", help="Of another version than it was.", callback=bulk.version_or_current
        ),
    ] = None,
    function: OfFunction = None,
    status: OfStatus = None,
    batch: OfBatch = None,
    trigger: OfTrigger = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Run finished jobs again, as new jobs: prints the new ids.

    With filters instead of ids: all failed, timed out and expired jobs that they fit, unless --status says otherwise.
    Jobs that were retried before are left alone then.
    """
    changes = bulk.changes(pairs, version)
    filters = _filters(
        function=function, status=status, batch=batch, trigger=trigger, since=since, until=until
    )
    if _by_id(job_ids, filters, dry_run):
        _each(
            job_ids or [],
            # A key of ours, so that asking again after a lost answer never makes a second job.
            lambda job_id: api.post(
                f"/v1/jobs/{job_id}/retry", changes, headers={"Idempotency-Key": uuid4().hex}, repeatable=True
            ),
            lambda answer: str(answer["id"]),
            as_json,
        )
        return
    done = bulk.run(api, "retry", {**filters, **changes}, dry_run=dry_run, yes=yes)
    if as_json:
        out_json(done)
    else:
        out(bulk.said(done, "retried"))
    for error in done["errors"]:
        note(f"error: {error['job']}: {error['code']}: {error['message']}")
    if done["refused"]:
        raise Failed(f"{done['refused']} jobs could not be run again")


def _filters(**given: str | None) -> dict[str, Any]:
    """Those that were given, as the API calls them."""
    return {name: str(value) for name, value in given.items() if value is not None}


def _by_id(job_ids: list[str] | None, filters: dict[str, Any], dry_run: bool) -> bool:
    """Whether jobs are named; else filters are."""
    if bool(job_ids) == bool(filters):
        raise typer.BadParameter("name jobs, or filters such as --function", param_hint="ID")
    if job_ids and dry_run:
        raise typer.BadParameter("only with filters", param_hint="--dry-run")
    return bool(job_ids)


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
