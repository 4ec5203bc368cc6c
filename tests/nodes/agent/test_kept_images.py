from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard

from nodes.agent.docker_api import DockerApi, DockerError
from nodes.agent.failures import AttemptFailed
from nodes.agent.images import Images, PullLimits
from nodes.protocol import Archive, Image
from tests.conftest import docker_works
from tests.e2e.receiver import Receiver, receiving
from tests.nodes.agent.gateway import TestGateway
from tests.nodes.agent.node import node as node_with_jobs
from tests.nodes.agent.registry import Registry
from tests.nodes.agent.saved import Saved, layer
from tests.nodes.agent.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]
MIB = 1024**2


@pytest.fixture
def store() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
async def api() -> AsyncIterator[DockerApi]:
    opened = DockerApi("/var/run/docker.sock")
    await opened.connect()
    before = {each["Id"] for each in await opened.call("GET", "/images/json")}
    yield opened
    for each in await opened.call("GET", "/images/json"):
        ours = each["Size"] in (MIB, 2 * MIB) or any("127.0.0.1" in digest for digest in each["RepoDigests"] or [])
        if each["Id"] not in before and ours:
            await opened.call("DELETE", f"/images/{each['Id']}", query={"force": 1})
    await opened.aclose()


@asynccontextmanager
async def node(api: DockerApi, folder: Path, *, most_bytes: int | None = None) -> AsyncIterator[Images]:
    """A node with a folder; started again, it finds what is in it."""
    limits = PullLimits(size_bytes=64 * MIB, free_bytes=0)
    ledger = folder / "images.json"
    images = Images(api, "/var/lib/docker", limits, folder / "images", ledger=ledger, most_bytes=most_bytes)
    yield images
    await images.aclose()


