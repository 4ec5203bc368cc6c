"""A file on its way through the gateway into the store: a few MiB of it are here at a time, however large it is."""

from __future__ import annotations

import asyncio
import hashlib
import time
from types import TracebackType
from typing import Self

import structlog

from functions import uploads
from functions.artifacts import Part, Store
from functions.db import Pool
from functions.ids import ProjectId
from functions.s3 import clean_media_type
from functions.uploads import MIB, Announced, Upload

log = structlog.get_logger(__name__)

PIECE_BYTES = 6 * MIB
"""S3 wants 5 MiB at least, and no more than ``MOST_PIECES``."""
MOST_PIECES = 10_000
STILL_HERE_S = 600
"""How often a long upload says that it is not abandoned."""


class Receiver:
    """``async with``: when it ends, the file is removed with all that is there of it, unless ``kept`` was set.

    The row has no key, so that nobody is given these bytes as their own upload while it may still be removed.
    """

    def __init__(
        self, pool: Pool, store: Store, project: ProjectId, *, name: str, content_type: str, most: int
    ) -> None:
        self._pool = pool
        self._store = store
        self._announced = Announced(_plain(name), clean_media_type(content_type), 0, None)
        self._project = project
        self._piece_bytes = max(PIECE_BYTES, -(-most // MOST_PIECES))
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._parts: list[Part] = []
        self._size = 0
        self._said_at = time.monotonic()
        self.upload: Upload | None = None
        self.kept = False

    async def __aenter__(self) -> Self:
        async with self._pool.acquire() as conn:
            self.upload = await uploads.announce(conn, self._project, None, self._announced)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.kept:
            # Whoever cancels us must not leave half a file behind.
            await asyncio.shield(self._discard())

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what has come."""
        return self._digest.hexdigest()

    async def write(self, chunk: bytes) -> None:
        """Take some more; raises ``Unavailable`` when the store does not."""
        self._buffer += chunk
        if len(self._buffer) >= self._piece_bytes:
            await self._send()

    async def complete(self) -> Upload:
        """The file is whole: it can be an input from now on."""
        upload = self.upload
        assert upload is not None
        if self._parts:
            if self._buffer:
                await self._send()
            upload = self.upload
            assert upload is not None and upload.upload_id is not None
            await self._store.complete_multipart(upload.object_key, upload.upload_id, self._parts)
        else:
            data = await self._take()
            await self._store.put(upload.object_key, data, upload.content_type)
        async with self._pool.acquire() as conn:
            self.upload = await uploads.complete(
                conn, upload, size=self._size, sha256=self._digest.hexdigest(), shared=False
            )
        return self.upload

    async def _send(self) -> None:
        assert self.upload is not None
        self.upload = upload = await uploads.begin_parts(self._pool, self._store, self.upload)
        assert upload.upload_id is not None
        data = await self._take()
        number = len(self._parts) + 1
        self._parts.append(await self._store.put_part(upload.object_key, upload.upload_id, number, data))
        if time.monotonic() - self._said_at > STILL_HERE_S:
            self._said_at = time.monotonic()
            async with self._pool.acquire() as conn:
                await uploads.still_coming(conn, upload)

    async def _take(self) -> bytes:
        """What has come, counted and hashed."""
        data = bytes(self._buffer)
        self._buffer = bytearray()
        self._size += len(data)
        await asyncio.to_thread(self._digest.update, data)
        return data

    async def _discard(self) -> None:
        assert self.upload is not None
        try:
            await uploads.discard(self._pool, self._store, self.upload)
        except Exception as error:
            # Its row says that it is pending: it is swept away later.
            log.warning("half an upload stays for the sweep", error=type(error).__name__)


def _plain(name: str) -> str:
    """A file's name without folders and control characters."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in base if c.isprintable())[:255] or "file"
