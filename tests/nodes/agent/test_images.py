from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.cli.images import build_image
from nodes.agent.docker_api import DockerApi, DockerError
from nodes.agent.failures import AttemptFailed
from nodes.agent.images import Images, PullLimits, Reference, pull_failure
from nodes.protocol import ErrorCode, Image
from tests.conftest import docker_works
from tests.nodes.agent.private_registry import LOGIN, private_registry
from tests.nodes.agent.registry import Registry

with_docker = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alpine", ("alpine", "latest", None)),
        ("alpine:3", ("alpine", "3", None)),
        ("ghcr.io/acme/ffmpeg:7", ("ghcr.io/acme/ffmpeg", "7", None)),
        ("localhost:5000/a/b__c/d-e.f:x_1.2", ("localhost:5000/a/b__c/d-e.f", "x_1.2", None)),
        ("[::1]:5000/a", ("[::1]:5000/a", "latest", None)),
        ("acme/tool:1@sha256:" + "a" * 64, ("acme/tool", "1", "sha256:" + "a" * 64)),
    ],
)
def test_references_are_taken_apart(text: str, parts: tuple[str, str, str | None]) -> None:
    reference = Reference.parse(text)
    assert (reference.name, reference.tag, reference.digest) == parts


@pytest.mark.parametrize(
    "text",
    ["", " ", "UPPER", "a b", "a:b:c", "../x", "a/../b", "a//b", "/a", "a\nb", "a\0", "-a", "a@sha256:12", "a@b", "a:",
     "--privileged", "a?x=1", "a#b", "a%2fb", "ü", "a" * 600, "a-" * 250, "x/json?fromImage=y"],
)  # fmt: skip
def test_what_is_no_reference_is_refused_for_good(text: str) -> None:
    with pytest.raises(AttemptFailed) as failed:
        Reference.parse(text)
    assert failed.value.code is ErrorCode.IMAGE_PULL_FAILED
    assert not failed.value.retryable


@pytest.mark.parametrize(
    ("message", "meaning", "retryable"),
    [
        ("manifest for acme/x:1 not found: manifest unknown: manifest unknown", "does not have it", False),
        ("pull access denied for x, repository does not exist or may require 'docker login'", "login", False),
        ("errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required", "login",
         False),
        ("no matching manifest for linux/amd64 in the manifest list entries", "no variant", False),
        ("toomanyrequests: You have reached your pull rate limit", "no more pulls", True),
        ('Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io: no such host', "could not be reached", True),
        ('Get "https://x/v2/": net/http: TLS handshake timeout', "could not be reached", True),
        ("received unexpected HTTP status: 503 Service Unavailable", "could not be reached", True),
        ("write /var/lib/docker/tmp/x: no space left on device", "does not fit", True),
        ("something that nobody has seen before", "failed at it", True),
    ],
)  # fmt: skip
def test_dockers_words_about_a_failed_pull_are_understood(message: str, meaning: str, retryable: bool) -> None:
    failure = pull_failure("acme/x:1", message)
    assert meaning in failure.message
    assert "\n" not in failure.message
    assert failure.retryable is retryable


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    yield server
    server.close()


@pytest.fixture
async def api() -> AsyncIterator[DockerApi]:
    opened = DockerApi("/var/run/docker.sock")
    await opened.connect()
    before = {each["Id"] for each in await opened.call("GET", "/images/json")}
    yield opened
    for each in await opened.call("GET", "/images/json"):
        if each["Id"] not in before and any("127.0.0.1" in digest for digest in each["RepoDigests"] or []):
            await opened.call("DELETE", f"/images/{each['Id']}", query={"force": 1})
    await opened.aclose()


@pytest.fixture
async def images(api: DockerApi) -> AsyncIterator[Images]:
    opened = Images(api, "/var/lib/docker")
    yield opened
    await opened.aclose()


def some_files() -> dict[str, bytes]:
    return {"x": uuid4().bytes * 4096}


