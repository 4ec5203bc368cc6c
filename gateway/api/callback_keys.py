"""/v1/callbacks/secret and /v1/callbacks/keys: what a project's callbacks are signed with, and replacing it.

/callback-keys/{project} is open: a public key is for whoever receives a message.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import signing_keys
from functions.errors import NotFound
from functions.fields import duration_between
from functions.ids import ProjectId
from functions.names import NAME
from functions.signing_keys import PublicKey
from gateway.api.models import View
from gateway.routes import Route, Scope, caller, read_body, services
from scheduler.views import rfc3339

FRESH_S = 300
"""A receiver need not ask oftener which public keys there are: the new one signs beside the old one."""

PROJECT_NAMED = """
-- project_named
SELECT id FROM projects WHERE slug = $1
"""

Overlap = Annotated[timedelta, duration_between(timedelta(0), timedelta(days=30))]


class RotateRequest(BaseModel):
    """``overlap`` is how long the old one signs along; 0s: no longer, nor any before it."""

    model_config = ConfigDict(extra="forbid")

    overlap: Overlap = Field(default=timedelta(hours=24))


class SecretAnswer(View):
    """``secret`` is a Standard Webhooks key (``whsec_…``) for any of their libraries."""

    secret: str


class Rotated(SecretAnswer):
    """``previous_until``: so long the one before signs along; null if it does not."""

    previous_until: datetime | None


class PublicKeyView(View):
    """``expires_at``: until then it signs along; null for the current one."""

    algorithm: Literal["ed25519"]
    public_key: str
    pem: str
    expires_at: datetime | None


class PublicKeys(View):
    """The public halves of the keys behind ``v1a`` signatures, the current one first."""

    keys: list[PublicKeyView]


async def read_secret(request: Request) -> Response:
    """GET /v1/callbacks/secret: the key of all messages whose callback has none of its own."""
    opened = services(request)
    async with opened.pool.acquire() as conn:
        secret = await signing_keys.project_secret(conn, opened.sealer, caller(request).project_id)
    return JSONResponse({"secret": secret})


async def rotate_secret(request: Request) -> Response:
    """POST /v1/callbacks/secret/rotate: give the project a new secret. The old one signs along for `overlap`: a day,
    unless the body says otherwise."""
    body = await read_body(request, RotateRequest)
    opened = services(request)
    async with opened.pool.acquire() as conn, conn.transaction():
        done = await signing_keys.rotate_project_secret(
            conn, opened.sealer, caller(request).project_id, body.overlap
        )
    return JSONResponse(rotated_view(done))


async def read_keys(request: Request) -> Response:
    """GET /v1/callbacks/keys: the public keys that verify `v1a` signatures."""
    return JSONResponse(await _keys(request, caller(request).project_id))


async def rotate_key(request: Request) -> Response:
    """POST /v1/callbacks/keys/rotate: give the project a new ed25519 key. The old one signs along for `overlap`: a day,
    unless the body says otherwise."""
    body = await read_body(request, RotateRequest)
    opened, project = services(request), caller(request).project_id
    async with opened.pool.acquire() as conn, conn.transaction():
        await signing_keys.rotate_project_key(conn, opened.sealer, project, body.overlap)
    return JSONResponse(await _keys(request, project))


async def published(request: Request) -> Response:
    """GET /callback-keys/{project}: the public keys that verify `v1a` signatures of a project's callbacks."""
    name = request.path_params["project"]
    async with services(request).pool.acquire() as conn:
        project = await conn.fetchval(PROJECT_NAMED, name) if NAME.fullmatch(name) else None
    if project is None:
        raise NotFound("there is no such project")
    return JSONResponse(await _keys(request, project), headers={"Cache-Control": f"public, max-age={FRESH_S}"})


async def _keys(request: Request, project: ProjectId) -> dict[str, Any]:
    opened = services(request)
    async with opened.pool.acquire() as conn:
        found = await signing_keys.public_keys(conn, opened.sealer, project)
    return {"keys": [_key_view(key) for key in found]}


def _key_view(key: PublicKey) -> dict[str, Any]:
    return {
        "algorithm": "ed25519",
        "public_key": key.text,
        "pem": key.pem,
        "expires_at": rfc3339(key.expires_at),
    }


def rotated_view(done: signing_keys.Rotated) -> dict[str, Any]:
    return {"secret": done.secret, "previous_until": rfc3339(done.previous_until)}


ROUTES = (
    Route("GET", "/v1/callbacks/secret", read_secret, "Show the project's key of signatures", Scope.WRITE,
          answers={200: SecretAnswer}, tag="callbacks"),
    Route("POST", "/v1/callbacks/secret/rotate", rotate_secret, "Replace the project's key of signatures", Scope.WRITE,
          body=RotateRequest, body_required=False, answers={200: Rotated}, tag="callbacks"),
    Route("GET", "/v1/callbacks/keys", read_keys, "Show the public keys of signatures", Scope.READ,
          answers={200: PublicKeys}, tag="callbacks"),
    Route("POST", "/v1/callbacks/keys/rotate", rotate_key, "Replace the ed25519 key of signatures", Scope.WRITE,
          body=RotateRequest, body_required=False, answers={200: PublicKeys}, tag="callbacks"),
    Route("GET", "/callback-keys/{project}", published, "Show a project's public keys of signatures", None,
          answers={200: PublicKeys}, tag="callbacks"),
)  # fmt: skip
