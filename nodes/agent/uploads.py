"""Brings an attempt's files into the store: presigned links from the gateway, then one PUT each."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

import httpx
import structlog

from nodes.agent.failures import AttemptFailed
from nodes.agent.gateway_client import GatewayClient
from nodes.agent.outputs import CollectedOutput
from nodes.agent.tasks import to_the_end
from nodes.protocol import ErrorCode, JobLease, Upload

log = structlog.get_logger()

AT_ONCE = 4
STORE_S = 300.0
"""How long a store that cannot be reached is tried again, for each file."""
FRESH_LINKS = 3
"""A store that refuses so many fresh links of a file in a row does not refuse them for their age."""
CHUNK_BYTES = 1024 * 1024
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.2, 10.0

_CODE = re.compile(r"<Code>(\w{1,64})</Code>")


async def upload_all(
    client: GatewayClient, storage: httpx.AsyncClient, lease: JobLease, files: Sequence[CollectedOutput]
) -> list[str]:
    """Upload the files and return their artifacts' ids, in order. Raises ``AttemptFailed`` or
    ``LeaseLost``."""
    if not files:
        return []
    links = _Links(client, lease, files)
    await links.renew(0)
    free = asyncio.Semaphore(AT_ONCE)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_upload_one(free, index, each, links, storage))
                for index, each in enumerate(files)
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class _Links:
    """The presigned links of all files. They run out together, and are asked for again together."""

    def __init__(self, client: GatewayClient, lease: JobLease, files: Sequence[CollectedOutput]) -> None:
        self._client = client
        self._lease = lease
        self._files = [each.file for each in files]
        self._lock = asyncio.Lock()
        self._uploads: list[Upload] = []
        self.generation = 0

    def __getitem__(self, index: int) -> Upload:
        return self._uploads[index]

    async def renew(self, seen: int) -> None:
        """Ask for fresh ones, unless another file has since generation ``seen``."""
        async with self._lock:
            if self.generation != seen:
                return
            lease = self._lease
            uploads = await self._client.request_uploads(lease.job_id, lease.token, self._files)
            if len(uploads) != len(self._files):
                raise AttemptFailed(
                    ErrorCode.INTERNAL, "the gateway gave another number of upload links than asked for"
                )
            self._uploads = uploads
            self.generation += 1


async def _upload_one(
    free: asyncio.Semaphore, index: int, output: CollectedOutput, links: _Links, storage: httpx.AsyncClient
) -> str:
    async with free:
        failures, first_failure_s, refusals = 0, 0.0, 0
        while True:
            generation, link = links.generation, links[index]
            fault = await _put(output, link, storage)
            if fault is None:
                return link.artifact_id
            now = time.monotonic()
            first_failure_s = first_failure_s or now
            refusals = refusals + 1 if fault.refused else 0
            if refusals >= FRESH_LINKS or now - first_failure_s > STORE_S or fault.final:
                message = f"the store did not take {output.file.path}: {fault.message}"
                raise AttemptFailed(ErrorCode.INTERNAL, message[:2000])
            log.warning("upload tried again", path=output.file.path, error=fault.message)
            if fault.refused:
                await links.renew(generation)
            if not fault.refused or refusals > 1:
                most_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**failures)
                failures = min(failures + 1, 16)
                await asyncio.sleep(random.uniform(0.5, 1) * most_s)  # noqa: S311


class _Fault:
    """Why a PUT did not work. ``refused``: the link is not valid (any more). ``final``: no other link helps."""

    def __init__(self, message: str, *, refused: bool = False, final: bool = False) -> None:
        self.message = message
        self.refused = refused
        self.final = final


async def _put(output: CollectedOutput, link: Upload, storage: httpx.AsyncClient) -> _Fault | None:
    handle = output.open()
    try:
        async with storage.stream(
            "PUT", link.url, headers=link.headers, content=_content(handle, output)
        ) as answer:
            if answer.is_success:
                return None
            status = answer.status_code
            code = _CODE.search(await _beginning(answer))
            message = f"it answered {status}" + (f" {code[1]}" if code else "")
            # rclone answers an expired link with 400, others with 403.
            if status == 403 or (status == 400 and code is not None and code[1] in ("AccessDenied", "ExpiredToken")):
                return _Fault(message, refused=True)
            return _Fault(message, final=status < 500 and status not in (408, 409, 425, 429))
    except httpx.TransportError as error:
        return _Fault(f"it does not answer ({str(error) or type(error).__name__})")
    finally:
        os.close(handle)


async def _content(handle: int, output: CollectedOutput) -> AsyncIterator[bytes]:
    """The file's bytes, exactly as many as were hashed."""
    offset, size = 0, output.file.size
    while offset < size:
        chunk = await to_the_end(partial(os.pread, handle, min(CHUNK_BYTES, size - offset), offset))
        if not chunk:
            raise AttemptFailed(ErrorCode.INTERNAL, f"{output.file.path} ended early while it was uploaded")
        offset += len(chunk)
        yield chunk


async def _beginning(answer: httpx.Response, limit: int = 4096) -> str:
    """The first bytes of an error, as text."""
    text = b""
    async for chunk in answer.aiter_raw():
        text += chunk
        if len(text) >= limit:
            break
    return text[:limit].decode(errors="replace")
