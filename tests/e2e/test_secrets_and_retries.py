"""Secrets from the API to the container and out of the log again; what a job and its manifest say about retries."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.instance import Instance
from tests.e2e.manifests import shell
from tests.nodes.agent.private_registry import LOGIN, private_registry

pytestmark = pytest.mark.docker

VALUE = "sk-hunter22-and-more"


def remove_images(host: str) -> None:
    """Those that a node has pulled from there, which have no tag."""
    listed = subprocess.run(
        ["docker", "images", "--digests", "--format", "{{.ID}} {{.Repository}}"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for image in {line.split()[0] for line in listed if line.split()[1].startswith(f"{host}/")}:
        subprocess.run(["docker", "rmi", "-f", image], capture_output=True, check=True)


async def set_secret(instance: Instance, name: str, value: str = VALUE) -> None:
    answer = await instance.api.post("/v1/secrets", json={"name": name, "value": value})
    assert answer.status_code in (200, 201), answer.text


async def test_a_secret_is_in_the_environment_and_not_in_the_log(instance: Instance, busybox: str) -> None:
    await set_secret(instance, "API_KEY")
    await instance.apply(shell("keeps", busybox, job={"secrets": ["API_KEY"]}))
    script = 'echo "key: $API_KEY"; echo "{\\"length\\": ${#API_KEY}}" > /out/result.json'
    job = await instance.invoke("keeps", {"script": script}, Prefer="wait=60")
    assert (job["status"], job["result"]) == ("succeeded", {"length": len(VALUE)})
    assert (await instance.api.get(f"/v1/jobs/{job['id']}/logs")).text == "key: ***\n"
    assert VALUE not in str(job) + str(await instance.events(job["id"]))
    logs = "".join(process.log.read_text() for process in instance.processes.values())
    assert VALUE not in logs


async def test_a_secret_that_was_deleted_fails_the_job_without_a_retry(instance: Instance, busybox: str) -> None:
    await set_secret(instance, "SHORT_LIVED")
    await instance.apply(shell("misses", busybox, job={"secrets": ["SHORT_LIVED"]}, retry={"attempts": 3}))
    assert (await instance.api.delete("/v1/secrets/SHORT_LIVED")).status_code == 204
    job = await instance.invoke("misses", {"script": "true"}, Prefer="wait=60")
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "secret_missing", 1)
    assert "SHORT_LIVED" in job["error"]["message"]


async def test_a_private_registry_is_logged_in_to_by_the_projects_secret(instance: Instance, tmp_path: Path) -> None:
    with private_registry(tmp_path) as registry:
        registry.push("acme/tool", "1", {"busybox": Path("/bin/busybox").read_bytes()})
        manifest = shell("private", f"{registry.host}/acme/tool:1", job={"pullSecret": "REGISTRY_LOGIN"})
        manifest["spec"]["job"]["command"] = ["/busybox", "sh", "-c", "{{ params.script }}"]
        await set_secret(instance, "REGISTRY_LOGIN", "ci:wrong-token")
        await instance.apply(manifest)
        job = await instance.invoke("private", {"script": "true"}, Prefer="wait=60")
        assert (job["status"], job["error"]["code"]) == ("failed", "image_pull_failed")
        assert "does not take the login of pullSecret" in job["error"]["message"]
        await set_secret(instance, "REGISTRY_LOGIN", LOGIN)
        job = await instance.invoke("private", {"script": "true"}, Prefer="wait=60")
        assert job["status"] == "succeeded", job["error"]
    remove_images(registry.host)


async def test_a_job_asks_for_its_next_attempt_itself(instance: Instance, busybox: str) -> None:
    retry = {"attempts": 2, "on": ["exit:75"], "backoff": {"initial": "1h", "max": "1h"}}
    await instance.apply(shell("limited", busybox, retry=retry))
    script = (
        '[ "$RGRID_ATTEMPT" = 2 ] && exit 0; '
        'echo "{\\"after\\": \\"1s\\", \\"reason\\": \\"rate limited\\"}" > /out/retry.json; exit 75'
    )
    job = await instance.invoke("limited", {"script": script}, Prefer="wait=60")
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    events = await instance.events(job["id"])
    (failed,) = [event for event in events if "rate limited" in str(event)]
    started = [datetime.fromisoformat(event["at"]) for event in events if event["type"] == "started"]
    assert (started[1] - started[0]).total_seconds() >= 1, failed


async def test_out_of_memory_is_tried_again_with_twice_as_much(instance: Instance, busybox: str) -> None:
    resources = {"cpu": "500m", "memory": "32Mi", "memoryMax": "1Gi", "disk": "16Mi"}
    backoff = {"initial": "0s"}
    await instance.apply(
        shell("grows", busybox, job={"resources": resources}, retry={"attempts": 1, "backoff": backoff})
    )
    # A tail that waits for a line end keeps all that comes before it.
    script = "head -c 36000000 /dev/zero | tail -n 1 | wc -c"
    job = await instance.invoke("grows", {"script": f"set -o pipefail; {script}"}, Prefer="wait=60")
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
    assert (await instance.api.get(f"/v1/jobs/{job['id']}/logs")).text == "36000000\n"
    job = await instance.invoke("grows", {"script": "exec tail /dev/zero"}, Prefer="wait=60")
    assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 2, "oom_killed")
    assert "64 MiB" in job["error"]["message"]
