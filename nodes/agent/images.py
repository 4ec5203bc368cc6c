"""The images of jobs: used as they are if the engine has them, else pulled by digest, once for all who wait.

An agent never makes a tag. So a tag that this engine knows was put there by whoever owns the machine, who
means that image; and a tag that moves in its registry cannot leave an old image behind here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog

from nodes.agent.docker_api import DockerApi, DockerError, DockerSilent
from nodes.agent.endings import size
from nodes.agent.failures import AttemptFailed
from nodes.agent.kept_images import SAVED, KeptImages, Loaded
from nodes.agent.sandbox import LocalImage
from nodes.agent.saved_images import SavedImages
from nodes.protocol import Archive, ErrorCode, Image

log = structlog.get_logger()

RESOLVE_S = 60.0
REMEMBERED = 256
REFERENCE_MOST = 512

_ID = re.compile(r"sha256:[0-9a-f]{64}")
_LABEL = r"[a-zA-Z0-9]+(?:-+[a-zA-Z0-9]+)*"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<name>(?:(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?/)?"
    rf"{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class PullLimits:
    """What one image may cost this node. ``quiet_s``: without any progress."""

    size_bytes: int = 20 * 1024**3
    free_bytes: int = 1024**3
    """What a pull must leave free on the engine's disk: layers that unpack without end stop here."""
    time_s: float = 900.0
    quiet_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Reference:
    """``name`` without tag and digest."""

    name: str
    tag: str
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ``AttemptFailed`` for what is no image reference."""
        match = _REFERENCE.fullmatch(text) if len(text) <= REFERENCE_MOST else None
        if match is None:
            raise AttemptFailed(
                ErrorCode.IMAGE_PULL_FAILED,
                f"{text[:200]!r} is not an image reference such as alpine:3 or ghcr.io/acme/tool@sha256:…",
                retryable=False,
            )
        return cls(match["name"], match["tag"] or "latest", match["digest"])


class Images:
    """``docker_root`` is where the engine keeps its layers, ``spool`` a folder for saved images on their way,
    ``ledger`` the file that says which images were brought here, of which ``most_bytes`` are kept (None: half of the
    engine's disk)."""

    def __init__(
        self,
        api: DockerApi,
        docker_root: str,
        limits: PullLimits | None = None,
        spool: Path | None = None,
        *,
        ledger: Path | None = None,
        most_bytes: int | None = None,
    ) -> None:
        self._api = api
        self._docker_root = docker_root
        self._limits = limits or PullLimits()
        self._kept = KeptImages(
            api, ledger, docker_root, most_bytes=most_bytes, free_bytes=2 * self._limits.free_bytes
        )
        self._saved = SavedImages(
            api,
            self._kept,
            spool,
            docker_root,
            most_bytes=self._limits.size_bytes,
            free_bytes=self._limits.free_bytes,
            time_s=self._limits.time_s,
        )
        self._known: dict[str, LocalImage] = {}
        self._pulls: dict[tuple[str, str | None], _Pull] = {}

    async def ensure(self, image: Image, holder: Hashable | None = None) -> LocalImage:
        """The image that must run, on this engine, which keeps it until the ``holder`` lets it go. Raises
        ``AttemptFailed``."""
        while True:
            since = self._kept.removals
            found = await self._ensure(image)
            if await self._kept.take(found.id, holder, since=since):
                return found

    def let_go(self, holder: Hashable) -> None:
        """What no job uses any more may be removed from here on, when the disk is short. May be repeated."""
        self._kept.let_go(holder)

    async def _ensure(self, image: Image) -> LocalImage:
        if image.reference.startswith(SAVED):
            return await self._ensure_saved(image)
        wanted = image.pinned or image.reference
        is_id = _ID.fullmatch(wanted) is not None
        reference = None if is_id else Reference.parse(wanted)
        try:
            found = await self._inspect(wanted, reference)
            if found is not None and not (is_id and self._is_anothers(found)):
                return found
            if reference is None:
                raise AttemptFailed(
                    ErrorCode.IMAGE_PULL_FAILED,
                    f"the image {wanted[:19]}… is not on this node, and an id alone cannot be pulled: build it there "
                    "or push it to a registry",
                    retryable=False,
                )
            login = _login_header(wanted, image.login)
            # Who cannot log in must not get what another's login brings.
            return await self._once((wanted, image.login), lambda: self._pull(wanted, reference, login))
        except (DockerError, DockerSilent) as error:
            raise AttemptFailed(ErrorCode.INTERNAL, f"the node's Docker failed: {error}") from error

    async def _ensure_saved(self, image: Image) -> LocalImage:
        """By its id if the engine has it, else loaded."""
        archive = image.archive
        try:
            if (found := await self._here(image)) is not None:
                return found
            if archive is None:
                raise AttemptFailed(
                    ErrorCode.IMAGE_PULL_FAILED,
                    f"the image {image.reference} is not in the store any more, nor on this node: deploy it again",
                    retryable=False,
                )
            # Each artifact by itself: another project may claim this SHA-256 without having the bytes.
            return await self._once((image.reference, image.pinned), lambda: self._load(image, archive))
        except DockerError as error:
            raise _failed(image.reference, "the node's Docker refused to load it", True, error.message) from error
        except DockerSilent as error:
            raise AttemptFailed(ErrorCode.INTERNAL, f"the node's Docker failed: {error}") from error

    async def _here(self, image: Image) -> LocalImage | None:
        """A saved image that this node has loaded for this very artifact, or that the machine's owner put there."""
        known = self._kept.named(image.reference)
        if known is not None and image.pinned in (None, known.image_id):
            return await self._loaded(known)
        if image.pinned is None:
            return None
        found = await self._loaded(Loaded(image.pinned, image.pinned))
        return None if found is None or self._is_anothers(found) else found

    def _is_anothers(self, found: LocalImage) -> bool:
        """Whether it is here for those only who could name more than its id."""
        return self._kept.is_brought(found.id) and not found.tagged

    async def _load(self, image: Image, archive: Archive) -> LocalImage:
        found = await self._loaded(await self._saved.load(image, archive))
        if found is None:
            raise _failed(image.reference, "the node's Docker lost it after loading it", True)
        return found

    async def _loaded(self, loaded: Loaded) -> LocalImage | None:
        found = await self._inspect(loaded.engine_id, None)
        return None if found is None else replace(found, digest=loaded.image_id)

    async def by_id(self, image_id: str) -> LocalImage:
        """An image that ``ensure`` has found before."""
        known = self._known.get(image_id) or await self._inspect(image_id, None)
        if known is None:
            raise AttemptFailed(ErrorCode.INTERNAL, "the image was removed from the node meanwhile")
        return known

    async def aclose(self) -> None:
        await self._kept.aclose()
        for pull in self._pulls.values():
            pull.task.cancel()
        if tasks := [pull.task for pull in self._pulls.values()]:
            await asyncio.wait(tasks, timeout=5)

    async def _inspect(self, wanted: str, reference: Reference | None) -> LocalImage | None:
        try:
            found = await self._api.call("GET", f"/images/{quote(wanted, safe='/:@')}/json")
        except DockerError as error:
            if error.status == 404:
                return None
            raise
        image = _local(found, reference)
        self._known.pop(image.id, None)
        self._known[image.id] = image
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return image

    async def _once(
        self, wanted: tuple[str, str | None], pull_it: Callable[[], Coroutine[Any, Any, LocalImage]]
    ) -> LocalImage:
        """Join the pull of this image that is under way, or begin one; it stops when nobody waits any more."""
        pull = self._pulls.get(wanted)
        if pull is None:
            pull = self._pulls[wanted] = _Pull(asyncio.create_task(pull_it()))
        pull.waiting += 1
        try:
            return await asyncio.shield(pull.task)
        finally:
            pull.waiting -= 1
            if pull.waiting == 0:
                pull.task.cancel()
                if self._pulls.get(wanted) is pull:
                    del self._pulls[wanted]

    async def _pull(self, wanted: str, reference: Reference, login: Mapping[str, str]) -> LocalImage:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.time_s):
                digest = reference.digest or await self._resolve(reference, login)
                await self._download(reference.name, digest, wanted, login)
        except TimeoutError:
            raise _failed(wanted, f"the pull took longer than {self._limits.time_s:g} s", True) from None
        except DockerError as error:
            raise pull_failure(wanted, error.message, login=bool(login)) from error
        except DockerSilent as error:
            raise _failed(wanted, f"the node's Docker broke off: {error}", True) from error
        pinned = Reference(reference.name, "", digest)
        found = await self._inspect(f"{reference.name}@{digest}", pinned)
        if found is None:
            raise _failed(wanted, "the node's Docker lost it after the pull", True)
        self._kept.came(Loaded(found.id, found.id), str(found.digest), found.size_bytes)
        log.info("image pulled", image=wanted, digest=digest, ms=round((time.monotonic() - started_s) * 1000))
        return found

    async def _resolve(self, reference: Reference, login: Mapping[str, str]) -> str:
        """The digest that the tag stands for now, as the registry says."""
        name = quote(f"{reference.name}:{reference.tag}", safe="/:")
        answer = await self._api.call("GET", f"/distribution/{name}/json", timeout_s=RESOLVE_S, headers=login)
        return str(answer["Descriptor"]["digest"])

    async def _download(self, name: str, digest: str, wanted: str, login: Mapping[str, str]) -> None:
        query = {"fromImage": name, "tag": digest}
        async with self._api.messages("POST", "/images/create", query=query, headers=login) as messages:
            layers: dict[str, int] = {}
            checked_s = 0.0
            async for message in _unless_quiet(messages, self._limits.quiet_s, wanted):
                if "error" in message:
                    raise pull_failure(wanted, str(message["error"]), login=bool(login))
                detail = message.get("progressDetail") or {}
                if message.get("status") == "Downloading" and "total" in detail:
                    layers[str(message.get("id"))] = int(detail["total"])
                    if sum(layers.values()) > self._limits.size_bytes:
                        limit = size(self._limits.size_bytes)
                        raise _failed(wanted, f"it is larger than the {limit} that a node takes", False)
                if time.monotonic() - checked_s > 1:
                    await self._kept.make_room()
                    checked_s = time.monotonic()
                    self._check_disk(wanted)

    def _check_disk(self, wanted: str) -> None:
        try:
            free = shutil.disk_usage(self._docker_root).free
        except OSError:
            return
        if free < self._limits.free_bytes:
            raise _failed(wanted, "it does not fit on the node's disk", True)


