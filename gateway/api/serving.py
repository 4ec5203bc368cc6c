"""A file of the store as an answer of our own, streamed: never more than a piece of it is here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions.artifacts import Artifact, Store
from functions.s3 import attachment, clean_media_type
from gateway.routes import gone


class StoredFile(Response):
    """Always saved, never shown: the bytes are a stranger's, and here they would speak for us (SECURITY S76)."""

    def __init__(self, request: Request, store: Store, file: Artifact, headers: Mapping[str, str]) -> None:
        super().__init__(
            None,
            200,
            {
                **headers,
                "Content-Type": clean_media_type(file.content_type),
                "Content-Length": str(file.size),
                "Content-Disposition": attachment(file.filename),
                "Content-Security-Policy": "sandbox",
                "ETag": f'"{file.sha256}"',
            },
        )
        self._request = request
        self._store = store
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            return await super().__call__(scope, receive, send)
        left = asyncio.ensure_future(gone(self._request))
        try:
            async with self._store.read(self._file.object_key) as chunks:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for chunk in chunks:
                    if left.done():
                        raise ClientDisconnect  # nobody takes the rest
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
        return None
