"""Keys and scopes over the real application."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pydantic import SecretStr

from gateway import auth
from gateway.api.table import ROUTES
from gateway.auth import IMPLIED, add_key
from gateway.bootstrap import ensure_bootstrap
from gateway.keys import make_key, parse
from gateway.routes import Route, Scope
from gateway.services import Services
from tests.gateway.conftest import client_of
from tests.gateway.making import key_client

VALUES = dict.fromkeys(("name", "function", "id", "job", "token", "webhook", "receipt", "sha256"), "nothing") | {"project": "default"}
PEOPLES = [route for route in ROUTES if route.scope not in (None, Scope.NODE)]


async def status_of(client: httpx.AsyncClient, path: str = "/v1/functions") -> int:
    return (await client.get(path)).status_code


@pytest.mark.parametrize("granted", ["invoke", "read", "write", "admin", "invoke:nothing", "invoke:other", "unknown"])
async def test_a_key_may_do_what_its_scopes_say_and_nothing_else(shared_services: Services, granted: str) -> None:
    scopes = IMPLIED.get(granted, frozenset())
    async with key_client(shared_services, granted) as client:
        for route in PEOPLES:
            own = route.own and granted.startswith("invoke")
            named = route.scope is Scope.INVOKE and granted == "invoke:nothing"
            answer = await client.request(route.method, route.path.format(**VALUES))
            assert (answer.status_code != 403) == (route.scope in scopes or own or named), route
            if answer.status_code == 403:
                assert answer.json()["code"] == "forbidden"


@pytest.mark.parametrize("route", PEOPLES, ids=lambda route: f"{route.method} {route.path}")
def test_what_changes_something_is_not_for_readers(route: Route) -> None:
    assert (route.method == "GET") or route.scope not in IMPLIED["read"]


async def test_a_revoked_key_is_refused_within_seconds(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auth.CACHE_S < 5
    monkeypatch.setattr(auth, "CACHE_S", 0.2)
    async with key_client(services, "read") as client:
        assert await status_of(client) == 200
        await services.pool.execute("UPDATE api_keys SET revoked_at = now() WHERE id <> 'bootstrap'")
        revoked = time.monotonic()
        async with asyncio.timeout(5):
            while await status_of(client) != 401:
                await asyncio.sleep(0.02)
        assert time.monotonic() - revoked < 2


async def test_an_expired_key_is_refused_although_it_was_remembered(services: Services) -> None:
    async with services.pool.acquire() as conn:
        project = await conn.fetchval("SELECT id FROM projects")
        at = datetime.now(UTC) + timedelta(milliseconds=700)
        key = await add_key(conn, project, name="soon over", scopes=["read"], expires_at=at)
    async with client_of(services, key.text) as client:
        assert await status_of(client) == 200
        async with asyncio.timeout(5):
            while await status_of(client) != 401:
                await asyncio.sleep(0.05)
    assert datetime.now(UTC) >= at


async def test_keys_that_nobody_gave_out_are_refused_alike(shared_services: Services) -> None:
    given = make_key().text
    wrong = [given, given[:-1], given[:20], given + "a", given.swapcase(), given.replace("rgk_", "rgx_"), "x" * 40]
    messages = set()
    for key in wrong:
        async with client_of(shared_services, key) as client:
            answer = await client.get("/v1/functions")
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="rgrid"')
            messages.add(answer.json()["code"])
    assert messages == {"unauthenticated"}


async def test_the_first_key_may_be_any_string_also_one_that_looks_like_part_of_another(services: Services) -> None:
    text = "rgk_a_key_for_a_fresh_instance_of_mine"
    settings = services.settings.model_copy(update={"bootstrap_key": SecretStr(text)})
    async with services.pool.acquire() as conn:
        await ensure_bootstrap(conn, settings, services.sealer)
    async with client_of(services, text) as client:
        assert await status_of(client) == 200
    async with client_of(services, text[:-1]) as client:
        assert (await client.get("/v1/functions")).json()["detail"].endswith("was it copied in full?")


async def test_a_key_is_stored_as_a_hash_only(services: Services) -> None:
    async with services.pool.acquire() as conn:
        project = await conn.fetchval("SELECT id FROM projects")
        key = await add_key(conn, project, name="k", scopes=["read"])
        row = await conn.fetchrow("SELECT * FROM api_keys WHERE id = $1", key.id)
    assert row is not None and parse(key.text) == key.id
    assert key.text.removeprefix(f"rgk_{key.id}_") not in str(dict(row))
