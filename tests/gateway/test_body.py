"""Reading bodies, queries and headers, over an application of its own with one route of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway import body
from gateway.app import create_app
from gateway.routes import (
    IdempotencyKey,
    Route,
    content_type,
    read_body,
    read_headers,
    read_query,
    read_raw,
)
from gateway.services import Services


class Color(StrEnum):
    RED = "red"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    deep: int


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(1, ge=0, le=10)
    share: float = 0.0
    on: bool = False
    name: str = Field("", max_length=10)
    color: Color | None = None
    at: datetime | None = None
    tags: tuple[str, ...] = ()
    inner: dict[str, Inner] = {}


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    dry: bool = False
    wait: float = Field(0, ge=0, le=300, allow_inf_nan=False)
    text: str | None = None


class Headers(BaseModel):
    key: IdempotencyKey | None = Field(None, alias="Idempotency-Key")
    delay: str | None = Field(None, alias="RGrid-Delay")


async def order(request: Request) -> Response:
    return JSONResponse((await read_body(request, Order)).model_dump(mode="json"))


async def optional(request: Request) -> Response:
    return JSONResponse((await read_body(request, Order)).model_dump(mode="json"))


async def raw(request: Request) -> Response:
    data = await read_raw(request, 100, media_types=("text/plain", "application/yaml"))
    return JSONResponse({"size": len(data), "type": content_type(request)})


async def query(request: Request) -> Response:
    return JSONResponse(read_query(request, Query).model_dump())


async def headers(request: Request) -> Response:
    return JSONResponse(read_headers(request, Headers).model_dump())


ROUTES = (
    Route("POST", "/order", order, "", None, body=Order),
    Route("POST", "/optional", optional, "", None, body=Order, body_required=False),
    Route("POST", "/raw", raw, "", None, body=("text/plain", "application/yaml")),
    Route("GET", "/query", query, "", None, query=Query),
    Route("GET", "/headers", headers, "", None, headers=Headers),
)


@pytest.fixture
async def http(shared_services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(shared_services, ROUTES))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def send(http: httpx.AsyncClient, content: bytes, **more: Any) -> httpx.Response:
    return await http.post(
        "/order", content=content, **({"headers": {"Content-Type": "application/json"}} | more)
    )


def pointers(answer: httpx.Response) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]


async def test_a_body_is_parsed(http: httpx.AsyncClient) -> None:
    content = (
        b'{"count": 3, "share": 1, "on": true, "color": "red", "at": "2026-01-02T03:04:05Z", "tags": ["a"]}'
    )
    answer = await send(http, content)
    assert answer.status_code == 200
    assert (answer.json()["share"], answer.json()["tags"], answer.json()["color"]) == (1.0, ["a"], "red")


@pytest.mark.parametrize(
    ("content", "status", "where"),
    [
        (b'{"count": "3"}', 422, "/count"),
        (b'{"count": true}', 422, "/count"),
        (b'{"count": 3.0}', 422, "/count"),
        (b'{"count": 11}', 422, "/count"),
        (b'{"count": 9223372036854775808}', 422, "/count"),
        (b'{"count": null}', 422, "/count"),
        (b'{"share": "1.5"}', 422, "/share"),
        (b'{"on": 1}', 422, "/on"),
        (b'{"on": "true"}', 422, "/on"),
        (b'{"name": 1}', 422, "/name"),
        (b'{"name": "12345678901"}', 422, "/name"),
        (b'{"name": "a\\u0000b"}', 422, "/name"),
        (b'{"name": "\\ud800"}', 422, "/name"),
        (b'{"color": "blue"}', 422, "/color"),
        (b'{"at": 1700000000}', 422, "/at"),
        (b'{"at": "10000-01-01T00:00:00Z"}', 422, "/at"),
        (b'{"tags": "a"}', 422, "/tags"),
        (b'{"tags": ["a", 1]}', 422, "/tags/1"),
        (b'{"inner": {"a/b~": {"deep": "x"}}}', 422, "/inner/a~1b~0/deep"),
        (b'{"unknown": 1}', 422, "/unknown"),
        (b"[]", 422, ""),
        (b"null", 422, ""),
        (b"{", 400, None),
        (b"", 400, None),
        (b" \n", 400, None),
        (b'{"count": 1, "count": 2}', 400, None),
        (b'{"share": NaN}', 400, None),
        (b"[" * 100_000, 400, None),
    ],
)
async def test_a_body_that_breaks_a_rule_is_refused(
    http: httpx.AsyncClient, content: bytes, status: int, where: str | None
) -> None:
    answer = await send(http, content)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    if where is not None:
        assert pointers(answer) == [where]


async def test_at_most_twenty_faults_are_listed_and_names_in_them_are_cut(http: httpx.AsyncClient) -> None:
    content = b"{%s}" % b",".join(b'"%s%d": 1' % (b"x" * 1000, number) for number in range(500))
    answer = await send(http, content)
    assert len(pointers(answer)) == 20
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "json"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/merge-patch+json"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "identity, br"},
    ],
)
async def test_another_content_type_or_encoding_is_415(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await send(http, b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "APPLICATION/JSON",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
    ],
)
async def test_json_may_say_that_it_is_utf8(http: httpx.AsyncClient, kind: str) -> None:
    answer = await send(http, b"{}", headers={"Content-Type": kind, "Content-Encoding": "identity"})
    assert answer.status_code == 200


async def test_two_content_types_are_refused(http: httpx.AsyncClient) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Type", "text/plain")]
    assert (await send(http, b"{}", headers=headers)).status_code == 400


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_cap_is_413_and_ends_the_connection(
    http: httpx.AsyncClient, declared: bool
) -> None:
    given = 0

    async def much() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(64):
            given += 65536
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    if declared:
        headers["Content-Length"] = str(64 * 65536)
    answer = await http.post("/order", content=much(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert answer.headers["connection"] == "close"


async def test_a_body_of_exactly_the_cap_is_taken(http: httpx.AsyncClient) -> None:
    assert (await send(http, b"{}" + b" " * (body.CAP_BYTES - 2))).status_code == 200
    assert (await send(http, b"{}" + b" " * (body.CAP_BYTES - 1))).status_code == 413


async def test_a_body_that_does_not_come_is_408(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "PATIENCE_S", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await http.post("/order", content=slow(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (408, "request_timeout")


async def test_an_optional_body_may_be_left_out_but_not_be_wrong(http: httpx.AsyncClient) -> None:
    assert (await http.post("/optional")).json()["count"] == 1
    assert (await http.post("/optional", content=b"{")).status_code == 415
    sent = await http.post("/optional", content=b"{", headers={"Content-Type": "application/json"})
    assert sent.status_code == 400


async def test_a_raw_body_has_the_types_and_the_cap_of_its_call(http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "Application/YAML; charset=utf-8"}
    answer = await http.post("/raw", content=b"\xff" * 100, headers=headers)
    assert answer.json() == {"size": 100, "type": "application/yaml"}
    assert (await http.post("/raw", content=b"x" * 101, headers=headers)).status_code == 413
    assert (
        await http.post("/raw", content=b"{}", headers={"Content-Type": "application/json"})
    ).status_code == 415


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("limit=5", {"limit": 5}),
        ("limit=100&dry=1", {"limit": 100, "dry": True}),
        ("dry=false", {"dry": False}),
        ("wait=1.5", {"wait": 1.5}),
        ("text=", {"text": ""}),
        ("text=a+b%20c", {"text": "a b c"}),
        ("text=%C3%A4", {"text": "ä"}),
    ],
)
async def test_a_query_is_parsed(http: httpx.AsyncClient, text: str, expected: dict[str, Any]) -> None:
    answer = await http.get(f"/query?{text}")
    assert answer.status_code == 200
    assert answer.json() == {"limit": 20, "dry": False, "wait": 0.0, "text": None} | expected


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("limit=5&limit=6", 422),
        ("limit=5&limit=5", 422),
        ("limit=5&lim%69t=6", 422),
        ("unknown=1", 422),
        ("unknown", 422),
        ("Limit=5", 422),
        ("=5", 422),
        ("limit", 422),
        ("limit=", 422),
        ("limit=0", 422),
        ("limit=-1", 422),
        ("limit=101", 422),
        ("limit=1.0", 422),
        ("limit=1_0", 422),
        ("limit=%2B1", 422),
        ("limit=+1", 422),
        ("limit=1e1", 422),
        ("limit=%D9%A3", 422),
        ("limit=" + "9" * 5000, 422),
        ("limit=true", 422),
        ("dry=maybe", 422),
        ("wait=nan", 422),
        ("wait=inf", 422),
        ("wait=1e999", 422),
        ("text=a%00b", 422),
        ("text=%FF", 400),
        ("text=%zz", 400),
        ("text=100%", 400),
        ("&".join(f"a{number}=1" for number in range(101)), 400),
        ("a=1&" * 10_000, 400),
    ],
)
async def test_a_query_that_breaks_a_rule_is_refused(http: httpx.AsyncClient, text: str, status: int) -> None:
    request = http.build_request("GET", "/query")
    request.url = httpx.URL("http://gateway/query").copy_with(raw_path=b"/query?" + text.encode("latin-1"))
    answer = await http.send(request)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    if status == 422:
        assert all(pointer.startswith("/query/") for pointer in pointers(answer))


async def test_a_route_without_parameters_takes_none(http: httpx.AsyncClient) -> None:
    answer = await http.get("/headers?a=1&b=2")
    assert (answer.status_code, pointers(answer)) == (422, ["/query/a", "/query/b"])


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"a", 200),
        (b"x" * 255, 200),
        (b'"quoted-{}~!"', 200),
        (b"", 400),
        (b"  ", 400),
        (b"x" * 256, 400),
        (b"x" * 300, 400),
        (b"a b", 400),
        (b"a\tb", 400),
        ("ä".encode(), 400),
        (b"\xff", 400),
    ],
)
async def test_an_idempotency_key_is_1_to_255_visible_ascii_characters(
    http: httpx.AsyncClient, value: bytes, status: int
) -> None:
    answer = await http.get("/headers", headers=[(b"Idempotency-Key", value)])
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["key"] == value.decode()
    else:
        assert pointers(answer) == ["/header/Idempotency-Key"]


async def test_a_known_header_stands_once_and_others_are_nobodys_business(http: httpx.AsyncClient) -> None:
    twice = [("Idempotency-Key", "a"), ("idempotency-key", "a")]
    assert (await http.get("/headers", headers=twice)).status_code == 400
    others = [("X-Thing", "a"), ("X-Thing", "b"), ("RGRID-DELAY", " 10m ")]
    answer = await http.get("/headers", headers=others)
    assert answer.json() == {"key": None, "delay": "10m"}
