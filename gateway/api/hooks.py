"""/hooks/{project}/{function}/{webhook}: requests of senders that hold no key, but sign what they send.

Nothing of a body is looked at before its signature is verified over the bytes as they came. A 2xx that names a job
comes after the commit that holds the job, the sender's id and the receipt.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids, uploads, webhooks
from functions.errors import Invalid, LimitReached, RGridError, Unauthenticated
from functions.handshakes import reply_to
from functions.ids import JobId
from functions.uploads import Upload
from functions.verifying import NONE, Headers, Received, Unverified, pretend, verify
from functions.webhook_ids import delivery_id
from functions.webhook_spec import passes
from functions.webhooks import Address, Called
from gateway.api.models.jobs import JobView
from gateway.api.models.webhooks import HandshakeAnswer, HookAnswer
from gateway.api.submitting import answer_with, enter
from gateway.hooking import Call, job_of, kind_of, new_receipt
from gateway.prefer import LONGEST_S, Preference, read_prefer
from gateway.problems import Problem
from gateway.routes import Route, read_headers, read_query, read_raw, services
from scheduler import idempotency, receipts
from scheduler.queue import NewJob
from scheduler.receipts import Verdict
from scheduler.views import new_record, read_jobs

PATIENCE_S = 10.0
"""Senders give up after some ten seconds themselves."""
BODIES = ("application/json", "application/x-www-form-urlencoded", "application/cloudevents+json", "text/plain")
MINUTE_S = 60


class HookQuery(BaseModel):
    """Every other parameter is the sender's own."""

    model_config = ConfigDict(extra="allow")

    wait: int | None = Field(
        None, ge=0, le=LONGEST_S, description="Seconds to hold the answer for the job's end, as `Prefer: wait` does."
    )


class HookHeaders(BaseModel):
    prefer: str | None = Field(None, alias="Prefer", description="`wait=N`, as at invoke.")


async def receive(request: Request) -> Response:
    """POST /hooks/{project}/{function}/{webhook}: 202 with the job; 200 with the first one's if the sender has sent it
    before; 204 if the webhook lets it pass by. 401 when the signature is not valid. Handshakes are answered.
    """
    opened = services(request)
    pairs: list[tuple[bytes, bytes]] = request.scope["headers"]
    headers, raw_query = Headers(pairs), request.scope["query_string"]
    # Hardly any sender has one or the other, and a model costs more than the signature.
    query = read_query(request, HookQuery) if raw_query else HookQuery.model_construct()
    preference = read_prefer(read_headers(request, HookHeaders).prefer) if "prefer" in headers else Preference()
    if query.wait is not None:
        preference = Preference(query.wait, f"wait={query.wait}")
    body = await read_raw(request, patience_s=PATIENCE_S)
    called = await _find(request)
    if called is None:
        pretend(body)
        raise webhooks.not_found()
    receipt = new_receipt(called, pairs, raw_query, body)
    call = Call(called, headers, query.model_extra or {}, body, receipt)
    try:
        received = Received(headers, body, _url(request, raw_query), time.time())
        secrets = opened.hooks.secrets(called.sealed)
        verified = verify(called.spec.verify, received, secrets, called.spec.options)
    except Unverified as reason:
        if opened.hooks.notes(receipt):
            await _note(request, call, Verdict.REFUSED, reason=str(reason))
        raise Unauthenticated("the signature is not valid", code="signature_invalid") from None
    if wait_s := _over(request, called):
        limited = LimitReached("the webhook is called too often: try again later", retry_after_s=wait_s)
        if opened.hooks.notes(receipt):
            await _note(request, call, Verdict.REJECTED, reason=limited.message)
        raise limited
    return await _take(request, call, verified, preference)


async def validate(request: Request) -> Response:
    """OPTIONS /hooks/{project}/{function}/{webhook}: a sender of CloudEvents asks whether and how often it may send."""
    called = await _find(request)
    if called is None:
        raise webhooks.not_found()
    headers = {"Allow": "OPTIONS, POST"}
    origin = Headers(request.scope["headers"]).get("webhook-request-origin")
    if origin is not None:
        limit, per_s = _rate(request, called)
        headers["WebHook-Allowed-Origin"] = origin if origin.isprintable() and origin.isascii() else "*"
        headers["WebHook-Allowed-Rate"] = str(max(int(limit * MINUTE_S / per_s), 1))
    return Response(None, 200, headers)


async def _find(request: Request) -> Called | None:
    place = request.path_params
    return await services(request).hooks.find(Address(place["project"], place["function"], place["webhook"]))


def _url(request: Request, query: bytes) -> str:
    """As the sender was given it: of the settings, never of a Host header, which is the sender's."""
    path: bytes = request.scope["raw_path"]
    asked = b"?" + query if query else b""
    return services(request).settings.base_url + (path + asked).decode("latin-1")


def _rate(request: Request, called: Called) -> tuple[float, float]:
    rate = called.spec.rate
    if rate is None:
        return services(request).settings.webhook_rate, 1.0
    return rate.limit, rate.per.total_seconds()


