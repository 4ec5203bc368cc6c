"""Two tenants: whatever the one has, the other cannot tell from what does not exist."""

from __future__ import annotations

import re
from uuid import UUID

import httpx
import pytest

from functions import ids
from gateway.api.table import ROUTES
from gateway.routes import Route, Scope
from gateway.services import Services
from tests.gateway.conftest import client_of
from tests.gateway.making import OneOfEach, make_one_of_each, manifest, project_client

BODIES = {"rollback": {"version": 1}, "invoke": {"video": "v"}, "batch": [{"video": "v"}],
          "recover": {"since": "2026-01-01T00:00:00Z"}}  # fmt: skip
OWN_NAME = {("PUT", "/v1/functions/{name}")}
"""Calls that make something of the caller's own, under a name that somebody else may use, too."""

NAMED = [
    route for route in ROUTES
    if route.path_parameters and route.scope not in (None, Scope.NODE) and (route.method, route.path) not in OWN_NAME
]  # fmt: skip
LISTS = [route for route in ROUTES if route.method == "GET" and route.scope and not route.path_parameters]


async def ask(client: httpx.AsyncClient, route: Route, values: dict[str, str]) -> httpx.Response:
    body = BODIES.get(route.path.rsplit("/", 1)[-1])
    return await client.request(route.method, route.path.format(**values), json=body)


def missing(values: dict[str, str]) -> dict[str, str]:
    """The same, as far as anybody can see, of things that nobody has."""
    fresh = ids.new_uuid7().hex
    return {name: re.sub(r"[0-9a-f]{32}", fresh, value) if "_" in value else "none" for name, value in values.items()}


def anonymous(answer: httpx.Response, values: dict[str, str]) -> str:
    text = answer.text.replace(answer.headers["rgrid-request-id"], "")
    for value in values.values():
        text = text.replace(value, "")
    return text


async def test_every_call_with_an_id_of_another_project_answers_as_if_there_were_none(
    services: Services, api: httpx.AsyncClient
) -> None:
    known = await make_one_of_each(services, api)
    async with project_client(services) as stranger:
        for route in NAMED:
            values = known.of(route.path)
            nobodys = missing(values)
            foreign, unknown = await ask(stranger, route, values), await ask(stranger, route, nobodys)
            where = f"{route.method} {route.path}"
            assert (foreign.status_code, unknown.status_code) == (404, 404), where
            assert anonymous(foreign, values) == anonymous(unknown, nobodys), where
        for path in (f"/v1/deliveries?job={known.job}", "/v1/jobs?function=thumbnail"):
            assert (await stranger.get(path)).json()["data"] == []
    assert (await api.get(f"/v1/jobs/{known.job}")).json()["status"] == "succeeded"
    assert (await api.get("/v1/functions/thumbnail")).json()["version"] == 1


async def test_lists_hold_the_projects_own_things_only(services: Services, api: httpx.AsyncClient) -> None:
    known = await make_one_of_each(services, api)
    async with project_client(services) as stranger:
        for route in LISTS:
            theirs, ours = await stranger.get(route.path), await api.get(route.path)
            assert (theirs.status_code, ours.status_code) == (200, 200), route.path
            if "data" in ours.json():
                assert (theirs.json()["data"], ours.json()["next_cursor"]) == ([], None), route.path
                assert ours.json()["data"], route.path
            else:
                assert theirs.json() != ours.json(), route.path
    assert known.job


async def test_two_projects_may_use_one_name(services: Services, api: httpx.AsyncClient) -> None:
    await make_one_of_each(services, api)
    async with project_client(services) as stranger:
        made = await stranger.put("/v1/functions/thumbnail", json=manifest(job={"image": "other:1"}, params={}))
        assert (made.status_code, made.json()["version"]) == (201, 1)
        assert (await stranger.delete("/v1/functions/thumbnail")).status_code == 204
    assert (await api.get("/v1/functions/thumbnail")).json()["manifest"]["spec"]["job"]["image"] == "busybox:1"


async def test_a_cursor_of_another_project_is_refused(services: Services, api: httpx.AsyncClient) -> None:
    for name in ("a", "b"):
        await api.put(f"/v1/functions/{name}", json=manifest(name))
    cursor = (await api.get("/v1/functions?limit=1")).json()["next_cursor"]
    async with project_client(services) as stranger:
        answer = await stranger.get("/v1/functions", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid")


@pytest.mark.parametrize("route", NAMED, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize(
    "wrong",
    [
        "0", "x", "job", "job_", "job_1", "JOB_" + "0" * 32, "job_" + "0" * 31, "job_" + "0" * 33, "job_" + "g" * 32,
        "art_" + "0" * 32, str(UUID(int=1)), "null", "-1", "~", "x" * 1000, "__proto__", "job_" + "0" * 32 + "_",
    ],
)  # fmt: skip
async def test_what_can_be_no_id_is_404(shared_api: httpx.AsyncClient, route: Route, wrong: str) -> None:
    answer = await ask(shared_api, route, dict.fromkeys(route.path_parameters, wrong))
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("route", [route for route in ROUTES if route.scope], ids=lambda r: f"{r.method} {r.path}")
async def test_nobody_gets_in_with_no_key_or_with_one_of_another_kind(
    shared_services: Services, shared_api: httpx.AsyncClient, route: Route
) -> None:
    known = OneOfEach("f", *[f"{prefix}_{'0' * 32}" for prefix in ("job", "art", "tok", "msg", "node")], "x")
    for key in (None, "wrong", "x" * 600, "Bearer", "rgk_" + "a" * 51):
        async with client_of(shared_services, key) as client:
            answer = await ask(client, route, known.of(route.path))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="rgrid"'), key
    if route.scope is Scope.NODE:
        assert (await ask(shared_api, route, known.of(route.path))).status_code == 401
