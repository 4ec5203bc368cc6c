"""/v1/callbacks over the real application: endpoints, their keys, and what is written for them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from functions import endpoint_health, ids, signing, signing_keys
from functions.ids import EndpointId, ProjectId
from functions.sealing import Sealer
from functions.signing import Signer
from gateway.api.callback_keys import PublicKeys, Rotated, SecretAnswer
from gateway.api.callbacks import CallbackCreated, CallbackList, CallbackView
from gateway.resealing import reseal
from gateway.services import Services
from scheduler import batches
from tests.gateway.making import (
    claim_one,
    finish,
    key_client,
    make_function,
    make_job,
    make_node,
    manifest,
    project_client,
)

URL = "https://example.com/all"


async def make(api: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await api.post("/v1/callbacks", json={"url": URL} | more)
    assert answer.status_code == 201, answer.text
    CallbackCreated.model_validate_json(answer.content)
    made: dict[str, Any] = answer.json()
    return made


async def told(api: httpx.AsyncClient, **filters: str) -> list[tuple[str, str]]:
    """Event and state of each delivery, the oldest first."""
    answer = await api.get("/v1/deliveries", params=filters)
    return [(each["type"], each["state"]) for each in answer.json()["data"]][::-1]


async def ended(services: Services, api: httpx.AsyncClient, name: str = "thumbnail", **options: Any) -> str:
    """A job that has run and succeeded."""
    job = await make_job(api, name, **options)
    node = await make_node(services)
    await finish(services, node, await claim_one(services, node))
    return str(job["id"])


async def cancelled(api: httpx.AsyncClient, name: str = "thumbnail", **options: Any) -> str:
    job = await make_job(api, name, **options)
    assert (await api.post(f"/v1/jobs/{job['id']}/cancel")).is_success
    return str(job["id"])


async def default_project(services: Services) -> ProjectId:
    async with services.pool.acquire() as conn:
        return ProjectId(await conn.fetchval("SELECT id FROM projects WHERE slug = 'default'"))


async def signer(services: Services, callback: str | None = None, secrets: tuple[str, ...] | None = None) -> Signer:
    project, found = await default_project(services), ids.decode(ids.CALLBACK, callback or "")
    endpoint = None if found is None else EndpointId(found)
    async with services.pool.acquire() as conn:
        there = await endpoint_health.for_sending(conn, project, [] if endpoint is None else [endpoint])
        made = await signing_keys.signers(conn, services.sealer, project, there, {(endpoint, secrets)})
    answer = made[endpoint, secrets]
    if isinstance(answer, Exception):
        raise answer
    return answer


def verified(by: Signer, *keys: str) -> list[str | None]:
    """By which version of signature each key finds a message of ``by`` signed."""
    now = datetime.now(UTC)
    headers = by.headers("msg_1", now, b"{}")

    def one(key: str) -> str | None:
        try:
            return signing.verify(headers, b"{}", [key], now=now)
        except signing.SignatureInvalid:
            return None

    return [one(key) for key in keys]


async def test_a_callback_of_the_project_is_made_shown_changed_and_deleted(api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await make(api, events=["job.failed", "batch.completed"], functions=["thumbnail"], description="Ops")
    secret = made.pop("signing_secret")
    assert secret.startswith("whsec_") and len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert (made["origin"], made["signed_by"], made["enabled"]) == ("api", "callback", True)
    assert (await api.get(f"/v1/callbacks/{made['id']}")).json() == made
    assert secret not in (await api.get("/v1/callbacks")).text
    assert (await api.get(f"/v1/callbacks/{made['id']}/secret")).json() == {"secret": secret}

    patched = await api.patch(f"/v1/callbacks/{made['id']}", json={"events": ["job.started"], "functions": None})
    view = CallbackView.model_validate_json(patched.content)
    assert (view.events, view.functions, view.description) == (["job.started"], None, "Ops")
    assert (await api.patch(f"/v1/callbacks/{made['id']}")).json() == patched.json()

    assert (await api.delete(f"/v1/callbacks/{made['id']}")).status_code == 204
    for again in (await api.delete(f"/v1/callbacks/{made['id']}"), await api.get(f"/v1/callbacks/{made['id']}")):
        assert (again.status_code, again.json()["code"]) == (404, "callback_not_found")


async def test_the_list_has_those_of_manifests_too_and_follows_applies_rollbacks_and_deletes(
    api: httpx.AsyncClient,
) -> None:
    async def listed(**query: str) -> list[tuple[str, str | None]]:
        answer = CallbackList.model_validate_json((await api.get("/v1/callbacks", params=query)).content)
        return [(each.url, each.function) for each in answer.data]

    await make_function(api, "a", callbacks=[{"url": "https://a.example/1"}, {"url": "https://a.example/2"}])
    await make_function(api, "b", callbacks=[{"url": "https://b.example/"}, {"function": "a"}])
    await make(api, functions=["a"])
    everything = [(URL, None), ("https://b.example/", "b"), ("https://a.example/2", "a"), ("https://a.example/1", "a")]
    assert await listed() == everything
    assert await listed(function="a") == [everything[0], *everything[2:]]
    assert await listed(function="no name") == await listed(function="c") == []
    first = (await api.get("/v1/callbacks?limit=3")).json()
    rest = (await api.get(f"/v1/callbacks?limit=3&cursor={first['next_cursor']}")).json()
    assert [each["url"] for each in first["data"] + rest["data"]] == [url for url, _ in everything]

    before = {each["url"]: each["id"] for each in (await api.get("/v1/callbacks")).json()["data"]}
    await make_function(api, "a", callbacks=[{"url": "https://a.example/2", "events": ["job.started"]}])
    assert await listed() == everything[:3]
    assert (await api.post("/v1/functions/a/rollback", json={"version": 1})).status_code == 200
    assert await listed() == everything
    assert {each["url"]: each["id"] for each in (await api.get("/v1/callbacks")).json()["data"]} == before
    assert (await api.delete("/v1/functions/a")).status_code == 204
    assert await listed() == everything[:2]


async def test_one_of_a_manifest_can_be_disabled_and_tested_here_and_nothing_else(api: httpx.AsyncClient) -> None:
    await make_function(api, callbacks=[{"url": URL}])
    (listed,) = (await api.get("/v1/callbacks")).json()["data"]
    path = f"/v1/callbacks/{listed['id']}"
    assert (listed["origin"], listed["function"], listed["signed_by"]) == ("manifest", "thumbnail", "project")
    for refused in (
        await api.delete(path),
        await api.patch(path, json={"url": "https://example.com/other"}),
        await api.patch(path, json={"events": ["job.failed"], "enabled": False}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (409, "callback_of_manifest")
    assert (await api.post(f"{path}/rotate")).json()["code"] == "callback_without_key"
    shared = (await api.get("/v1/callbacks/secret")).json()
    assert (await api.get(f"{path}/secret")).json() == shared
    assert (await api.patch(path, json={"enabled": False})).json()["disabled_reason"] == "disabled by hand"
    # An apply leaves that as it is, unless the callback was taken out meanwhile.
    await make_function(api, callbacks=[{"url": URL, "events": ["job.failed"]}])
    assert not (await api.get(path)).json()["enabled"]
    await make_function(api, callbacks=[])
    await make_function(api, callbacks=[{"url": URL}])
    assert (await api.get(path)).json()["enabled"]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "/url", "invalid"),
        ({"url": "http://127.0.0.1/"}, "/url", "url_refused"),
        ({"url": "https://user:pw@example.com/"}, "/url", "url_refused"),
        ({"url": "ftp://example.com/"}, "/url", "url_refused"),
        ({"url": URL, "events": []}, "/events", "invalid"),
        ({"url": URL, "events": ["job.failed", "job.failed"]}, "/events", "invalid"),
        ({"url": URL, "events": ["job.done"]}, "/events/0", "invalid"),
        ({"url": URL, "functions": []}, "/functions", "invalid"),
        ({"url": URL, "functions": ["No"]}, "/functions/0", "invalid"),
        ({"url": URL, "functions": ["nobody"]}, "/functions/0", "function_not_found"),
        ({"url": URL, "secret": "NOBODYS"}, "/secret", "secret_missing"),
        ({"url": URL, "secret": ["A", "B", "C"]}, "/secret", "invalid"),
        ({"url": URL, "secret": "whsec_x/"}, "/secret", "invalid"),
        ({"url": URL, "description": "a\nb"}, "/description", "invalid"),
        ({"url": URL, "enabled": "yes"}, "/enabled", "invalid"),
        ({"url": URL, "id": "cb_1"}, "/id", "invalid"),
    ],
)
async def test_what_breaks_a_rule_is_refused_where_it_stands(
    shared_api: httpx.AsyncClient, body: dict[str, Any], pointer: str, code: str
) -> None:
    answer = await shared_api.post("/v1/callbacks", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["errors"][0]["pointer"]) == (422, code, pointer), problem


async def test_a_project_has_a_hundred_and_no_more(api: httpx.AsyncClient, services: Services) -> None:
    await make(api)
    async with services.pool.acquire() as conn:
        await conn.execute(
            """INSERT INTO callback_endpoints (id, project_id, url, events)
            SELECT gen_random_uuid(), project_id, url, events FROM callback_endpoints, generate_series(1, 99)"""
        )
    answer = await api.post("/v1/callbacks", json={"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_callbacks")


@pytest.mark.parametrize(("scope", "status"), [("write", 200), ("read", 403), ("invoke", 403)])
async def test_who_may_only_read_does_not_see_the_secret(
    shared_services: Services, scope: str, status: int
) -> None:
    async with key_client(shared_services, scope) as client:
        assert (await client.get("/v1/callbacks/secret")).status_code == status


async def test_an_outcome_is_told_to_each_that_asked_once(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api, callbacks=[{"url": "https://a.example/", "events": ["job.succeeded"]}])
    await make_function(api, "other")
    of_all = await make(api)
    of_other = await make(api, functions=["other"])
    of_failures = await make(api, events=["job.failed"])
    # The job's own address is one of those: it hears of it once.
    job = await ended(services, api, headers={"X-Callback-Url": URL})
    assert len(await told(api, job=job)) == 2
    assert await told(api, callback=of_all["id"]) == [("job.succeeded", "pending")]
    await cancelled(api, "other")
    assert await told(api, callback=of_other["id"]) == [("job.cancelled", "pending")]
    assert await told(api, callback=of_failures["id"]) == []
    listed = (await api.get("/v1/deliveries", params={"job": job})).json()["data"]
    assert {each["callback"] is None for each in listed} == {False}
    assert await told(api, type="job.cancelled", since="2026-01-01T00:00:00Z") == [("job.cancelled", "pending")] * 2
    assert await told(api, until="2026-01-01T00:00:00Z") == []


async def test_jobs_of_a_function_that_is_deleted_still_tell_and_others_projects_nothing(
    services: Services, api: httpx.AsyncClient
) -> None:
    await make_function(api, callbacks=[{"url": "https://a.example/"}])
    await make(api)
    async with project_client(services) as stranger:
        await make(stranger)
        job = await make_job(api)
        assert (await api.delete("/v1/functions/thumbnail")).status_code == 204
        assert await told(api, job=job["id"]) == [("job.cancelled", "pending")] * 2
        assert await told(stranger) == []


async def test_while_a_callback_is_disabled_its_events_are_kept_and_recovered(
    services: Services, api: httpx.AsyncClient
) -> None:
    await make_function(api)
    made = await make(api)
    path = f"/v1/callbacks/{made['id']}"
    await cancelled(api)
    before = datetime.now(UTC)
    assert (await api.patch(path, json={"enabled": False})).status_code == 200
    await cancelled(api)
    listed = (await api.get("/v1/deliveries")).json()["data"]
    assert [(each["state"], each["reason"]) for each in listed] == [("exhausted", "the endpoint is disabled")] * 2
    for refused in (
        await api.post(f"{path}/recover", json={"since": "2026-01-01T00:00:00Z"}),
        await api.post(f"/v1/deliveries/{listed[0]['id']}/redeliver"),
    ):
        assert (refused.status_code, refused.json()["code"]) == (409, "callback_disabled")
    assert [state for _, state in await told(api)] == ["exhausted"] * 2

    assert (await api.patch(path, json={"enabled": True})).json()["disabled_at"] is None
    await cancelled(api)
    only_later = {"since": before.isoformat().replace("+00:00", "Z")}
    assert (await api.post(f"{path}/recover", json=only_later)).json() == {"recovered": 1, "more": False}
    assert [state for _, state in await told(api)] == ["exhausted", "pending", "pending"]
    answer = await api.post(f"{path}/recover", json={"since": "2026-01-01T00:00:00Z", "until": "2025-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/until")
    everything = await api.post(f"{path}/recover", json={"since": "2026-01-01T00:00:00Z"})
    assert (everything.status_code, everything.json()["recovered"]) == (202, 1)
    (oldest, *_) = (await api.get("/v1/deliveries")).json()["data"][::-1]
    assert (oldest["state"], oldest["reason"]) == ("pending", None)


async def test_what_waits_goes_to_a_new_address_and_ends_with_the_callback(api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await make(api)
    await cancelled(api)
    moved = "https://moved.example:8443/x"
    assert (await api.patch(f"/v1/callbacks/{made['id']}", json={"url": moved})).status_code == 200
    (delivery,) = (await api.get("/v1/deliveries")).json()["data"]
    assert (delivery["url"], delivery["state"]) == (moved, "pending")
    refused = await api.patch(f"/v1/callbacks/{made['id']}", json={"url": "http://10.0.0.1/"})
    assert (refused.status_code, refused.json()["code"]) == (422, "url_refused")
    assert (await api.delete(f"/v1/callbacks/{made['id']}")).status_code == 204
    (delivery,) = (await api.get("/v1/deliveries")).json()["data"]
    assert (delivery["state"], delivery["reason"]) == ("exhausted", "the endpoint was deleted")
    answer = await api.post(f"/v1/deliveries/{delivery['id']}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (409, "callback_deleted")
    assert (await api.get(f"/v1/deliveries/{delivery['id']}")).json()["state"] == "exhausted"


async def test_what_was_delivered_before_a_move_is_sent_again_to_the_new_address(
    services: Services, api: httpx.AsyncClient
) -> None:
    await make_function(api)
    made = await make(api)
    await cancelled(api)
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE deliveries SET state = 'delivered'")
    moved = "https://moved.example:8443/x"
    assert (await api.patch(f"/v1/callbacks/{made['id']}", json={"url": moved})).status_code == 200
    (delivery,) = (await api.get("/v1/deliveries")).json()["data"]
    assert delivery["url"] == made["url"]
    assert (await api.post(f"/v1/deliveries/{delivery['id']}/redeliver")).status_code == 202
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT state, url, endpoint FROM deliveries")
    assert tuple(row) == ("pending", moved, "https://moved.example:8443")


async def test_a_test_is_a_delivery_of_its_own_each_time(api: httpx.AsyncClient) -> None:
    made = await make(api, events=["schedule.missed"], enabled=False)
    sent = [(await api.post(f"/v1/callbacks/{made['id']}/test")).json()["delivery"] for _ in range(2)]
    listed = (await api.get("/v1/deliveries", params={"callback": made["id"]})).json()["data"]
    assert [(each["id"], each["type"], each["state"], each["job"]) for each in listed] == [
        (delivery, "callback.test", "pending", None) for delivery in sent[::-1]
    ]


async def test_a_batch_tells_the_callbacks_of_its_project(services: Services, api: httpx.AsyncClient) -> None:
    await make_function(api)
    made = await make(api, events=["batch.completed"], functions=["thumbnail"])
    batch = (await api.post("/v1/functions/thumbnail/batch", json=[{"video": "v"}] * 2)).json()["id"]
    assert (await api.post(f"/v1/batches/{batch}/cancel")).is_success
    async with services.hot_pool.acquire() as conn:
        assert (await batches.complete_once(conn, batches.FIRST, limit=10))[0] == 1
    (delivery,) = (await api.get("/v1/deliveries", params={"callback": made["id"]})).json()["data"]
    assert (delivery["type"], delivery["batch"], delivery["job"]) == ("batch.completed", batch, None)


async def test_a_callback_signs_with_its_own_key_and_two_of_them_while_it_is_rotated(
    services: Services, api: httpx.AsyncClient
) -> None:
    made = await make(api)
    shared = (await api.get("/v1/callbacks/secret")).json()["secret"]
    first = made["signing_secret"]
    assert verified(await signer(services, made["id"]), first, shared) == ["v1", None]
    rotated = Rotated.model_validate_json((await api.post(f"/v1/callbacks/{made['id']}/rotate")).content)
    assert rotated.previous_until is not None
    assert timedelta(hours=23) < rotated.previous_until - datetime.now(UTC) <= timedelta(hours=24)
    assert verified(await signer(services, made["id"]), rotated.secret, first, shared) == ["v1", "v1", None]
    assert (await api.get(f"/v1/callbacks/{made['id']}/secret")).json() == {"secret": rotated.secret}
    assert (await api.get(f"/v1/callbacks/{made['id']}")).json()["rotating_until"] is not None
    async with services.pool.acquire() as conn:
        await conn.execute("UPDATE retired_keys SET expires_at = now()")
    assert verified(await signer(services, made["id"]), rotated.secret, first) == ["v1", None]
    # A key that is lost signs no more at once.
    for _ in range(2):
        latest = (await api.post(f"/v1/callbacks/{made['id']}/rotate", json={"overlap": "1h"})).json()
    lost = (await api.post(f"/v1/callbacks/{made['id']}/rotate", json={"overlap": "0s"})).json()
    assert lost["previous_until"] is None
    assert verified(await signer(services, made["id"]), lost["secret"], latest["secret"]) == ["v1", None]
    for _ in range(3):
        assert (await api.post(f"/v1/callbacks/{made['id']}/rotate")).status_code == 200
    refused = await api.post(f"/v1/callbacks/{made['id']}/rotate")
    assert (refused.status_code, refused.json()["code"]) == (409, "rotation_pending")
    for overlap in ("31d", "soon", 5):
        answer = await api.post(f"/v1/callbacks/{made['id']}/rotate", json={"overlap": overlap})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/overlap")


async def test_the_projects_keys_are_rotated_and_the_public_ones_are_there_for_everybody(
    services: Services, api: httpx.AsyncClient
) -> None:
    shared = SecretAnswer.model_validate_json((await api.get("/v1/callbacks/secret")).content).secret
    assert (await api.get("/v1/callbacks/secret")).json() == {"secret": shared}
    (key,) = PublicKeys.model_validate_json((await api.get("/v1/callbacks/keys")).content).keys
    assert (await api.get("/v1/callbacks/keys")).json()["keys"][0]["public_key"] == key.public_key
    assert key.pem.startswith("-----BEGIN PUBLIC KEY-----")
    made = await make(api)
    for by in (await signer(services), await signer(services, made["id"])):
        assert verified(by, key.public_key) == ["v1a"]

    new = (await api.post("/v1/callbacks/secret/rotate")).json()["secret"]
    assert verified(await signer(services), new, shared) == ["v1", "v1"]
    keys = (await api.post("/v1/callbacks/keys/rotate", json={"overlap": "2d"})).json()["keys"]
    assert [each["expires_at"] is None for each in keys] == [True, False]
    assert keys[1]["public_key"] == key.public_key
    assert verified(await signer(services), *[each["public_key"] for each in keys]) == ["v1a", "v1a"]
    async with project_client(services) as stranger:
        theirs = (await stranger.get("/v1/callbacks/keys")).json()["keys"]
        del stranger.headers["Authorization"]
        published = await stranger.get("/callback-keys/default")
        assert (published.status_code, published.json()) == (200, {"keys": keys})
        assert "max-age" in published.headers["cache-control"]
        assert (await stranger.get("/callback-keys/nobody")).status_code == 404
        assert (await stranger.get("/v1/callbacks/keys")).status_code == 401
    assert verified(await signer(services), theirs[0]["public_key"]) == [None]


async def test_project_secrets_sign_all_that_are_named(services: Services, api: httpx.AsyncClient) -> None:
    for name, value in (("NEW", "any text"), ("OLD", signing.new_secret())):
        await api.post("/v1/secrets", json={"name": name, "value": value})
        if name == "OLD":
            old = value
    made = await make(api, secret=["NEW", "OLD"])
    assert (made["signing_secret"], made["signed_by"], made["secret"]) == (None, "secrets", ["NEW", "OLD"])
    assert verified(await signer(services, made["id"]), "any text", old) == ["v1", "v1"]
    used = {each["name"]: each["used_by"] for each in (await api.get("/v1/secrets")).json()["data"]}
    assert used == {"NEW": [made["id"]], "OLD": [made["id"]]}
    for refused in (
        await api.post(f"/v1/callbacks/{made['id']}/rotate"),
        await api.get(f"/v1/callbacks/{made['id']}/secret"),
    ):
        assert (refused.status_code, refused.json()["code"]) == (409, "callback_without_key")
    changed = await api.patch(f"/v1/callbacks/{made['id']}", json={"secret": "NEW"})
    assert (changed.json()["signed_by"], changed.json()["secret"]) == ("secrets", ["NEW"])
    assert verified(await signer(services, made["id"]), "any text", old) == ["v1", None]
    unknown = await api.patch(f"/v1/callbacks/{made['id']}", json={"secret": ["NEW", "NONE"]})
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/secret/1")
    # What cannot sign is told in the delivery, and other callbacks go on.
    await api.delete("/v1/secrets/NEW")
    with pytest.raises(Exception, match="no secret NEW"):
        await signer(services, made["id"])
    await api.post("/v1/secrets", json={"name": "NEW", "value": "whsec_no base64"})
    with pytest.raises(Exception, match="NEW cannot sign"):
        await signer(services, made["id"])


async def test_a_manifests_callback_names_its_secret_which_must_exist(
    services: Services, api: httpx.AsyncClient
) -> None:
    spec = manifest(callbacks=[{"url": URL, "secret": "HOOK"}])
    refused = await api.put("/v1/functions/thumbnail", json=spec)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/spec/callbacks/0/secret")
    await api.post("/v1/secrets", json={"name": "HOOK", "value": "s3cret"})
    assert (await api.put("/v1/functions/thumbnail", json=spec)).status_code == 201
    assert (await api.put("/v1/functions/thumbnail", json=spec)).json()["changed"] is False
    (listed,) = (await api.get("/v1/callbacks")).json()["data"]
    assert verified(await signer(services, listed["id"]), "s3cret") == ["v1"]
    assert (await api.get("/v1/secrets")).json()["data"][0]["used_by"] == ["thumbnail"]
    # A job without a function has no row to look at: its deliveries name the secret themselves.
    one_off = {"job": {"image": "busybox:1"}, "callbacks": [{"url": URL, "secret": "HOOK"}]}
    job = await api.post("/v1/jobs", json=one_off)
    assert (await api.post(f"/v1/jobs/{job.json()['id']}/cancel")).is_success
    async with services.pool.acquire() as conn:
        row = await conn.fetchrow("SELECT endpoint_id, secrets FROM deliveries")
    assert tuple(row) == (None, ["HOOK"])
    assert verified(await signer(services, None, ("HOOK",)), "s3cret") == ["v1"]


async def test_keys_of_callbacks_are_sealed_again_with_the_others(services: Services, api: httpx.AsyncClient) -> None:
    made = await make(api)
    for path in ("secret", "keys", made["id"]):
        assert (await api.post(f"/v1/callbacks/{path}/rotate")).status_code == 200
        assert (await api.post(f"/v1/callbacks/{path}/rotate")).status_code == 200
    keys = [key["public_key"] for key in (await api.get("/v1/callbacks/keys")).json()["keys"]]
    old, new = services.settings.secret_key.get_secret_value(), Fernet.generate_key().decode()
    both = Sealer(f"{new},{old}")
    done = await reseal(services.pool, both, batch=2)
    # The project's two keys, the callback's, and of each kind those that were replaced.
    assert (done.callback_secrets, done.closed) == (3 + 5, ())
    assert (await reseal(services.pool, both, batch=2)).callback_secrets == 0
    services.sealer = Sealer(new)
    assert verified(await signer(services, made["id"]), made["signing_secret"], *keys) == ["v1", *["v1a"] * len(keys)]
