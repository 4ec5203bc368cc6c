"""``rgrid schedules``: when functions run by the clock, and what came of it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from gateway.cli import completion
from gateway.cli.failures import Failed
from gateway.cli.options import Data, FunctionName, Json, ListsByDefault, Pairs, connected, plain_id, plain_id_or_none
from gateway.cli.output import age, ahead, fields, note, out, out_json, table

if TYPE_CHECKING:
    from gateway.cli.client import Api

schedules = typer.Typer(help="List, show, pause, resume, trigger, add and remove schedules.", cls=ListsByDefault)

_NAMED = re.compile(r"sch_[0-9a-f]{32}|[a-z0-9-]{1,63}/[a-z0-9-]{1,63}")


def named(value: str) -> str:
    if not _NAMED.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is no schedule: write FUNCTION/NAME, or its id")
    return value


Schedule = Annotated[
    str,
    typer.Argument(
        metavar="FUNCTION/NAME",
        help="The schedule, or its id.",
        callback=named,
        autocompletion=completion.schedules,
    ),
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")]


class Overlap(StrEnum):
    SKIP = "skip"
    ALLOW = "allow"
    REPLACE = "replace"


class CatchUp(StrEnum):
    NONE = "none"
    ONE = "one"
    ALL = "all"


class State(StrEnum):
    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    MISSED = "missed"
    FAILED = "failed"


def register(app: typer.Typer) -> None:
    app.add_typer(schedules, name="schedules", rich_help_panel="Run")


@schedules.command("list")
@connected
def list_schedules(
    api: Api,
    *,
    function: Annotated[
        str | None,
        typer.Option(
            "--function", help="Of this function.", callback=plain_id_or_none, autocompletion=completion.functions
        ),
    ] = None,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List schedules, the newest first."""
    found = api.pages("/v1/schedules", {"function": function}, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("SCHEDULE", "CRON", "TIMEZONE", "NEXT", "LAST", "ORIGIN"),
        (
            (_name(one), one["cron"], one["timezone"], _next(one), _last(one), one["origin"])
            for one in found["data"]
        ),
        empty="no schedules yet: give a function one in its manifest, or with 'rgrid schedules add'",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@schedules.command()
@connected
def show(api: Api, schedule: Schedule, as_json: Json = False) -> None:
    """Show a schedule, with the times that come next."""
    found = _find(api, schedule)
    if as_json:
        out_json(found)
        return
    import json

    fields(
        [
            ("schedule", _name(found)),
            ("id", found["id"]),
            ("origin", found["origin"]),
            ("cron", found["cron"]),
            ("timezone", found["timezone"]),
            ("params", json.dumps(found["params"], ensure_ascii=False) if found["params"] else None),
            ("overlap", found["overlap"]),
            ("catchUp", found["catchUp"]),
            ("jitter", found["jitter"]),
            ("state", "paused" if found["paused"] else "active"),
            *[("next", f"{at}  {ahead(at)}") for at in found["next_runs"]],
            ("last", _last(found)),
        ]
    )


@schedules.command()
@connected
def runs(
    api: Api,
    schedule: Schedule,
    *,
    state: Annotated[State | None, typer.Option("--state", help="Only times of which this came.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List planned times and what came of each, the newest first."""
    query = {"state": None if state is None else state.value}
    found = api.pages(f"/v1/schedules/{_find(api, schedule)['id']}/runs", query, limit=limit)
    if as_json:
        out_json(found)
        return
    table(
        ("PLANNED", "STATE", "JOB", "WHY"),
        ((one["planned_at"], one["state"], one["job"], _why(one)) for one in found["data"]),
        empty="no such times yet",
    )
    if found["next_cursor"]:
        note(f"there are more than {limit}: see them with --limit")


@schedules.command()
@connected
def add(
    api: Api,
    *,
    function: FunctionName,
    name: Annotated[str, typer.Argument(help="What the schedule is called.", callback=plain_id)],
    cron: Annotated[str, typer.Argument(help="Five fields in quotes, such as '0 3 * * *', or @hourly and the like.")],
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="ZONE", help="Such as Europe/Berlin. Default: UTC.")
    ] = None,
    pairs: Pairs = None,
    data: Data = None,
    overlap: Annotated[
        Overlap | None, typer.Option("--overlap", help="If the job before has not ended. Default: skip.")
    ] = None,
    catch_up: Annotated[
        CatchUp | None, typer.Option("--catch-up", help="Which of the times that were missed run. Default: one.")
    ] = None,
    jitter: Annotated[
        str | None, typer.Option("--jitter", metavar="DURATION", help="Spread the starts over so much time.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a function a schedule beside those of its manifest."""
    from gateway.cli.params import read_params

    wanted = {
        "timezone": timezone,
        "overlap": overlap and overlap.value,
        "catchUp": catch_up and catch_up.value,
        "jitter": jitter,
    }
    body = {"function": function, "name": name, "cron": cron, "params": read_params(pairs or (), data).params}
    made = api.post("/v1/schedules", body | {key: value for key, value in wanted.items() if value is not None})
    if as_json:
        out_json(made)
    else:
        out(f"{_name(made)}  next {_next(made)}")


@schedules.command()
@connected
def pause(api: Api, schedule: Schedule, as_json: Json = False) -> None:
    """Let a schedule make no jobs until it is resumed."""
    _switch(api, schedule, "pause", as_json)


@schedules.command()
@connected
def resume(api: Api, schedule: Schedule, as_json: Json = False) -> None:
    """Let a paused schedule go on with its next time; those of the pause are not caught up."""
    _switch(api, schedule, "resume", as_json)


@schedules.command()
@connected
def trigger(api: Api, schedule: Schedule, as_json: Json = False) -> None:
    """Run a schedule's job now: prints the job's id."""
    # Ours, so that asking again after a lost answer never makes a second job.
    key = {"Idempotency-Key": uuid4().hex}
    job = api.post(f"/v1/schedules/{_find(api, schedule)['id']}/trigger", headers=key, repeatable=True)
    if as_json:
        out_json(job)
    else:
        out(job["id"])


@schedules.command()
@connected
def rm(api: Api, schedule: Schedule) -> None:
    """Remove a schedule that was made over the API; one of a manifest is taken out there."""
    found = _find(api, schedule)
    api.delete(f"/v1/schedules/{found['id']}")
    out(f"{_name(found)} removed")


def _switch(api: Api, schedule: str, what: str, as_json: bool) -> None:
    answer = api.post(f"/v1/schedules/{_find(api, schedule)['id']}/{what}", repeatable=True)
    if as_json:
        out_json(answer)
    else:
        out(f"{_name(answer)}  {'paused' if answer['paused'] else f'next {_next(answer)}'}")


def _find(api: Api, schedule: str) -> dict[str, Any]:
    if "/" not in schedule:
        return api.get(f"/v1/schedules/{schedule}")
    function, name = schedule.split("/")
    found: list[dict[str, Any]] = api.get("/v1/schedules", {"function": function, "name": name})["data"]
    if not found:
        raise Failed(f"there is no schedule {schedule}: 'rgrid schedules' lists them")
    return found[0]


def _name(schedule: dict[str, Any]) -> str:
    return f"{schedule['function']}/{schedule['name']}"


def _next(schedule: dict[str, Any]) -> str:
    if schedule["paused"]:
        return "paused"
    return f"{schedule['next_runs'][0]}, {ahead(schedule['next_runs'][0])}" if schedule["next_runs"] else "never"


def _last(schedule: dict[str, Any]) -> str:
    last = schedule["last_run"]
    return "" if last is None else f"{last['state']} {age(last['planned_at'])}"


def _why(run: dict[str, Any]) -> str:
    if run["error"] is not None:
        return f"{run['error']['code']}: {run['error']['message']}"
    if run["state"] == "skipped":
        return "the job before had not ended"
    if run["state"] == "missed":
        many = "many times" if run["count"] is None else f"{run['count']} time(s)"
        return f"{many} up to {run['until']}: no scheduler was there"
    return "asked for" if run["manual"] else ""