@dataclass(slots=True)
class _Pull:
    task: asyncio.Task[LocalImage]
    waiting: int = 0


async def _unless_quiet(
    messages: AsyncIterator[dict[str, Any]], quiet_s: float, wanted: str
) -> AsyncIterator[dict[str, Any]]:
    while True:
        try:
            async with asyncio.timeout(quiet_s):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _failed(wanted, f"nothing came from its registry for {quiet_s:g} s", True) from None
        yield message


def _local(found: dict[str, Any], reference: Reference | None) -> LocalImage:
    config = found.get("Config") or {}
    image_id = str(found["Id"])
    return LocalImage(
        id=image_id,
        digest=_digest_of(found.get("RepoDigests") or [], reference) or image_id,
        working_dir=str(config.get("WorkingDir") or ""),
        volumes=tuple(config.get("Volumes") or ()),
        has_command=bool(config.get("Entrypoint") or config.get("Cmd")),
        tagged=bool(found.get("RepoTags")),
        size_bytes=int(found.get("Size") or 0),
    )


def _digest_of(repo_digests: list[str], reference: Reference | None) -> str | None:
    """``repo@sha256:…`` in the repository that was asked for: what another node can pull too."""
    if reference is None:
        return None
    if reference.digest is not None:
        return f"{reference.name}@{reference.digest}"
    short = _short(reference.name)
    return next((f"{reference.name}@{each.rpartition('@')[2]}" for each in repo_digests
                 if _short(each.rpartition("@")[0]) == short), None)  # fmt: skip


