"""GET /v1/jobs/{id}/logs: what a job's container wrote, as plain text or as server-sent events."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from functions import ids
from functions.db import Connection
from functions.errors import Malformed, NotAcceptable, NotFound
from functions.ids import JobId
from gateway.log_lines import LineSplitter
from gateway.log_stream import End, Piece, Place, Silence, Wanted, pieces
from gateway.problems import Problem, kind_of
from gateway.routes import Route, Scope, caller, read_headers, read_query, services
from gateway.services import Services
from scheduler import logs
from scheduler.logs import LogState

log = structlog.get_logger(__name__)

TEXT, EVENTS = "text/plain", "text/event-stream"
LARGEST = 2**31 - 1
QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class LogQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    follow: bool = Field(False, description="Go on until the job has ended, over its later attempts, too.")
    attempt: Annotated[int, Field(ge=1, le=LARGEST)] | None = Field(
        None, description="Only this attempt. Default: the latest."
    )
    tail: Annotated[int, Field(ge=0, le=LARGEST)] | None = Field(
        None, description="Only the last lines of what is there. Default: all."
    )


class LogHeaders(BaseModel):
    last_event_id: str | None = Field(
        None, alias="Last-Event-ID", description="Go on behind this event.", pattern=r"^[1-9]\d{0,8}:\d{1,15}$"
    )


async def read_log(request: Request) -> Response:
    """GET /v1/jobs/{id}/logs: as plain text, the bytes as they are. As events: `log` for each line, its `id` to go on
    from with `Last-Event-ID`, and at last `end` with `{"status"}`. A job that has not begun has an empty log."""
    query, headers = read_query(request, LogQuery), read_headers(request, LogHeaders)
    form = _wanted_form(request.headers.getlist("accept"))
    job = ids.decode(ids.JOB, request.path_params["id"])
    if job is None:
        raise NotFound("there is no such job", code="job_not_found")
    opened, who = services(request), caller(request)
    key_id = who.key_id if who.only_own else None
    wanted = Wanted(who.project_id, JobId(job), key_id, query.attempt, query.follow)
    async with opened.pool.acquire() as conn:
        state = await logs.state(conn, wanted.project, wanted.job, wanted.key_id)
        if form == EVENTS and headers.last_event_id is not None:
            begin = _resumed(headers.last_event_id, query.attempt)
        else:
            begin = await _begin(conn, state, wanted, query.tail)
        before = b""
        if form == EVENTS and begin.position:
            before = await logs.read(conn, wanted.job, begin.attempt, begin.position - 1, 1)
    if request.method == "HEAD":
        return Response(media_type=form)
    if form == TEXT:
        return StreamingResponse(_text(opened, wanted, begin), media_type=TEXT)
    # A proxy that gathers the answer before it passes it on would hold up the lines.
    unbuffered = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_events(opened, wanted, begin, before), media_type=EVENTS, headers=unbuffered)


async def _begin(conn: Connection, state: LogState, wanted: Wanted, tail: int | None) -> Place:
    attempt = wanted.only or max(state.attempt, 1)
    if wanted.only is not None and wanted.only > state.attempt and (state.ended or not wanted.follow):
        raise NotFound(f"the job has had {state.attempt} attempt(s)", code="attempt_not_found")
    position = 0 if tail is None else await logs.tail(conn, wanted.job, attempt, tail)
    return Place(attempt, position)


def _resumed(last_event_id: str, only: int | None) -> Place:
    attempt, position = map(int, last_event_id.split(":"))
    if only is not None and attempt != only:
        raise Malformed("Last-Event-ID is of another attempt than the one asked for")
    return Place(attempt, position)


async def _text(opened: Services, wanted: Wanted, begin: Place) -> AsyncIterator[bytes]:
    attempt, ending = begin.attempt, b"\n"
    async for each in pieces(opened, wanted, begin):
        if not isinstance(each, Piece):
            continue
        if each.place.attempt != attempt:
            attempt = each.place.attempt
            gap = b"" if ending == b"\n" else b"\n"
            yield gap + b"[rgrid: attempt %d]\n" % attempt
        if each.data:
            ending = each.data[-1:]
            yield each.data


async def _events(opened: Services, wanted: Wanted, begin: Place, before: bytes) -> AsyncIterator[bytes]:
    attempt, lines = begin.attempt, LineSplitter(begin.position, before)
    try:
        async for each in pieces(opened, wanted, begin):
            if isinstance(each, End):
                data = json.dumps({"status": each.status})
                yield f"event: end\ndata: {data}\n\n".encode()
            elif isinstance(each, Silence):
                yield b": nothing new\n\n"
            else:
                if each.place.attempt != attempt:
                    attempt, lines = each.place.attempt, LineSplitter()
                found = lines.feed(each.data, last=each.last)
                if events := [f"event: log\nid: {attempt}:{behind}\ndata: {line}\n\n" for behind, line in found]:
                    yield "".join(events).encode()
    except Exception as error:
        if kind_of(error) is None:
            raise
        # The client goes on from its last event, when the database is back.
        log.warning("log stream cut", error=type(error).__name__)


def _wanted_form(accept: list[str]) -> str:
    """Text or events, whichever the client likes better; raises ``NotAcceptable`` for neither."""
    if not accept:
        return TEXT
    ranges: dict[str, float] = {}
    for part in ",".join(accept).split(","):
        media_range, *parameters = part.split(";")
        ranges[media_range.strip().lower()] = _quality(parameters)
    others = ranges.get("text/*", ranges.get("*/*", 0.0))
    text, events = ranges.get(TEXT, others), ranges.get(EVENTS, others)
    if not text and not events:
        raise NotAcceptable(f"this comes as {TEXT} or {EVENTS}")
    named = EVENTS in ranges and TEXT not in ranges
    return EVENTS if events > text or (events == text and named) else TEXT


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            return float(value) if QUALITY.fullmatch(value.strip()) else 0.0
    return 1.0


ROUTES = (
    Route(
        "GET", "/v1/jobs/{id}/logs", read_log, "What the job's container wrote", Scope.READ, query=LogQuery,
        headers=LogHeaders, answers={200: (TEXT, EVENTS), 406: Problem}, tag="jobs", own=True,
    ),
)  # fmt: skip
