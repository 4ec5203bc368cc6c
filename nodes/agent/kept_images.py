"""The images that this agent brought to its engine: by which names each may be used, and which go when disk is short.

The engine knows neither, so a file of the node's folder does. An image that is not in it, or that has a tag, is the
machine owner's: any job may run it by its id, and the agent never removes it. One that came out of the store runs only
for the artifact whose bytes this agent has read; a manifest that merely claims its id gets nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import structlog
from pydantic import BaseModel, ValidationError

from nodes.agent.docker_api import DockerApi, DockerError, DockerSilent
from nodes.agent.state import write_private

log = structlog.get_logger()

SAVED = "artifact:"
MOST_NAMES = 64
"""Of one image; the first of more is forgotten."""
REMOVE_S = 120.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """``image_id`` is the same on every node; ``engine_id`` is what this node's engine calls it."""

    image_id: str
    engine_id: str


class Kept(BaseModel):
    """``names``: ``artifact:…`` whose content it is, ``repo@sha256:…`` that it was pulled by. ``brought``: it was not
    here before. ``used_s``: Unix time at which a job last began or ended with it."""

    image_id: str
    names: list[str] = []
    brought: bool = True
    size_bytes: int = 0
    used_s: float = 0


class _File(BaseModel):
    images: dict[str, Kept] = {}


class KeptImages:
    """``file`` None: only for as long as this process lives. ``docker_root`` is where the engine keeps its layers;
    what was brought may take ``most_bytes`` of it (None: half), layers that images share counted for each."""

    def __init__(
        self, api: DockerApi, file: Path | None, docker_root: str, *, most_bytes: int | None, free_bytes: int
    ) -> None:
        self._api, self._file, self._docker_root = api, file, docker_root
        self._most_bytes, self._free_bytes = most_bytes, free_bytes
        self._images = _read(file)
        self._held: dict[Hashable, str] = {}
        self._going: dict[str, asyncio.Event] = {}
        self.removals = 0
        """How many have ended, well or not."""
        self._clearing: asyncio.Task[None] | None = None

    def named(self, name: str) -> Loaded | None:
        """The image that this is the name of, which the engine may have lost."""
        for engine_id, kept in self._images.items():
            if name in kept.names:
                return Loaded(kept.image_id, engine_id)
        return None

    def is_brought(self, engine_id: str) -> bool:
        return engine_id in self._images and self._images[engine_id].brought

    def coming(self, image_id: str) -> None:
        """Before the engine gets it, so that nobody takes it for the owner's if this process ends right then."""
        self._images.setdefault(image_id, Kept(image_id=image_id, used_s=time.time()))
        self._save()

    def came(self, loaded: Loaded, name: str, size_bytes: int, *, brought: bool = True) -> None:
        """The engine has it; ``name`` may be used for it from now on."""
        if loaded.engine_id != loaded.image_id:
            self._images.pop(loaded.image_id, None)  # it was to come under this id, and has another here
        kept = self._images.setdefault(loaded.engine_id, Kept(image_id=loaded.image_id, brought=brought))
        kept.names = [*(each for each in kept.names if each != name), name][-MOST_NAMES:]
        kept.size_bytes, kept.used_s = size_bytes, time.time()
        self._save()

    async def take(self, engine_id: str, holder: Hashable | None, *, since: int) -> bool:
        """Keep it for ``holder`` until ``let_go``. False: it has to be found anew, since it is just being removed, or
        may have been: ``since`` is what ``removals`` was before it was found."""
        if (going := self._going.get(engine_id)) is not None:
            await going.wait()
        if self.removals != since:
            return False
        if holder is not None:
            self._held[holder] = engine_id
        self._used(engine_id)
        return True

    def let_go(self, holder: Hashable) -> None:
        """The job is over. What is too much goes, in the background. May be repeated."""
        if (engine_id := self._held.pop(holder, None)) is None:
            return
        self._used(engine_id)
        if self._clearing is None or self._clearing.done():
            self._clearing = asyncio.get_running_loop().create_task(self._clear())

    async def make_room(self, more_bytes: int = 0) -> None:
        """Remove images that no job of this node uses, the least recently used first, until what was brought is within
        its limit and the disk has room for ``more_bytes``, or none is left. Raises ``DockerSilent``."""
        passed: set[str] = set()
        while self._too_much() or self._short(more_bytes):
            unused = [
                (kept.used_s, engine_id)
                for engine_id, kept in self._images.items()
                if kept.brought and engine_id not in (passed | self._going.keys() | set(self._held.values()))
            ]
            if not unused:
                return
            engine_id = min(unused)[1]
            passed.add(engine_id)
            await self._remove(engine_id)

    async def aclose(self) -> None:
        if self._clearing is not None:
            self._clearing.cancel()
            await asyncio.wait({self._clearing})

    async def _clear(self) -> None:
        try:
            await self.make_room()
        except DockerSilent as error:
            log.warning("images not removed", error=str(error)[:300])

    def _too_much(self) -> bool:
        most_bytes = self._most_bytes
        if most_bytes is None:
            disk = _disk(self._docker_root)
            if disk is None:
                return False
            most_bytes = disk.total // 2
        return sum(kept.size_bytes for kept in self._images.values() if kept.brought) > most_bytes

    def _short(self, more_bytes: int) -> bool:
        disk = _disk(self._docker_root)
        return disk is not None and disk.free < self._free_bytes + more_bytes

    async def _remove(self, engine_id: str) -> None:
        """Never by force: the engine keeps what a container or another image needs."""
        kept = self._images[engine_id]
        going = self._going[engine_id] = asyncio.Event()
        try:
            about = await self._api.call("GET", f"/images/{engine_id}/json")
            if not about.get("RepoTags"):  # a tag is the owner's, and the image with it
                pulled = [name for name in kept.names if not name.startswith(SAVED)]
                only_pulled = pulled and len(pulled) == len(kept.names)
                for name in pulled if only_pulled else [*pulled, engine_id]:
                    await self._delete(name)
                log.info("image removed", image=engine_id, names=kept.names, size_bytes=kept.size_bytes)
            self._images.pop(engine_id, None)
            self._save()
        except DockerError as error:
            if error.status == 404:
                self._images.pop(engine_id, None)
                self._save()
            elif error.status != 409:
                log.warning("image not removed", image=engine_id, error=str(error)[:300])
        finally:
            del self._going[engine_id]
            self.removals += 1
            going.set()

    async def _delete(self, name: str) -> None:
        try:
            await self._api.call("DELETE", f"/images/{quote(name, safe='/:@')}", timeout_s=REMOVE_S)
        except DockerError as error:
            if error.status != 404:
                raise

    def _used(self, engine_id: str) -> None:
        if (kept := self._images.get(engine_id)) is not None:
            kept.used_s = time.time()
            self._save()

    def _save(self) -> None:
        if self._file is None:
            return
        fresh = self._file.with_suffix(".new")
        try:
            write_private(fresh, _File(images=self._images).model_dump_json())
            fresh.replace(self._file)
        except OSError as error:  # a full disk: jobs that need none must go on
            log.error("list of images not written", error=str(error))


def _read(file: Path | None) -> dict[str, Kept]:
    try:
        return {} if file is None else _File.model_validate_json(file.read_bytes()).images
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.error("list of images unreadable: those in it stay on the disk", error=type(error).__name__)
        return {}


def _disk(folder: str) -> shutil._ntuple_diskusage | None:
    try:
        return shutil.disk_usage(folder)
    except OSError:  # the engine's folder is not for us to see
        return None
