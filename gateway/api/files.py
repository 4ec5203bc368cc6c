"""/f/{project}/{function}: a file in, a file out, in one request; both stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids, registry, versions
from functions.errors import (
    BudgetExceeded,
    Conflict,
    FieldError,
    Invalid,
    JobFailed,
    JobTimedOut,
    NotFound,
    RGridError,
)
from functions.ids import JobId
from functions.param_text import from_text
from functions.versions import Version
from gateway.api.invoke import JobHeaders, made_before, read_asked
from gateway.api.jobs import named
from gateway.api.serving import StoredFile
from gateway.api.submitting import ended, enter
from gateway.body import CAP_BYTES, stream_raw
from gateway.forms import Field as FormField
from gateway.forms import FieldEnd, boundary_of, read_form
from gateway.prefer import LONGEST_S
from gateway.problems import Problem, problem_response
from gateway.receiving import Receiver
from gateway.routes import Route, Scope, caller, has_body, read_headers, read_query, services
from scheduler import preparing
from scheduler.inputs import check_inputs
from scheduler.preparing import Invocation
from scheduler.views import JobRecord, read_jobs

OCTETS = "application/octet-stream"
FORM = "multipart/form-data"
CURLS_OWN = "application/x-www-form-urlencoded"
"""What curl says of any file that it sends with --data-binary."""
USUAL_WAIT_S = 120


class WaitQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait: int = Field(USUAL_WAIT_S, ge=0, le=LONGEST_S, description="Seconds to hold the answer for the job's end.")


class FileQuery(WaitQuery):
    """Every other parameter is a param of the function."""

    model_config = ConfigDict(extra="allow")


class FileHeaders(JobHeaders):
    version: str | None = Field(
        None, alias="RGrid-Version", pattern=r"^[1-9][0-9]{0,8}$", description="Not the current version."
    )


async def run_on_file(request: Request) -> Response:
    """The body becomes the function's input file: raw bytes the first one that a param names, a form's files those of
    their fields. Other fields and the query are params. The answer is the first output file, or the job's result if it
    has none; 303 leads to where it can be waited for. `RGrid-Job-Id` names the job.
    """
    opened, who = services(request), caller(request)
    name = _function_of(request)
    query, headers = read_query(request, FileQuery), read_headers(request, FileHeaders)
    asked = read_asked(request, headers)
    number = None if headers.version is None else int(headers.version)
    async with opened.pool.acquire() as conn:
        version = await registry.current(conn, who.project_id, name, number=number)
    async with AsyncExitStack() as stack:
        gathered = _Gathered(request, version, stack)
        for param, text in (query.model_extra or {}).items():
            gathered.take_text(param, text, f"/query/{param}")
        await gathered.read_body()
        invocation = replace(asked, params=gathered.params, body_hash=gathered.hash())
        job, replayed = await _submit(request, version, invocation, gathered)
    headers_out = {"Idempotent-Replayed": "true"} if replayed else {}
    return await _answer(request, job, query.wait, headers_out)


async def wait_for_file(request: Request) -> Response:
    """GET /f/{project}/{function}/jobs/{id}: the answer of a job that was begun before; nothing runs again."""
    query = read_query(request, WaitQuery)
    return await _answer(request, named(request), query.wait, {})


def _function_of(request: Request) -> str:
    name: str = request.path_params["function"]
    versions.require_name(name)
    if request.path_params["project"] != caller(request).project:
        raise versions.function_not_found(name)
    return name


async def _submit(
    request: Request, version: Version, invocation: Invocation, gathered: _Gathered
) -> tuple[JobId, bool]:
    """The job, and whether an earlier request had made it: then what came with this one is removed."""
    opened = services(request)
    if (before := await made_before(request, version, invocation)) is not None:
        return before, True
    async with opened.pool.acquire() as conn:
        # The file may have taken hours to come: the limits are those of now.
        version = await registry.current(conn, version.project_id, _function_of(request), number=version.number)
    new = preparing.prepare(caller(request).project_id, version, invocation, opened.sizing)
    await check_inputs(opened.pool, new, opened.egress)
    # Kept from here on: if we are stopped in the middle, the job may be there.
    gathered.keep(True)
    try:
        answer, _ = await enter(request, new)
    except RGridError:
        gathered.keep(False)
        raise
    gathered.keep(not answer.replayed)
    return answer.job_id, answer.replayed


@dataclass
class _Gathered:
    """The params of a request as they come, and the files that came with it."""

    request: Request
    version: Version
    stack: AsyncExitStack
    params: dict[str, Any] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)
    _files: dict[str, Receiver] = field(default_factory=dict)
    _text_bytes: int = 0

    def take_text(self, param: str, text: str, pointer: str) -> None:
        self._claim(param, pointer)
        if "\0" in text:
            raise Invalid("a param holds a NUL character", errors=[FieldError(pointer, "holds a NUL character")])
        self._text_bytes += len(text.encode())
        if self._text_bytes > CAP_BYTES:
            raise Invalid(
                f"the params have more than {CAP_BYTES} bytes of text: send it as a file",
                errors=[FieldError(pointer, "too much text")],
            )
        self._texts[param] = text
        self.params[param] = from_text(text, self.version.params_schema.types_of(param))

    async def read_body(self) -> None:
        if not has_body(self.request):
            return
        most = services(self.request).settings.largest_upload
        kind = self.request.headers.get("content-type", OCTETS)
        if kind.partition(";")[0].strip().lower() == FORM:
            await self._read_form(boundary_of(self.request), most)
        else:
            await self._read_raw(OCTETS if kind.partition(";")[0].strip().lower() == CURLS_OWN else kind, most)

    async def _read_raw(self, kind: str, most: int) -> None:
        param, filename = _first_input(self.version)
        receiver = await self._begin(param, filename, kind, most, f"/query/{param}")
        async for chunk in stream_raw(self.request, most):
            await receiver.write(chunk)
        await self._end(param, receiver)

    async def _read_form(self, boundary: bytes, most: int) -> None:
        current: FormField | None = None
        receiver: Receiver | None = None
        text = bytearray()
        async for piece in read_form(stream_raw(self.request, most), boundary):
            if isinstance(piece, FormField):
                current, receiver = piece, None
                if piece.filename is not None:
                    filename = piece.filename or piece.name
                    receiver = await self._begin(piece.name, filename, piece.content_type, most, f"/form/{piece.name}")
            elif isinstance(piece, FieldEnd):
                assert current is not None
                if receiver is not None:
                    await self._end(current.name, receiver)
                else:
                    self.take_text(current.name, _utf8(text, current.name), f"/form/{current.name}")
                    text.clear()
            elif receiver is not None:
                await receiver.write(piece)
            else:
                text += piece
                if len(text) > CAP_BYTES:
                    assert current is not None
                    fault = FieldError(f"/form/{current.name}", "too much text: send it as a file, with a filename")
                    raise Invalid("a field of the form is too long", errors=[fault])

    async def _begin(self, param: str, filename: str, kind: str, most: int, pointer: str) -> Receiver:
        self._claim(param, pointer)
        opened, who = services(self.request), caller(self.request)
        receiver = Receiver(opened.pool, opened.store, who.project_id, name=filename, content_type=kind, most=most)
        await self.stack.enter_async_context(receiver)
        self._files[param] = receiver
        return receiver

    async def _end(self, param: str, receiver: Receiver) -> None:
        self.params[param] = (await receiver.complete()).uri

    def _claim(self, param: str, pointer: str) -> None:
        """One value for each param, and none that the function surely refuses: before a gigabyte has come."""
        if param in self._texts or param in self._files:
            raise Invalid(f"{param} is given twice", errors=[FieldError(pointer, "given twice")])
        if not self.version.params_schema.may_have((param,)):
            message = "the function has no such param"
            raise Invalid(f"{param}: {message}", code="params_invalid", errors=[FieldError(pointer, message)])

    def hash(self) -> bytes:
        """What makes a request another one: its params as they were sent, its files by their bytes."""
        files = {param: receiver.digest for param, receiver in self._files.items()}
        return hashlib.sha256(json.dumps([self._texts, files], sort_keys=True).encode()).digest()

    def keep(self, keep: bool) -> None:
        for receiver in self._files.values():
            receiver.kept = keep


def _first_input(version: Version) -> tuple[str, str]:
    """The param that names the first input file, and what that file is called."""
    for each in version.manifest.spec.job.files.inputs:
        lookup = None if each.url is None else each.url.lookup
        if lookup is not None and lookup.path[0] == "params" and len(lookup.path) == 2:
            return lookup.path[1], each.path.rsplit("/", 1)[-1]
    message = "no param names an input file of the function: it takes no body, only params in the query"
    raise Invalid(message, errors=[FieldError("", "unexpected body")])


def _utf8(text: bytearray, name: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        fault = FieldError(f"/form/{name}", "not UTF-8: send bytes as a file, with a filename")
        raise Invalid("a field of the form is no text", errors=[fault]) from None


async def _answer(request: Request, job: JobId, wait_s: int, headers: Mapping[str, str]) -> Response:
    record = await _read(request, job)
    if not record.finished and await ended(request, job, wait_s):
        record = await _read(request, job)
    name = ids.encode(ids.JOB, job)
    headers = {"RGrid-Job-Id": name, **headers}
    if not record.finished:
        place = request.path_params
        location = f"/f/{place['project']}/{place['function']}/jobs/{name}?wait={wait_s}"
        return Response(None, 303, {**headers, "Location": location})
    if record.status != "succeeded":
        answer = problem_response(_failure(record, name), request.scope["rgrid.request_id"])
        answer.headers.update(headers)
        return answer
    if not record.outputs:
        result = record.row["result"]
        return JSONResponse(None if result is None else json.loads(result), headers=headers)
    return StoredFile(request, services(request).store, record.outputs[0], headers)


async def _read(request: Request, job: JobId) -> JobRecord:
    """The job, if it is of the function and project in the address and the key may see it; raises ``NotFound``."""
    who, place = caller(request), request.path_params
    records = []
    if place["project"] == who.project:
        async with services(request).pool.acquire() as conn:
            records = await read_jobs(conn, who.project_id, [job])
    if (
        not records
        or records[0].row["function"] != place["function"]
        or (who.only_own and records[0].row["key_id"] != who.key_id)
    ):
        raise NotFound(f"there is no job {ids.encode(ids.JOB, job)}", code="job_not_found")
    return records[0]


def _failure(record: JobRecord, name: str) -> RGridError:
    """What a request is told whose job did not succeed."""
    error: dict[str, Any] = {} if record.row["error"] is None else json.loads(record.row["error"])
    code, message = error.get("code"), error.get("message") or f"it {record.status.replace('_', ' ')}"
    detail = f"{name}: {message}"
    if record.status == "cancelled":
        return Conflict(f"{name} was cancelled", code="job_cancelled")
    if record.status == "expired":
        return JobTimedOut(f"{name} did not start in time", code="job_expired")
    if record.status == "timed_out" or code == "deadline_exceeded":
        return JobTimedOut(detail, code=code or "timeout")
    if code == "input_unavailable":
        return Invalid(detail, code=code)
    if code == "budget_exceeded":
        return BudgetExceeded(detail)
    return JobFailed(detail, code=code or "internal")


ROUTES = (
    Route(
        "POST", "/f/{project}/{function}", run_on_file, "A file in, a file out", Scope.INVOKE,
        body=(OCTETS, FORM), body_required=False, query=FileQuery, headers=FileHeaders,
        answers={200: "*/*", 303: None, 402: Problem, 502: Problem, 504: Problem}, tag="files",
    ),
    Route(
        "GET", "/f/{project}/{function}/jobs/{id}", wait_for_file, "Wait for a file", Scope.READ, own=True,
        query=WaitQuery, tag="files",
        answers={200: "*/*", 303: None, 402: Problem, 409: Problem, 502: Problem, 504: Problem},
    ),
)  # fmt: skip
