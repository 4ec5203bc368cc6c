"""POST /v1/functions/{name}/invoke: params in, a job out, and its outcome if the caller waits."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import registry
from functions.documents import load_json
from functions.egress import EgressPolicy, EgressRefused, check_url
from functions.errors import FieldError, Invalid, RGridError
from functions.grammar import JOB_EVENTS
from functions.ids import JobId
from functions.quantities import parse_duration
from functions.queue_spec import LONGEST_HEAD_START
from functions.versions import Version
from gateway.api.models.invoking import DryRun, QuoteView
from gateway.api.models.jobs import JobView
from gateway.api.submitting import replay, submit
from gateway.body import JSON
from gateway.prefer import read_prefer
from gateway.routes import (
    IdempotencyKey,
    Route,
    Scope,
    caller,
    has_body,
    read_headers,
    read_query,
    read_raw,
    services,
)
from scheduler import jobs, preparing, quotes
from scheduler.inputs import check_inputs
from scheduler.preparing import Invocation
from scheduler.queue import NewJob

LONGEST_DELAY = timedelta(days=30)
LONGEST_CANCEL_AFTER = timedelta(days=60)

MONEY, MONEY_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?"), 9
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def _delay(text: str) -> str:
    if parse_duration(text) > LONGEST_DELAY:
        raise ValueError(f"longer than {LONGEST_DELAY.days} days")
    return text


def _priority(text: str) -> str:
    if parse_duration(text) > LONGEST_HEAD_START:
        raise ValueError("longer than a day")
    return text


def _cancel_after(text: str) -> str:
    if not timedelta(0) < parse_duration(text) <= LONGEST_CANCEL_AFTER:
        raise ValueError(f"between 1ms and {LONGEST_CANCEL_AFTER.days} days")
    return text


def _max_cost(text: str) -> str:
    if not MONEY.fullmatch(text) or sum(map(str.isdigit, text)) > MONEY_DIGITS or not Decimal(text):
        raise ValueError(f"takes EUR like 0.05: more than 0, with {MONEY_DIGITS} digits at most")
    return text


def _events(text: str) -> str:
    unknown = [event for event in split_events(text) if event not in JOB_EVENTS]
    if unknown or not text.strip():
        raise ValueError(f"takes a list of {', '.join(JOB_EVENTS)}")
    return text


class Params(RootModel[dict[str, Any]]):
    """The function's params, as its schema describes them. No body is no params."""


class InvokeQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(False, description="Check everything and make no job.")
    quote: bool = Field(
        False, description="Make no job; say what the function's last jobs took and cost, median and 95th percentile."
    )


class JobHeaders(BaseModel):
    """What a job may be asked to be, whatever it is made of."""

    idempotency_key: IdempotencyKey | None = Field(
        None, alias="Idempotency-Key", description="The same key and body within 24 hours: the same job."
    )
    callback_url: str | None = Field(
        None, alias="X-Callback-Url", description="Told of the outcome, or of what `X-Callback-Events` names."
    )
    callback_events: Annotated[str, AfterValidator(_events)] | None = Field(
        None, alias="X-Callback-Events", description="Events that it is told of, with commas between them."
    )
    delay: Annotated[str, AfterValidator(_delay)] | None = Field(
        None, alias="RGrid-Delay", description="Start no sooner than in this time, for instance `10m`."
    )
    cancel_after: Annotated[str, AfterValidator(_cancel_after)] | None = Field(
        None, alias="Cancel-After", description="Cancel the job if it has not ended in this time, waiting included."
    )
    priority: Annotated[str, AfterValidator(_priority)] | None = Field(
        None,
        alias="RGrid-Priority",
        description="As if it had come so much earlier than the project's others; instead of the manifest's.",
    )
    lane: Literal["standard", "paid"] | None = Field(
        None, alias="RGrid-Lane", description="`standard` or `paid`; instead of the manifest's."
    )
    max_cost: Annotated[str, AfterValidator(_max_cost)] | None = Field(
        None,
        alias="RGrid-Max-Cost",
        description="EUR (net) that running it may cost, all attempts together: then it fails with `budget_exceeded`. "
        "402 if it typically costs more.",
    )
    traceparent: str | None = Field(None, description="W3C trace context; a malformed one is ignored.")


class RunHeaders(JobHeaders):
    prefer: str | None = Field(
        None, alias="Prefer", description="`wait=N`: hold the answer for up to N seconds (300 at most)."
    )


class InvokeHeaders(RunHeaders):
    version: str | None = Field(
        None, alias="RGrid-Version", pattern=r"^[1-9][0-9]{0,8}$", description="Not the current version."
    )


