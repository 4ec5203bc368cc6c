"""/node/v1/agent, what a server needs to become a node: the agent's file, and where to tell of trouble.

Open to everyone: the files are no secret, and who fetches one checks it by its hash.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from functions.errors import NotFound
from gateway.body import JSON
from gateway.peers import source_of
from gateway.problems import Problem
from gateway.routes import Route, read_body, services
from nodes import joining
from nodes.protocol import Empty, TroubleReport

OCTETS = "application/octet-stream"


class AgentFileView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str
    size: int
    url: str


class AgentView(BaseModel):
    """``files`` by target: `cp312-x86_64` is for CPython 3.12 on that processor."""

    model_config = ConfigDict(extra="forbid")

    version: str
    files: dict[str, AgentFileView]


async def index(request: Request) -> Response:
    """GET /node/v1/agent: the agent's files, by Python and processor; none where none were built (`make agent`)."""
    opened = services(request)
    files = {
        target: {
            "sha256": file.sha256,
            "size": file.size,
            "url": f"{opened.settings.base_url}/node/v1/agent/{file.sha256}",
        }
        for target, file in opened.agent.files.items()
    }
    return JSONResponse({"version": opened.agent.version, "files": files})


async def download(request: Request) -> Response:
    """GET /node/v1/agent/{sha256}: the file with this content: `python3 FILE` runs the agent."""
    path = services(request).agent.path(request.path_params["sha256"])
    if path is None:
        raise NotFound("this gateway has no such file of the agent: it may be of another release")
    return FileResponse(path, media_type=OCTETS, headers={"cache-control": "public, max-age=31536000, immutable"})


async def trouble(request: Request) -> Response:
    """POST /node/v1/trouble: why a server cannot become a node; its operator reads it in the node's events."""
    body = await read_body(request, TroubleReport)
    opened = services(request)
    source = source_of(request, opened.settings.trusted_proxies)
    async with opened.pool.acquire() as conn, conn.transaction():
        failure = await joining.trouble(conn, body.token, body.message, source)
    if failure is not None:
        raise failure
    return Response(Empty().model_dump_json(), media_type=JSON)


ROUTES = (
    Route("GET", "/node/v1/agent", index, "List the agent's files", None, answers={200: AgentView}, tag="node"),
    Route("GET", "/node/v1/agent/{sha256}", download, "Get the agent", None, answers={200: OCTETS}, tag="node"),
    Route(
        "POST", "/node/v1/trouble", trouble, "Tell why a server does not become a node", None, body=TroubleReport,
        answers={200: Empty, 401: Problem}, tag="node",
    ),
)  # fmt: skip
