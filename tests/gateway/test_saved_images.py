"""``image: artifact:art_…``: whose file it must be, and what a node is given."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from gateway.services import Services
from tests.gateway import work
from tests.gateway.making import key_client, manifest, project_client
from tests.gateway.work import joined

DATA = b"what docker save wrote, compressed"
ID = "sha256:" + "b" * 64


@pytest.fixture
async def artifact(api: httpx.AsyncClient) -> str:
    return await uploaded(api)


async def uploaded(api: httpx.AsyncClient, *, complete: bool = True) -> str:
    body = {"size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest(), "name": "tool.tar.zst"}
    upload = (await api.post("/v1/artifacts", json=body)).json()
    if complete:
        async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
            sent = await storage.put(upload["upload"]["url"], content=DATA, headers=upload["upload"]["headers"])
        assert sent.is_success, sent.text
        done = await api.post(f"/v1/artifacts/{upload['id']}/complete")
        assert done.status_code == 200, done.text
    return str(upload["id"])


async def apply(api: httpx.AsyncClient, image: str) -> httpx.Response:
    document = manifest("tool")
    document["spec"]["job"]["image"] = image
    return await api.put("/v1/functions/tool", json=document)


async def test_a_saved_image_of_the_project_is_taken(api: httpx.AsyncClient, artifact: str) -> None:
    answer = await apply(api, f"artifact:{artifact}@{ID}")
    assert answer.status_code == 201, answer.text
    assert answer.json()["manifest"]["spec"]["job"]["image"] == f"artifact:{artifact}@{ID}"


async def test_a_file_that_is_missing_not_complete_or_anothers_is_422(
    services: Services, api: httpx.AsyncClient, artifact: str
) -> None:
    async with project_client(services) as other, key_client(services, "admin") as mine:
        refused = [
            await apply(api, "artifact:art_" + "0" * 32),
            await apply(other, f"artifact:{artifact}"),
        ]
        assert (await apply(mine, f"artifact:{artifact}")).status_code == 201
    pending = (await api.post("/v1/artifacts", json={"size": 3, "sha256": "0" * 64})).json()["id"]
    refused.append(await apply(api, f"artifact:{pending}"))
    for answer in refused:
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "artifact_not_found")
        assert [fault["pointer"] for fault in problem["errors"]] == ["/spec/job/image"]


async def test_a_node_gets_a_link_the_hash_and_the_id_to_expect(
    services: Services, api: httpx.AsyncClient, artifact: str
) -> None:
    async with joined(services) as node:
        version = await work.define(services, "tool", job={"image": f"artifact:{artifact}@{ID}"})
        await work.submit(services, version)
        image = (await node.claim_one())["image"]
    assert (image["reference"], image["pinned"]) == (f"artifact:{artifact}@{ID}", ID)
    archive = image["archive"]
    assert (archive["size"], archive["sha256"]) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
        assert (await storage.get(archive["url"])).content == DATA


async def test_an_image_of_a_registry_comes_without_an_archive(services: Services) -> None:
    await work.submit(services, await work.define(services, "tool"))
    async with joined(services) as node:
        assert (await node.claim_one())["image"]["archive"] is None
