"""Secrets: what the API takes and shows, what a lease carries, and what becomes of jobs that miss one."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.fernet import Fernet

from functions.sealing import Sealer
from gateway.resealing import Resealed, reseal
from gateway.services import Services
from tests.gateway.making import key_client, make_function, make_job, manifest, project_client
from tests.gateway.work import Node, joined


async def put(api: httpx.AsyncClient, name: str = "TOKEN", value: str = "hunter22") -> httpx.Response:
    return await api.post("/v1/secrets", json={"name": name, "value": value})


async def needing(api: httpx.AsyncClient, name: str = "thumbnail", **job: Any) -> dict[str, Any]:
    return await make_function(api, name, job={"image": "busybox:1", **job})


async def test_a_secret_is_set_replaced_listed_with_its_use_and_deleted(api: httpx.AsyncClient) -> None:
    first = await put(api)
    assert (first.status_code, first.json()["used_by"]) == (201, [])
    await put(api, "LOGIN", "user:token")
    await needing(api, "one", secrets=["TOKEN"], pullSecret="LOGIN")
    await needing(api, "two", secrets=["TOKEN"])
    await needing(api, "three", secrets=["TOKEN"])
    await needing(api, "three")  # its current version needs it no more
    again = await put(api, value="other-value")
    assert (again.status_code, again.json()["created_at"]) == (200, first.json()["created_at"])
    assert again.json()["updated_at"] > first.json()["updated_at"]
    listed = await api.get("/v1/secrets")
    assert [(each["name"], each["used_by"]) for each in listed.json()["data"]] == [
        ("LOGIN", ["one"]),
        ("TOKEN", ["one", "two"]),
    ]
    assert "hunter22" not in first.text + listed.text and "other-value" not in again.text + listed.text
    page = (await api.get("/v1/secrets?limit=1")).json()
    rest = (await api.get("/v1/secrets", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert ([each["name"] for each in rest["data"]], rest["next_cursor"]) == (["TOKEN"], None)
    assert (await api.delete("/v1/secrets/TOKEN")).status_code == 204
    gone = await api.delete("/v1/secrets/TOKEN")
    assert (gone.status_code, gone.json()["code"]) == (404, "secret_not_found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "TOKEN"}, "/value"),
        ({"value": "hunter22"}, "/name"),
        ({"name": "TOKEN", "value": ""}, "/value"),
        ({"name": "TOKEN", "value": None}, "/value"),
        ({"name": "TOKEN", "value": 7}, "/value"),
        ({"name": "TOKEN", "value": "x" * (64 * 1024 + 1)}, "/value"),
        ({"name": "TOKEN", "value": "ü" * (32 * 1024 + 1)}, "/value"),
        ({"name": "", "value": "hunter22"}, "/name"),
        ({"name": "1TOKEN", "value": "hunter22"}, "/name"),
        ({"name": "to ken", "value": "hunter22"}, "/name"),
        ({"name": "A=B", "value": "hunter22"}, "/name"),
        ({"name": "X" * 256, "value": "hunter22"}, "/name"),
        ({"name": "RGRID_TOKEN", "value": "hunter22"}, "/name"),
        ({"name": ["TOKEN"], "value": "hunter22"}, "/name"),
        ({"name": "TOKEN", "value": "hunter22", "project": "other"}, "/project"),
    ],
)
async def test_what_can_be_no_secret_is_refused_and_not_repeated(
    shared_api: httpx.AsyncClient, body: dict[str, Any], pointer: str
) -> None:
    answer = await shared_api.post("/v1/secrets", json=body)
    assert (answer.status_code, [each["pointer"] for each in answer.json()["errors"]]) == (422, [pointer])
    assert "hunter22" not in answer.text


async def test_a_nul_cannot_be_in_a_variable(shared_api: httpx.AsyncClient) -> None:
    answer = await shared_api.post("/v1/secrets", json={"name": "TOKEN", "value": "a\0b"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_text")


async def test_a_value_of_64_kib_is_taken(shared_api: httpx.AsyncClient) -> None:
    assert (await put(shared_api, f"S_{uuid4().hex}", "x" * 64 * 1024)).status_code == 201


@pytest.mark.parametrize("scope", ["read", "invoke", "invoke:thumbnail"])
async def test_a_key_that_may_not_write_sees_no_secrets(services: Services, api: httpx.AsyncClient, scope: str) -> None:
    await put(api)
    async with key_client(services, scope) as client:
        for answer in (
            await put(client),
            await client.get("/v1/secrets"),
            await client.delete("/v1/secrets/TOKEN"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_values_are_sealed_at_rest(services: Services, api: httpx.AsyncClient) -> None:
    await put(api)
    async with services.pool.acquire() as conn:
        sealed = await conn.fetchval("SELECT sealed FROM secrets")
    assert b"hunter22" not in sealed
    assert services.sealer.open(sealed) == b"hunter22"


async def test_a_manifest_that_names_a_secret_which_is_not_there_points_at_it(
    services: Services, api: httpx.AsyncClient
) -> None:
    await put(api)
    job = {"image": "busybox:1", "secrets": ["TOKEN", "OTHER"], "pullSecret": "LOGIN"}
    answer = await api.put("/v1/functions/thumbnail", json=manifest(job=job))
    assert (answer.status_code, answer.json()["code"]) == (422, "secret_missing")
    assert {each["pointer"] for each in answer.json()["errors"]} == {"/spec/job/secrets/1", "/spec/job/pullSecret"}
    assert (await api.get("/v1/functions/thumbnail")).status_code == 404
    async with project_client(services) as stranger:
        theirs = await stranger.put(
            "/v1/functions/thumbnail", json=manifest(job={"image": "busybox:1", "secrets": ["TOKEN"]})
        )
    assert (theirs.status_code, theirs.json()["code"]) == (422, "secret_missing")


async def claimed(node: Node) -> dict[str, Any] | None:
    leases = await node.claim()
    return leases[0] if leases else None


async def test_values_go_with_the_lease_only(
    services: Services, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await put(api)
    await put(api, "LOGIN", "user:token-of-login")
    await needing(api, secrets=["TOKEN"], pullSecret="LOGIN", env={"PLAIN": "x"})
    job = await make_job(api)
    await put(api, value="hunter33")  # before the attempt: it gets what is there then
    async with joined(services) as node:
        lease = await claimed(node)
        assert lease is not None
        assert (lease["secrets"], lease["env"]) == ({"TOKEN": "hunter33"}, {"PLAIN": "x"})
        assert lease["image"]["login"] == "user:token-of-login"
        await node.finish(lease)
    for path in (f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/events", "/v1/functions/thumbnail"):
        text = (await api.get(path)).text
        assert "hunter" not in text and "token-of-login" not in text, path
    assert "hunter" not in caplog.text and "token-of-login" not in caplog.text


async def test_a_job_whose_secret_is_gone_fails_for_good_and_says_which(
    services: Services, api: httpx.AsyncClient
) -> None:
    await put(api)
    await make_function(
        api, job={"image": "busybox:1", "secrets": ["TOKEN"]}, retry={"attempts": 3}
    )
    job = await make_job(api)
    assert (await api.delete("/v1/secrets/TOKEN")).status_code == 204
    async with joined(services) as node:
        assert await claimed(node) is None
    ended = (await api.get(f"/v1/jobs/{job['id']}")).json()
    assert (ended["status"], ended["error"]["code"], ended["attempt"]) == ("failed", "secret_missing", 1)
    assert "TOKEN" in ended["error"]["message"]


async def test_a_secret_that_no_key_opens_fails_its_job_and_no_other(
    services: Services, api: httpx.AsyncClient
) -> None:
    await put(api)
    await needing(api, "broken", secrets=["TOKEN"])
    await needing(api, "sound")
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE secrets SET sealed = 'x'")
    broken, sound = await make_job(api, "broken"), await make_job(api, "sound")
    async with joined(services) as node:
        leases = await node.claim(free_slots=2)
    assert [lease["job_id"] for lease in leases] == [sound["id"]]
    ended = (await api.get(f"/v1/jobs/{broken['id']}")).json()
    assert (ended["error"]["code"], "TOKEN does not open" in ended["error"]["message"]) == ("internal", True)


async def test_secrets_that_together_are_too_much_for_an_environment_are_told(
    services: Services, api: httpx.AsyncClient
) -> None:
    names = [f"S{number}" for number in range(9)]
    for name in names:
        await put(api, name, name + "x" * 65_000)
    await needing(api, secrets=names)
    job = await make_job(api)
    async with joined(services) as node:
        assert await claimed(node) is None
    assert "512 KiB together" in (await api.get(f"/v1/jobs/{job['id']}")).json()["error"]["message"]


async def test_a_key_is_rotated_by_sealing_everything_again(services: Services, api: httpx.AsyncClient) -> None:
    old = services.settings.secret_key.get_secret_value()
    new = Fernet.generate_key().decode()
    for number in range(5):
        await put(api, f"S{number}", f"value-{number}")
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE secrets SET sealed = 'x' WHERE name = 'S4'")
    both = Sealer(f"{new},{old}")
    done = await reseal(services.pool, both, batch=2)
    assert (done.secrets, done.callback_secrets, len(done.closed)) == (4, 1, 1)
    assert await reseal(services.pool, both, batch=2) == Resealed(0, 0, done.closed)
    only_new = Sealer(new)
    async with services.pool.acquire() as conn:
        rows = await conn.fetch("SELECT sealed FROM secrets WHERE name <> 'S4' ORDER BY name")
        callback = await conn.fetchval("SELECT callback_secret FROM projects")
    assert [only_new.open(row["sealed"]) for row in rows] == [b"value-%d" % number for number in range(4)]
    assert only_new.open(callback).startswith(b"whsec_")
