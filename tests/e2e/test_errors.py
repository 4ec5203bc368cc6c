"""Each way in which a job can fail, once, from the manifest to the job object."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.instance import Instance
from tests.e2e.manifests import SPARSE, shell
from tests.e2e.receiver import Receiver
from tests.images import build

pytestmark = pytest.mark.docker

MISSING_IMAGE = "127.0.0.1:1/nobody/nothing:1"
"""A registry where nothing listens."""
OUTPUT = {"path": "/out/result.bin", "name": "result", "required": True}


async def failing(instance: Instance, manifest: dict[str, Any], script: str = "true", **params: Any) -> dict[str, Any]:
    await instance.apply(manifest)
    return await instance.invoke(manifest["metadata"]["name"], {"script": script, **params}, Prefer="wait=60")


@pytest.mark.parametrize(
    ("script", "exit_code", "says"),
    [
        ("exit 3", 3, "exit code 3"),
        ("kill -SEGV $$", 139, "SIGSEGV"),
        ("/nowhere", 127, "not found"),
    ],
)
async def test_a_bad_exit_is_exit_nonzero_with_its_code(
    instance: Instance, busybox: str, script: str, exit_code: int, says: str
) -> None:
    job = await failing(instance, shell("exits", busybox), script)
    assert (job["status"], job["error"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", exit_code)
    assert says in job["error"]["message"]
    assert job["outputs"] == []


async def test_more_memory_than_allowed_is_oom_killed(instance: Instance, busybox: str) -> None:
    job = await failing(instance, shell("eats", busybox), "exec tail /dev/zero")
    assert (job["status"], job["error"]["code"], job["exit_code"]) == ("failed", "oom_killed", 137)
    assert "64 MiB" in job["error"]["message"]


@pytest.mark.parametrize("script", ["exec sleep 60", "trap '' TERM; while :; do sleep 0.1; done"])
async def test_more_time_than_allowed_is_timed_out_even_when_sigterm_is_ignored(
    instance: Instance, busybox: str, script: str
) -> None:
    job = await failing(instance, shell("sleeps", busybox, job={"timeout": "1s", "grace": "1s"}), script)
    assert (job["status"], job["error"]["code"]) == ("timed_out", "timeout")
    assert 1000 <= job["run_ms"] < 5000


async def test_an_image_that_cannot_be_had_is_image_pull_failed(instance: Instance) -> None:
    job = await failing(instance, shell("unpulled", MISSING_IMAGE))
    assert (job["status"], job["error"]["code"], job["exit_code"]) == ("failed", "image_pull_failed", None)
    assert MISSING_IMAGE in job["error"]["message"]


async def test_an_input_that_is_not_there_is_input_unavailable(
    instance: Instance, busybox: str, receiver: Receiver
) -> None:
    inputs = [{"path": "/in/clip", "url": "{{ params.clip }}"}]
    manifest = shell("fetches", busybox, job={"files": {"inputs": inputs}})
    manifest["spec"]["params"]["properties"]["clip"] = {"type": "string"}
    job = await failing(instance, manifest, clip=receiver.file_url("missing"))
    assert (job["status"], job["error"]["code"]) == ("failed", "input_unavailable")
    assert "404" in job["error"]["message"]


async def test_a_required_output_that_was_not_written_is_output_missing(instance: Instance, busybox: str) -> None:
    job = await failing(instance, shell("writes-nothing", busybox, outputs=[OUTPUT]))
    assert (job["status"], job["error"]["code"]) == ("failed", "output_missing")
    assert "/out/result.bin" in job["error"]["message"]


async def test_a_link_in_place_of_an_output_is_output_rejected_and_never_followed(
    instance: Instance, busybox: str
) -> None:
    job = await failing(
        instance, shell("links", busybox, outputs=[OUTPUT]), "ln -s /etc/passwd /out/result.bin"
    )
    assert (job["status"], job["error"]["code"]) == ("failed", "output_rejected")
    assert "link" in job["error"]["message"]
    assert job["outputs"] == []


async def test_outputs_that_are_larger_than_the_jobs_disk_are_output_too_large(
    instance: Instance, busybox: str
) -> None:
    files = [{"path": "/out/*.bin", "name": "all"}]
    job = await failing(instance, shell("sparse", busybox, outputs=files), SPARSE)
    assert (job["status"], job["error"]["code"]) == ("failed", "output_too_large")


async def test_a_result_that_is_too_large_for_the_job_is_a_file_of_it(instance: Instance, busybox: str) -> None:
    script = "head -c 300000 /dev/zero | tr '\\0' 1 > /out/result.json"
    job = await failing(instance, shell("talks", busybox), script)
    assert (job["status"], job["result"]) == ("succeeded", None)
    assert [(each["name"], each["size"], each["content_type"]) for each in job["outputs"]] == [
        ("result", 300_000, "application/json")
    ]


async def test_the_image_decides_nothing_about_user_network_or_disk(instance: Instance, busybox: str) -> None:
    image = build.image("USER 0\n")
    script = (
        "id -u; ls /sys/class/net; touch /etc/x 2>&1; dd if=/dev/zero of=/out/big bs=1M count=64 2>&1 | grep -i space"
    )
    job = await failing(instance, shell("confined", image), script)
    assert job["status"] == "succeeded", job
    log = (await instance.api.get(f"/v1/jobs/{job['id']}/logs")).text
    assert log.splitlines()[:2] == ["65532", "lo"]
    assert "Read-only" in log and "No space" in log
