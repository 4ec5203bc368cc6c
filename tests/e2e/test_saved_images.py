"""An archive that somebody made by hand goes all the way: through the store, to a node, and no further."""

from __future__ import annotations

import hashlib

import httpx
import pytest
import zstandard

from tests.e2e.instance import Instance
from tests.e2e.manifests import shell
from tests.nodes.agent.saved import Saved, file, layer

pytestmark = pytest.mark.docker


async def uploaded(instance: Instance, data: bytes) -> str:
    body = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "name": "image.tar.zst"}
    upload = (await instance.api.post("/v1/artifacts", json=body)).json()
    async with httpx.AsyncClient(trust_env=False) as storage:
        sent = await storage.put(upload["upload"]["url"], content=data, headers=upload["upload"]["headers"])
    assert sent.is_success, sent.text
    done = await instance.api.post(f"/v1/artifacts/{upload['id']}/complete")
    assert done.status_code == 200, done.text
    return str(upload["uri"])


async def test_hostile_archives_fail_their_own_job_once_and_the_node_goes_on(instance: Instance, busybox: str) -> None:
    saved = Saved(layer(a=b"1"))
    saved.extra = [file("../../../../etc/cron.d/x", b"* * * * * root true")]
    hostile = {
        "no-archive": b"not even compressed",
        "a-bomb": zstandard.compress(bytes(300 * 1024**2)),
        "a-path-out": zstandard.compress(saved.archive()),
    }
    for name, data in hostile.items():
        image = await uploaded(instance, data)
        await instance.apply(shell(name, image, retry={"attempts": 3, "on": ["error"]}))
    jobs = [await instance.invoke(name, {"script": "true"}) for name in hostile]
    for job in jobs:
        ended = await instance.finished(job["id"])
        assert (ended["status"], ended["attempt"], ended["error"]["code"]) == ("failed", 1, "image_pull_failed"), ended
    node = await instance.node("node")
    assert node is not None and node["state"] == "ready"
    await instance.apply(shell("neighbour", busybox))
    assert (await instance.finished((await instance.invoke("neighbour", {"script": "true"}))["id"]))["status"] == "succeeded"
    assert not list((instance.folder / "node" / "images").glob("*"))