def _over(request: Request, called: Called) -> float:
    limit, per_s = _rate(request, called)
    return services(request).hooks.taken.wait_s(called.id, limit=limit, per_s=per_s)


async def _take(request: Request, call: Call, verified: str | None, preference: Preference) -> Response:
    """What becomes of a request that somebody with a secret has sent."""
    opened, spec = services(request), call.called.spec
    try:
        values = call.values()
        if (reply := reply_to(spec, call.headers, values["body"])) is not None:
            await _note(request, call, Verdict.ANSWERED)
            return Response(status_code=204) if reply.content is None else JSONResponse(reply.content)
        if not passes(spec, values):
            await _note(request, call, Verdict.FILTERED)
            return Response(status_code=204)
        if (delivery := delivery_id(spec, call.headers, values, verified)) is not None:
            call = replace(call, receipt=replace(call.receipt, delivery=delivery))
        new = await job_of(opened, call, values, key=_key(delivery))
    except RGridError as error:
        # A repeat has its answer, whatever the function has become since.
        if isinstance(error, Invalid) and (before := await _before(request, call)) is not None:
            return await _repeat(request, call, *before, preference)
        await _note(request, call, Verdict.INVALID, reason=error.message)
        raise
    return await _submit(request, new, call, preference)


async def _submit(request: Request, new: NewJob, call: Call, preference: Preference) -> Response:
    opened = services(request)
    receipt, upload = await receipts.kept(opened.pool, opened.store, call.receipt, call.body, kind_of(call))
    try:
        answer, new = await enter(request, new if receipt is call.receipt else replace(new, receipt=receipt))
    except RGridError:
        await _discard(request, upload)
        raise
    if answer.created_at is None:
        await _discard(request, upload)
        return await _repeat(request, call, answer.job_id, answer.other_body, preference)
    record = new_record(new, call.called.version, answer.created_at)
    if new.on_limit == "reject":  # then it may have failed already
        async with opened.pool.acquire() as conn:
            (record,) = await read_jobs(conn, call.called.project_id, [new.id])
    return await answer_with(request, record, preference, {})


async def _before(request: Request, call: Call) -> tuple[JobId, bool] | None:
    """The job that the sender's id made before, and whether that came with another body."""
    key = _key(call.receipt.delivery)
    if key is None:
        return None
    async with services(request).pool.acquire() as conn:
        first = await idempotency.find(conn, call.called.project_id, call.called.id, key)
    return None if first is None else (first[0], first[1] != hashlib.sha256(call.body).digest())


async def _repeat(request: Request, call: Call, job: JobId, other_body: bool, preference: Preference) -> Response:
    """200 with the first one's job: with no more than its id if anybody may ask, or if it was another request's."""
    reason = "the sender has sent another body under this id before" if other_body else None
    await _note(request, call, Verdict.REPEATED, job=job, reason=reason)
    headers = {"Idempotent-Replayed": "true"}
    if not other_body and call.called.spec.verify != NONE:
        async with services(request).pool.acquire() as conn:
            found = await read_jobs(conn, call.called.project_id, [job])
        if found:  # its retention may be over
            return await answer_with(request, found[0], preference, headers, unfinished=200)
    return JSONResponse({"id": ids.encode(ids.JOB, job)}, headers=headers)


async def _note(
    request: Request, call: Call, verdict: Verdict, *, job: JobId | None = None, reason: str | None = None
) -> None:
    """Keep what came. A large body only where it may be wanted again, and that of a stranger hardly at all."""
    opened = services(request)
    receipt = replace(call.receipt, reason=reason)
    if verdict in (Verdict.FILTERED, Verdict.INVALID):
        receipt, _ = await receipts.kept(opened.pool, opened.store, receipt, call.body, kind_of(call))
    elif verdict is Verdict.REFUSED:
        receipt = receipts.of_stranger(receipt, call.body)
    else:
        receipt = replace(receipt, body=call.body[: receipts.INLINE_BYTES])  # its beginning
    async with opened.pool.acquire() as conn:
        await receipts.record(conn, receipt, verdict, job)


async def _discard(request: Request, upload: Upload | None) -> None:
    if upload is not None:
        await uploads.discard(services(request).pool, services(request).store, upload)


def _key(delivery: str | None) -> str | None:
    return None if delivery is None else f"id:{delivery}"


ROUTES = (
    Route(
        "POST", "/hooks/{project}/{function}/{webhook}", receive, "Receive a webhook", None,
        body=BODIES, body_required=False, query=HookQuery, headers=HookHeaders,
        answers={200: (JobView, HookAnswer, HandshakeAnswer), 202: JobView, 204: None, 401: Problem, 429: Problem},
        tag="webhooks",
    ),
    Route(
        "OPTIONS", "/hooks/{project}/{function}/{webhook}", validate, "Ask whether CloudEvents may be sent", None,
        query=HookQuery, answers={200: None}, tag="webhooks",
    ),
)  # fmt: skip
