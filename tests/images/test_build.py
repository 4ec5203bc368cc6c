from __future__ import annotations

import docker
import pytest

from gateway.cli.images import BuildFailed, build_image
from tests.conftest import docker_works
from tests.images.build import busybox, ffmpeg

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]


def run(image: str, *command: str) -> str:
    client = docker.from_env()
    try:
        output: bytes = client.containers.run(
            image,
            list(command),
            remove=True,
            read_only=True,
            user="65532:65532",
            network_mode="none",
            cap_drop=["ALL"],
        )
        return output.decode()
    finally:
        client.close()


def test_the_busybox_image_has_a_shell_and_the_applets() -> None:
    assert run(busybox(), "sh", "-c", "echo $(seq 3 | tail -1)") == "3\n"


def test_the_ffmpeg_image_runs_without_root_or_a_writable_root() -> None:
    assert run(ffmpeg(), "ffmpeg", "-version").startswith("ffmpeg version")


def test_the_same_content_is_one_image_and_other_content_another() -> None:
    first = build_image({"Dockerfile": b"FROM scratch\nCOPY a /a\n", "a": b"1"})
    try:
        assert build_image({"Dockerfile": b"FROM scratch\nCOPY a /a\n", "a": b"1"}) == first
        second = build_image({"Dockerfile": b"FROM scratch\nCOPY a /a\n", "a": b"2"})
        remove(second)
        assert second != first
    finally:
        remove(first)


def test_a_dockerfile_that_does_not_build_says_why() -> None:
    with pytest.raises(BuildFailed, match="nowhere"):
        build_image({"Dockerfile": b"FROM scratch\nCOPY nowhere /a\n"})


def remove(image: str) -> None:
    client = docker.from_env()
    client.api.remove_image(image, force=True)
    client.close()
