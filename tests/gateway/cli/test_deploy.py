from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.cli.failures import Failed
from gateway.cli.saving import save
from tests.conftest import docker_works
from tests.gateway.cli.conftest import Connected

with_docker = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]
MANIFEST = """\
apiVersion: rgrid/v1
kind: Function
metadata: {name: greet}
spec:
  params: {type: object, required: [who, file], properties: {who: {type: string}, file: {type: string}}}
  job:
    image: greet
    command: [/hello, "{{ params.who }}"]
    files: {inputs: [{path: /in/file, url: "{{ params.file }}"}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A function with an image of its own that nobody has built before."""
    path = tmp_path / "greet"
    path.mkdir()
    (path / "function.yaml").write_text(MANIFEST)
    (path / "Dockerfile").write_text("FROM scratch\nCOPY hello /hello\n")
    (path / "hello").write_bytes(uuid4().bytes * 1000)
    return path


def remove(image: str) -> None:
    subprocess.run(["docker", "rmi", "-f", image], capture_output=True, check=False)


async def test_a_folder_without_one_manifest_or_a_dockerfile_is_told(
    call: Connected, folder: Path, tmp_path: Path
) -> None:
    (folder / "Dockerfile").unlink()
    assert "no Dockerfile here" in (await call("deploy", folder)).refused()
    (folder / "function.json").write_text("{}")
    assert "more than one of" in (await call("deploy", folder)).refused()
    assert "none of function.yaml" in (await call("deploy", tmp_path)).refused()
    assert "none of function.yaml" in (await call("deploy", tmp_path / "nowhere")).refused()


async def test_what_is_wrong_with_the_manifest_is_said_before_anything_is_built(
    call: Connected, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "the docker command is missing" in (await call("deploy", folder)).refused()
    (folder / "function.yaml").write_text(MANIFEST + "    timeout: soon\n")
    said = (await call("deploy", folder)).refused()
    assert f"{folder}/function.yaml:10:" in said and "/spec/job/timeout" in said
    (folder / "function.yaml").write_text("apiVersion: rgrid/v1\nkind: Function\nmetadata: {name: greet}\nspec: 7\n")
    assert "/spec" in (await call("deploy", folder)).refused()


@pytest.mark.parametrize("image", ["7", "--version", "artifact:art_" + "0" * 32, "''"])
async def test_without_a_build_the_manifest_names_an_image_of_docker(
    call: Connected, folder: Path, image: str
) -> None:
    (folder / "function.yaml").write_text(MANIFEST.replace("image: greet", f"image: {image}"))
    assert "/spec/job/image" in (await call("deploy", folder, "--no-build")).refused()


class TestWithDocker:
    pytestmark = with_docker

    async def test_a_folder_becomes_a_function_that_can_be_invoked(self, call: Connected, folder: Path) -> None:
        first = await call("deploy", folder, "--json")
        assert first.status == 0, first
        image = first.json["image"]
        try:
            shown = (await call("functions", "get", "greet", "--json")).json
            assert shown["manifest"]["spec"]["job"]["image"] == f"artifact:{image['artifact']}@{image['id']}"
            again = await call("deploy", folder)
            assert again.out == "greet  version 1  unchanged\n"
            assert "invoke it: rgrid invoke greet -p who=VALUE --file file=PATH --wait\n" in again.err

            subprocess.run(["docker", "tag", image["id"], "rgrid-test-deploy:1"], check=True)
            (folder / "function.yaml").write_text(MANIFEST.replace("image: greet", "image: rgrid-test-deploy:1"))
            (folder / "params.json").write_text("{}")
            named = await call("deploy", folder, "--no-build")
            assert named.out == "greet  version 1  unchanged\n"  # the tag makes no other image
            assert f"--data @{folder}/params.json" in named.err
        finally:
            remove("rgrid-test-deploy:1")
            remove(image["id"])

    async def test_what_docker_says_is_shown(self, call: Connected, folder: Path) -> None:
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY nowhere /hello\n")
        failed = await call("deploy", folder)
        assert (failed.status, failed.out) == (1, "")
        assert failed.err.endswith("the image does not build\n")
        (folder / "function.yaml").write_text(MANIFEST.replace("image: greet", "image: rgrid-test-is-not-there:1"))
        missing = await call("deploy", folder, "--no-build")
        assert "rgrid-test-is-not-there:1 cannot be saved" in missing.err


@pytest.mark.docker
@pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")
def test_an_image_is_always_saved_as_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    built = subprocess.run(
        ["docker", "build", "-q", str(folder)], env={"DOCKER_BUILDKIT": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    image = built.stdout.strip()
    try:
        saved = []
        for name in ("a", "b"):
            into = tmp_path / name
            into.mkdir()
            saved.append(save(image, into, lambda _: None))
        first, second = saved
        assert first.id == second.id == image
        assert first.path.read_bytes() == second.path.read_bytes()
        assert first.size == len(first.path.read_bytes())
    finally:
        remove(image)
    with pytest.raises(Failed, match="cannot be saved"):
        save(image, tmp_path, lambda _: None)
