"""SECURITY §7.2 on every route of the real table: never a 500, and every failure is a problem with a code."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from functions.errors import CODES
from gateway.api.table import ROUTES
from gateway.body import JSON
from gateway.problems import Problem
from gateway.routes import Route, Scope, names
from gateway.services import Services
from tests.gateway.conftest import BOOTSTRAP_KEY, client_of
from tests.gateway.making import join_node, make_function, make_one_of_each

VALUES = {"name": "thumbnail", "id": f"job_{'0' * 32}", "job": f"job_{'0' * 32}", "token": "x" * 32,
          "project": "default", "function": "thumbnail", "webhook": "in", "receipt": f"rcp_{'0' * 32}",
          "sha256": "0" * 64}  # fmt: skip
TAKES_ANYTHING = ("/f/{project}/{function}", "/hooks/{project}/{function}/{webhook}")
"""A body of any type and any params in the query: test_files and test_hooks have what they refuse."""
BODY_ROUTES = [route for route in ROUTES if route.media_types and route.path not in TAKES_ANYTHING]
JSON_ROUTES = [route for route in BODY_ROUTES if JSON in route.media_types]
TEXT = {"Content-Type": "application/json"}


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.fixture(scope="session")
async def credential(shared_services: Services, shared_api: httpx.AsyncClient) -> str:
    await make_function(shared_api)  # or what a function is asked for is never looked at
    return (await join_node(shared_services))[1]


@pytest.fixture
async def send(shared_services: Services, credential: str) -> AsyncIterator[Any]:
    """Ask a route with a credential of its kind."""
    async with client_of(shared_services) as people, client_of(shared_services, credential) as node:

        async def ask(
            route: Route, *, path: str | None = None, query: bytes = b"", method: str | None = None, **options: Any
        ) -> httpx.Response:
            client = node if route.scope is Scope.NODE else people
            request = client.build_request(method or route.method, "/", **options)
            # As it is: the client library would make something tidy of it.
            raw = (path or route.path.format(**VALUES)).encode() + (b"?" + query if query else b"")
            request.url = request.url.copy_with(raw_path=raw)
            return await client.send(request)

        yield ask


def check(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert (problem.status, problem.instance) == (answer.status_code, answer.headers["rgrid-request-id"])
    assert problem.code in CODES
    for word in ("Traceback", "asyncpg", "SELECT ", "/work", ".py", BOOTSTRAP_KEY):
        assert word not in answer.text


MALFORMED = {
    "nothing": b"",
    "space": b" \n",
    "truncated": b'{"a": [1,',
    "trailing comma": b'{"a": 1,}',
    "comment": b'{"a": 1} // b',
    "two values": b"{} {}",
    "single quotes": b"{'a': 1}",
    "byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32-le"),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "nested 100,000 lists": b"[" * 100_000,
    "nested 100,000 objects": b'{"a":' * 100_000,
    "an integer of 5,000 digits": b'{"a": %s}' % (b"9" * 5000),
    "infinite": b'{"a": 1e999}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "a key twice": b'{"a": 1, "a": 1}',
    "a key twice further down": b'{"a": {"b": 1, "\\u0062": 2}}',
    "a control character": b'{"a": "\n"}',
}


@pytest.mark.parametrize("route", JSON_ROUTES, ids=named)
async def test_a_body_that_is_not_json_is_400(send: Any, route: Route) -> None:
    for content in MALFORMED.values():
        if content or route.body_required:
            check(await send(route, content=content, headers=TEXT), 400)


@pytest.mark.parametrize("route", JSON_ROUTES, ids=named)
async def test_text_that_cannot_be_stored_is_422(send: Any, route: Route) -> None:
    for content in (b'{"a": "\\u0000"}', b'{"a": "\\ud800"}', b'{"a": "\\udfff\\ud800"}', b'{"a\\u0000": 1}'):
        check(await send(route, content=content, headers=TEXT), 422)


@pytest.mark.parametrize("route", JSON_ROUTES, ids=named)
async def test_a_body_that_is_no_object_is_422(send: Any, route: Route) -> None:
    for content in (b"[]", b"null", b"true", b"0", b'""', b'"a"', b"[{}]"):
        check(await send(route, content=content, headers=TEXT), 422)


MODELS = [route for route in JSON_ROUTES if not isinstance(route.body, tuple) and names(route.body) != ["root"]]


@pytest.mark.parametrize("route", MODELS, ids=named)
async def test_an_unknown_field_is_422_and_pointed_at(send: Any, route: Route) -> None:
    answer = await send(route, json={"unknown/~": 1})
    check(answer, 422)
    assert "/unknown~1~0" in [error["pointer"] for error in answer.json()["errors"]]


WRONG = (None, "", " ", "x" * 10_000, "1", True, -1, -0.0, 1.5, 2**31, 2**63, 10**200, [], {}, [None], {"a": {}})


@pytest.mark.parametrize("route", MODELS, ids=named)
async def test_a_field_of_any_wrong_kind_is_never_a_fault_of_the_service(send: Any, route: Route) -> None:
    assert not isinstance(route.body, tuple) and route.body is not None
    for name in names(route.body):
        for value in WRONG:
            answer = await send(route, content=json.dumps({name: value}), headers=TEXT)
            if answer.status_code >= 300:
                check(answer, 401, 404, 409, 422)


@pytest.mark.parametrize("route", BODY_ROUTES, ids=named)
async def test_another_type_or_encoding_of_a_body_is_415(send: Any, route: Route) -> None:
    for headers in (
        {"Content-Type": "text/html"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": f"{route.media_types[0]}; charset=latin-1"},
        {"Content-Type": route.media_types[0], "Content-Encoding": "gzip"},
        {"Content-Type": route.media_types[0], "Content-Encoding": "br"},
        {"Content-Type": "x"},
    ):
        answer = await send(route, content=b"{}", headers=headers)
        check(answer, 415, 422 if route.query else 415)  # what the query lacks is found first
    if JSON in route.media_types:
        check(await send(route, content=b"{}"), 415)  # the client library names no type by itself


@pytest.mark.parametrize("route", BODY_ROUTES, ids=named)
async def test_a_body_over_the_cap_is_413_and_ends_the_connection(send: Any, route: Route) -> None:
    async def much() -> AsyncIterator[bytes]:
        for _ in range(700):
            yield b" " * 65536

    for headers in ({}, {"Content-Length": str(2**60)}):
        answer = await send(route, content=much(), headers={"Content-Type": route.media_types[0], **headers})
        if answer.status_code not in (400, 422):  # a header is missing: then nobody reads the body
            check(answer, 413)
            assert answer.headers["connection"] == "close"


BAD_QUERIES = {
    b"unknown=1": 422,
    b"Limit=1": 422,
    b"=": 422,
    b"a=%00": 422,
    b"a=%ff": 400,
    b"a=%zz": 400,
    b"a=1&" * 10_000: 400,
    b"a=rgk_aaaaaaaaaaaa_secret": 400,
}


@pytest.mark.parametrize("route", [route for route in ROUTES if route.path not in TAKES_ANYTHING], ids=named)
async def test_a_query_that_breaks_a_rule_is_refused(send: Any, route: Route) -> None:
    headers = {"RGrid-Lease": str(UUID(int=1))} if route.headers else {}
    for query, status in BAD_QUERIES.items():
        check(await send(route, query=query, headers=headers), status)
    for name in map(str.encode, names(route.query) if route.query else ()):
        check(await send(route, query=b"%b=1&%b=1" % (name, name), headers=headers), 422)
        check(await send(route, query=b"%b=%%00" % name, headers=headers), 422)


@pytest.mark.parametrize("route", ROUTES, ids=named)
async def test_another_method_is_405_and_says_which_there_are(send: Any, route: Route) -> None:
    allowed = {other.method for other in ROUTES if other.path == route.path}
    allowed |= {"HEAD"} if "GET" in allowed else set()
    for method in {"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} - allowed:
        answer = await send(route, method=method)
        check(answer, 405)
        assert set(answer.headers["allow"].split(", ")) == allowed
    overridden = await send(route, method="BREW", headers={"X-HTTP-Method-Override": route.method})
    check(overridden, 405)


@pytest.mark.parametrize("route", ROUTES, ids=named)
async def test_another_spelling_of_a_path_reaches_nothing(send: Any, route: Route) -> None:
    path = route.path.format(**VALUES)
    first = path[1:].split("/")[0]
    for other in (
        f"/{path}", f"{path}/", f"{path}//", f"/%2e{path}", f"{path}%00", f"{path}%2f",
        f"{path};a=1", f"{path}/x/y/z", path.replace("/", "/%2f", 1), path.replace(first, first.upper()),
        path.replace(first, f"%{ord(first[0]):02x}{first[1:]}"), f"{path}%0d%0a", f"{path}%ff", f"{path}+",
    ):  # fmt: skip
        check(await send(route, path=other), 404)
    check(await send(route, path=f"{path}/{'x' * 16_000}"), 414)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.scope], ids=named)
async def test_two_keys_in_one_request_are_400(shared_services: Services, route: Route) -> None:
    async with client_of(shared_services, None) as client:
        headers = [("Authorization", f"Bearer {BOOTSTRAP_KEY}")] * 2
        check(await client.request(route.method, route.path.format(**VALUES), headers=headers), 400)


async def test_what_a_client_says_of_hosts_and_origins_changes_nothing(
    shared_api: httpx.AsyncClient, shared_services: Services
) -> None:
    forged = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "127.0.0.1",
        "Forwarded": "host=evil.example",
        "Origin": "https://evil.example",
        "Accept": "text/xml",
    }
    known = await make_one_of_each(shared_services, shared_api)
    for path in (f"/v1/jobs/{known.job}", f"/v1/artifacts/{known.artifact}", f"/r/{known.token}"):
        answer = await shared_api.get(path, headers=forged)
        assert answer.status_code in (200, 302)
        assert "evil" not in answer.text and "evil" not in str(answer.headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert shared_services.settings.base_url in (await shared_api.get(f"/v1/jobs/{known.job}")).text
