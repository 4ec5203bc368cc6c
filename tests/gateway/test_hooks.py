"""/hooks: what senders get for what they send, and what becomes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from functions.verifying import Event, Options, sign
from gateway import hooking
from gateway.api import hooks
from gateway.services import Services, open_services
from scheduler.receipts import MOST_OF_A_WEBHOOK
from tests.gateway.conftest import client_of, listening
from tests.gateway.making import job_id, make_function, project_client

SECRET = "It's a Secret to Everybody"
OPEN = {"type": "object"}


@pytest.fixture
def services(shared_services: Services) -> Services:
    return shared_services


@pytest.fixture
async def api(shared_services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """An admin of a project of its own, which costs less than an instance."""
    async with project_client(shared_services) as client:
        yield client


PUSH = {"ref": "refs/heads/main", "commits": [{"id": "a1"}]}


async def make_hook(
    api: httpx.AsyncClient, function: str = "ci", *, secrets: dict[str, str] | None = None, **hook: Any
) -> str:
    """A function with one webhook; its address."""
    for name, value in (secrets or {"HOOK": SECRET}).items():
        answer = await api.post("/v1/secrets", json={"name": name, "value": value})
        assert answer.status_code in (200, 201), answer.text
    spec = hook.pop("spec", {"params": OPEN, "job": {"image": "busybox:1"}})
    hook = {"name": "in", "verify": "github", **hook}
    if hook["verify"] != "none":
        hook.setdefault("secret", "HOOK")
    await make_function(api, function, triggers={"webhooks": [hook]}, **spec)
    (made,) = (await api.get("/v1/webhooks", params={"function": function})).json()["data"]
    return "/hooks/" + str(made["url"]).partition("/hooks/")[2]


def github(body: bytes, secret: str = SECRET, **more: str) -> dict[str, str]:
    event = Event(str(uuid4()), 0, body, "")
    return {**sign("github", event, secret.encode(), Options()), "content-type": "application/json", **more}


async def send(
    services: Services, path: str, body: Any = PUSH, secret: str = SECRET, **headers: str
) -> httpx.Response:
    """A push as GitHub sends it, without a key."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client_of(services, None) as client:
        return await client.post(path, content=data, headers=github(data, secret, **headers))