class Stored:
    """An image of exactly 1 MiB that a project has uploaded."""

    def __init__(self, store: Receiver) -> None:
        self.saved = Saved(layer(x=uuid4().bytes * (MIB // 16)))
        self.id = self.saved.id
        packed = zstandard.compress(self.saved.archive())
        digest = hashlib.sha256(packed).hexdigest()
        store.files[digest] = packed
        self.reference = f"artifact:art_{uuid4().hex}"
        self.archive = Archive(url=store.file_url(digest), size=len(packed), sha256=digest)

    @property
    def image(self) -> Image:
        return Image(reference=self.reference, pinned=self.id, archive=self.archive)


async def has(api: DockerApi, image_id: str) -> bool:
    try:
        await api.call("GET", f"/images/{image_id}/json")
    except DockerError as error:
        assert error.status == 404
        return False
    return True


async def gone(api: DockerApi, image_id: str) -> None:
    async with asyncio.timeout(20):
        while await has(api, image_id):
            await asyncio.sleep(0.02)


async def refused(images: Images, image: Image) -> str:
    with pytest.raises(AttemptFailed) as failed:
        await images.ensure(image)
    assert not failed.value.retryable
    return failed.value.message


async def test_who_claims_anothers_image_while_it_is_loaded_does_not_share_it(
    api: DockerApi, store: Receiver, tmp_path: Path
) -> None:
    theirs, mine = Stored(store), Stored(store)
    claimed = theirs.archive.model_copy(update={"url": mine.archive.url})
    async with node(api, tmp_path) as images:
        owner = asyncio.ensure_future(images.ensure(theirs.image.model_copy(update={"pinned": None})))
        await asyncio.sleep(0)
        with pytest.raises(AttemptFailed, match="other bytes"):
            await images.ensure(Image(reference=f"artifact:art_{uuid4().hex}", archive=claimed))
        assert (await owner).id == theirs.id


async def test_who_only_claims_to_have_anothers_image_is_not_given_it(
    api: DockerApi, store: Receiver, tmp_path: Path
) -> None:
    theirs, mine = Stored(store), Stored(store)
    foreign = f"artifact:art_{uuid4().hex}"
    claims = {
        "its id, with bytes of another": (Image(reference=foreign, pinned=theirs.id, archive=mine.archive), "holds"),
        "its id, without bytes": (Image(reference=foreign, pinned=theirs.id), "deploy it again"),
        "its id alone": (Image(reference=theirs.id), "not on this node"),
        "its archive's hash, without its bytes": (
            Image(reference=foreign, archive=theirs.archive.model_copy(update={"url": mine.archive.url})),
            "other bytes",
        ),
    }
    for _ in range(2):  # and again by an agent that was started since
        async with node(api, tmp_path) as images:
            assert (await images.ensure(theirs.image)).id == theirs.id
            store.files.pop(theirs.archive.sha256, None)  # it is not fetched twice
            for image, words in claims.values():
                assert words in await refused(images, image)


async def test_who_has_the_bytes_too_shares_the_image(api: DockerApi, store: Receiver, tmp_path: Path) -> None:
    one = Stored(store)
    other = one.image.model_copy(update={"reference": f"artifact:art_{uuid4().hex}"})
    async with node(api, tmp_path) as images:
        assert await images.ensure(one.image) == await images.ensure(other)
        store.files.clear()
        assert (await images.ensure(other)).id == one.id


async def test_the_least_recently_used_image_goes_and_none_that_a_job_uses(
    api: DockerApi, store: Receiver, tmp_path: Path
) -> None:
    used, old, recent, last = (Stored(store) for _ in range(4))
    async with node(api, tmp_path, most_bytes=3 * MIB) as images:
        for each in (used, old, recent):
            await images.ensure(each.image, holder=each.id)
        for each in (old, recent):
            images.let_go(each.id)
        await images.ensure(old.image, holder="again")
        images.let_go("again")  # now recent is the one that was not used for longest
        await images.ensure(last.image, holder=last.id)
        assert await has(api, recent.id), "nothing goes while all are needed or within the limit"
        images.let_go(last.id)
        await gone(api, recent.id)
        assert [await has(api, each.id) for each in (used, old, last)] == [True, True, True]
        assert (await images.ensure(recent.image)).id == recent.id  # it comes again when it is needed
    # A limit of nothing, at the next start: all that no job uses goes, but neither what a container was made of nor
    # what the owner has given a name since.
    made = await api.call("POST", "/containers/create", body={"Image": old.id, "Cmd": ["/x"]})
    await api.call("POST", f"/images/{last.id}/tag", query={"repo": "rgrid-test-kept", "tag": "1"})
    try:
        async with node(api, tmp_path, most_bytes=0) as images:
            await images.ensure(used.image, holder=used.id)
            await images.ensure(recent.image, holder=recent.id)
            images.let_go(recent.id)
            await gone(api, recent.id)
            assert [await has(api, each.id) for each in (used, old, last)] == [True, True, True]
    finally:
        await api.call("DELETE", f"/containers/{made['Id']}", query={"force": 1})
        await api.call("DELETE", "/images/rgrid-test-kept:1")


async def test_pulled_images_go_too_and_the_owners_own_never(api: DockerApi, store: Receiver, tmp_path: Path) -> None:
    registry = Registry()
    try:
        registry.push("acme/tool", "1", {"x": uuid4().bytes * 4096})
        mine = Stored(store)
        subprocess.run(["docker", "load"], input=mine.saved.archive(), check=True, capture_output=True)
        async with node(api, tmp_path, most_bytes=0) as images:
            pulled = await images.ensure(Image(reference=f"{registry.host}/acme/tool:1"), holder="a")
            assert (await images.ensure(Image(reference=mine.id), holder="b")).id == mine.id
            assert (await images.ensure(mine.image, holder="c")).id == mine.id
            for holder in "abc":
                images.let_go(holder)
            await gone(api, pulled.id)
            assert await has(api, mine.id)
            again = await images.ensure(Image(reference=f"{registry.host}/acme/tool:1", pinned=pulled.digest))
            assert again.id == pulled.id
    finally:
        registry.close()


async def test_a_job_keeps_its_image_until_it_is_over(
    api: DockerApi, gateway: TestGateway, store: Receiver, tmp_path: Path
) -> None:
    one = Stored(store)
    async with node_with_jobs(gateway, tmp_path, images_bytes=0) as made:
        job = gateway.add(one.reference, "/not-in-it")
        job.lease = job.lease.model_copy(update={"image": one.image})
        await until(lambda: job.report is not None, 20)
        assert job.report is not None and job.report.exit_code == 127, "it ran in the image, which has no such program"
        await gone(api, one.id)
        await made.drained()


async def test_an_image_that_is_going_is_brought_again_for_who_comes_meanwhile(
    api: DockerApi, store: Receiver, tmp_path: Path
) -> None:
    one = Stored(store)
    async with node(api, tmp_path, most_bytes=0) as images:
        await images.ensure(one.image, holder=0)
        for number in range(10):
            images.let_go(number)
            for _ in range(number % 7):
                await asyncio.sleep(0)
            assert (await images.ensure(one.image, holder=number + 1)).id == one.id
            assert await has(api, one.id), "it stays while it is held"


async def test_a_list_that_cannot_be_read_costs_disk_only(api: DockerApi, store: Receiver, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text("{")
    one = Stored(store)
    async with node(api, tmp_path) as images:
        assert (await images.ensure(one.image)).id == one.id
    assert one.id in (tmp_path / "images.json").read_text()
