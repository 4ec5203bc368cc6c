"""/v1/callbacks: endpoints of a project's events, those of manifests as well; and the keys that their receivers
verify messages with in /v1/callbacks/{id}/secret, and for what has none of its own in gateway/api/callback_keys.py."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import endpoint_health, endpoints, ids, secrets, signing, signing_keys
from functions.egress import EgressRefused, check_url, origin_of, refused_names
from functions.endpoint_health import DISABLED_BY_HAND
from functions.endpoints import EndpointRow, NewEndpoint
from functions.errors import FieldError, Invalid, NotFound
from functions.grammar import OUTCOMES, PROJECT_EVENTS
from functions.ids import EndpointId
from functions.names import NAME
from functions.secret_names import SecretNames, places_of_names
from gateway.api import paging
from gateway.api.callback_keys import Rotated, RotateRequest, SecretAnswer, rotated_view
from gateway.api.filtering import Time
from gateway.api.models import NothingMore, View
from gateway.api.paging import PageQuery
from gateway.problems import Problem
from gateway.routes import Route, Scope, caller, read_body, read_query, services
from scheduler import deliveries, redelivering
from scheduler.callbacks import Endpoint
from scheduler.new_deliveries import DISABLED
from scheduler.views import rfc3339
from scheduler.wakeups import Topic

MOST_FUNCTIONS = 100
RECOVERED_AT_ONCE, RECOVERED_AT_MOST = 2_000, 100_000

def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("has an entry that stands twice")
    return values


def _event(event: str) -> str:
    if event not in PROJECT_EVENTS:
        raise ValueError(f"is one of {', '.join(PROJECT_EVENTS)}")
    return event


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has a character that cannot be printed")
    return text


Event = Annotated[str, AfterValidator(_event), Field(json_schema_extra={"enum": [*PROJECT_EVENTS]})]
Events = Annotated[list[Event], Field(min_length=1, max_length=len(PROJECT_EVENTS)), AfterValidator(_distinct)]
Functions = Annotated[
    list[Annotated[str, Field(pattern=f"^{NAME.pattern}$")]],
    Field(min_length=1, max_length=MOST_FUNCTIONS),
    AfterValidator(_distinct),
]
Url = Annotated[str, Field(min_length=1, max_length=8192)]
Description = Annotated[str, Field(max_length=1000), AfterValidator(_plain)]


class CallbackRequest(BaseModel):
    """``functions`` null: of everything that the project runs. ``secret`` names one project secret, or two while one is
    replaced; without it the callback gets a key of its own."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    events: Events = Field(default_factory=lambda: list(OUTCOMES))
    functions: Functions | None = None
    secret: SecretNames | None = None
    description: Description = ""
    enabled: bool = True


class CallbackChange(BaseModel):
    """What is left out stays as it is. Of one that stands in a manifest only ``enabled`` can be set here.

    ``secret`` names the project secrets that sign from now on, in place of those before or of a key of its own."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    events: Events | None = None
    functions: Functions | None = None
    secret: SecretNames | None = None
    description: Description | None = None
    enabled: bool | None = None


class CallbackView(View):
    """``function`` is the one whose manifest names it, ``functions`` those of which it hears (null: all).

    ``signed_by``: its own secret, the project's, or project secrets by ``secret``; until ``rotating_until`` an earlier
    one signs along."""

    id: str
    url: str
    events: list[str]
    functions: list[str] | None
    description: str
    origin: Literal["api", "manifest"]
    function: str | None
    signed_by: Literal["callback", "project", "secrets"]
    secret: list[str] | None
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None
    failing_since: datetime | None
    rotating_until: datetime | None
    created_at: datetime
    updated_at: datetime


class CallbackCreated(CallbackView):
    """``signing_secret`` is its own one (``whsec_…``), null where others sign."""

    signing_secret: str | None


class CallbackList(View):
    data: list[CallbackView]
    next_cursor: str | None


class CallbacksQuery(PageQuery):
    function: str | None = Field(None, max_length=63, description="Of this function's manifest, or asking for it.")


class TestSent(View):
    delivery: str


class RecoverRequest(BaseModel):
    """What was given up of events at ``since`` or later, and before ``until``, is sent again."""

    model_config = ConfigDict(extra="forbid")

    since: Time
    until: Time | None = None


class Recovered(View):
    """``more``: there is more of it than one call takes; ask again."""

    recovered: int
    more: bool


async def create(request: Request) -> Response:
    """POST /v1/callbacks: tell an address of the project's events. Its secret is in this answer."""
    body = await read_body(request, CallbackRequest)
    opened, project = services(request), caller(request).project_id
    await _check_address(request, body.url)
    secret = None if body.secret is not None else signing.new_secret()
    async with opened.pool.acquire() as conn, conn.transaction():
        if body.secret is not None:
            await secrets.require(conn, project, places_of_names(body.secret, "/secret"))
        await endpoints.require_functions(conn, project, _places(body.functions))
        row = await endpoints.add(
            conn,
            project,
            NewEndpoint(
                url=body.url,
                events=tuple(body.events),
                functions=None if body.functions is None else tuple(body.functions),
                description=body.description,
                secrets=body.secret,
                signing_key=None if secret is None else opened.sealer.seal(secret.encode()),
                enabled=body.enabled,
            ),
        )
    return JSONResponse(callback_view(row) | {"signing_secret": secret}, 201)


