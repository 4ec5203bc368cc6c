from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import zstandard

from nodes.agent.docker_api import DockerApi, DockerError
from nodes.agent.failures import AttemptFailed
from nodes.agent.images import Images, PullLimits
from nodes.protocol import Archive, ErrorCode, Image
from tests.conftest import docker_works
from tests.e2e.receiver import Receiver, receiving
from tests.nodes.agent.saved import Saved, layer

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]
REFERENCE = "artifact:art_" + "0" * 32


@pytest.fixture
def store() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
async def api() -> AsyncIterator[DockerApi]:
    opened = DockerApi("/var/run/docker.sock")
    await opened.connect()
    yield opened
    await opened.aclose()


@pytest.fixture
async def images(api: DockerApi, tmp_path: Path) -> AsyncIterator[Images]:
    opened = Images(api, "/var/lib/docker", PullLimits(size_bytes=64 * 1024**2, time_s=60), tmp_path / "images")
    yield opened
    await opened.aclose()
    assert not any((tmp_path / "images").glob("*")), "nothing is left of an archive"


def some_image() -> Saved:
    return Saved(layer(x=uuid4().bytes * 4096), layer(y=b"1"))


def kept(store: Receiver, content: bytes, *, pinned: str | None = None, sha256: str | None = None) -> Image:
    """The image of an archive in the store, as a lease names it."""
    packed = zstandard.compress(content)
    store.files["image"] = packed
    real = hashlib.sha256(packed).hexdigest()
    archive = Archive(url=store.file_url("image"), size=len(packed), sha256=sha256 or real)
    return Image(reference=f"artifact:art_{real[:32]}", pinned=pinned, archive=archive)


async def has(api: DockerApi, image: str) -> bool:
    try:
        await api.call("GET", f"/images/{image}/json")
    except DockerError as error:
        assert error.status == 404
        return False
    return True


async def test_an_image_is_loaded_once_by_its_id_alone(api: DockerApi, images: Images, store: Receiver) -> None:
    saved = some_image()
    saved.tags = ["rgrid-test-not-to-be-set:1"]
    image = kept(store, saved.archive(), pinned=saved.id)
    found, again = await asyncio.gather(images.ensure(image), images.ensure(image))
    try:
        assert found.id == found.digest == again.id == saved.id
        assert found.has_command
        about = await api.call("GET", f"/images/{saved.id}/json")
        assert about["RepoTags"] == []
        assert not await has(api, "rgrid-test-not-to-be-set:1")
        store.files.clear()  # it is there: nothing is fetched
        assert (await images.ensure(image)).id == saved.id
        assert (await images.ensure(image.model_copy(update={"pinned": None}))).id == saved.id
        assert (await images.ensure(Image(reference=image.reference, pinned=saved.id))).id == saved.id
    finally:
        await api.call("DELETE", f"/images/{saved.id}")


async def test_a_tag_of_the_archive_does_not_move_an_image_of_the_node(
    api: DockerApi, images: Images, store: Receiver
) -> None:
    mine, foreign = some_image(), some_image()
    await images.ensure(kept(store, mine.archive()))
    await api.call("POST", f"/images/{mine.id}/tag", query={"repo": "rgrid-test-mine", "tag": "1"})
    try:
        foreign.tags = ["rgrid-test-mine:1"]
        assert (await images.ensure(kept(store, foreign.archive()))).id == foreign.id
        assert (await api.call("GET", "/images/rgrid-test-mine:1/json"))["Id"] == mine.id
    finally:
        for image in ("rgrid-test-mine:1", foreign.id):
            await api.call("DELETE", f"/images/{image}", query={"force": 1})


async def refused(images: Images, image: Image) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        await images.ensure(image)
    assert failed.value.code is ErrorCode.IMAGE_PULL_FAILED
    return failed.value


