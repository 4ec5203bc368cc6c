"""/v1/webhooks: those of manifests and those of the API, what came in at them, and replays."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.services import Services
from tests.gateway.making import key_client, make_function, manifest, project_client
from tests.gateway.test_hooks import OPEN, PUSH, api, execute, make_hook, send, services
from tests.gateway.test_hooks import receipts as received

JOB = {"image": "busybox:1"}

__all__ = ["api", "services"]  # fixtures


async def webhooks(api: httpx.AsyncClient, **query: str) -> dict[str, dict[str, Any]]:
    answer = await api.get("/v1/webhooks", params=query)
    assert answer.status_code == 200, answer.text
    return {each["name"]: each for each in answer.json()["data"]}


async def add(api: httpx.AsyncClient, name: str = "own", **more: Any) -> httpx.Response:
    body = {"function": "ci", "name": name, "verify": "none", **more}
    return await api.post("/v1/webhooks", json={key: value for key, value in body.items() if value is not None})


def hooks(*names: str, **more: Any) -> dict[str, Any]:
    return {"triggers": {"webhooks": [{"name": name, "verify": "none", **more} for name in names]}}


async def test_an_apply_makes_changes_and_takes_away_the_webhooks_of_its_manifest_only(api: httpx.AsyncClient) -> None:
    await make_function(api, "ci", params=OPEN, job=JOB, **hooks("a", "b"))
    assert (await add(api)).status_code == 201
    first = await webhooks(api)
    assert {name: each["origin"] for name, each in first.items()} == {"a": "manifest", "b": "manifest", "own": "api"}
    await make_function(api, "ci", params=OPEN, job=JOB, **hooks("a", "c", filter={"body.n": [1]}))
    second = await webhooks(api)
    assert sorted(second) == ["a", "c", "own"]
    assert second["a"]["id"] == first["a"]["id"]  # its address and its receipts stay
    assert (second["a"]["filter"], second["own"]) == ({"body.n": [1]}, first["own"])
    assert (await api.post("/v1/functions/ci/rollback", json={"version": 1})).status_code == 200
    assert sorted(await webhooks(api)) == ["a", "b", "own"]
    await make_function(api, "ci", params=OPEN, job=JOB)
    assert sorted(await webhooks(api)) == ["own"]
    assert (await api.delete("/v1/functions/ci")).status_code == 204
    assert await webhooks(api) == {}


async def test_a_name_is_one_webhooks(api: httpx.AsyncClient) -> None:
    await make_function(api, "ci", params=OPEN, job=JOB, **hooks("a"))
    assert [(await add(api, name)).status_code for name in ("a", "own", "own")] == [409, 201, 409]
    assert (await add(api, "a")).json()["code"] == "webhook_exists"
    answer = await api.put("/v1/functions/ci", json=manifest("ci", params=OPEN, job=JOB, **hooks("a", "own")))
    assert (answer.status_code, answer.json()["code"]) == (422, "webhook_exists")
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/spec/triggers/webhooks/1/name"]
    assert sorted(await webhooks(api)) == ["a", "own"]


async def test_a_webhook_shows_the_address_for_its_sender(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, filter={"header.X-Event": ["a"]}, rate={"limit": 5})
    shown = (await webhooks(api))["in"]
    assert shown["url"] == services.settings.base_url + path
    assert (shown["secret"], shown["filter"], shown["rate"]) == (
        ["HOOK"], {"header.x-event": ["a"]}, {"limit": 5, "per": "1s"},
    )  # fmt: skip
    assert (await api.get(f"/v1/webhooks/{shown['id']}")).json() == shown
    assert sorted(await webhooks(api, function="ci")) == ["in"]
    assert await webhooks(api, function="other") == await webhooks(api, name="other") == {}
    (secret,) = (await api.get("/v1/secrets")).json()["data"]
    assert secret["used_by"] == ["ci"]


async def test_one_of_a_manifest_is_not_deleted_and_one_of_the_api_is(api: httpx.AsyncClient) -> None:
    await make_function(api, "ci", params=OPEN, job=JOB, **hooks("a"))
    await add(api)
    found = await webhooks(api)
    refused = await api.delete(f"/v1/webhooks/{found['a']['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_of_manifest")
    assert [(await api.delete(f"/v1/webhooks/{found['own']['id']}")).status_code for _ in range(2)] == [204, 404]
    assert sorted(await webhooks(api)) == ["a"]


async def test_the_list_has_pages(api: httpx.AsyncClient) -> None:
    await make_function(api, "ci", params=OPEN, job=JOB, **hooks("a", "b", "c"))
    first = (await api.get("/v1/webhooks?limit=2")).json()
    rest = (await api.get("/v1/webhooks", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [len(first["data"]), len(rest["data"]), rest["next_cursor"]] == [2, 1, None]


@pytest.mark.parametrize(
    ("more", "status", "code", "pointer"),
    [
        ({"function": "other"}, 404, "function_not_found", None),
        ({"function": "Not a name"}, 422, "invalid", "/function"),
        ({"verify": None}, 422, "invalid", "/verify"),
        ({"verify": "sha"}, 422, "invalid", "/verify"),
        ({"verify": "github"}, 422, "invalid", "/secret"),
        ({"verify": "github", "secret": "MISSING"}, 422, "secret_missing", "/secret"),
        ({"verify": "github", "secret": ["A", "A"]}, 422, "invalid", "/secret/1"),
        ({"unknown": 1}, 422, "invalid", "/unknown"),
        ({"params": {"a": "{{ params.x }}"}}, 422, "template_invalid", "/params/a"),
        ({"params": {"nope": 1}}, 422, "invalid", "/params/nope"),
        ({"filter": {"body.a": []}}, 422, "invalid", "/filter/body.a"),
    ],
)
async def test_what_can_be_no_webhook_is_refused_with_a_pointer(
    shared_api: httpx.AsyncClient, more: dict[str, Any], status: int, code: str, pointer: str | None
) -> None:
    closed = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    await make_function(shared_api, "ci", params=closed, job=JOB)
    answer = await add(shared_api, **more)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    if pointer is not None:
        assert [each["pointer"] for each in answer.json()["errors"]] == [pointer]


async def test_a_manifest_points_at_what_is_wrong_with_its_webhooks(api: httpx.AsyncClient) -> None:
    spec = {"params": OPEN, "job": JOB}
    cases = [
        ({"name": "a", "verify": "github", "secret": "NOPE"}, "secret_missing", "/secret"),
        ({"name": "a", "verify": "slack"}, "manifest_invalid", "/secret"),
        ({"name": "A", "verify": "none"}, "manifest_invalid", "/name"),
        ({"name": "a", "verify": "none", "params": {"a": "{{ header }}x{{"}}, "template_invalid", "/params/a"),
    ]
    for hook, code, pointer in cases:
        answer = await api.put("/v1/functions/ci", json=manifest("ci", **spec, triggers={"webhooks": [hook]}))
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert [each["pointer"] for each in answer.json()["errors"]] == [f"/spec/triggers/webhooks/0{pointer}"]
    double = {"webhooks": [{"name": "a", "verify": "none"}] * 2}
    answer = await api.put("/v1/functions/ci", json=manifest("ci", **spec, triggers=double))
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/spec/triggers/webhooks/1/name"]
    assert (await api.get("/v1/functions/ci")).status_code == 404


async def test_ten_webhooks_of_one_name_at_once_are_one(api: httpx.AsyncClient) -> None:
    await make_function(api, "ci", params=OPEN, job=JOB)
    answers = await asyncio.gather(*(add(api) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9


async def test_receipts_are_listed_by_verdict_and_shown_with_what_came(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, filter={"body.ref": ["refs/heads/main"]})
    await send(services, f"{path}?a=1", **{"x-more": "yes"})
    await send(services, path, {"ref": "x"})
    await send(services, path, b"\xfd\xfe")
    hook = (await webhooks(api))["in"]
    place = f"/v1/webhooks/{hook['id']}/receipts"
    assert [each["verdict"] for each in await received(api)] == ["invalid", "filtered", "accepted"]
    (accepted,) = (await api.get(f"{place}?verdict=accepted")).json()["data"]
    shown = (await api.get(f"{place}/{accepted['id']}")).json()
    assert (json.loads(shown["body"]), shown["query"], shown["size"]) == (PUSH, "a=1", len(shown["body"]))
    assert ["x-more", "yes"] in shown["headers"]
    (invalid,) = (await api.get(f"{place}?verdict=invalid")).json()["data"]
    shown = (await api.get(f"{place}/{invalid['id']}")).json()
    assert (shown["body"], shown["body_base64"], shown["reason"]) == (None, "/f4=", "not UTF-8 at byte 0")
    page = (await api.get(f"{place}?limit=2")).json()
    rest = (await api.get(place, params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert [len(page["data"]), len(rest["data"])] == [2, 1]
    assert (await api.get(f"{place}?verdict=other")).status_code == 422
    unknown = await api.get(f"{place}/rcp_{'0' * 32}")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "receipt_not_found")
    async with key_client(services, "invoke:ci") as client:
        assert (await client.get(place)).status_code == 403


async def test_a_replay_is_a_new_job_through_the_webhook_as_it_is_now(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, params={"a": "{{ body.missing }}"})
    assert (await send(services, f"{path}?q=1&wait=0", **{"x-github-delivery": "d-1"})).status_code == 422
    await make_hook(api, params={"ref": "{{ body.ref }}", "q": "{{ query.q }}"}, filter={"body.ref": ["never"]})
    (failed,) = await received(api)
    place = f"/v1/webhooks/{failed['webhook']}/receipts"
    answer = await api.post(f"{place}/{failed['id']}/replay")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["params"], job["version"]) == ({"ref": "refs/heads/main", "q": "1"}, 2)
    assert (job["trigger"]["replay_of"], job["trigger"]["delivery"]) == (failed["id"], "d-1")
    newest = (await received(api))[0]
    assert (newest["verdict"], newest["job"], newest["replay_of"]) == ("accepted", job["id"], failed["id"])
    # The replay is no delivery of the sender's: that one may still come.
    await make_hook(api, params={"ref": "{{ body.ref }}"})
    assert (await send(services, path, **{"x-github-delivery": "d-1"})).status_code == 202
    key = {"Idempotency-Key": "k" * 255}
    once = [await api.post(f"{place}/{failed['id']}/replay", headers=key) for _ in range(2)]
    assert once[0].json()["id"] == once[1].json()["id"] != job["id"]
    assert once[1].headers["idempotent-replayed"] == "true"
    # Not for as long as a sender's id: the job may be kept for a day only.
    left = """SELECT array_agg(round(extract(epoch FROM expires_at - now()) / 3600)::int ORDER BY expires_at)
                FROM idempotency_keys WHERE project_id = $1"""
    assert await execute(services, api, left) == [24, 7 * 24]


async def test_a_large_request_is_replayed_from_the_store_and_not_when_it_is_gone(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    await send(services, path, {"a": "x" * 100_000})
    (receipt,) = await received(api)
    replay = f"/v1/webhooks/{receipt['webhook']}/receipts/{receipt['id']}/replay"
    assert (await api.post(replay)).json()["params"] == {"a": "x" * 100_000}
    await execute(services, api, "DELETE FROM artifacts WHERE name = 'webhook-body' AND project_id = $1")
    answer = await api.post(replay)
    assert (answer.status_code, answer.json()["code"]) == (409, "receipt_not_verified")


async def test_what_was_never_verified_is_not_replayed(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    await send(services, path, secret="wrong")
    (refused,) = await received(api)
    answer = await api.post(f"/v1/webhooks/{refused['webhook']}/receipts/{refused['id']}/replay")
    assert (answer.status_code, answer.json()["code"]) == (409, "receipt_not_verified")


async def test_receipts_and_secrets_of_another_project_are_not_there(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    await send(services, path)
    (receipt,) = await received(api)
    async with project_client(services) as stranger:
        await make_function(stranger, "ci", params=OPEN, job=JOB, **hooks("own"))
        theirs = (await webhooks(stranger))["own"]
        # Under their own webhook's address, too.
        for webhook in (receipt["webhook"], theirs["id"]):
            place = f"/v1/webhooks/{webhook}/receipts/{receipt['id']}"
            assert (await stranger.get(place)).status_code == 404
            assert (await stranger.post(f"{place}/replay")).status_code == 404
        answer = await add(stranger, verify="github", secret="HOOK")
        assert (answer.status_code, answer.json()["code"]) == (422, "secret_missing")