async def receipts(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Of the only webhook, the newest first."""
    (webhook,) = (await api.get("/v1/webhooks")).json()["data"]
    return list((await api.get(f"/v1/webhooks/{webhook['id']}/receipts")).json()["data"])


async def test_a_signed_request_becomes_a_job_with_the_params_that_the_webhook_makes(
    services: Services, api: httpx.AsyncClient
) -> None:
    params = {"ref": "{{ body.ref }}", "all": "{{ body.commits }}", "event": "{{ header.X-GitHub-Event }} {{ query.q }}"}
    path = await make_hook(api, params={**params, "fixed": None, "by": "{{ trigger.name }}@{{ function.version }}"})
    answer = await send(services, f"{path}?q=7", **{"x-github-delivery": "d-1"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["params"] == {
        "ref": "refs/heads/main", "all": [{"id": "a1"}], "event": "push 7", "fixed": None, "by": "in@1",
    }  # fmt: skip
    (receipt,) = await receipts(api)
    assert job["trigger"] == {
        "kind": "webhook", "name": "in", "webhook": receipt["webhook"], "receipt": receipt["id"], "delivery": "d-1",
    }  # fmt: skip
    assert (receipt["verdict"], receipt["job"], receipt["delivery"]) == ("accepted", job["id"], "d-1")
    listed = (await api.get("/v1/jobs?trigger=webhook")).json()["data"]
    assert [each["id"] for each in listed] == [job["id"]]


async def test_without_params_the_body_is_the_params(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    assert (await send(services, path)).json()["params"] == PUSH
    refused = await send(services, path, [1])
    assert (refused.status_code, refused.json()["code"]) == (422, "params_invalid")
    assert [each["verdict"] for each in await receipts(api)] == ["invalid", "accepted"]


async def post(services: Services, path: str, content: bytes = b"{}", **headers: str) -> httpx.Response:
    """Without a key or a signature."""
    async with client_of(services, None) as client:
        named = {name.replace("_", "-"): value.encode("latin-1") for name, value in headers.items()}
        return await client.post(path, content=content, headers={"content-type": b"application/json", **named})


async def count_jobs(api: httpx.AsyncClient) -> int:
    return len((await api.get("/v1/jobs")).json()["data"])


async def execute(services: Services, api: httpx.AsyncClient, statement: str) -> Any:
    """Run a statement about the project of ``api``, $1; its first value."""
    (hook,) = (await api.get("/v1/webhooks")).json()["data"]
    slug = hook["url"].partition("/hooks/")[2].split("/")[0]
    async with services.pool.acquire() as conn:
        project = await conn.fetchval("SELECT id FROM projects WHERE slug = $1", slug)
        return await conn.fetchval(statement, project)


async def test_a_bad_signature_is_401_and_what_is_not_there_404_and_neither_says_more(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    refused = await send(services, path, secret="wrong")
    assert (refused.status_code, refused.json()["code"]) == (401, "signature_invalid")
    project = path.split("/")[2]
    nothing = [f"/hooks/{place}" for place in (f"{project}/ci/other", f"{project}/a/in", "other/ci/in", "CI/ci/in")]
    answers = [await send(services, each) for each in nothing]
    assert {answer.status_code for answer in answers} == {404}
    texts = {answer.text.replace(answer.headers["rgrid-request-id"], "") for answer in answers}
    assert len(texts) == 1 and "webhook_not_found" in texts.pop()
    missing = await post(services, path)
    assert missing.json()["detail"] == refused.json()["detail"]
    assert [(each["verdict"], each["job"]) for each in await receipts(api)] == [("refused", None)] * 2
    assert {each["reason"] for each in await receipts(api)} == {
        "no signature fits", "the x-hub-signature-256 header is missing",
    }  # fmt: skip
    assert await count_jobs(api) == 0


async def test_nothing_of_an_unverified_body_is_read(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"NaN"):
        assert (await send(services, path, body, secret="wrong")).status_code == 401
    for body in (b"{", b"\xff", b"[" * 100_000, b"NaN", b'{"a": 1, "a": 2}'):
        assert (await send(services, path, body)).status_code == 400, body
    assert (await send(services, path, b'{"a": "\\u0000"}')).status_code == 422
    assert (await send(services, path, b"")).json()["code"] == "params_invalid"
    assert await count_jobs(api) == 0


async def test_old_and_new_secret_are_good_while_both_are_listed_and_a_change_holds_at_once(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, secrets={"OLD": "old-secret", "NEW": "new-secret"}, secret=["OLD", "NEW"])
    for secret, status in (("old-secret", 202), ("new-secret", 202), ("third-secret", 401)):
        assert (await send(services, path, secret=secret)).status_code == status
    await api.post("/v1/secrets", json={"name": "NEW", "value": "newer-secret"})
    assert (await send(services, path, secret="new-secret")).status_code == 401
    assert (await send(services, path, secret="newer-secret")).status_code == 202
    await api.delete("/v1/secrets/OLD")
    assert (await send(services, path, secret="old-secret")).status_code == 401
    assert (await send(services, path, secret="newer-secret")).status_code == 202
    await api.delete("/v1/secrets/NEW")
    assert (await send(services, path, secret="newer-secret")).status_code == 401
    assert "does not have the secret" in (await receipts(api))[0]["reason"]


async def test_a_secret_that_no_key_opens_verifies_nothing(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    await execute(services, api, "UPDATE secrets SET sealed = 'x' WHERE project_id = $1")
    assert (await send(services, path)).status_code == 401


async def test_a_secret_that_is_put_out_of_memory_for_the_next_one_verifies_all_the_same(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooking, "OPEN_SECRETS", 1)
    opened = hooking.Hooks(services.pool, services.sealer)
    old, new = (services.sealer.seal(value) for value in (b"old", b"new"))
    for _ in range(2):
        assert opened.secrets([old]) == [b"old"]
        assert opened.secrets([old, new]) == [b"old", b"new"]


async def test_a_delivery_that_comes_again_gets_the_first_ones_job(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    first = await send(services, path, **{"x-github-delivery": "d-1"})
    again = await send(services, path, **{"x-github-delivery": "d-1"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    other = await send(services, path, {"ref": "x"}, **{"x-github-delivery": "d-1"})
    assert (other.status_code, other.json()) == (200, {"id": first.json()["id"]})
    assert (await send(services, path, **{"x-github-delivery": "d-2"})).status_code == 202
    assert await count_jobs(api) == 2
    found = await receipts(api)
    assert [each["verdict"] for each in found] == ["accepted", "repeated", "repeated", "accepted"]
    assert [each["job"] for each in found[1:]] == [first.json()["id"]] * 3
    assert ["another body" in (each["reason"] or "") for each in found] == [False, True, False, False]


async def test_a_repeat_has_its_answer_whatever_became_of_function_and_job(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    first = (await send(services, path, **{"x-github-delivery": "d-1"})).json()
    schema = {"type": "object", "required": ["other"]}
    await make_hook(api, spec={"params": schema, "job": {"image": "busybox:1"}})
    again = await send(services, path, **{"x-github-delivery": "d-1"})
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert (await send(services, path, **{"x-github-delivery": "d-2"})).status_code == 422
    await execute(services, api, "DELETE FROM jobs WHERE project_id = $1")
    again = await send(services, path, **{"x-github-delivery": "d-1"})
    assert (again.status_code, again.json()) == (200, {"id": first["id"]})


async def test_a_hundred_copies_at_once_are_one_job(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    body = json.dumps(PUSH).encode()
    headers = github(body, **{"x-github-delivery": "d-1"})
    async with client_of(services, None) as client:
        answers = await asyncio.gather(*(client.post(path, content=body, headers=headers) for _ in range(100)))
    assert sorted(answer.status_code for answer in answers) == [200] * 99 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await count_jobs(api) == 1


async def test_a_delivery_is_known_after_a_restart_and_for_a_week(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    first = await send(services, path, **{"x-github-delivery": "d-1"})
    async with open_services(services.settings) as restarted:
        again = await send(restarted, path, **{"x-github-delivery": "d-1"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    left = "SELECT round(extract(epoch FROM expires_at - now()) / 86400) FROM idempotency_keys WHERE project_id = $1"
    assert await execute(services, api, left) == 7
    await execute(services, api, "UPDATE idempotency_keys SET expires_at = now() WHERE project_id = $1")
    assert (await send(services, path, **{"x-github-delivery": "d-1"})).status_code == 202


async def test_two_webhooks_know_deliveries_apart(services: Services, api: httpx.AsyncClient) -> None:
    one, two = await make_hook(api, "one"), await make_hook(api, "two")
    body = json.dumps(PUSH).encode()
    headers = github(body, **{"x-github-delivery": "d-1"})
    async with client_of(services, None) as client:
        answers = await asyncio.gather(*(client.post(path, content=body, headers=headers) for path in (one, two)))
    assert [answer.status_code for answer in answers] == [202, 202]


async def test_what_the_filter_does_not_let_through_is_204_and_no_job(
    services: Services, api: httpx.AsyncClient
) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"header.x-github-event": ["push"]}, True),
        ({"header.X-GitHub-Event": ["pull_request", "push"]}, True),
        ({"header.x-github-event": ["pull_request"]}, False),
        ({"header.x-github-event": ["push"], "body.ref": ["refs/heads/dev"]}, False),
        ({"body.commits.0.id": ["a1"]}, True),
        ({"body.missing": [None]}, False),
        ({"query.q": ["7"]}, True),
        ({"body": ["text"]}, False),
    ]
    for filter, passes in cases:
        path = await make_hook(api, filter=filter)
        answer = await send(services, f"{path}?q=7")
        assert answer.status_code == (202 if passes else 204), filter
        assert (await receipts(api))[0]["verdict"] == ("accepted" if passes else "filtered")
    assert await count_jobs(api) == sum(passes for _, passes in cases)


async def test_a_look_up_without_a_value_is_422_unless_the_schema_has_a_default(
    services: Services, api: httpx.AsyncClient
) -> None:
    schema = {"type": "object", "properties": {"ref": {"type": "string", "default": "main"}, "by": {"type": "string"}}}
    spec = {"params": schema, "job": {"image": "busybox:1"}}
    path = await make_hook(api, params={"ref": "{{ body.missing }}"}, spec=spec)
    assert (await send(services, path)).json()["params"] == {"ref": "main"}
    await make_hook(api, params={"by": "{{ body.missing }}"}, spec=spec)
    answer = await send(services, path)
    assert (answer.status_code, answer.json()["code"]) == (422, "template_invalid")
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/by"]


async def test_an_input_that_may_not_be_fetched_is_422(services: Services, api: httpx.AsyncClient) -> None:
    job = {"image": "busybox:1", "files": {"inputs": [{"path": "/in/a", "url": "{{ params.url }}"}]}}
    path = await make_hook(api, params={"url": "{{ body.url }}"}, spec={"params": OPEN, "job": job})
    answer = await send(services, path, {"url": "http://169.254.169.254/"})
    assert (answer.status_code, answer.json()["code"]) == (422, "url_refused")


async def test_one_byte_more_than_a_mebibyte_is_413_declared_or_not(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, params={})
    body = json.dumps({"a": "x" * (1024 * 1024 - 9)}).encode()
    assert len(body) == 1024 * 1024
    assert (await send(services, path, body)).status_code == 202

    async def chunks() -> Any:
        yield body
        yield b" "

    async with client_of(services, None) as client:
        for content in (body + b" ", chunks()):
            assert (await client.post(path, content=content, headers=github(body))).status_code == 413


async def test_a_large_body_is_kept_and_can_be_read(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    answer = await send(services, path, {"a": "x" * 200_000}, **{"x-github-delivery": "d-1"})
    assert answer.status_code == 202
    assert (await send(services, path, {"a": "y" * 200_000}, **{"x-github-delivery": "d-1"})).status_code == 200
    newest, first = await receipts(api)
    place = f"/v1/webhooks/{first['webhook']}/receipts/"
    shown = (await api.get(place + first["id"])).json()
    assert (json.loads(shown["body"]), shown["truncated"]) == ({"a": "x" * 200_000}, False)
    repeated = (await api.get(place + newest["id"])).json()
    assert (len(repeated["body"]), repeated["truncated"]) == (64 * 1024, True)
    names = "SELECT string_agg(name || ' ' || state, ', ' ORDER BY name) FROM artifacts WHERE project_id = $1"
    assert await execute(services, api, names) == "params.json complete, webhook-body complete"


async def test_a_stranger_leaves_no_more_than_a_few_receipts_of_a_few_bytes(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    for _ in range(hooking.REFUSED + 5):
        answer = await send(services, path, b"x" * 100_000, secret="wrong", **{"x-long": "h" * 5000, "x-short": "s"})
        assert answer.status_code == 401
    found = await receipts(api)
    assert len(found) == hooking.REFUSED
    shown = (await api.get(f"/v1/webhooks/{found[0]['webhook']}/receipts/{found[0]['id']}")).json()
    assert (shown["size"], shown["body"], shown["truncated"]) == (100_000, "x" * 4096, True)
    headers = dict(shown["headers"])
    assert ("x-long" in headers, headers["x-short"], "x-hub-signature-256" in headers) == (False, "s", True)
    assert hooking.REFUSED * 7 * 24 * 3600 / hooking.REFUSED_PER_S < MOST_OF_A_WEBHOOK / 2
    assert (await send(services, path)).status_code == 202


async def test_a_compressed_body_is_415(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    body = gzip.compress(b"{}")
    assert (await send(services, path, body, **{"content-encoding": "gzip"})).status_code == 415


BODIES: list[tuple[str, bytes, int, Any]] = [
    ("application/json", b'{"a": [1]}', 202, {"a": [1]}),
    ("application/vnd.github+json; charset=UTF-8", b"[1]", 202, [1]),
    ("", b"1", 202, 1),
    ("application/x-www-form-urlencoded", b"a=1&b=&a=%C3%A9", 202, {"a": ["1", "é"], "b": ""}),
    ("application/x-www-form-urlencoded", b"payload=%7B%22a%22%3A1%7D", 202, {"a": 1}),
    ("text/plain", "grüße".encode(), 202, "grüße"),
    ("application/xml", b"<a/>", 202, "<a/>"),
    ("application/x-www-form-urlencoded", b"a=%00", 422, None),
    ("application/x-www-form-urlencoded", b"a=%FF", 400, None),
    ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 1001), 400, None),
    ("text/plain", b"\xff", 400, None),
    ("text/plain", b"a\0", 422, None),
    ("text/plain; charset=latin-1", b"a", 415, None),
    ("application/octet-stream", b"a", 415, None),
    ("multipart/form-data; boundary=x", b"a", 415, None),
    ("nonsense", b"a", 415, None),
]


async def test_a_body_is_json_a_form_or_text(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, params={"found": "{{ body }}"})
    for kind, body, status, found in BODIES:
        answer = await send(services, path, body, **{"content-type": kind})
        assert answer.status_code == status, (kind, body, answer.text)
        assert status != 202 or answer.json()["params"] == {"found": found}


async def test_a_form_with_a_payload_is_a_form_where_the_sender_has_no_such_habit(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, verify="none")
    kind = "application/x-www-form-urlencoded"
    assert (await post(services, path, b"payload=1", content_type=kind)).json()["params"] == {"payload": "1"}


async def test_slack_is_answered_its_challenge_and_its_events_run_once(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, verify="slack")

    async def slack(body: Any, secret: str = SECRET) -> httpx.Response:
        data = json.dumps(body).encode()
        event = Event("", int(time.time()), data, "")
        return await post(services, path, data, **sign("slack", event, secret.encode(), Options()))

    challenge = {"type": "url_verification", "token": "t", "challenge": "3eZbrw1aB"}
    answer = await slack(challenge)
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1aB"})
    assert (await slack(challenge, "wrong")).status_code == 401
    first, again = await slack({"event_id": "Ev1", "n": 1}), await slack({"event_id": "Ev1", "n": 1})
    assert (first.status_code, again.status_code, again.json()["id"]) == (202, 200, first.json()["id"])
    # Without an id it is what was signed that tells a replay, however the signature is written and whatever stands by.
    data = json.dumps({"command": "/deploy"}).encode()
    headers = sign("slack", Event("", int(time.time()), data, ""), SECRET.encode(), Options())
    event = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
    written = {"x-slack-signature": "v0=" + headers["x-slack-signature"][3:].upper()}
    answers = [
        (await post(services, path, data, **headers | more)).status_code
        for more in ({}, {}, written, {"webhook-id": "new"}, {"idempotency-key": "new"}, event)
    ]
    assert answers == [202, 200, 200, 200, 200, 200]
    assert [each["verdict"] for each in await receipts(api)] == [
        *["repeated"] * 5, "accepted", "repeated", "accepted", "refused", "answered",
    ]  # fmt: skip


async def test_a_ping_of_discord_is_answered_once_it_is_verified(services: Services, api: httpx.AsyncClient) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    path = await make_hook(api, verify="discord", secrets={"HOOK": key.public_key().public_bytes_raw().hex()})

    async def discord(body: Any, secret: bytes = b"\x01" * 32) -> httpx.Response:
        data = json.dumps(body).encode()
        event = Event("", int(time.time()), data, "")
        return await post(services, path, data, **sign("discord", event, secret.hex().encode(), Options()))

    answer = await discord({"type": 1})
    assert (answer.status_code, answer.json()) == (200, {"type": 1})
    assert (await discord({"type": 1}, b"\x02" * 32)).status_code == 401
    assert (await discord({"type": 0, "version": 1})).status_code == 204
    for event in ({"type": True}, {"type": False}, {"type": 1, "version": 1, "event": {"type": "ENTITLEMENT_CREATE"}}):
        assert (await discord(event)).status_code == 202
    first, again = await discord({"type": 2, "id": "i1"}), await discord({"type": 2, "id": "i1"})
    assert (first.status_code, again.status_code) == (202, 200)


async def test_a_ping_of_github_makes_no_job_unless_it_is_asked_for(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    assert (await send(services, path, {"zen": "…"}, **{"x-github-event": "ping"})).status_code == 204
    await make_hook(api, filter={"header.x-github-event": ["ping", "push"]})
    assert (await send(services, path, {"zen": "…"}, **{"x-github-event": "ping"})).status_code == 202


async def test_cloud_events_are_told_apart_by_source_and_id_in_both_modes(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, verify="token", header="X-Key", params={"all": "{{ body }}"})
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t"}

    async def binary(**attributes: str) -> httpx.Response:
        headers = {f"ce-{name}": value for name, value in {**event, **attributes}.items() if value}
        return await post(services, path, b'{"n": 1}', **headers, **{"x-key": SECRET})

    first = await binary()
    assert (first.status_code, first.json()["params"]) == (202, {"all": {"n": 1}})
    structured = await post(
        services, path, json.dumps(event).encode(), **{"content-type": "application/cloudevents+json", "x-key": SECRET}
    )
    assert (structured.status_code, structured.json()) == (200, {"id": first.json()["id"]})
    assert (await binary()).json()["id"] == first.json()["id"]
    assert [(await binary(source="/b")).status_code, (await binary(id="2")).status_code] == [202, 202]
    assert [(await binary(id="")).status_code, (await binary(type="")).status_code] == [400, 400]
    batch = {"content-type": "application/cloudevents-batch+json", "x-key": SECRET}
    assert (await post(services, path, b"[]", **batch)).status_code == 415


async def test_a_sender_of_cloud_events_may_ask_first(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, verify="token", rate={"limit": 2, "per": "1m"})
    async with client_of(services, None) as client:
        asked = {"WebHook-Request-Origin": "eventemitter.example.com", "WebHook-Request-Rate": "120"}
        answer = await client.options(path, headers=asked)
        assert (answer.status_code, answer.headers["webhook-allowed-origin"]) == (200, "eventemitter.example.com")
        assert (answer.headers["webhook-allowed-rate"], answer.headers["allow"]) == ("2", "OPTIONS, POST")
        plain = await client.options(f"{path}?a=1")
        assert (plain.status_code, "webhook-allowed-origin" in plain.headers) == (200, False)
        assert (await client.options(path + "x", headers=asked)).status_code == 404
        assert (await client.get(path)).status_code == 405


async def test_more_than_the_rate_of_a_webhook_is_429_and_strangers_do_not_count(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, rate={"limit": 2, "per": "1h"})
    for _ in range(3):
        assert (await send(services, path, secret="wrong")).status_code == 401
    answers = [await send(services, path) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert 1700 < int(answers[2].headers["retry-after"]) <= 1800
    assert answers[2].json()["code"] == "limit_reached"
    assert (await receipts(api))[0]["verdict"] == "rejected"


async def test_what_is_over_the_limit_of_a_function_that_rejects_is_a_failed_job(
    services: Services, api: httpx.AsyncClient
) -> None:
    queue = {"concurrency": {"limit": 1, "onLimit": "reject"}}
    path = await make_hook(api, spec={"params": OPEN, "job": {"image": "busybox:1"}, "queue": queue})
    first = await send(services, path, **{"x-github-delivery": "d-1"})
    second = await send(services, path, **{"x-github-delivery": "d-2"})
    assert (first.status_code, second.status_code) == (202, 202)
    failed = (await api.get(f"/v1/jobs/{second.json()['id']}")).json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "concurrency_rejected")
    assert second.json()["status"] == "failed"
    again = await send(services, path, **{"x-github-delivery": "d-1"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert [each["verdict"] for each in await receipts(api)] == ["repeated", "accepted", "accepted"]


async def test_a_disabled_webhook_and_one_of_a_deleted_function_answer_404(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    (webhook,) = (await api.get("/v1/webhooks")).json()["data"]
    assert (await api.post(f"/v1/webhooks/{webhook['id']}/disable")).json()["enabled"] is False
    assert (await send(services, path)).status_code == 404
    await make_hook(api, filter={"body.ref": ["refs/heads/main"]})
    assert (await send(services, path)).status_code == 404
    assert (await api.post(f"/v1/webhooks/{webhook['id']}/enable")).json()["enabled"] is True
    assert (await send(services, path)).status_code == 202
    assert (await api.delete("/v1/functions/ci")).status_code == 204
    assert (await send(services, path)).status_code == 404
    assert (await api.get(f"/v1/webhooks/{webhook['id']}")).status_code == 404


async def test_a_webhook_of_another_project_is_its_own(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api)
    async with project_client(services) as stranger:
        await make_hook(stranger, secrets={"HOOK": "theirs"})
        (theirs,) = (await stranger.get("/v1/webhooks")).json()["data"]
        assert (await send(services, path, secret="theirs")).status_code == 401
        answer = await send(services, theirs["url"].removeprefix(services.settings.base_url), secret="theirs")
        assert answer.status_code == 202
        assert (await stranger.get(f"/v1/jobs/{answer.json()['id']}")).status_code == 200
        assert (await api.get(f"/v1/jobs/{answer.json()['id']}")).status_code == 404


async def test_twilio_signs_the_address_of_the_settings_and_no_host_header_changes_it(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api, verify="twilio")
    body = b"MessageSid=SM1&Body=Hi&MessageStatus=sent"
    kind = {"content-type": "application/x-www-form-urlencoded"}

    async def twilio(url: str, body: bytes = body, **headers: str) -> httpx.Response:
        signed = sign("twilio", Event("", 0, body, url, kind), SECRET.encode(), Options())
        del signed["i-twilio-idempotency-token"]
        return await post(services, f"{path}?a=1", body, **signed, **kind, **headers)

    own = f"{services.settings.base_url}{path}?a=1"
    first = await twilio(own, host="evil.example.com", x_forwarded_host="evil.example.com")
    assert (first.status_code, first.json()["params"]["Body"]) == (202, "Hi")
    assert (await twilio(own)).status_code == 200
    assert (await twilio(own, body.replace(b"sent", b"delivered"))).status_code == 202
    foreign = f"https://evil.example.com{path}?a=1"
    assert (await twilio(foreign, host="evil.example.com", x_forwarded_proto="https")).status_code == 401


async def test_a_webhook_says_itself_what_tells_deliveries_apart(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, verify="none", dedupe="{{ body.a }}/{{ header.x-n }}")
    answers = [
        await post(services, path, b'{"a": 1}', x_n="1"),
        await post(services, path, b'{"a": 1}', x_n="1"),
        await post(services, path, b'{"a": 1}', x_n="2"),
        await post(services, path, b'{"a": 2}', x_n="1"),
        await post(services, path, b"{}"),
        await post(services, path, b"{}"),
    ]
    assert [answer.status_code for answer in answers] == [202, 200, 202, 202, 202, 202]
    # Whoever asks without a secret learns the id and nothing else.
    assert answers[1].json() == {"id": answers[0].json()["id"]}


async def test_an_id_of_any_length_is_remembered(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, verify="none")
    for key in ("x" * 250, "x" * 5000, "é ü", "a\tb"):
        sent = {"webhook_id": key.encode().decode("latin-1")}
        answers = [(await post(services, path, **sent)).status_code for _ in range(2)]
        assert answers == [202, 200], key
    assert await count_jobs(api) == 4


async def test_secrets_in_headers_are_in_no_receipt(services: Services, api: httpx.AsyncClient) -> None:
    path = await make_hook(api, verify="token", header="X-Key", secrets={"HOOK": "hunter22"})
    answer = await post(services, path, x_key="hunter22", authorization="Bearer hunter22", cookie="s=hunter22", x_a="1")
    assert answer.status_code == 202
    (receipt,) = await receipts(api)
    shown = await api.get(f"/v1/webhooks/{receipt['webhook']}/receipts/{receipt['id']}")
    assert "hunter22" not in shown.text
    headers = dict(shown.json()["headers"])
    assert (headers["x-key"], headers["cookie"], headers["x-a"]) == ("[removed]", "[removed]", "1")


async def test_over_the_wire_a_slow_body_is_given_up_and_expect_continue_is_answered(
    services: Services, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "PATIENCE_S", 0.3)
    path = await make_hook(api)
    body = json.dumps(PUSH).encode()
    async with listening(services) as gateway:

        async def ask(more: str, *parts: bytes) -> bytes:
            head = "".join(f"{name}: {value}\r\n" for name, value in github(body).items())
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}{more}\r\n".encode())
            if "100-continue" in more:
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            for part in parts:
                writer.write(part)
            answer = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            return answer[:12]

        length = f"Content-Length: {len(body)}\r\n"
        assert await ask(f"{length}Expect: 100-continue\r\n", body) == b"HTTP/1.1 202"
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert await ask("Transfer-Encoding: chunked\r\n", chunk) == b"HTTP/1.1 202"
        assert await ask(length, body[:1]) == b"HTTP/1.1 408"


async def test_a_job_of_a_webhook_is_retried_and_cancelled_like_any_other(
    services: Services, api: httpx.AsyncClient
) -> None:
    path = await make_hook(api)
    job = (await send(services, path, **{"x-github-delivery": "d-1"})).json()
    assert (await api.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 200
    again = await api.post(f"/v1/jobs/{job['id']}/retry")
    assert (again.status_code, again.json()["params"], again.json()["retried_from"]) == (202, PUSH, job["id"])
    assert job_id(again.json()) != job_id(job)
