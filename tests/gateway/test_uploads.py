"""Files that users bring: announced, put into the store by presigned links, checked, and inputs from then on."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest

from functions import artifacts, ids, uploads
from functions.uploads import MIB, MOST_PARTS, Announced, Upload
from gateway.api.models.files import ArtifactView, UploadView
from gateway.services import Services
from tests.gateway.conftest import client_of
from tests.gateway.making import key_client, make_function, manifest, project_client
from tests.gateway.work import joined

DATA = b"first line\n" * 1000


def announcement(data: bytes = DATA, **more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"size": len(data), "sha256": digest, "content_type": "text/plain", "name": "notes.txt"} | more


async def announce(client: httpx.AsyncClient, data: bytes = DATA, status: int = 201, **more: Any) -> dict[str, Any]:
    answer = await client.post("/v1/artifacts", json=announcement(data, **more))
    assert answer.status_code == status, answer.text
    UploadView.model_validate_json(answer.content)
    view: dict[str, Any] = answer.json()
    return view


async def put(url: str, data: bytes, headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False) as storage:
        return await storage.put(url, content=data, headers=headers)


async def uploaded(client: httpx.AsyncClient, data: bytes = DATA) -> str:
    view = await announce(client, data)
    assert (await put(view["upload"]["url"], data, view["upload"]["headers"])).status_code == 200
    answer = await client.post(f"/v1/artifacts/{view['id']}/complete")
    assert answer.status_code == 200, answer.text
    artifact: str = view["id"]
    return artifact


async def objects(services: Services) -> set[str]:
    store: Any = services.store
    answer = await store._client.list_objects_v2(Bucket=services.settings.s3_bucket)
    return {each["Key"] for each in answer.get("Contents", ())}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SINGLE_BYTES", 5 * MIB)
    monkeypatch.setattr(uploads, "PART_BYTES", 5 * MIB)


async def test_an_upload_is_an_input_once_it_is_complete(services: Services, api: httpx.AsyncClient) -> None:
    inputs = {"files": {"inputs": [{"path": "/in/v", "url": "{{ params.video }}"}]}}
    await make_function(api, job=manifest()["spec"]["job"] | inputs)
    view = await announce(api)
    body = {"video": view["uri"]}
    for _ in range(2):
        early = await api.post("/v1/functions/thumbnail/invoke", json=body)
        assert (early.status_code, early.json()["code"]) == (422, "artifact_not_found")
        assert early.json()["errors"][0]["pointer"] == "/video"
        assert (await api.get(f"/v1/artifacts/{view['id']}")).status_code == 404
        assert (await put(view["upload"]["url"], DATA, view["upload"]["headers"])).status_code == 200
    for _ in range(2):
        done = await api.post(f"/v1/artifacts/{view['id']}/complete")
        shown = ArtifactView.model_validate_json(done.content)
    assert (shown.name, shown.size, shown.content_type) == ("notes.txt", len(DATA), "text/plain")
    assert (await api.post("/v1/functions/thumbnail/invoke", json=body)).status_code == 202
    async with joined(services) as node:
        lease = await node.claim_one()
    assert lease["inputs"][0]["sha256"] == hashlib.sha256(DATA).hexdigest()
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        download = await browser.get(lease["inputs"][0]["url"])
    assert download.content == DATA
    assert download.headers["content-disposition"].startswith('attachment; filename="notes.txt"')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", -1), ("size", 1.5), ("size", "1"), ("size", None), ("size", True), ("size", 50 * 1024**3 + 1), ("size", 2**63),
        ("sha256", ""), ("sha256", "A" * 64), ("sha256", "a" * 63), ("sha256", "a" * 65), ("sha256", None), ("sha256", "a" * 63 + "\n"),
        ("content_type", ""), ("content_type", "text/plain\r\nX: y"), ("content_type", "a" * 256), ("content_type", None),
        ("name", ""), ("name", " "), ("name", "a\tb"), ("name", "n" * 256), ("name", None), ("name", 1),
        ("key", "1/other"), ("md5", "0" * 32),
    ],
)  # fmt: skip
async def test_an_announcement_that_breaks_a_rule_is_pointed_at(
    shared_api: httpx.AsyncClient, field: str, value: Any
) -> None:
    answer = await shared_api.post("/v1/artifacts", json=announcement(**{field: value}))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{field}")


async def test_what_may_be_left_out_is_the_name_and_the_type(shared_api: httpx.AsyncClient) -> None:
    answer = await shared_api.post("/v1/artifacts", json={"size": 0, "sha256": hashlib.sha256().hexdigest()})
    assert (answer.status_code, answer.json()["name"], answer.json()["content_type"]) == (
        201, "file", "application/octet-stream",
    )  # fmt: skip
    for field in ("size", "sha256"):
        body = announcement()
        del body[field]
        answer = await shared_api.post("/v1/artifacts", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{field}")


async def test_other_bytes_than_announced_never_count(services: Services, api: httpx.AsyncClient) -> None:
    """SECURITY S77: another length, type or key is refused by the store, other bytes when they are to count."""
    view = await announce(api)
    url, headers = view["upload"]["url"], view["upload"]["headers"]
    assert (await put(url, DATA + b"x", headers | {"content-length": str(len(DATA) + 1)})).status_code == 403
    assert (await put(url, DATA, headers | {"content-type": "text/html"})).status_code == 403
    assert (await put(url.replace("/uploads/", "/other/"), DATA, headers)).status_code == 403
    other = DATA[:-1] + b"x"
    await put(url, other, headers)
    for expected in ("other bytes", "not uploaded"):
        answer = await api.post(f"/v1/artifacts/{view['id']}/complete")
        assert (answer.status_code, answer.json()["code"]) == (422, "upload_mismatch")
        assert expected in answer.json()["detail"]
    assert await objects(services) == set()
    assert (await put(url, DATA, headers)).status_code == 200
    assert (await api.post(f"/v1/artifacts/{view['id']}/complete")).status_code == 200


async def test_a_large_file_comes_in_parts_and_goes_on_where_it_was_cut_off(
    services: Services, api: httpx.AsyncClient, small_parts: None
) -> None:
    data = b"".join(bytes([n]) * MIB for n in range(12))
    view = await announce(api, data)
    assert (view["upload"], view["part_size"]) == (None, 5 * MIB)
    assert [part["size"] for part in view["parts"]] == [5 * MIB, 5 * MIB, 2 * MIB]

    async def send(part: dict[str, Any]) -> httpx.Response:
        start = (part["number"] - 1) * 5 * MIB
        return await put(part["url"], data[start : start + part["size"]], part["headers"])

    for number in (2, 1):
        assert (await send(view["parts"][number - 1])).status_code == 200
    early = await api.post(f"/v1/artifacts/{view['id']}/complete")
    assert (early.status_code, early.json()["code"]) == (422, "upload_mismatch")
    assert early.json()["errors"] == [{"pointer": "/parts/3", "message": "missing"}]

    again = await announce(api, data, status=200)
    seen = (await api.get(f"/v1/artifacts/{view['id']}/parts")).json()
    for each in (again, seen):
        assert (each["id"], [part["uploaded"] for part in each["parts"]]) == (view["id"], [True, True, False])
        assert [part["url"] is None for part in each["parts"]] == [True, True, False]
    assert (await send(again["parts"][2])).status_code == 200
    for _ in range(2):
        done = await api.post(f"/v1/artifacts/{view['id']}/complete")
        assert done.status_code == 200, done.text
    with suppress(httpx.TransportError):  # the store may hang up before all of it is sent
        assert (await put(view["parts"][0]["url"], bytes(5 * MIB), view["parts"][0]["headers"])).status_code == 404
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        assert (await browser.get(done.json()["url"])).content == data


async def test_an_upload_that_was_complete_at_the_store_when_we_crashed_goes_on(
    services: Services, api: httpx.AsyncClient, small_parts: None
) -> None:
    data = bytes(6 * MIB)
    view = await announce(api, data)
    for part, piece in zip(view["parts"], (data[: 5 * MIB], data[5 * MIB :]), strict=True):
        assert (await put(part["url"], piece, part["headers"])).status_code == 200
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT object_key, upload_id FROM artifacts")
    there = await services.store.parts(row["object_key"], row["upload_id"])
    await services.store.complete_multipart(row["object_key"], row["upload_id"], there or ())
    again = await announce(api, data, status=200)
    assert [part["uploaded"] for part in again["parts"]] == [True, True]
    assert (await api.post(f"/v1/artifacts/{view['id']}/complete")).status_code == 200


async def test_an_upload_that_the_store_gave_up_begins_anew(
    services: Services, api: httpx.AsyncClient, small_parts: None
) -> None:
    data = bytes(6 * MIB)
    view = await announce(api, data)
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT object_key, upload_id FROM artifacts")
    await services.store.abort_multipart(row["object_key"], row["upload_id"])
    again = await announce(api, data, status=200)
    assert (again["id"], [part["uploaded"] for part in again["parts"]]) == (view["id"], [False, False])
    assert (await put(again["parts"][0]["url"], data[: 5 * MIB], again["parts"][0]["headers"])).status_code == 200


async def test_what_the_project_has_need_not_be_uploaded_again(services: Services, api: httpx.AsyncClient) -> None:
    artifact = await uploaded(api)
    again = await announce(api, status=200)
    assert (again["id"], again["complete"], again["upload"], again["parts"]) == (artifact, True, None, None)
    assert again["expires_at"] is None
    async with key_client(services, "write") as colleague, key_client(services, "invoke") as invoker:
        for client in (colleague, invoker):
            assert (await announce(client, status=200))["id"] == artifact
    async with project_client(services) as stranger:
        assert (await announce(stranger))["id"] != artifact
    other_size = await api.post("/v1/artifacts", json=announcement(size=1))
    assert other_size.json()["id"] != artifact


async def test_a_key_that_may_only_invoke_uploads_for_itself(services: Services, api: httpx.AsyncClient) -> None:
    """Others would have to believe what it says of the bytes of a large file."""
    async with key_client(services, "invoke:thumbnail") as mine, key_client(services, "invoke") as other:
        pending = await announce(mine, b"pending")
        artifact = await uploaded(mine)
        assert (await announce(mine, status=200))["id"] == artifact
        for client in (other, api):
            assert (await announce(client))["id"] != artifact
        for path in (f"{pending['id']}/parts", f"{artifact}/parts"):
            assert (await mine.get(f"/v1/artifacts/{path}")).status_code == 200
            assert (await other.get(f"/v1/artifacts/{path}")).status_code == 404
        assert (await other.post(f"/v1/artifacts/{pending['id']}/complete")).status_code == 404
        assert (await mine.get(f"/v1/artifacts/{artifact}")).status_code == 403
    async with key_client(services, "read") as reader:
        assert (await reader.post("/v1/artifacts", json=announcement())).status_code == 403


async def test_an_abandoned_upload_is_swept_away_with_its_parts(
    services: Services, api: httpx.AsyncClient, small_parts: None
) -> None:
    large, small = await announce(api, bytes(6 * MIB)), await announce(api, b"small")
    kept = await uploaded(api)
    await put(large["parts"][0]["url"], bytes(5 * MIB), large["parts"][0]["headers"])
    await put(small["upload"]["url"], b"small", small["upload"]["headers"])
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT object_key, upload_id FROM artifacts WHERE upload_id IS NOT NULL")
        await conn.execute("UPDATE artifacts SET created_at = now() - interval '3 hours'")
    assert await artifacts.sweep_once(services.pool, services.store, age=timedelta(hours=2)) == 2
    assert await services.store.parts(row["object_key"], row["upload_id"]) is None
    assert [key.rsplit("/")[-1] for key in await objects(services)] == [kept]
    for gone in (large, small):
        assert (await api.post(f"/v1/artifacts/{gone['id']}/complete")).status_code == 404
    with suppress(httpx.TransportError):
        assert (await put(large["parts"][1]["url"], bytes(MIB), large["parts"][1]["headers"])).status_code == 404
    assert len(await objects(services)) == 1


async def test_asking_for_links_again_keeps_an_upload_from_being_swept(
    services: Services, api: httpx.AsyncClient
) -> None:
    view = await announce(api)
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE artifacts SET created_at = now() - interval '3 hours'")
    assert (await api.get(f"/v1/artifacts/{view['id']}/parts")).status_code == 200
    assert await artifacts.sweep_once(services.pool, services.store, age=timedelta(hours=2)) == 0


@pytest.mark.parametrize("size", [65 * MIB, 10**9, 50 * 1024**3, 5 * 1024**4])
def test_parts_cover_the_file_and_are_not_too_many(size: int) -> None:
    upload = _sized(size)
    assert sum(upload.part_sizes) == size and len(upload.part_sizes) <= MOST_PARTS
    assert set(upload.part_sizes[:-1]) == {upload.part_size} and upload.part_size % MIB == 0


def _sized(size: int) -> Upload:
    announced = Announced("x", "x/y", size, "0" * 64)
    return Upload(
        ids.ArtifactId(ids.new_uuid7()), ids.ProjectId(1), "k", announced.name, announced.content_type, size,
        announced.sha256, "key", "token", None, False,
    )  # fmt: skip


async def test_a_revoked_link_leads_nowhere_and_the_new_one_does(services: Services, api: httpx.AsyncClient) -> None:
    artifact = await uploaded(api)
    old = (await api.get(f"/v1/artifacts/{artifact}")).json()["link"]
    answer = await api.post(f"/v1/artifacts/{artifact}/revoke-link")
    new = ArtifactView.model_validate_json(answer.content).link
    assert (await api.get(f"/v1/artifacts/{artifact}")).json()["link"] == new
    async with client_of(services, None) as anyone:
        assert (await anyone.get(httpx.URL(old).path)).status_code == 404
        assert (await anyone.get(httpx.URL(new).path)).status_code == 302
    async with key_client(services, "read", "invoke") as reader, project_client(services) as stranger:
        assert (await reader.post(f"/v1/artifacts/{artifact}/revoke-link")).status_code == 403
        assert (await stranger.post(f"/v1/artifacts/{artifact}/revoke-link")).status_code == 404


async def test_ranges_and_head_work_through_a_link(services: Services, api: httpx.AsyncClient) -> None:
    artifact = await uploaded(api)
    path = httpx.URL((await api.get(f"/v1/artifacts/{artifact}")).json()["link"]).path
    async with client_of(services, None) as anyone:
        get, head = await anyone.get(path), await anyone.head(path)
    async with httpx.AsyncClient(trust_env=False, verify=False) as browser:
        part = await browser.get(get.headers["location"], headers={"Range": "bytes=6-9"})
        told = await browser.head(head.headers["location"])
    assert part.status_code in (200, 206)  # 200 is what rclone says of a part, too
    assert part.content == DATA[6:10]
    assert part.headers["content-range"] == f"bytes 6-9/{len(DATA)}"
    assert (told.status_code, told.headers["content-length"]) == (200, str(len(DATA)))
    assert told.headers["content-disposition"].startswith("attachment;")
    assert json.dumps(dict(get.headers)).count("no-referrer") == 1
