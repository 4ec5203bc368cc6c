"""/healthz, /readyz, /openapi.json and the manifest's schema: open to everyone, and they tell nothing that is not."""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions.errors import FieldError, Unavailable
from functions.manifest_schema import manifest_schema as schema_of_manifests
from gateway.body import JSON
from gateway.database import is_current
from gateway.openapi import OpenApi
from gateway.routes import Route, services
from gateway.services import Services

PROBE_S = 3.0


class Health(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Literal["ok"]


async def healthz(request: Request) -> Response:
    """The process runs and answers."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Database, schema and store are there; else 503, with a pointer to each that is not."""
    opened = services(request)
    database, store = await asyncio.gather(_database(opened), _store(opened))
    process = "is stopping" if opened.stopping.is_set() else None
    found = {"database": database, "store": store, "process": process}
    faults = [FieldError(f"/{part}", fault) for part, fault in found.items() if fault]
    if faults:
        what = ", ".join(f"{part} {fault}" for part, fault in found.items() if fault)
        raise Unavailable(f"not ready: {what}", errors=faults)
    return JSONResponse({"status": "ok"})


async def _database(opened: Services) -> str | None:
    try:
        async with asyncio.timeout(PROBE_S), opened.pool.acquire() as conn:
            return None if await is_current(conn) else "needs `rgrid migrate`"
    except Exception:
        return "does not answer"


async def _store(opened: Services) -> str | None:
    try:
        async with asyncio.timeout(PROBE_S):
            await opened.store.check()
    except Exception:
        return "does not answer"
    return None


async def openapi(request: Request) -> Response:
    """This API as an OpenAPI 3.1 document."""
    document: OpenApi = request.scope["rgrid.openapi"]
    return Response(document.encoded, media_type="application/json")


async def manifest_schema(request: Request) -> Response:
    """The function manifest as a JSON Schema, for editors: `# yaml-language-server: $schema=…` in its first line."""
    return JSONResponse(schema_of_manifests(), headers={"Cache-Control": "max-age=3600"})


ROUTES = (
    Route("GET", "/healthz", healthz, "Is the process alive?", None, answers={200: Health}, tag="health"),
    Route("GET", "/readyz", readyz, "Can the gateway serve?", None, answers={200: Health}, tag="health"),
    Route("GET", "/openapi.json", openapi, "This document", None, answers={200: JSON}, tag="health"),
    Route("GET", "/schemas/function.json", manifest_schema, "JSON Schema of the manifest", None,
          answers={200: JSON}, tag="functions"),
)  # fmt: skip