async def test_other_bytes_another_image_and_bombs_are_refused_for_good(
    api: DockerApi, images: Images, store: Receiver
) -> None:
    saved = some_image()
    swapped = await refused(images, kept(store, saved.archive(), sha256="0" * 64))
    assert "other bytes" in swapped.message and not swapped.retryable
    other = await refused(images, kept(store, saved.archive(), pinned="sha256:" + "1" * 64))
    assert f"holds the image {saved.id}" in other.message and not other.retryable
    two = some_image()
    two.images = 2
    assert not (await refused(images, kept(store, two.archive()))).retryable
    large = await refused(images, kept(store, bytes(65 * 1024**2)))
    assert "unpacks to more than the 64 MiB" in large.message and not large.retryable
    assert not await has(api, saved.id)
    assert not await has(api, two.id)


async def test_a_ratio_that_no_image_has_is_refused(
    images: Images, store: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.agent.saved_images.ANY_RATIO_BYTES", 1024**2)
    bomb = await refused(images, kept(store, bytes(32 * 1024**2)))
    assert "200 times" in bomb.message and not bomb.retryable


async def test_what_docker_refuses_and_what_is_gone_says_so(images: Images, store: Receiver) -> None:
    saved = some_image()
    saved.config["created"] = "not a time"
    assert "refused" in (await refused(images, kept(store, saved.archive()))).message
    image = kept(store, saved.archive())
    store.files.clear()
    gone = await refused(images, image)
    assert "not in the store" in gone.message and not gone.retryable
    nowhere = await refused(images, Image(reference=REFERENCE, pinned="sha256:" + "1" * 64))
    assert "deploy it again" in nowhere.message and not nowhere.retryable


class ByManifest:
    """An engine with containerd's image store, as far as it differs: it names an image by a manifest of its own."""

    NAME = "sha256:" + "c" * 64

    def __init__(self, layers: list[str]) -> None:
        self.layers = layers
        self.removed: list[str] = []

    @asynccontextmanager
    async def messages(self, *_: object, content: AsyncIterator[bytes], **__: object) -> AsyncIterator[Any]:
        assert b"".join([chunk async for chunk in content])

        async def answer() -> AsyncIterator[dict[str, str]]:
            yield {"stream": f"Loaded image ID: {self.NAME}\n"}

        yield answer()

    async def call(self, method: str, path: str, **_: object) -> Any:
        if method == "DELETE":
            self.removed.append(path)
            return None
        if path != f"/images/{self.NAME}/json":
            raise DockerError(404, "no such image")
        return {"Id": self.NAME, "RootFS": {"Layers": self.layers}, "Config": {"Cmd": ["/x"]}}


async def test_an_engine_that_names_images_by_manifest_is_believed_if_the_layers_are_the_same(
    store: Receiver, tmp_path: Path
) -> None:
    saved = some_image()
    image = kept(store, saved.archive(), pinned=saved.id)
    engine = ByManifest(saved.config["rootfs"]["diff_ids"])
    images = Images(cast("DockerApi", engine), "/nowhere", spool=tmp_path / "images")
    found = await images.ensure(image)
    assert (found.id, found.digest) == (engine.NAME, saved.id)  # what other nodes call it
    store.files.clear()
    assert await images.ensure(image) == found
    assert (await images.by_id(found.id)).has_command

    store.files["image"] = zstandard.compress(saved.archive())
    other = ByManifest(["sha256:" + "d" * 64])
    images = Images(cast("DockerApi", other), "/nowhere", spool=tmp_path / "images")
    assert not (await refused(images, image)).retryable
    assert other.removed == [f"/images/{engine.NAME}"]


async def test_a_store_that_is_away_is_worth_another_attempt(images: Images, store: Receiver) -> None:
    image = kept(store, some_image().archive())
    assert image.archive is not None
    away = image.archive.model_copy(update={"url": "http://127.0.0.1:1/x"})
    assert (await refused(images, image.model_copy(update={"archive": away}))).retryable