def _login_header(wanted: str, login: str | None) -> dict[str, str]:
    """What Docker takes for the image's registry; it logs in there as the registry asks for it, basic or by token."""
    if login is None:
        return {}
    user, colon, token = login.strip().partition(":")
    if not (user and colon and token):
        raise AttemptFailed(
            ErrorCode.IMAGE_PULL_FAILED,
            f"image {wanted[:200]} could not be pulled: the secret that pullSecret names must be user:token",
            retryable=False,
        )
    told = json.dumps({"username": user, "password": token})
    return {"X-Registry-Auth": base64.urlsafe_b64encode(told.encode()).decode()}


def _short(name: str) -> str:
    return re.sub(r"^(index\.)?docker\.io/", "", name).removeprefix("library/")


NO_LOGIN = "it does not exist, or its registry asks for a login"
BAD_LOGIN = "its registry does not take the login of pullSecret, or it has no such image for this user"

_CAUSES: tuple[tuple[str, str, bool], ...] = (
    # A part of what Docker says, what it means, whether another attempt can help. The first that fits.
    (
        r"no such host|dial tcp|i/o timeout|connection re(fused|set)|tls handshake|client\.timeout|\b50[0-4]\b",
        "its registry could not be reached",
        True,
    ),
    (r"no space left on device", "it does not fit on the node's disk", True),
    (r"toomanyrequests|too many requests|rate limit", "its registry takes no more pulls for now", True),
    (r"no matching manifest|does not match the specified", "it has no variant for this kind of node", False),
    (
        r"denied|unauthorized|authentication required|no basic auth|insufficient_scope|\b40[13]\b",
        NO_LOGIN,
        False,
    ),
    (r"manifest unknown|name unknown|name invalid|not found|no such image", "its registry does not have it", False),
    (r"invalid reference|invalid repository|invalid tag", "it is not a valid image reference", False),
    (r"unsupported|media ?type", "it is in a format that the node's Docker cannot read", False),
    (r"max depth exceeded|verification failed", "its layers are broken", False),
)


def pull_failure(wanted: str, message: str, *, login: bool = False) -> AttemptFailed:
    """What Docker's own words about a failed pull mean for the job. What nobody knows may pass by itself."""
    for part, meaning, retryable in _CAUSES:
        if re.search(part, message, re.IGNORECASE):
            return _failed(wanted, BAD_LOGIN if login and meaning is NO_LOGIN else meaning, retryable, message)
    return _failed(wanted, "the node's Docker failed at it", True, message)


def _failed(wanted: str, why: str, retryable: bool, detail: str = "") -> AttemptFailed:
    said = f" (Docker: {' '.join(detail.split())[:500]})" if detail else ""
    return AttemptFailed(
        ErrorCode.IMAGE_PULL_FAILED, f"image {wanted[:200]} could not be pulled: {why}{said}", retryable=retryable
    )