class TestPulling:
    pytestmark = with_docker

    async def test_a_tag_is_resolved_once_and_its_digest_runs_from_then_on(
        self, api: DockerApi, images: Images, registry: Registry
    ) -> None:
        name = f"{registry.host}/acme/tool"
        digest = registry.push("acme/tool", "7", some_files())
        found = await images.ensure(Image(reference=f"{name}:7"))
        assert found.digest == f"{name}@{digest}"
        assert found.id.startswith("sha256:")
        with pytest.raises(DockerError):  # no tag that could go stale here
            await api.call("GET", f"/images/{name}:7/json")

        moved = registry.push("acme/tool", "7", some_files())
        pinned = await images.ensure(Image(reference=f"{name}:7", pinned=found.digest))
        assert (pinned.id, pinned.digest) == (found.id, found.digest)
        fresh = await images.ensure(Image(reference=f"{name}:7"))
        assert fresh.digest == f"{name}@{moved}"
        assert fresh.id != found.id

    async def test_an_image_that_is_here_needs_no_registry(self, images: Images, registry: Registry) -> None:
        name = f"{registry.host}/acme/tool"
        digest = registry.push("acme/tool", "1", some_files())
        first = await images.ensure(Image(reference=f"{name}@{digest}"))
        registry.fail = (500, {})
        assert await images.ensure(Image(reference=f"{name}@{digest}")) == first
        assert await images.by_id(first.id) == first

    async def test_several_who_want_one_image_share_its_pull(self, images: Images, registry: Registry) -> None:
        registry.push("acme/tool", "1", some_files())
        wanted = Image(reference=f"{registry.host}/acme/tool:1")
        found = await asyncio.gather(*[images.ensure(wanted) for _ in range(4)])
        assert len({each.id for each in found}) == 1
        assert registry.served["layer"] == 1

    async def test_one_who_gives_up_does_not_stop_the_pull_of_another(
        self, images: Images, registry: Registry
    ) -> None:
        registry.push("acme/tool", "1", some_files())
        registry.hold = threading.Event()
        wanted = Image(reference=f"{registry.host}/acme/tool:1")
        first, second = (asyncio.create_task(images.ensure(wanted)) for _ in range(2))
        await until_served(registry)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        registry.hold.set()
        assert (await second).id.startswith("sha256:")

    @pytest.mark.parametrize(
        ("answer", "retryable", "words"),
        [
            (None, False, "does not have it"),
            ((401, {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}), False, "login"),
            ((403, {"errors": [{"code": "DENIED", "message": "requested access is denied"}]}), False, "login"),
            ((503, {}), True, "could not be reached"),
        ],
    )
    async def test_a_registry_that_refuses_fails_the_attempt_in_plain_words(
        self,
        images: Images,
        registry: Registry,
        answer: tuple[int, dict[str, object]] | None,
        retryable: bool,
        words: str,
    ) -> None:
        registry.fail = answer
        with pytest.raises(AttemptFailed, match=words) as failed:
            await images.ensure(Image(reference=f"{registry.host}/acme/none:1"))
        assert failed.value.code is ErrorCode.IMAGE_PULL_FAILED
        assert failed.value.retryable is retryable

    async def test_a_private_registry_takes_the_login_of_the_lease(
        self, api: DockerApi, images: Images, tmp_path: Path
    ) -> None:
        with private_registry(tmp_path) as private:
            reference = f"{private.host}/acme/private:1"
            digest = private.push("acme/private", "1", some_files())
            for login, words in (
                (None, "asks for a login"),
                ("ci:wrong-token", "does not take the login of pullSecret"),
                ("nobody:s3cret-token", "does not take the login of pullSecret"),
                ("no colon", "must be user:token"),
                (":", "must be user:token"),
            ):
                with pytest.raises(AttemptFailed, match=words) as failed:
                    await images.ensure(Image(reference=reference, login=login))
                assert failed.value.code is ErrorCode.IMAGE_PULL_FAILED
                assert not failed.value.retryable
                assert login is None or login == ":" or login not in failed.value.message
            found = await images.ensure(Image(reference=reference, login=LOGIN + "\n"))
            assert found.digest == f"{private.host}/acme/private@{digest}"
            with pytest.raises(AttemptFailed, match="does not have it"):
                await images.ensure(Image(reference=f"{private.host}/acme/none:1", login=LOGIN))
        # The engine was told of the login for this pull only.
        assert await images.ensure(Image(reference=reference, pinned=found.digest)) == found

    async def test_a_registry_that_wants_a_token_is_given_one(self, images: Images) -> None:
        registry = Registry(login="ci:s3cret-token")
        try:
            registry.push("acme/private", "1", some_files())
            reference = f"{registry.host}/acme/private:1"
            with pytest.raises(AttemptFailed, match="does not take the login"):
                await images.ensure(Image(reference=reference, login="ci:wrong"))
            assert registry.served["token"] == 0
            assert (await images.ensure(Image(reference=reference, login="ci:s3cret-token"))).id.startswith("sha256:")
        finally:
            registry.close()

    async def test_one_without_the_login_does_not_join_the_pull_of_one_who_has_it(self, images: Images) -> None:
        registry = Registry(login="ci:s3cret-token")
        try:
            registry.push("acme/private", "1", some_files())
            registry.hold = threading.Event()
            reference = f"{registry.host}/acme/private:1"
            first = asyncio.create_task(images.ensure(Image(reference=reference, login="ci:s3cret-token")))
            await until_served(registry)
            with pytest.raises(AttemptFailed, match="asks for a login"):
                await images.ensure(Image(reference=reference))
            registry.hold.set()
            await first
        finally:
            registry.close()

    async def test_a_registry_that_is_not_there_may_come_back(self, images: Images) -> None:
        with pytest.raises(AttemptFailed, match="could not be reached") as failed:
            await images.ensure(Image(reference="127.0.0.1:1/acme/none:1"))
        assert failed.value.retryable

    @pytest.mark.parametrize(
        ("limits", "retryable", "words"),
        [
            (PullLimits(size_bytes=1_000_000), False, "larger than the 976.6 KiB"),
            (PullLimits(time_s=0.5), True, "took longer than 0.5 s"),
            (PullLimits(quiet_s=0.5), True, "nothing came from its registry for 0.5 s"),
            (PullLimits(free_bytes=2**60), True, "does not fit on the node's disk"),
        ],
    )
    async def test_a_pull_stops_at_its_limits(
        self, api: DockerApi, registry: Registry, limits: PullLimits, retryable: bool, words: str
    ) -> None:
        registry.claimed_bytes = 5_000_000
        registry.push("acme/huge", "1", {"x": random.randbytes(3_000_000)})
        registry.hold = threading.Event()
        images = Images(api, "/var/lib/docker", limits)
        with pytest.raises(AttemptFailed, match=words) as failed:
            async with asyncio.timeout(10):
                await images.ensure(Image(reference=f"{registry.host}/acme/huge:1"))
        assert failed.value.retryable is retryable
        await images.aclose()

    async def test_an_image_of_this_machine_is_used_by_its_id(self, api: DockerApi, images: Images) -> None:
        built = build_image({"Dockerfile": b"FROM scratch\nCOPY a /a\n", "a": uuid4().bytes})
        found = await images.ensure(Image(reference=built))
        assert (found.id, found.digest) == (built, built)
        tag = f"rgrid-test-{uuid4().hex[:8]}"
        await api.call("POST", f"/images/{built}/tag", query={"repo": tag, "tag": "1"})
        try:
            tagged = await images.ensure(Image(reference=f"{tag}:1"))
            assert (tagged.id, tagged.digest) == (built, built)
        finally:
            await api.call("DELETE", f"/images/{built}", query={"force": 1})

    async def test_an_id_that_is_not_here_cannot_be_pulled(self, images: Images) -> None:
        with pytest.raises(AttemptFailed, match="not on this node") as failed:
            await images.ensure(Image(reference="sha256:" + "0" * 64))
        assert not failed.value.retryable


async def until_served(registry: Registry) -> None:
    async with asyncio.timeout(10):
        while not registry.served["layer"]:
            await asyncio.sleep(0.01)