async def list_callbacks(request: Request) -> Response:
    """GET /v1/callbacks: who is told of the project's events, those of manifests as well, the newest first."""
    query = read_query(request, CallbacksQuery)
    before = paging.start(request, query)
    function = query.function
    if function is not None and not NAME.fullmatch(function):
        function = "-"  # no function's name
    async with services(request).pool.acquire() as conn:
        rows = await endpoints.list_endpoints(
            conn, caller(request).project_id, function=function, limit=query.limit + 1, before=before
        )
    return paging.page(request, rows, query, callback_view, lambda row: row.id)


async def show(request: Request) -> Response:
    """GET /v1/callbacks/{id}: one of them."""
    async with services(request).pool.acquire() as conn:
        row = await endpoints.read(conn, caller(request).project_id, _endpoint(request))
    return JSONResponse(callback_view(row))


async def change(request: Request) -> Response:
    """PATCH /v1/callbacks/{id}: change one. What has not reached it goes to its new address; disabled, it is sent
    nothing, and what waits is given up."""
    body, endpoint = await read_body(request, CallbackChange), _endpoint(request)
    opened, project = services(request), caller(request).project_id
    changes: dict[str, Any] = {
        name: getattr(body, name)
        for name in ("url", "events", "functions", "description")
        # Of these null means something for one only.
        if name in body.model_fields_set and (name == "functions" or getattr(body, name) is not None)
    }
    if body.secret is not None:
        changes["secrets"] = body.secret
    if "url" in changes:
        await _check_address(request, body.url or "")
    async with opened.pool.acquire() as conn, conn.transaction():
        before = await endpoints.read(conn, project, endpoint)
        if changes:
            if body.secret is not None:
                await secrets.require(conn, project, places_of_names(body.secret, "/secret"))
            await endpoints.require_functions(conn, project, _places(body.functions))
            await endpoints.change(conn, project, endpoint, changes)
            if body.url not in (None, before.url):
                await redelivering.move(conn, project, endpoint, str(body.url))
        if body.enabled:
            await endpoint_health.enable(conn, project, endpoint)
        elif body.enabled is False and await endpoint_health.disable(conn, project, endpoint, DISABLED_BY_HAND):
            await deliveries.end_pending(conn, project, endpoint, body.url or before.url, DISABLED)
        row = await endpoints.read(conn, project, endpoint)
    return JSONResponse(callback_view(row))


async def delete(request: Request) -> Response:
    """DELETE /v1/callbacks/{id}: tell it nothing more; what waits is given up. One of a manifest is taken out there."""
    endpoint, project = _endpoint(request), caller(request).project_id
    async with services(request).pool.acquire() as conn, conn.transaction():
        before = await endpoints.read(conn, project, endpoint)
        await endpoints.delete(conn, project, endpoint)
        await deliveries.end_pending(conn, project, endpoint, before.url, deliveries.DELETED)
    return Response(status_code=204)


async def read_own_secret(request: Request) -> Response:
    """GET /v1/callbacks/{id}/secret: the current key that its messages are signed with."""
    opened, endpoint, project = services(request), _endpoint(request), caller(request).project_id
    async with opened.pool.acquire() as conn:
        secret = await signing_keys.endpoint_secret(conn, opened.sealer, project, endpoint)
    return JSONResponse({"secret": secret})


async def rotate(request: Request) -> Response:
    """POST /v1/callbacks/{id}/rotate: give it a new secret. The old one signs along for `overlap` (a day, unless the
    body says otherwise), so that its receiver has time to change."""
    body, endpoint = await read_body(request, RotateRequest), _endpoint(request)
    opened, project = services(request), caller(request).project_id
    async with opened.pool.acquire() as conn, conn.transaction():
        done = await signing_keys.rotate_endpoint(conn, opened.sealer, project, endpoint, body.overlap)
    return JSONResponse(rotated_view(done))


