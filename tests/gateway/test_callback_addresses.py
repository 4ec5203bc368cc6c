"""Addresses that callbacks may not have, wherever they are named: our own, and what an operator denies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import httpx
import pytest
from pydantic import ValidationError

from functions.egress import EgressFailed, EgressRefused, exchange, refused_names
from gateway.api import callbacks, functions
from gateway.settings import Settings
from tests.gateway.conftest import make_settings
from tests.gateway.making import make_function, manifest
from tests.s3 import S3Server

PUBLIC_URL = "https://rgrid.example"


@pytest.fixture
def settings(database: str, s3_server: S3Server) -> Settings:
    return make_settings(
        database, s3_server, public_url=PUBLIC_URL, callback_deny="9.9.9.0/24, nodes.example",
        callback_allow="127.0.0.0/8",
    )  # fmt: skip


def ours(settings: Settings) -> list[str]:
    return [
        f"{PUBLIC_URL}/v1/functions/x/invoke", "https://RGRID.example.:443/", f"{settings.s3_endpoint}/rgrid/x",
        "https://9.9.9.9/", "https://nodes.example:8443/",
    ]  # fmt: skip


async def test_our_own_addresses_are_refused_wherever_a_callback_is_named(
    settings: Settings, api: httpx.AsyncClient
) -> None:
    await make_function(api)
    for url in ours(settings):
        named = await api.post("/v1/callbacks", json={"url": url})
        invoked = await api.post("/v1/functions/thumbnail/invoke", json={"video": "v"}, headers={"X-Callback-Url": url})
        applied = await api.put("/v1/functions/other", json=manifest("other", callbacks=[{"url": url}]))
        for answer in (named, invoked, applied):
            assert answer.status_code == 422, (url, answer.text)
            assert "may not be called" in answer.text, (url, answer.text)
    # The same host at another port may be somebody else's, and a job may fetch what we give to anybody.
    assert (await api.post("/v1/callbacks", json={"url": f"{PUBLIC_URL}:8443/x"})).status_code == 201
    fetching = {"image": "busybox", "files": {"inputs": [{"path": "/in/x", "url": f"{PUBLIC_URL}/r/abc"}]}}
    await make_function(api, "fetches", job=fetching)


async def test_our_own_addresses_are_refused_when_they_are_called(settings: Settings) -> None:
    for url in ours(settings):
        with pytest.raises(EgressRefused):
            await exchange(settings.callback_policy, "POST", url, {}, b"")
    with pytest.raises(EgressFailed):
        await exchange(settings.callback_policy, "POST", "http://127.0.0.1:1/", {}, b"")


async def test_a_list_that_means_nothing_is_an_error_at_start(settings: Settings) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(settings.model_dump() | {"callback_deny": "10.0.0.1/8"})


async def test_a_name_that_leads_inside_is_refused_when_it_is_registered(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolver(host: str, _port: int) -> Sequence[str]:
        return ["10.0.0.1"] if host.startswith("inside") else ["93.184.215.14"]

    for module in (callbacks, functions):
        monkeypatch.setattr(module, "refused_names", partial(refused_names, resolver=resolver))
    for name, status in (("inside", 422), ("public", 201)):
        url = f"https://{name}.example/hook"
        named = await api.post("/v1/callbacks", json={"url": url})
        applied = await api.put(f"/v1/functions/{name}", json=manifest(name, callbacks=[{"url": url}]))
        several = await api.post("/v1/functions", json={"manifests": [manifest(name, callbacks=[{"url": url}])]})
        assert (named.status_code, applied.status_code) == (status, status)
        assert (several.status_code == 200) == (status == 201)
        if status == 422:
            assert {named.json()["code"], applied.json()["code"], several.json()["code"]} == {"url_refused"}
            assert applied.json()["errors"][0]["pointer"] == "/spec/callbacks/0/url"
