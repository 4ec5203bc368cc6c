"""``rgrid logs``: what a job has printed, and with ``-f`` what it prints."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.options import JobId, Json, connected
from gateway.cli.output import log_text, out, out_bytes

if TYPE_CHECKING:
    from gateway.cli.client import Api


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Jobs")(logs)


@connected
def logs(
    api: Api,
    *,
    job_id: JobId,
    following: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on until the job has ended, over lost connections, too."),
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", min=1, help="One attempt only. Default: the latest; -f goes on with the next."),
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="Only the last lines of what is there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a job's output. With --json, an object a line, as it is a stream."""
    path = f"/v1/jobs/{job_id}/logs"
    params = {"attempt": attempt, "tail": tail}
    if following or as_json:
        _events(api, path, {**params, "follow": "true" if following else None}, as_json)
    else:
        _text(api, path, params)


def _text(api: Api, path: str, params: dict[str, Any]) -> None:
    import httpx

    try:
        with api.stream(path, params, headers={"Accept": "text/plain"}) as answer:
            if not sys.stdout.isatty():
                for chunk in answer.iter_bytes():
                    out_bytes(chunk)
                return
            rest = ""
            for text in answer.iter_text():
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    out(log_text(line, sys.stdout))
            if rest:
                out(log_text(rest, sys.stdout))
    except httpx.TransportError as error:
        raise api.away(error) from None


def _events(api: Api, path: str, params: dict[str, Any], as_json: bool) -> None:
    from gateway.cli.sse import stream

    for event in stream(api, path, params):
        if event.kind != "log":
            continue
        if as_json:
            attempt = event.id.partition(":")[0]
            line = {"attempt": int(attempt) if attempt.isdecimal() else None, "line": event.data}
            out(json.dumps(line, ensure_ascii=False))
        else:
            out(log_text(event.data, sys.stdout))
