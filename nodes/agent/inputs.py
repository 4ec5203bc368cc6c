"""Fills /in before the container exists: ``params.json``, the texts of the manifest, and files from the internet
or our own store.

A file is streamed to the job's own disk, so memory is flat and its size is bounded. Whatever a URL leads to, the
guard of ``functions.egress`` has a say at each step; only presigned URLs of our own store go without it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import httpx
import structlog

from functions.egress import EgressFailed, EgressPolicy, EgressRefused, open_download
from nodes.agent.endings import duration, size
from nodes.agent.failures import AttemptFailed
from nodes.agent.tasks import to_the_end
from nodes.agent.tree import fault_of
from nodes.agent.workspace import Workspace
from nodes.protocol import ErrorCode, Input, JobLease

log = structlog.get_logger()

AT_ONCE = 2
WAITS_S = (0.5, 2.0, 5.0)
"""Before each further try of a download that may work when it is tried again."""
FETCH_S = 3600.0
"""For one file. A server that only trickles must not hold a slot for ever."""
IDLE_S = 30.0
CHUNK_BYTES = 1024 * 1024

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TRY_AGAIN = frozenset({408, 425, 429})
_FINAL_KINDS = frozenset({"too_large", "redirects"})

Chunks = tuple[int | None, AsyncIterator[bytes]]
"""A size, if it is announced, and the bytes."""


async def fetch_inputs(
    workspace: Workspace, lease: JobLease, policy: EgressPolicy, storage: httpx.AsyncClient
) -> None:
    """Raises ``AttemptFailed`` with ``input_unavailable``. Cancelled, it stops at once."""
    _write_text(workspace, "/in/params.json", lease.params)
    gate = asyncio.Semaphore(AT_ONCE)

    async def fetch(wanted: Input) -> None:
        async with gate:
            await _Fetch(workspace, lease, wanted, policy, storage).run()

    try:
        async with asyncio.TaskGroup() as group:
            for wanted in lease.inputs:
                if wanted.url is None:
                    _write_text(workspace, wanted.path, wanted.content or "")
                else:
                    group.create_task(fetch(wanted))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One file from a URL."""

    workspace: Workspace
    lease: JobLease
    wanted: Input
    policy: EgressPolicy
    storage: httpx.AsyncClient

    async def run(self) -> None:
        handle = _create(self.workspace, self.wanted.path)
        try:
            for wait_s in (*WAITS_S, None):
                try:
                    async with asyncio.timeout(FETCH_S):
                        return await self._download(handle)
                except TimeoutError:
                    raise _unavailable(self.wanted, f"took longer than {duration(FETCH_S)}") from None
                except AttemptFailed as failure:
                    if not failure.retryable or wait_s is None:
                        raise
                    log.info("input tried again", job_id=self.lease.job_id, error=failure.message)
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311
        finally:
            os.close(handle)

    async def _download(self, handle: int) -> None:
        wanted, digest, received = self.wanted, hashlib.sha256(), 0
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)

        def keep(block: bytes) -> None:
            digest.update(block)
            _write_all(handle, block)

        source = _from_store(wanted, self.storage) if wanted.trusted else _from_anywhere(wanted, self.policy)
        try:
            async with source as (announced, chunks):
                if (announced or 0) > self.workspace.free_bytes():
                    raise self._too_large()
                # The disk may be slow, and the loop has heartbeats to send.
                async for block in _blocks(chunks):
                    await to_the_end(partial(keep, block))
                    received += len(block)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise self._too_large() from None
        if wanted.size is not None and received != wanted.size:
            raise _unavailable(wanted, f"has {received} bytes instead of {wanted.size}")
        if wanted.sha256 is not None and digest.hexdigest() != wanted.sha256:
            raise _unavailable(wanted, "has other bytes than its SHA-256 says")

    def _too_large(self) -> AttemptFailed:
        disk = size(self.lease.resources.disk_bytes)
        return _unavailable(self.wanted, f"is larger than what is left of the job's disk of {disk}", retryable=False)


@asynccontextmanager
async def _from_anywhere(wanted: Input, policy: EgressPolicy) -> AsyncIterator[Chunks]:
    try:
        async with open_download(policy, wanted.url or "", idle_s=IDLE_S) as download:
            yield download.size, download.chunks
    except EgressRefused as refused:
        raise _unavailable(wanted, f"may not be fetched: {refused.message}", retryable=False) from None
    except EgressFailed as failed:
        final = failed.kind in _FINAL_KINDS or (failed.status is not None and _is_final(failed.status))
        raise _unavailable(wanted, f"could not be fetched: {failed.message}", retryable=not final) from None


@asynccontextmanager
async def _from_store(wanted: Input, storage: httpx.AsyncClient) -> AsyncIterator[Chunks]:
    try:
        async with storage.stream("GET", wanted.url or "", headers={"accept-encoding": "identity"}) as answer:
            if answer.status_code == 404:
                raise _unavailable(wanted, "is not in the store any more", retryable=False)
            if answer.status_code != 200:
                # 403: the link is too old. The next lease comes with a fresh one.
                raise _unavailable(wanted, f"could not be fetched: the store answered {answer.status_code}")
            length = answer.headers.get("content-length", "")
            yield int(length) if length.isdigit() else None, answer.aiter_raw()
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise _unavailable(wanted, f"could not be fetched: the store does not answer ({reason})") from None


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces."""
    block = bytearray()
    async for chunk in chunks:
        block += chunk
        if len(block) >= CHUNK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _write_text(workspace: Workspace, path: str, text: str) -> None:
    handle = _create(workspace, path)
    try:
        _write_all(handle, text.encode())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _failed(path, "does not fit on the job's disk", retryable=False) from None
    finally:
        os.close(handle)


def _create(workspace: Workspace, path: str) -> int:
    """A new file below /in that everybody may read, opened for writing; its folders are made."""
    root, *names = path.removeprefix("/").split("/")
    if root != "in" or not names or any(name in ("", ".", "..") for name in names):
        raise _failed(path, "is not a path below /in", retryable=False)
    if any(fault_of(tuple(names[: end + 1])) for end in range(len(names))):
        raise _failed(path, "has a name that cannot be used", retryable=False)
    folder = os.dup(workspace.in_fd)
    try:
        for name in names[:-1]:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=folder)
            deeper = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = deeper
            os.fchmod(folder, 0o755)  # whatever the umask is
        handle = os.open(names[-1], _NEW_FILE, 0o444, dir_fd=folder)
    except (FileExistsError, NotADirectoryError):
        raise _failed(path, "is given twice, or is a folder of another input", retryable=False) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _failed(path, "does not fit on the job's disk", retryable=False) from None
    finally:
        os.close(folder)
    os.fchmod(handle, 0o444)  # whatever the umask is
    return handle


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _is_final(status: int) -> bool:
    return status < 500 and status not in _TRY_AGAIN


def _unavailable(wanted: Input, what: str, *, retryable: bool = True) -> AttemptFailed:
    return _failed(wanted.path, what, retryable=retryable)


def _failed(path: str, what: str, *, retryable: bool) -> AttemptFailed:
    return AttemptFailed(ErrorCode.INPUT_UNAVAILABLE, f"the input {path[:300]} {what}", retryable=retryable)