async def test(request: Request) -> Response:
    """POST /v1/callbacks/{id}/test: send it an event `callback.test`, once, whatever events it asks for. It is sent to
    one that is disabled, too."""
    await read_body(request, NothingMore)
    endpoint = _endpoint(request)
    opened, project = services(request), caller(request).project_id
    async with opened.pool.acquire() as conn, conn.transaction():
        row = await endpoints.read(conn, project, endpoint)
        payload = {"callback": ids.encode(ids.CALLBACK, endpoint), "message": "A test: nothing has happened."}
        (delivery,) = await deliveries.add(
            conn, project, endpoint, deliveries.TEST, [Endpoint(row.url, origin_of(row.url), endpoint)],
            payload=payload, moment=datetime.now(UTC),
        )  # fmt: skip
    opened.wakeups.hint(Topic.DELIVERY)
    return JSONResponse({"delivery": ids.encode(ids.MESSAGE, delivery)}, 202)


async def recover(request: Request) -> Response:
    """POST /v1/callbacks/{id}/recover: send again what was given up since a time, the oldest events first."""
    body, endpoint = await read_body(request, RecoverRequest), _endpoint(request)
    if body.until is not None and body.until <= body.since:
        raise Invalid("there is no time between since and until", errors=[FieldError("/until", "not after since")])
    opened, project = services(request), caller(request).project_id
    recovered, found = 0, RECOVERED_AT_ONCE
    async with opened.pool.acquire() as conn:
        await endpoints.read(conn, project, endpoint)
        await redelivering.require_enabled(conn, project, endpoint)
        while found == RECOVERED_AT_ONCE and recovered < RECOVERED_AT_MOST:
            found = await redelivering.recover(
                conn, project, endpoint, body.since, body.until, limit=RECOVERED_AT_ONCE
            )
            recovered += found
            opened.wakeups.hint(Topic.DELIVERY)
    return JSONResponse({"recovered": recovered, "more": found == RECOVERED_AT_ONCE}, 202)


def _endpoint(request: Request) -> EndpointId:
    found = ids.decode(ids.CALLBACK, request.path_params["id"])
    if found is None:
        raise NotFound("there is no such callback", code="callback_not_found")
    return EndpointId(found)


async def _check_address(request: Request, url: str) -> None:
    policy = services(request).callback_egress
    try:
        check_url(url, policy)
        if (leads := (await refused_names([url], policy)).get(url)) is not None:
            raise leads
    except EgressRefused as refused:
        fault = FieldError("/url", refused.message)
        raise Invalid(f"/url: {refused.message}", code=refused.code, errors=[fault]) from None


def _places(functions: list[str] | None) -> Mapping[str, str]:
    return {f"/functions/{index}": name for index, name in enumerate(functions or ())}


def callback_view(row: EndpointRow) -> dict[str, Any]:
    return {
        "id": ids.encode(ids.CALLBACK, row.id),
        "url": row.url,
        "events": list(row.events),
        "functions": None if row.functions is None else list(row.functions),
        "description": row.description,
        "origin": "api" if row.function is None else "manifest",
        "function": row.function,
        "signed_by": "callback" if row.has_key else "project" if row.secrets is None else "secrets",
        "secret": None if row.secrets is None else list(row.secrets),
        "enabled": row.disabled_at is None,
        "disabled_at": rfc3339(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "failing_since": rfc3339(row.failing_since),
        "rotating_until": rfc3339(row.rotating_until),
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }


ROUTES = (
    Route("POST", "/v1/callbacks", create, "Tell an address of events", Scope.WRITE,
          body=CallbackRequest, answers={201: CallbackCreated}, tag="callbacks"),
    Route("GET", "/v1/callbacks", list_callbacks, "List callbacks", Scope.READ,
          query=CallbacksQuery, answers={200: CallbackList}, tag="callbacks"),
    Route("GET", "/v1/callbacks/{id}", show, "Show a callback", Scope.READ,
          answers={200: CallbackView}, tag="callbacks"),
    Route("PATCH", "/v1/callbacks/{id}", change, "Change a callback", Scope.WRITE,
          body=CallbackChange, body_required=False, answers={200: CallbackView}, tag="callbacks"),
    Route("DELETE", "/v1/callbacks/{id}", delete, "Delete a callback", Scope.WRITE,
          answers={204: None}, tag="callbacks"),
    Route("GET", "/v1/callbacks/{id}/secret", read_own_secret, "Show a callback's key", Scope.WRITE,
          answers={200: SecretAnswer, 409: Problem}, tag="callbacks"),
    Route("POST", "/v1/callbacks/{id}/rotate", rotate, "Replace a callback's key", Scope.WRITE,
          body=RotateRequest, body_required=False, answers={200: Rotated}, tag="callbacks"),
    Route("POST", "/v1/callbacks/{id}/test", test, "Send a test event", Scope.WRITE,
          body=NothingMore, body_required=False, answers={202: TestSent}, tag="callbacks"),
    Route("POST", "/v1/callbacks/{id}/recover", recover, "Send again what was given up", Scope.WRITE,
          body=RecoverRequest, answers={202: Recovered}, tag="callbacks"),
)  # fmt: skip
