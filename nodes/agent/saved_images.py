"""Images out of our own store: fetched by a presigned URL, looked through, loaded into the engine by id alone.

An archive is a stranger's file. Its bytes must be those of its SHA-256 before anything reads them; what it unpacks to
is bounded in size, ratio and time; and the engine gets an archive written anew (``nodes/agent/archives.py``).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx
import structlog

from nodes.agent.archives import CHUNK_BYTES, BadArchive, SavedImage, TooLarge, read_archive, unzstd
from nodes.agent.docker_api import DockerApi, DockerError, DockerSilent
from nodes.agent.endings import duration, size
from nodes.agent.failures import AttemptFailed
from nodes.agent.kept_images import KeptImages, Loaded
from nodes.agent.tasks import to_the_end
from nodes.protocol import Archive, ErrorCode, Image

log = structlog.get_logger()

CONNECT_S, SILENCE_S = 10.0, 60.0
WAITS_S = (0.5, 2.0)
"""Before each further try of a download that may work when it is tried again."""
MOST_RATIO, ANY_RATIO_BYTES = 200, 256 * 1024**2
"""Unpacked to packed; what is small may be any."""
_ID = re.compile(r"sha256:[0-9a-f]{64}")
_LOADED = re.compile(r"Loaded image(?: ID)?: (\S+)")


class SavedImages:
    """``folder`` is this agent's own, for what is under way; what an earlier one left in it goes. ``docker_root`` is
    where the engine keeps its layers."""

    def __init__(
        self,
        api: DockerApi,
        kept: KeptImages,
        folder: Path | None,
        docker_root: str,
        *,
        most_bytes: int,
        free_bytes: int,
        time_s: float,
    ) -> None:
        self._api, self._kept = api, kept
        self._folder = folder or Path(tempfile.gettempdir(), f"rgrid-images-{os.getpid()}")
        self._docker_root = docker_root
        self._most_bytes, self._free_bytes, self._time_s = most_bytes, free_bytes, time_s
        shutil.rmtree(self._folder, ignore_errors=True)

    async def load(self, image: Image, archive: Archive) -> Loaded:
        """The engine has it then. Raises ``AttemptFailed``, ``DockerError``, ``DockerSilent``."""
        started_s = time.monotonic()
        if archive.size > self._most_bytes:
            raise _failed(image, f"is larger than the {size(self._most_bytes)} that a node takes")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        stop = threading.Event()
        try:
            async with asyncio.timeout(self._time_s):
                packed = folder / "packed"
                await self._kept.make_room(archive.size)
                await self._fetch(image, archive, packed)
                saved = await to_the_end(partial(self._read, packed, folder, stop), hurry=stop.set)
                if image.pinned is not None and saved.id != image.pinned:
                    raise _failed(image, f"holds the image {saved.id}, not {image.pinned}")
                here = await self._size_of(saved.id)
                brought = here is None or self._kept.is_brought(saved.id)
                loaded = Loaded(saved.id, saved.id if here is not None else await self._hand_over(image, saved))
                size_bytes = here or await self._size_of(loaded.engine_id) or 0
        except TimeoutError:
            raise _failed(image, f"took longer than {duration(self._time_s)}", retryable=True) from None
        except BadArchive as error:
            raise _failed(image, str(error)) from None
        except OSError as error:
            raise _failed(image, f"cannot be loaded: {error.strerror}", retryable=True) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        # Under the artifact's own name: another project may have uploaded other bytes under the same claim.
        self._kept.came(loaded, image.reference, size_bytes, brought=brought)
        log.info("image loaded", image=image.reference, id=saved.id, ms=round((time.monotonic() - started_s) * 1000))
        return loaded

    async def _fetch(self, image: Image, archive: Archive, path: Path) -> None:
        async with httpx.AsyncClient(
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            headers={"accept-encoding": "identity", "user-agent": "rgrid-node"},
            trust_env=False,
        ) as storage:
            for wait_s in (*WAITS_S, None):
                try:
                    await self._download(storage, image, archive, path)
                except httpx.TransportError as error:
                    if wait_s is None:
                        reason = str(error) or type(error).__name__
                        raise _failed(image, f"could not be fetched: {reason}", retryable=True) from None
                    await asyncio.sleep(wait_s)
                else:
                    return

    async def _download(self, storage: httpx.AsyncClient, image: Image, archive: Archive, path: Path) -> None:
        digest, received = hashlib.sha256(), 0
        async with storage.stream("GET", archive.url) as answer:
            if answer.status_code == 404:
                raise _failed(image, "is not in the store any more")
            if answer.status_code != 200:
                # 403: the link is too old. The next lease comes with a fresh one.
                raise _failed(image, f"could not be fetched: HTTP {answer.status_code}", retryable=True)
            with path.open("wb") as file:
                async for chunk in answer.aiter_raw(CHUNK_BYTES):
                    received += len(chunk)
                    if received > archive.size:
                        break
                    self._check_disk()
                    digest.update(chunk)
                    await to_the_end(partial(file.write, chunk))
        if received != archive.size or digest.hexdigest() != archive.sha256:
            raise _failed(image, "has other bytes in the store than when it was uploaded")

    def _read(self, packed: Path, folder: Path, stop: threading.Event) -> SavedImage:
        """In a thread. The image lies in ``folder`` then."""
        unpacked, most_bytes, written = folder / "tar", self._most_bytes, 0
        ratio_bytes = max(ANY_RATIO_BYTES, MOST_RATIO * packed.stat().st_size)
        with unpacked.open("wb") as file:
            for chunk in unzstd(_chunks(packed)):
                written += len(chunk)
                if written > most_bytes:
                    raise TooLarge(f"unpacks to more than the {size(most_bytes)} that a node takes")
                if written > ratio_bytes:
                    raise TooLarge(f"unpacks to more than {MOST_RATIO} times its size")
                if stop.is_set():
                    raise BadArchive("was given up")
                self._check_disk()
                file.write(chunk)
        packed.unlink()
        return read_archive(unpacked, folder / "layers", most_bytes, stop.is_set)

    async def _hand_over(self, image: Image, saved: SavedImage) -> str:
        """The engine's own id for it."""
        # Docker keeps a copy of the archive while it unpacks it.
        needed_bytes = 2 * sum(layer.size for layer in saved.layers)
        await self._kept.make_room(needed_bytes)
        self._check_disk(needed_bytes, self._docker_root)
        self._kept.coming(saved.id)
        try:
            loaded = await self._load(image, saved)
        except DockerSilent as error:
            # It may be the archive that the engine cannot bear, which is no reason to give the node up.
            raise _failed(image, f"broke off the node's Docker while it loaded: {error}", retryable=True) from error
        if len(loaded) == 1 and await self._is(name := next(iter(loaded)), saved):
            return name
        for name in loaded - {saved.id}:
            await self._remove(name)
        became = ", ".join(sorted(loaded)) or "nothing"
        raise _failed(image, f"became {became} in the node's Docker, not {saved.id}")

    async def _size_of(self, name: str) -> int | None:
        """In bytes; None if the engine has no such image."""
        try:
            return int((await self._api.call("GET", f"/images/{name}/json")).get("Size") or 0)
        except DockerError as error:
            if error.status != 404:
                raise
            return None

    async def _is(self, name: str, saved: SavedImage) -> bool:
        """Whether what was loaded is the image. An engine with containerd's store names it by a manifest that it makes
        itself: there it is the layers that tell."""
        if name == saved.id:
            return True
        if _ID.fullmatch(name) is None:
            return False
        about = await self._api.call("GET", f"/images/{name}/json")
        layers = (about.get("RootFS") or {}).get("Layers") or []
        return bool(layers == [layer.diff_id for layer in saved.layers])

    async def _load(self, image: Image, saved: SavedImage) -> set[str]:
        """What the engine says it has loaded."""
        loaded: set[str] = set()
        async with self._api.messages(
            "POST", "/images/load", query={"quiet": 1}, content=_threaded(saved.chunks()), headers_s=self._time_s
        ) as messages:
            async for message in messages:
                if "error" in message:
                    raise _failed(image, f"is refused by the node's Docker: {str(message['error'])[:300]}")
                loaded |= set(_LOADED.findall(str(message.get("stream", ""))))
        return loaded

    async def _remove(self, name: str) -> None:
        try:
            await self._api.call("DELETE", f"/images/{name}")
        except DockerError as error:
            log.warning("image not removed", image=name, error=str(error)[:300])

    def _check_disk(self, more_bytes: int = 0, where: str | None = None) -> None:
        try:
            free_bytes = shutil.disk_usage(where or self._folder).free
        except FileNotFoundError:  # the engine's folder is not for us to see
            return
        if free_bytes < self._free_bytes + more_bytes:
            raise OSError(errno.ENOSPC, "it does not fit on the node's disk")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _threaded(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The disk may be slow, and the loop has heartbeats to send."""
    while (chunk := await to_the_end(lambda: next(chunks, None))) is not None:
        yield chunk


def _failed(image: Image, why: str, *, retryable: bool = False) -> AttemptFailed:
    return AttemptFailed(
        ErrorCode.IMAGE_PULL_FAILED, f"the image {image.reference[:200]} {why}"[:2000], retryable=retryable
    )
