"""/v1/artifacts: files that users bring, straight to the store by presigned links."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions import ids, uploads
from functions.artifacts import Part
from functions.errors import FieldError, Invalid
from functions.s3 import clean_media_type
from functions.uploads import Announced, Upload
from gateway.api.artifacts import artifact_of, artifact_view
from gateway.api.models import NothingMore
from gateway.api.models.files import ArtifactView, UploadView
from gateway.routes import Route, Scope, caller, read_body, services
from gateway.services import Services
from scheduler.views import rfc3339

LARGEST = 5 * 1024**4
"""Of any S3 object; the setting is the real limit."""


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("a file's name is visible text")
    return text


def _content_type(text: str) -> str:
    if clean_media_type(text) != text:
        raise ValueError("not a content type: write image/jpeg or text/plain; charset=utf-8")
    return text


class AnnounceRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(ge=0, le=LARGEST, description="Bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the whole file, in hex.")
    content_type: Annotated[str, Field(max_length=255), AfterValidator(_content_type)] = "application/octet-stream"
    name: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_name)] = Field(
        "file", description="What a download is called."
    )


async def announce(request: Request) -> Response:
    """POST /v1/artifacts: presigned links to upload a file with, 201; asked again for the same bytes, 200 with fresh
    links for what is still missing, or with `complete: true` when nothing is."""
    opened, who = services(request), caller(request)
    body = await read_body(request, AnnounceRequest)
    if body.size > opened.settings.largest_upload:
        fault = FieldError("/size", f"more than {opened.settings.largest_upload} bytes")
        raise Invalid("the file is larger than this installation takes", errors=[fault])
    announced = Announced(body.name, body.content_type, body.size, body.sha256)
    async with opened.pool.acquire() as conn:
        known = await uploads.find_same(conn, who.project_id, who.key_id, announced)
        upload = known or await uploads.announce(conn, who.project_id, who.key_id, announced)
    return JSONResponse(await _view(opened, upload), 200 if known else 201)


async def read_parts(request: Request) -> Response:
    """GET /v1/artifacts/{id}/parts: what of an upload is there, and fresh links for the rest."""
    return JSONResponse(await _view(services(request), await _find(request)))


async def complete(request: Request) -> Response:
    """POST /v1/artifacts/{id}/complete: once all of it is uploaded, the file counts: it can be an input. May be
    repeated."""
    await read_body(request, NothingMore)
    opened, upload = services(request), await _find(request)
    if not upload.complete:
        await uploads.check(opened.store, upload)
        assert upload.sha256 is not None
        shared = Scope.WRITE in caller(request).scopes
        async with opened.pool.acquire() as conn:
            upload = await uploads.complete(conn, upload, size=upload.size, sha256=upload.sha256, shared=shared)
    return JSONResponse(artifact_view(upload.artifact, opened.links))


async def _find(request: Request) -> Upload:
    """The upload of the path: a key that may only invoke has its own."""
    who = caller(request)
    artifact = artifact_of(request)
    async with services(request).pool.acquire() as conn:
        return await uploads.find(conn, who.project_id, artifact, who.key_id if who.only_own else None)


async def _view(opened: Services, upload: Upload) -> dict[str, Any]:
    expires_at = None
    single, parts = None, None
    if not upload.complete:
        expires_at = datetime.now(UTC) + timedelta(seconds=opened.settings.upload_s)
        if upload.in_parts:
            upload, there = await uploads.parts_of(opened.pool, opened.store, upload)
            known = None if there is None else {part.number: part for part in there}
            # A thousand signatures take a moment, and other requests must not wait for it.
            parts = await asyncio.to_thread(_parts, opened, upload, known)
        else:
            assert upload.sha256 is not None
            url, headers = opened.store.presign_put(
                upload.object_key, upload.size, None, upload.sha256, upload.content_type
            )
            single = {"url": url, "headers": headers}
    return {
        "id": ids.encode(ids.ARTIFACT, upload.id),
        "uri": upload.uri,
        "name": upload.name,
        "size": upload.size,
        "sha256": upload.sha256,
        "content_type": upload.content_type,
        "complete": upload.complete,
        "expires_at": rfc3339(expires_at),
        "upload": single,
        "part_size": upload.part_size if parts is not None else None,
        "parts": parts,
    }


def _parts(opened: Services, upload: Upload, there: Mapping[int, Part] | None) -> list[dict[str, Any]]:
    assert upload.upload_id is not None
    parts = []
    for number, size in enumerate(upload.part_sizes, start=1):
        uploaded = there is None or (number in there and there[number].size == size)
        url: str | None = None
        headers: dict[str, str] = {}
        if not uploaded:
            url, headers = opened.store.presign_part(upload.object_key, upload.upload_id, number, size)
        parts.append({"number": number, "size": size, "uploaded": uploaded, "url": url, "headers": headers})
    return parts


ROUTES = (
    Route(
        "POST", "/v1/artifacts", announce, "Upload a file", Scope.INVOKE, own=True, body=AnnounceRequest,
        answers={200: UploadView, 201: UploadView}, tag="artifacts",
    ),
    Route(
        "GET", "/v1/artifacts/{id}/parts", read_parts, "Go on with an upload", Scope.READ, own=True,
        answers={200: UploadView}, tag="artifacts",
    ),
    Route(
        "POST", "/v1/artifacts/{id}/complete", complete, "Finish an upload", Scope.INVOKE, own=True,
        body=NothingMore, body_required=False, answers={200: ArtifactView}, tag="artifacts",
    ),
)  # fmt: skip