async def invoke(request: Request) -> Response:
    """202 with the job; with `Prefer: wait` 200 with the finished one, if it finishes in time."""
    opened, who = services(request), caller(request)
    query, headers = read_query(request, InvokeQuery), read_headers(request, InvokeHeaders)
    asked = read_asked(request, headers)
    preference = read_prefer(headers.prefer)
    params, body_hash = await _read_params(request)
    invocation = replace(asked, params=params, body_hash=body_hash)
    async with opened.pool.acquire() as conn:
        version = await registry.current(
            conn,
            who.project_id,
            request.path_params["name"],
            number=None if headers.version is None else int(headers.version),
        )
    try:
        new = preparing.prepare(who.project_id, version, invocation, opened.sizing)
        await check_inputs(opened.pool, new, opened.egress)
    except Invalid:
        # A repeat has its answer, whatever the function has become since.
        if (before := await made_before(request, version, invocation)) is None:
            raise
        return await replay(request, before, preference)
    if query.quote:
        return JSONResponse(await _quote(request, version))
    if query.dry_run:
        return JSONResponse(dry_run(version, new))
    return await submit(request, new, version, preference)


def read_asked(request: Request, headers: JobHeaders) -> Invocation:
    """What the headers ask for, without params; raises ``Invalid`` for what cannot be had."""
    if headers.callback_url is not None:
        _check_callback(headers.callback_url, services(request).callback_egress)
    elif headers.callback_events is not None:
        fault = FieldError("/header/X-Callback-Events", "goes with an X-Callback-Url")
        raise Invalid("there is nobody to tell of these events", errors=[fault])
    return Invocation(
        params={},
        trigger={"kind": "manual"},
        callback_url=headers.callback_url,
        callback_events=None if headers.callback_events is None else tuple(split_events(headers.callback_events)),
        delay=None if headers.delay is None else parse_duration(headers.delay) or None,
        idempotency_key=headers.idempotency_key,
        traceparent=_traceparent(headers.traceparent),
        key_id=caller(request).key_id,
        cancel_after=None if headers.cancel_after is None else parse_duration(headers.cancel_after),
        head_start=None if headers.priority is None else parse_duration(headers.priority),
        lane=headers.lane,
        max_cost=None if headers.max_cost is None else Decimal(headers.max_cost),
    )


async def made_before(request: Request, version: Version, invocation: Invocation) -> JobId | None:
    """The job that a request with the same key and body made; raises if the body was another one."""
    key, body_hash, function = invocation.idempotency_key, invocation.body_hash, version.function_id
    if key is None or body_hash is None:
        return None
    async with services(request).pool.acquire() as conn:
        before = await jobs.made_before(conn, caller(request).project_id, function, key, body_hash)
    if isinstance(before, RGridError):
        raise before
    return None if before is None else before.job_id


def _check_callback(url: str, policy: EgressPolicy) -> None:
    try:
        if not url.isascii():  # bytes of a header have no encoding: it might be another name than was meant
            raise EgressRefused("syntax", "a URL in a header must be ASCII, its host in punycode")
        check_url(url, policy)
    except EgressRefused as refused:
        fault = FieldError("/header/X-Callback-Url", refused.message)
        raise Invalid(f"the callback: {refused.message}", code=refused.code, errors=[fault]) from None


async def _read_params(request: Request) -> tuple[dict[str, Any], bytes]:
    """The params, and the SHA-256 of the body as it was sent."""
    if not has_body(request):
        return {}, hashlib.sha256().digest()
    data = await read_raw(request, media_types=(JSON,))
    params = load_json(data)
    if not isinstance(params, dict):
        raise Invalid("the params are a JSON object", errors=[FieldError("", "not an object")])
    return params, hashlib.sha256(data).digest()


def split_events(events: str) -> list[str]:
    return list(dict.fromkeys(event.strip() for event in events.split(",")))


def _traceparent(text: str | None) -> str | None:
    return text if text is not None and TRACEPARENT.fullmatch(text) else None


async def _quote(request: Request, version: Version) -> dict[str, Any]:
    assert version.function_id is not None
    async with services(request).pool.acquire() as conn:
        found = await quotes.quote(conn, version.project_id, version.function_id)
    return {"function": version.function_name, "version": version.number, **found}


def dry_run(version: Version, new: NewJob) -> dict[str, Any]:
    return {
        "valid": True,
        "function": version.function_name,
        "version": version.number,
        "params": json.loads(new.params),
    }


ROUTES = (
    Route("POST", "/v1/functions/{name}/invoke", invoke, "Invoke a function", Scope.INVOKE,
          body=Params, body_required=False, query=InvokeQuery, headers=InvokeHeaders,
          answers={200: (JobView, DryRun, QuoteView), 202: JobView}, tag="functions"),
)  # fmt: skip
