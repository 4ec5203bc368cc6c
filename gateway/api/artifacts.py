"""/v1/artifacts/{id} and /r/{token}: files, and fresh links to them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import artifacts, ids
from functions.artifacts import Artifact
from functions.errors import NotFound
from functions.ids import ArtifactId
from gateway.api.models import NothingMore
from gateway.api.models.files import ArtifactView
from gateway.links import JobLinks
from gateway.problems import Problem
from gateway.routes import Route, Scope, caller, read_body, services
from scheduler.views import rfc3339


async def read_artifact(request: Request) -> Response:
    """GET /v1/artifacts/{id}: a file of the project, with a fresh presigned link."""
    artifact_id, opened = artifact_of(request), services(request)
    async with opened.pool.acquire() as conn:
        artifact = await artifacts.get(conn, caller(request).project_id, artifact_id)
    return JSONResponse(artifact_view(artifact, opened.links))


async def revoke_link(request: Request) -> Response:
    """POST /v1/artifacts/{id}/revoke-link: the stable link leads nowhere from now on; the answer has another one.
    Presigned links that were given out work until they run out."""
    await read_body(request, NothingMore)
    artifact_id, opened = artifact_of(request), services(request)
    async with opened.pool.acquire() as conn, conn.transaction():
        artifact = await artifacts.renew_link(conn, caller(request).project_id, artifact_id)
    return JSONResponse(artifact_view(artifact, opened.links))


def artifact_of(request: Request) -> ArtifactId:
    """The artifact of the path; raises ``NotFound`` for what can be none."""
    artifact_id = ids.decode(ids.ARTIFACT, request.path_params["id"])
    if artifact_id is None:
        raise NotFound("there is no such artifact", code="artifact_not_found")
    return ArtifactId(artifact_id)


def artifact_view(artifact: Artifact, links: JobLinks) -> dict[str, Any]:
    url, expires_at = links.presigned(artifact)
    name = ids.encode(ids.ARTIFACT, artifact.id)
    return {
        "id": name,
        "uri": f"artifact:{name}",
        "name": artifact.name,
        "size": artifact.size,
        "sha256": artifact.sha256,
        "content_type": artifact.content_type,
        "created_at": rfc3339(ids.made_at(artifact.id)),
        "url": url,
        "url_expires_at": rfc3339(expires_at),
        "link": links.stable(artifact),
    }


async def follow_link(request: Request) -> Response:
    """GET /r/{token}: to a fresh presigned link, where `Range` works, too. To hold the token is enough."""
    opened = services(request)
    async with opened.pool.acquire() as conn:
        artifact = await artifacts.by_link(conn, request.path_params["token"])
    url, _ = opened.links.presigned(artifact, method=request.method)
    # Not a permanent one: the next hit needs another address.
    return Response(status_code=302, headers={"Location": url, "Referrer-Policy": "no-referrer"})


ROUTES = (
    Route(
        "GET", "/v1/artifacts/{id}", read_artifact, "A file and a fresh link to it", Scope.READ,
        answers={200: ArtifactView, 410: Problem}, tag="artifacts",
    ),
    Route(
        "POST", "/v1/artifacts/{id}/revoke-link", revoke_link, "Revoke a file's link", Scope.WRITE,
        body=NothingMore, body_required=False, answers={200: ArtifactView, 410: Problem}, tag="artifacts",
    ),
    Route(
        "GET", "/r/{token}", follow_link, "Download a file", None, answers={302: None, 410: Problem}, tag="artifacts"
    ),
)  # fmt: skip
