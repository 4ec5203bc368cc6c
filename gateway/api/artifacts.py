"""/v1/artifacts/{id} and /r/{token}: fresh links to files."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import artifacts, ids
from functions.errors import NotFound
from functions.ids import ArtifactId
from gateway.api.models import ArtifactView
from gateway.routes import Route, Scope, caller, services
from scheduler.views import rfc3339


async def read_artifact(request: Request) -> Response:
    """GET /v1/artifacts/{id}: a file of the project, with a fresh presigned link."""
    artifact_id = ids.decode(ids.ARTIFACT, request.path_params["id"])
    if artifact_id is None:
        raise NotFound("there is no such artifact", code="artifact_not_found")
    opened = services(request)
    async with opened.pool.acquire() as conn:
        artifact = await artifacts.get(conn, caller(request).project_id, ArtifactId(artifact_id))
    url, expires_at = opened.links.presigned(artifact)
    name = ids.encode(ids.ARTIFACT, artifact.id)
    return JSONResponse(
        {
            "id": name,
            "uri": f"artifact:{name}",
            "name": artifact.name,
            "size": artifact.size,
            "sha256": artifact.sha256,
            "content_type": artifact.content_type,
            "created_at": rfc3339(ids.made_at(artifact.id)),
            "url": url,
            "url_expires_at": rfc3339(expires_at),
            "link": opened.links.stable(artifact),
        }
    )


async def follow_link(request: Request) -> Response:
    """GET /r/{token}: to a fresh presigned link. To hold the token is enough."""
    opened = services(request)
    async with opened.pool.acquire() as conn:
        artifact = await artifacts.by_link(conn, request.path_params["token"])
    url, _ = opened.links.presigned(artifact)
    # Not a permanent one: the next hit needs another address.
    return Response(status_code=302, headers={"Location": url, "Referrer-Policy": "no-referrer"})


ROUTES = (
    Route(
        "GET", "/v1/artifacts/{id}", read_artifact, "A file and a fresh link to it", Scope.READ,
        answers={200: ArtifactView}, tag="artifacts",
    ),
    Route("GET", "/r/{token}", follow_link, "Download a file", None, answers={302: None}, tag="artifacts"),
)  # fmt: skip
